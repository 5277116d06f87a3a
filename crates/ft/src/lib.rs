//! Primary/backup protocol: who runs a VM, what it may say to the world, and who goes on alone.
//!
//! A state machine without I/O: no socket, thread or clock. What the two sides, the machine and the
//! arbiter say goes into a [`Node`] by its `handle_*` methods; what has to be done comes out of
//! [`Node::poll_action`]. `docs/protocol.md` tells the protocol in prose. Three contracts matter:
//!
//! * **The clock** handed in is the host's monotonic clock *including suspend*, read just before
//!   every call, also before every [`Node::poll_action`].
//! * **Actions are done in order**, and polling the next says that the last is done.
//! * **The machine's calls come in its order**: `handle_append`, `handle_output` and `handle_snapshot`.
#![forbid(unsafe_code)]

pub mod arbiter;
mod backup;
mod gate;
mod lag;
mod live;
mod message;
mod node;
mod primary;
mod stamp;
mod stream;
mod timing;
mod watch;

pub use gate::{HELD_OUTPUTS_MAX, OutputGate, OutputKind, Wait};
pub use lag::{CLONING_SPEED_MIN, LAG_HIGH, LAG_LOW, LAG_STEP, LagController, SPEED_MIN, Speed};
pub use message::{
    Ack, CHUNK_LEN_MAX, Control, ENTRY_LEN_MAX, EndReason, Entry, EntryKind, Heartbeat, Hello, Log,
    Message, PROTOCOL_VERSION, Progress, Refuse, RunState, StartPoint, Welcome, Window,
};
pub use node::{Action, CommandError, Config, Halted, Node, Pace, Report, Role, Snapshot, Status};
pub use primary::{DIVERGENCE_WINDOW, DIVERGENCES_MAX, PairOptions, PairingFailure};
pub use stamp::Stamp;
pub use stream::{BACKUP_BUFFER_LEN_MAX, LOG_BUFFER_LEN_MAX};
pub use timing::{
    ANCHOR_STEP_MAX, ARBITRATION_RUN_MAX, ASK_AGAIN, DETECTION_MAX, DETECTION_MIN, LOG_FLUSH,
    PAIRING_SILENCE_MAX, Timing, TimingError,
};
pub use watch::Failure;
