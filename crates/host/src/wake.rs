//! Waking a thread that waits for a file descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd: any thread may ring it, and the thread that waits for it (see [`wait_readable`])
/// comes back.
#[derive(Debug)]
pub struct Wake {
    eventfd: EventFd,
    /// It was rung since the waiter last came back: one more ring tells it nothing.
    rung: AtomicBool,
}

impl Wake {
    /// A wake-up that has not been rung.
    ///
    /// # Errors
    /// If the process has no file descriptor left.
    pub fn new() -> io::Result<Wake> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Wake { eventfd: EventFd::from_value_and_flags(0, flags)?, rung: AtomicBool::new(false) })
    }

    /// Wakes the waiter, or the next one that comes.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            let _ = self.eventfd.write(1); // only a full counter can fail, and a full counter wakes as well
        }
    }

    /// Forgets all rings so far. What their ringers did before, the caller sees from here on.
    fn clear(&self) {
        let _ = self.eventfd.read(); // an empty counter is what is wanted
        // In this order: a ring between the two is forgotten, not one that finds the flag set for ever.
        self.rung.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// The descriptor has something to read, or was closed by its peer.
    pub readable: bool,
    /// The wake-up was rung. It has been cleared.
    pub woken: bool,
}

/// Waits until `fd` is readable, until `wake` rings or until `timeout` is over, whichever comes first.
///
/// # Errors
/// If the kernel refuses to poll, which means that a descriptor is not open.
pub fn wait_readable(
    fd: Option<BorrowedFd<'_>>,
    wake: &Wake,
    timeout: Option<Duration>,
) -> io::Result<Readiness> {
    let mut waited = Vec::from_iter(fd.map(|fd| Waited { fd, writable: false, ready: None }));
    let woken = wait_any(&mut waited, wake, timeout)?;
    let readable = waited.first().and_then(|waited| waited.ready).is_some_and(|now| now.readable);
    Ok(Readiness { readable, woken })
}

/// A descriptor to wait for.
#[derive(Debug)]
pub struct Waited<'fd> {
    /// Which.
    pub fd: BorrowedFd<'fd>,
    /// Whether to wait until it takes bytes too, not only until it has some.
    pub writable: bool,
    /// Set by [`wait_any`] if the descriptor is ready.
    pub ready: Option<Ready>,
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// It has something to read, or was closed by its peer.
    pub readable: bool,
    /// It takes bytes, and that was asked for.
    pub writable: bool,
}

/// Waits until one of the descriptors is ready, until `wake` rings or until `timeout` is over. Says
/// whether `wake` was rung, and clears it.
///
/// # Errors
/// If the kernel refuses to poll, which means that a descriptor is not open.
pub fn wait_any(
    waited: &mut [Waited<'_>],
    wake: &Wake,
    timeout: Option<Duration>,
) -> io::Result<bool> {
    let mut polled = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
    polled.extend(waited.iter().map(|waited| {
        let write = if waited.writable { PollFlags::POLLOUT } else { PollFlags::empty() };
        PollFd::new(waited.fd, PollFlags::POLLIN | write)
    }));
    // A timeout is rounded up, so that nobody spins through its last millisecond.
    let timeout = match timeout {
        None => PollTimeout::NONE,
        Some(time) => {
            let millis = time.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128);
            PollTimeout::try_from(millis as i32).expect("a bounded number of milliseconds")
        }
    };
    match poll(&mut polled, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let found: Vec<PollFlags> =
        polled.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    for (waited, found) in waited.iter_mut().zip(&found[1..]) {
        let ready = Ready {
            readable: found.intersects(PollFlags::POLLIN | gone),
            writable: waited.writable && found.intersects(PollFlags::POLLOUT | gone),
        };
        waited.ready = (ready.readable || ready.writable).then_some(ready);
    }
    let woken = !found[0].is_empty();
    if woken {
        wake.clear();
    }
    Ok(woken)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn a_ring_before_the_wait_is_not_lost_and_is_seen_once() {
        let wake = Wake::new().unwrap();
        wake.ring();
        wake.ring();
        assert!(wait_readable(None, &wake, None).unwrap().woken);
        assert!(!wait_readable(None, &wake, Some(Duration::ZERO)).unwrap().woken);
    }

    /// Whoever puts something down and rings is heard, however the two threads meet.
    #[test]
    fn no_ring_is_lost_between_two_threads() {
        const PUT: u32 = 20_000;
        let (wake, put) = (Wake::new().unwrap(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for count in 1..=PUT {
                    put.store(count, Ordering::Relaxed);
                    wake.ring();
                }
            });
            let (mut seen, patience) = (0, Some(Duration::from_secs(60)));
            while seen < PUT {
                assert!(wait_readable(None, &wake, patience).unwrap().woken, "{seen} seen");
                seen = put.load(Ordering::Relaxed);
            }
        });
    }
}
