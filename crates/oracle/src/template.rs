//! The memory that every case starts from, apart from its own patches.

use base::SeededRng;

use crate::state::{Memory, READ_ONLY_BYTES, REGION_BYTES};
use crate::values;

/// INT3: what the code pages hold beside the code.
const INT3: u8 = 0xcc;

/// Contents of all regions before a case.
#[derive(Clone)]
pub struct Template {
    /// The writable regions.
    pub memory: Box<Memory>,
    /// The two read-only pages.
    pub read_only: Box<[[u8; READ_ONLY_BYTES]; 2]>,
}

impl Template {
    /// The template that `seed` names.
    #[must_use]
    pub fn new(seed: u64) -> Template {
        let mut rng = SeededRng::new(seed ^ 0x7e3a_11a7);
        let mut memory = Box::new([[INT3; REGION_BYTES]; 3]);
        let mut read_only = Box::new([[0; READ_ONLY_BYTES]; 2]);
        for region in &mut memory[1..] {
            values::fill(&mut rng, region);
        }
        for page in read_only.iter_mut() {
            values::fill(&mut rng, page);
        }
        Template { memory, read_only }
    }
}
