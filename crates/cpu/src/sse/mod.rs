//! SSE to SSE4.2, AES-NI, PCLMULQDQ and SHA: what the instructions compute (`integer`, `float`, `string`,
//! `crypto`) and how they are wired (`forms`).

pub(crate) mod crypto;
pub(crate) mod float;
pub(crate) mod forms;
pub(crate) mod integer;
pub(crate) mod lanes;
mod string;

pub(crate) use forms::{
    BY_MXCSR, FORMS, MXCSR_MASK, Source, TRUNCATE, compute, masked_store, set_order, set_xmm, xmm,
};
pub(crate) use string::StringCompare;
