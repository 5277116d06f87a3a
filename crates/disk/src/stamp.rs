//! Who a connection says it is, as a disk server sees it.

use base::VmId;
pub use ft::Stamp;
use serde::{Deserialize, Serialize};

/// What a stamped connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Reads and writes, and replaces every earlier writer of the same stamp.
    Write,
    /// Reads only. Deposes nobody.
    Read,
}

/// The stamp of one connection, with the VM whose generations it counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Badge {
    /// Generations of different VMs cannot be compared, so an export belongs to one VM.
    pub vm: VmId,
    /// The sender's stamp.
    pub stamp: Stamp,
    /// What the connection is for.
    pub access: Access,
}
