//! Record and replay: the event log, the recorder that writes it and the replayer that follows it.
#![forbid(unsafe_code)]

mod compare;
pub mod format;
mod recorder;
mod replayer;

pub use compare::{Compared, Comparison, EngineDifference, Equip, Shadow};
pub use recorder::Recorder;
pub use replayer::{Difference, Divergence, Passed, Progress, Replayer};
