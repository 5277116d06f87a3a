//! Watches the guest's network and remembers who sent when.
//!
//! Frames are not kept, but for the first and the last bytes of each side's *turn*: an unbroken run of
//! frames from one side. So a witness may watch for hours.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use host::Wake;
use host::link::{Link, LinkAddr};

use crate::lab::{Host, Lab};

/// Bytes of a frame that are kept to say what it was.
const HEAD_LEN: usize = 64;

/// An unbroken run of frames from one host's VM.
#[derive(Clone, Debug)]
pub struct Turn {
    /// From which host they came.
    pub from: Host,
    /// When the first came.
    pub began: Instant,
    /// When the last came.
    pub ended: Instant,
    /// How many.
    pub frame_count: u64,
    /// How the first one begins.
    pub first: Vec<u8>,
}

/// Records the turns of both sides, in the order in which frames came out of the hosts.
#[derive(Debug)]
pub struct Witness {
    turns: Arc<Mutex<Vec<Turn>>>,
    stop: Arc<AtomicBool>,
    wakes: Vec<Arc<Wake>>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Witness {
    /// Starts to watch.
    ///
    /// # Errors
    /// If a packet socket cannot be opened.
    pub fn start(lab: &Lab) -> io::Result<Witness> {
        let mut witness = Witness {
            turns: Arc::default(),
            stop: Arc::default(),
            wakes: Vec::new(),
            threads: Vec::new(),
        };
        for from in [Host::A, Host::B] {
            let link =
                Link::open(&LinkAddr::Packet(lab.lan_port(from))).map_err(io::Error::other)?;
            let wake = Arc::new(Wake::new()?);
            witness.wakes.push(Arc::clone(&wake));
            let (turns, stop) = (Arc::clone(&witness.turns), Arc::clone(&witness.stop));
            witness.threads.push(thread::spawn(move || watch(&link, from, &wake, &stop, &turns)));
        }
        Ok(witness)
    }

    /// Stops watching and returns what was seen, oldest first.
    ///
    /// # Errors
    /// If the witness was blind for a while.
    ///
    /// # Panics
    /// If a watching thread panicked.
    pub fn stop(self) -> Result<Vec<Turn>, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.wakes.iter().for_each(|wake| wake.ring());
        for thread in self.threads {
            thread.join().expect("the watching thread does not panic")?;
        }
        Ok(std::mem::take(&mut *self.turns.lock().expect("nobody panics while holding it")))
    }
}

fn watch(
    link: &Link,
    from: Host,
    wake: &Wake,
    stop: &AtomicBool,
    turns: &Mutex<Vec<Turn>>,
) -> Result<(), String> {
    let mut frames = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        link.receive(wake, &mut frames)
            .map_err(|error| format!("the witness of {from:?} is blind: {error}"))?;
        let mut turns = turns.lock().expect("nobody panics while holding it");
        for frame in frames.drain(..) {
            note(&mut turns, from, Instant::now(), &frame.bytes);
        }
    }
    Ok(())
}

fn note(turns: &mut Vec<Turn>, from: Host, at: Instant, frame: &[u8]) {
    if let Some(turn) = turns.last_mut().filter(|turn| turn.from == from) {
        turn.ended = at;
        turn.frame_count += 1;
        return;
    }
    let first = frame[..frame.len().min(HEAD_LEN)].to_vec();
    turns.push(Turn { from, began: at, ended: at, frame_count: 1, first });
}

/// Checks that frames came from `owners` and nobody else, one after the other: from each change on the
/// earlier owner is silent.
///
/// # Errors
/// With the turns that were seen.
pub fn check_owners(turns: &[Turn], owners: &[Host]) -> Result<(), String> {
    if turns.iter().map(|turn| turn.from).eq(owners.iter().copied()) {
        return Ok(());
    }
    let Some(start) = turns.first().map(|turn| turn.began) else {
        return Err(format!("nobody sent a frame, expected {owners:?}"));
    };
    let tell = |turn: &Turn| {
        let (began, ended) = (turn.began - start, turn.ended - start);
        let (from, count, first) = (turn.from, turn.frame_count, &turn.first);
        format!("{from:?}: {count} frames from {began:.3?} to {ended:.3?}, the first {first:02x?}")
    };
    let seen: Vec<String> = turns.iter().map(tell).collect();
    Err(format!(
        "frames should have come from {owners:?} in turn, and came from\n{}",
        seen.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(from: &[Host]) -> Vec<Turn> {
        let mut turns = Vec::new();
        from.iter().for_each(|from| note(&mut turns, *from, Instant::now(), b"frame"));
        turns
    }

    #[test]
    fn a_frame_of_the_old_side_after_the_first_of_the_new_one_is_found() {
        use Host::{A, B};
        assert!(check_owners(&turns(&[A, A, B, B, A]), &[A, B, A]).is_ok());
        assert!(check_owners(&turns(&[A, B, A, B]), &[A, B]).is_err(), "A sent once more");
        assert!(check_owners(&turns(&[A, B, A]), &[A]).is_err(), "the backup sent");
        assert!(check_owners(&turns(&[A]), &[A, B]).is_err(), "the new owner is silent");
    }
}
