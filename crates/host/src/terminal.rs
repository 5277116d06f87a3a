//! The terminal on standard input, in raw mode for a guest's console.
//!
//! The mode that was found is put back on every way out that a process can notice: when the
//! [`RawTerminal`] is dropped, on a panic in any thread, and by [`restore`] from whoever handles a
//! signal. Without a terminal (a pipe, a file, `/dev/null`, nothing at all) nothing happens.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::wake::{Wake, wait_readable};

/// The mode to go back to, while the terminal is raw.
static FOUND: Mutex<Option<Termios>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

/// The terminal is raw as long as this lives.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes the terminal on standard input raw; `None` if there is none.
    ///
    /// # Errors
    /// If the terminal refuses.
    pub fn enter() -> io::Result<Option<RawTerminal>> {
        let stdin = io::stdin();
        let Ok(found) = tcgetattr(stdin.as_fd()) else { return Ok(None) };
        PANIC_HOOK.call_once(|| {
            let report = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                report(info);
            }));
        });
        let mut raw = found.clone();
        cfmakeraw(&mut raw);
        *FOUND.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Some(RawTerminal(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether the terminal is raw now, so that a line needs a carriage return.
#[must_use]
pub fn is_raw() -> bool {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Puts the terminal's mode back, if it is raw.
pub fn restore() {
    let found = FOUND.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(found) = found {
        // A terminal that has gone away has no mode to restore.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &found);
    }
}

/// What reading standard input gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Bytes.
    Bytes(Vec<u8>),
    /// Standard input has ended, or was never open.
    End,
    /// The wake-up was rung first.
    Woken,
}

/// Waits for bytes on standard input, or for `wake`.
#[must_use]
pub fn read_stdin(wake: &Wake) -> Typed {
    let stdin = io::stdin();
    loop {
        match wait_readable(Some(stdin.as_fd()), wake, None) {
            Ok(ready) if ready.woken => return Typed::Woken,
            Ok(ready) if !ready.readable => continue,
            Ok(_) => {}
            Err(_) => return Typed::End,
        }
        let mut bytes = vec![0; 4096];
        match stdin.lock().read(&mut bytes) {
            Ok(0) => return Typed::End,
            Ok(len) => {
                bytes.truncate(len);
                return Typed::Bytes(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody else made the descriptor non-blocking and was faster.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => return Typed::End,
        }
    }
}
