//! What a CPU's thread is at, for another thread that looks now and then, and which forms of instructions an
//! engine leaves. Only kept when somebody asks; the guest cannot tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use x86::iced::Code;

use crate::{Cpu, Op};

/// What the thread is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Doing {
    /// Waits: the guest is halted, or ahead of time.
    Waiting,
    /// The board, the log, and handing inputs and outputs on.
    Board,
    /// The engine: translated code, and going in and out of it.
    Engine,
    /// An access of translated code that the TLB does not answer.
    Walking,
    /// Makes translations.
    Translating,
    /// One instruction that the engine leaves to the interpreter, with the access to a device if it makes one.
    OneInstruction,
    /// A block that the engine leaves to the interpreter, or that it was not asked about; without an engine,
    /// everything.
    Blocks,
}

impl Doing {
    /// All of them, in their order as numbers.
    pub const ALL: [Doing; 7] = [
        Doing::Waiting,
        Doing::Board,
        Doing::Engine,
        Doing::Walking,
        Doing::Translating,
        Doing::OneInstruction,
        Doing::Blocks,
    ];

    /// What it is called in a list of counts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Doing::Waiting => "waiting",
            Doing::Board => "board",
            Doing::Engine => "translated",
            Doing::Walking => "tlb_misses",
            Doing::Translating => "translating",
            Doing::OneInstruction => "interpreted_singly",
            Doing::Blocks => "interpreted_blocks",
        }
    }
}

/// Says what a thread is at.
#[derive(Clone, Debug, Default)]
pub struct Marker(Arc<AtomicU8>);

impl Marker {
    /// From now on it is at this.
    pub fn set(&self, doing: Doing) {
        self.0.store(doing as u8, Ordering::Relaxed);
    }

    /// What it is at.
    #[must_use]
    pub fn doing(&self) -> Doing {
        Doing::ALL[usize::from(self.0.load(Ordering::Relaxed))]
    }
}

/// What is kept of a run when somebody asks.
#[derive(Clone, Debug)]
pub struct Profile {
    pub(crate) marker: Marker,
    /// How often an instruction was left, by form.
    left: Vec<u64>,
}

impl Profile {
    /// One that says what its CPU is at by a marker.
    #[must_use]
    pub fn new(marker: Marker) -> Profile {
        Profile { marker, left: vec![0; Code::values().len()] }
    }

    pub(crate) fn note_left(&mut self, op: &Op) {
        if let Some(count) = self.left.get_mut(usize::from(op.code)) {
            *count += 1;
        }
    }

    /// Forms of instructions that an engine left one by one, with how often, the most frequent first.
    #[must_use]
    pub fn left(&self) -> Vec<(String, u64)> {
        let named = |(form, count): (Code, &u64)| (format!("{form:?}").to_lowercase(), *count);
        let mut left: Vec<_> =
            Code::values().zip(&self.left).filter(|(_, count)| **count > 0).map(named).collect();
        left.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        left
    }
}

impl Cpu {
    /// Keeps a profile from now on, or none.
    pub fn set_profile(&mut self, profile: Option<Profile>) {
        self.profile = profile.map(Box::new);
    }

    /// The profile, if one is kept.
    #[must_use]
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_deref()
    }

    /// Says what the thread is at from here on, if somebody asks.
    #[inline(always)]
    pub fn mark(&self, doing: Doing) {
        if let Some(profile) = &self.profile {
            profile.marker.set(doing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_says_what_was_set_last() {
        let marker = Marker::default();
        assert_eq!(marker.doing(), Doing::Waiting);
        for doing in Doing::ALL {
            marker.set(doing);
            assert_eq!(marker.clone().doing(), doing);
        }
    }
}
