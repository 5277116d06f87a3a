//! Watches the guest's network and remembers who sent what when.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use host::Wake;
use host::link::{Link, LinkAddr};

use crate::lab::{Host, Lab};

/// A frame that a host's VM sent.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// From which host it came.
    pub from: Host,
    /// When.
    pub at: Instant,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Records the frames of both sides, in the order in which they came out of the hosts.
#[derive(Debug)]
pub struct Witness {
    sightings: Arc<Mutex<Vec<Sighting>>>,
    stop: Arc<AtomicBool>,
    wakes: Vec<Arc<Wake>>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    /// Starts to watch.
    ///
    /// # Errors
    /// If a packet socket cannot be opened.
    pub fn start(lab: &Lab) -> io::Result<Witness> {
        let mut witness = Witness {
            sightings: Arc::default(),
            stop: Arc::default(),
            wakes: Vec::new(),
            threads: Vec::new(),
        };
        for from in [Host::A, Host::B] {
            let link =
                Link::open(&LinkAddr::Packet(lab.lan_port(from))).map_err(io::Error::other)?;
            let wake = Arc::new(Wake::new()?);
            witness.wakes.push(Arc::clone(&wake));
            let (sightings, stop) = (Arc::clone(&witness.sightings), Arc::clone(&witness.stop));
            witness
                .threads
                .push(thread::spawn(move || watch(&link, from, &wake, &stop, &sightings)));
        }
        Ok(witness)
    }

    /// Stops watching and returns what was seen, oldest first.
    ///
    /// # Panics
    /// If a watching thread panicked.
    #[must_use]
    pub fn stop(self) -> Vec<Sighting> {
        self.stop.store(true, Ordering::Relaxed);
        self.wakes.iter().for_each(|wake| wake.ring());
        for thread in self.threads {
            thread.join().expect("the watching thread does not panic");
        }
        let mut sightings = std::mem::take(&mut *self.sightings.lock().expect("nobody panics"));
        sightings.sort_by_key(|sighting| sighting.at);
        sightings
    }
}

fn watch(link: &Link, from: Host, wake: &Wake, stop: &AtomicBool, seen: &Mutex<Vec<Sighting>>) {
    let mut frames = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if link.receive(wake, &mut frames).is_err() {
            return; // the interface is gone, and with it the host
        }
        let at = Instant::now();
        let mut seen = seen.lock().expect("nobody panics while holding it");
        seen.extend(frames.drain(..).map(|frame| Sighting { from, at, frame }));
    }
}

/// Checks that the old side is silent from the new side's first frame on.
///
/// # Errors
/// With the offending frame.
pub fn check_one_owner(sightings: &[Sighting], old: Host) -> Result<(), String> {
    let Some(first) = sightings.iter().position(|sighting| sighting.from != old) else {
        return Ok(());
    };
    match sightings[first..].iter().find(|sighting| sighting.from == old) {
        None => Ok(()),
        Some(late) => Err(format!(
            "{:?} sent a frame {:?} after the other side's first: {:02x?}",
            late.from,
            late.at - sightings[first].at,
            &late.frame[..late.frame.len().min(64)]
        )),
    }
}
