//! One virtual machine as a process: the threads, sockets and files around the pure core.
#![forbid(unsafe_code)]

pub mod announce;
pub mod conn;
pub mod console;
pub mod key;
pub mod rundir;
pub mod wire;
