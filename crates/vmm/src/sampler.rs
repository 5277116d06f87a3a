//! Looks every millisecond at what the machine's thread is at. Nothing of it reaches the guest, and it costs the
//! machine's thread a plain store where it goes from one thing to the next.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use machine::{Doing, Marker};

/// Not a divisor of the guest's ticks, so that it does not always see the same part of one.
const PERIOD: Duration = Duration::from_micros(997);

/// The thread that looks.
#[derive(Debug)]
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<[u64; Doing::ALL.len()]>,
}

impl Sampler {
    pub(crate) fn start(marker: Marker) -> io::Result<Sampler> {
        let stop = Arc::<AtomicBool>::default();
        let ends = Arc::clone(&stop);
        let look = move || {
            let mut counts = [0; Doing::ALL.len()];
            while !ends.load(Ordering::Relaxed) {
                thread::sleep(PERIOD);
                counts[marker.doing() as usize] += 1;
            }
            counts
        };
        let thread = thread::Builder::new().name("sampler".to_owned()).spawn(look)?;
        Ok(Sampler { stop, thread })
    }

    /// The shares of what it saw; none if there was no time to look.
    pub(crate) fn finish(self) -> Vec<(&'static str, f64)> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(counts) = self.thread.join() else { return Vec::new() };
        let all: u64 = counts.iter().sum();
        let share = |count: u64| count as f64 / all as f64;
        let named = Doing::ALL.iter().zip(counts).filter(|(_, count)| *count > 0);
        named.map(|(doing, count)| (doing.name(), share(count))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_what_the_marker_said() {
        let marker = Marker::default();
        let sampler = Sampler::start(marker.clone()).unwrap();
        marker.set(Doing::Engine);
        thread::sleep(Duration::from_millis(50));
        let shares = sampler.finish();
        let translated = shares.iter().find(|(name, _)| *name == "translated");
        assert!(translated.is_some_and(|(_, share)| *share > 0.5), "{shares:?}");
        let all: f64 = shares.iter().map(|(_, share)| share).sum();
        assert!((all - 1.0).abs() < 1e-9, "{shares:?}");
    }
}
