//! SSE to SSE4.2: what the instructions compute (`integer`, `float`, `string`) and how they are wired
//! (`forms`).

pub(crate) mod float;
mod forms;
pub(crate) mod integer;
mod lanes;
mod string;

pub(crate) use forms::{FORMS, MXCSR_MASK, Source, compute, masked_store, set_order, set_xmm, xmm};
