//! What every other crate shares: newtypes for the numbers that must not be mixed up, digests,
//! saved state, frames, and seeded random numbers. Knows nothing of machines, files or sockets.
#![forbid(unsafe_code)]

mod digest;
mod frame;
mod rng;
mod saved;
mod units;

pub use digest::{Digest, Digester};
pub use frame::{Frame, Offload};
pub use rng::SeededRng;
pub use saved::{RestoreError, Saved, restore_bytes, save_bytes, saved_header};
pub use units::{
    Claimant, Generation, Gpa, Gva, Icount, LogPos, Nanos, PAGE_SHIFT, PAGE_SIZE, VmId,
};
