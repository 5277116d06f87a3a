//! The guest's serial console on standard input and output.
//!
//! Ctrl-A is the escape character: Ctrl-A x leaves, Ctrl-A Ctrl-A sends one Ctrl-A, and Ctrl-A with
//! anything else sends that alone, as in QEMU.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use host::Wake;
use host::terminal::{RawTerminal, Typed, read_stdin};
use machine::event::Console;

use crate::console::ConsoleHub;
use crate::mailbox::Mailbox;
use crate::shell::{Event, Post};

const ESCAPE: u8 = 1;
/// How long the last output may take to be written once the VM has ended.
const LAST_OUTPUT_MAX: Duration = Duration::from_secs(10);

/// What typed bytes mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Escapes {
    /// The last byte was the escape character.
    pending: bool,
}

impl Escapes {
    /// Takes typed bytes in; returns those for the guest, and whether the user wants to leave.
    pub fn handle_typed(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = Vec::with_capacity(typed.len());
        for byte in typed {
            match (self.pending, *byte) {
                (false, ESCAPE) => self.pending = true,
                (true, b'x' | b'X') => return (bytes, true),
                (_, byte) => {
                    self.pending = false;
                    bytes.push(byte);
                }
            }
        }
        (bytes, false)
    }
}

/// The terminal, connected to a console.
#[derive(Debug)]
pub(crate) struct Terminal {
    raw: Option<RawTerminal>,
    wake: Arc<Wake>,
    /// Hears when everything was written.
    written: mpsc::Receiver<()>,
}

impl Terminal {
    /// Connects standard input and output to a guest.
    pub(crate) fn attach(
        hub: &Arc<ConsoleHub>,
        mailbox: &Arc<Mailbox>,
        post: &Arc<Post>,
    ) -> io::Result<Terminal> {
        let raw = RawTerminal::enter()?;
        let wake = Arc::new(Wake::new()?);
        let (done, written) = mpsc::channel();
        hub.reserve();
        let output = hub.clone();
        thread::Builder::new().name("console-out".to_owned()).spawn(move || {
            if let Err(error) = output.copy_to(&mut io::stdout()) {
                log::warn!("standard output takes no more, the guest runs on: {error}");
            }
            let _ = done.send(()); // nobody waits any more
        })?;
        let (mailbox, post, waker) = (mailbox.clone(), post.clone(), wake.clone());
        thread::Builder::new().name("console-in".to_owned()).spawn(move || {
            let mut escapes = Escapes::default();
            while let Typed::Bytes(typed) = read_stdin(&waker) {
                let (bytes, leave) = escapes.handle_typed(&typed);
                // A guest that reads nothing gets no more: the terminal then waits, as a line would.
                while !bytes.is_empty() && !mailbox.console(Console::Serial, &bytes) {}
                if leave {
                    return post.put(Event::EndSignal);
                }
            }
        })?;
        Ok(Terminal { raw, wake, written })
    }

    /// Restores the terminal, after the last output was written if `patiently`.
    pub(crate) fn detach(self, patiently: bool) {
        self.wake.ring();
        let wait = if patiently { LAST_OUTPUT_MAX } else { LAST_OUTPUT_MAX / 20 };
        let _ = self.written.recv_timeout(wait); // whoever reads slower than that does not read
        drop(self.raw);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_work_across_reads() {
        let mut escapes = Escapes::default();
        assert_eq!(escapes.handle_typed(b"a\x01"), (b"a".to_vec(), false));
        assert_eq!(escapes.handle_typed(b"\x01b\x01c"), (b"\x01bc".to_vec(), false));
        assert_eq!(escapes.handle_typed(b"d\x01xe"), (b"d".to_vec(), true));
    }
}
