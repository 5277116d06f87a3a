//! Record and replay: the event log, the recorder that writes it and the replayer that follows it.
#![forbid(unsafe_code)]

pub mod format;
