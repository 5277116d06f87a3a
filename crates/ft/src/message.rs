//! What the two sides say to each other. Framing (length, checksum, encryption, authentication) is
//! the shell's; both enums travel as `postcard`.

use std::fmt;

use base::{Claimant, Digest, Generation, Icount, LogPos, Nanos, VmId};
use serde::{Deserialize, Serialize};

use crate::Timing;

/// Goes up with every change to [`Message`] or [`Heartbeat`]. A pair speaks one version.
pub const PROTOCOL_VERSION: u16 = 1;

/// A message on the logging channel: an ordered stream that may break, never reorder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Primary: "be my backup".
    Hello(Hello),
    /// Backup: "I will".
    Welcome(Welcome),
    /// Backup: "I will not", or "I am not who you think".
    Refuse(Refuse),
    /// Primary: the start state follows, in [`Message::Chunk`]s.
    Start(StartPoint),
    /// Primary: a piece of the start state. The shell makes these.
    Chunk {
        /// Where the piece belongs; pieces come in order.
        offset: u64,
        /// At most [`CHUNK_LEN_MAX`] bytes.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Backup: the start state is loaded and has this digest.
    Loaded {
        /// The pairing.
        generation: Generation,
        /// Of the restored machine.
        digest: Digest,
    },
    /// Primary: entries of the event log, or none: then it only asks for an [`Message::Ack`].
    Log(Log),
    /// Backup: what it holds and how far it is. Never sent once it has claimed.
    Ack(Ack),
    /// Primary, on a new stream after a break: "go on with this generation".
    Resume {
        /// The pairing.
        generation: Generation,
        /// The primary.
        from: Claimant,
        /// The backup it means.
        to: Claimant,
    },
    /// Backup: "go on from here".
    Resumed(Ack),
    /// Backup: its machine differs from the primary's. It never claims.
    Diverged {
        /// The pairing.
        generation: Generation,
        /// The first window in which the digests differ.
        window: Window,
    },
    /// Backup: it leaves the pair in good order. It never claims.
    Leave {
        /// The pairing.
        generation: Generation,
    },
}

/// Who asks for a pairing, and what the other side needs to be equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    pub version: u16,
    /// The VM.
    pub vm: VmId,
    /// The generation that this pairing will arm.
    pub generation: Generation,
    /// The primary.
    pub claimant: Claimant,
    /// The primary's host; the backup refuses its own.
    pub host: Digest,
    /// CPU model and machine configuration; the backup refuses what it cannot run.
    pub machine: Digest,
    /// Used by both sides.
    pub timing: Timing,
}

/// The answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// From the hello.
    pub generation: Generation,
    /// The backup.
    pub claimant: Claimant,
}

/// Why a backup does not pair, or does not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refuse {
    /// The builds do not speak the same protocol.
    #[error("the backup speaks protocol version {speaks}, the primary {asked}")]
    Version {
        /// The backup's.
        speaks: u16,
        /// The primary's.
        asked: u16,
    },
    /// The backup serves another VM.
    #[error("the backup is there for VM {serves}, not for {asked}")]
    OtherVm {
        /// The backup's.
        serves: VmId,
        /// The primary's.
        asked: VmId,
    },
    /// Both processes run on one host.
    #[error("primary and backup are on the same host")]
    SameHost,
    /// CPU model or configuration differ.
    #[error("CPU model or machine configuration differ (backup {has}, primary {asked})")]
    Machine {
        /// The backup's.
        has: Digest,
        /// The primary's.
        asked: Digest,
    },
    /// The backup is part of another pairing, or has left this one.
    #[error("the backup is not free for generation {asked}")]
    Busy {
        /// The generation asked about.
        asked: Generation,
    },
    /// The hello's timing is out of range.
    #[error("the primary's timing is out of range")]
    Timing,
    /// A stream began with something else than [`Message::Hello`] or [`Message::Resume`].
    #[error("the stream does not begin with a hello")]
    NoHello,
}

/// The point of the log at which the backup's copy begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartPoint {
    /// The pairing.
    pub generation: Generation,
    /// Entries before this position are part of the start state.
    pub pos: LogPos,
    /// Where the machine stands.
    pub icount: Icount,
    /// Outputs that the machine had produced; numbers the outputs alike on both sides.
    pub outputs: u64,
    /// Digest of the machine.
    pub digest: Digest,
    /// Bytes of the start state.
    pub state_len: u64,
}

/// A piece of the event log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The pairing.
    pub generation: Generation,
    /// The position of the first entry.
    pub first: LogPos,
    /// The primary's clock. Acknowledgements echo the highest, unread.
    pub sent: Nanos,
    /// Outputs below this number have left the primary.
    pub released: u64,
    /// How far the backup's execution trails, as the primary computes it; for display.
    pub lag: Nanos,
    /// In order.
    pub entries: Vec<Entry>,
}

/// One entry of the event log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whether the protocol has to look at it.
    pub kind: EntryKind,
    /// The entry as the event log has it. At most [`ENTRY_LEN_MAX`] bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// What an entry means to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// Nothing: it is the machine's.
    Event,
    /// A step of the protocol.
    Control(Control),
}

/// Steps of the protocol that are entries of the log, so that they have a place in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Control {
    /// The pairing holds from here on: its reader may claim the generation.
    Armed(Generation),
    /// The pairing ends here: its reader never claims the generation.
    End {
        /// The generation that ends.
        generation: Generation,
        /// Why.
        reason: EndReason,
    },
}

/// Why a pairing is ended on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EndReason {
    /// The VM, or its guest, was switched off.
    PowerOff,
    /// Protection was switched off, or the pair is to be made anew; the VM runs on.
    ProtectionOff,
}

/// What a backup holds and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The pairing.
    pub generation: Generation,
    /// The log up to here is in the backup's buffer.
    pub received: LogPos,
    /// What its machine has executed.
    pub progress: Progress,
    /// Bytes of entries, counted from the start point, that it has room for.
    pub credit: u64,
    /// The highest [`Log::sent`] or [`Heartbeat::sent`] it has read.
    pub echo: Option<Nanos>,
    /// A heartbeat of the primary has come through.
    pub heartbeats: bool,
}

/// How far a machine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Progress {
    /// Steps executed.
    pub icount: Icount,
    /// Entries of the log executed (backup) or written (primary).
    pub pos: LogPos,
}

/// Whether a machine is supposed to make progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Not yet, or not now: paused by the operator, or held by its own side.
    #[default]
    Paused,
    /// Yes: missing progress is a failure.
    Running,
}

/// Part of a log in which two machines differ: from the last equal digest to the first unequal one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The last position at which both were equal.
    pub equal: Progress,
    /// The first at which they differ.
    pub differs: Progress,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (equal, differs) = (self.equal, self.differs);
        write!(f, "between step {} (entry {})", equal.icount, equal.pos)?;
        write!(f, " and step {} (entry {})", differs.icount, differs.pos)
    }
}

/// A datagram, authenticated by the shell; may be lost, repeated, late or reordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The pairing.
    pub generation: Generation,
    /// Who sends it.
    pub from: Claimant,
    /// The sender's clock.
    pub sent: Nanos,
    /// From a backup: as in [`Ack::echo`].
    pub echo: Option<Nanos>,
    /// Whether its machine is supposed to run.
    pub run: RunState,
    /// How far its machine is.
    pub progress: Progress,
}

/// Longest piece of a start state.
pub const CHUNK_LEN_MAX: usize = 1 << 20;
/// Longest entry: a disk read of 16 MiB and its header.
pub const ENTRY_LEN_MAX: usize = (16 << 20) + 4096;
