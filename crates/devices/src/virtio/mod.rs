//! Virtio 1.2 devices behind virtio-mmio windows.
//!
//! [`Virtio`] is the transport; the device behind it is one of [`blk::BlkDevice`], [`net::NetDevice`],
//! [`rng::RngDevice`] and [`console::ConsoleDevice`]. Rings change only inside calls into the device, and
//! each call is made at a logged or computed position: a kick drains its ring at once, data from outside
//! enters RAM when the call that brings it is made.

pub mod blk;
pub mod console;
pub mod net;
pub mod queue;
pub mod rng;
mod transport;

#[cfg(test)]
mod testing;

pub use blk::Blk;
pub use console::Console;
pub use net::Net;
pub use rng::Rng;
pub use transport::{Backend, Io, TransportState, Virtio, VirtioState};

/// `VIRTIO_F_RING_INDIRECT_DESC`.
pub const F_RING_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_RING_EVENT_IDX`.
pub const F_RING_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u64 = 1 << 32;
