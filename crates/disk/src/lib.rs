//! Disks and arbitration: images in files, the NBD server with fencing, its client, and the arbiter.
//!
//! The server (`lockstep disk`) exports images to both hosts of a pair. A connection may carry a
//! [`Stamp`]; the first sight of a higher one deposes every lower one for good, and nothing that a
//! deposed side sent can land after that. The same server keeps the arbiter's records. Formats:
//! `docs/formats/nbd-fencing.md` and `docs/formats/arbiter.md`.
#![forbid(unsafe_code)]

pub mod arbiter;
pub mod backend;
pub mod client;
mod export;
pub mod file;
pub mod image;
pub mod nbd;
mod net;
pub mod open;
pub mod overlay;
mod qcow2;
pub mod server;
pub mod stamp;
mod state;
pub mod storage;
mod upstream;

pub use backend::{
    Backend, Completion, DiskError, DiskEvent, DiskInfo, EventSink, Extent, Op, REQUEST_LEN_MAX,
    RequestId, SECTOR_SIZE,
};
pub use stamp::{Access, Badge, Stamp};
pub use state::StateError;
