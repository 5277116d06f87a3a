//! Segment registers.
