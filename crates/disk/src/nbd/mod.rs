//! The NBD protocol: what both ends share, the server's negotiation and its transmission phase.
//!
//! Follows `doc/proto.md` of the NBD project: fixed newstyle negotiation, simple replies. Left out:
//! oldstyle, structured and extended replies, metadata contexts, NBD_CMD_CACHE. Stamps and the arbiter
//! enter as private options, which servers that do not know them answer with NBD_REP_ERR_UNSUP.

pub mod dial;
pub(crate) mod negotiate;
pub(crate) mod proto;
pub(crate) mod transmit;
