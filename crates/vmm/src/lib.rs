//! One virtual machine as a process: the threads, sockets and files around the pure core.
#![forbid(unsafe_code)]

pub mod announce;
pub mod backup;
pub mod config;
pub mod conn;
pub mod console;
pub mod control;
mod desk;
mod disks;
mod engine;
pub mod key;
mod mailbox;
mod nets;
mod opening;
mod pacer;
mod recording;
pub mod replaying;
pub mod run;
pub mod rundir;
mod sampler;
mod shell;
pub mod terminal;
mod timeline;
pub mod wire;

pub use engine::describe;
pub use mailbox::Totals;
pub use shell::Ended;
pub use timeline::TimelineEvent;
