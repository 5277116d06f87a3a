//! What enters the machine and what leaves it.
//!
//! An [`Event`] is an input at a position; an [`Output`] is an effect for the shell to perform. The
//! event log holds the events, stamped, and a mark for every output.

use base::{Digest, Frame};
pub use devices::io::{Console, DiskOp, DiskResult};
use serde::{Deserialize, Serialize};

/// An input. It takes effect at the icount at which it is injected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Ethernet frames for a network device, announced by one interrupt.
    FramesReceived {
        /// Index of the device, in the order of the configuration.
        nic: u8,
        /// The frames, oldest first.
        frames: Vec<Frame>,
    },
    /// A disk has done a request.
    DiskDone {
        /// Index of the disk, in the order of the configuration.
        disk: u8,
        /// The request's number, as its [`Output::DiskRequest`] gave it.
        request: u64,
        /// How it went.
        result: DiskResult,
    },
    /// Bytes typed at a console.
    ConsoleInput {
        /// Which console.
        console: Console,
        /// The bytes, oldest first.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Random bytes for virtio-rng, as an answer to [`Output::EntropyWanted`].
    Entropy {
        /// The bytes. The host's random number generator made them.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Guest time from here on: `guest_ns` now, then `ns_per_step_q32 / 2^32` ns a step. Never
    /// earlier than the time computed so far.
    Anchor {
        /// Guest time at this position, in nanoseconds since power-on.
        guest_ns: u64,
        /// Nanoseconds a step, as a 32.32 fixed-point number.
        ns_per_step_q32: u64,
    },
    /// An operation of the operator or of the cluster.
    Control(Control),
}

/// What an operator or the cluster does to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Presses the ACPI power button: a running system shuts itself down.
    PowerButton,
    /// Cuts the power.
    PowerOff,
    /// Presses the reset button.
    Reset,
    /// Has every network device ask its driver to announce itself (`VIRTIO_NET_F_GUEST_ANNOUNCE`).
    Announce,
}

/// An effect that the shell performs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Ethernet frames that were sent together.
    FramesSent {
        /// Index of the network device.
        nic: u8,
        /// The frames, oldest first.
        frames: Vec<Frame>,
    },
    /// A disk request. The machine hands it out only when no unfinished request that was handed out
    /// earlier touches the same sectors, unless both are reads.
    DiskRequest {
        /// Index of the disk.
        disk: u8,
        /// Numbers a machine's requests from 0; unique per disk.
        request: u64,
        /// What to do.
        op: DiskOp,
    },
    /// Bytes that the guest wrote to a console.
    ConsoleOutput {
        /// Which console.
        console: Console,
        /// The bytes, oldest first.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The guest's virtio-rng wants this many random bytes. Not visible outside, so it waits for nobody.
    EntropyWanted {
        /// How many, from 1 to 4096.
        len: u32,
    },
}

impl Output {
    /// What kind of output it is, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Output::FramesSent { .. } => "frames sent",
            Output::DiskRequest { .. } => "disk request",
            Output::ConsoleOutput { .. } => "console output",
            Output::EntropyWanted { .. } => "entropy request",
        }
    }

    /// The digest that stands in the log for the output.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&postcard::to_stdvec(self).expect("an output always serializes"))
    }

    /// True if the output is gone once it was let out. Requests are not: what has no completion in
    /// the log is asked again after a failover.
    #[must_use]
    pub fn leaves_once(&self) -> bool {
        matches!(self, Output::FramesSent { .. } | Output::ConsoleOutput { .. })
    }
}
