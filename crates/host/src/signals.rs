//! Signals that ask the process to end.

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A signal that asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndSignal {
    /// Ctrl-C.
    Interrupt,
    /// A polite request, as from `kill` or a service manager.
    Terminate,
    /// The terminal is gone.
    HangUp,
}

/// Calls `on_signal` in a thread of its own, not in a signal handler, for every signal that asks the
/// process to end; the process then lives until somebody ends it. Writing to a closed pipe or socket
/// is an error, not a signal, as everywhere in Rust.
///
/// # Errors
/// If the system refuses to install a handler.
pub fn on_end_signal(mut on_signal: impl FnMut(EndSignal) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            on_signal(match signal {
                SIGINT => EndSignal::Interrupt,
                SIGHUP => EndSignal::HangUp,
                _ => EndSignal::Terminate,
            });
        }
    })?;
    Ok(())
}
