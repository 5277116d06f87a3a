//! Programs on a terminal, as a person uses them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::termios::{Termios, tcgetattr};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::process;

/// A child process on a terminal of its own. It is killed when this value goes.
#[derive(Debug)]
pub struct Terminal {
    name: String,
    child: Child,
    /// The person's end.
    master: File,
    /// The program's end, kept so that the terminal outlives the program.
    slave: OwnedFd,
    output: Arc<Mutex<Vec<u8>>>,
    /// Output up to here was waited for.
    seen: usize,
}

impl Terminal {
    /// Starts `command` on a new terminal of so many rows and columns; `name` is for messages.
    ///
    /// # Errors
    /// If there is no terminal to be had or the program cannot be started.
    pub fn start(name: &str, command: &Command, rows: u16, columns: u16) -> io::Result<Terminal> {
        let pty = openpty(None, None)?;
        tcsetwinsize(&pty.master, size(rows, columns))?;
        // The terminal has to be the controlling one, for Ctrl-C and changes of its size.
        let mut leader = Command::new("setsid");
        leader.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => leader.env(key, value),
                None => leader.env_remove(key),
            };
        }
        let end = || pty.slave.try_clone().map(Stdio::from);
        let child = leader.stdin(end()?).stdout(end()?).stderr(end()?).spawn()?;
        let output = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (File::from(pty.master.try_clone()?), Arc::clone(&output));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = from.read(&mut bytes) {
                to.lock().expect("nobody panics while holding it").extend(&bytes[..len]);
            }
        });
        let (name, master) = (name.to_owned(), File::from(pty.master));
        Ok(Terminal { name, child, master, slave: pty.slave, output, seen: 0 })
    }

    /// Types.
    ///
    /// # Errors
    /// If the terminal takes nothing.
    pub fn type_text(&mut self, text: &str) -> io::Result<()> {
        self.master.write_all(text.as_bytes())
    }

    /// Changes the terminal's size.
    ///
    /// # Errors
    /// If the terminal refuses.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        Ok(tcsetwinsize(&self.master, size(rows, columns))?)
    }

    /// The terminal's modes at the moment.
    ///
    /// # Errors
    /// If the terminal does not say.
    pub fn modes(&self) -> io::Result<Termios> {
        Ok(tcgetattr(&self.slave)?)
    }

    /// Everything that was shown so far.
    ///
    /// # Panics
    /// If the collecting thread panicked.
    #[must_use]
    pub fn output(&self) -> String {
        let bytes = self.output.lock().expect("the collector does not panic");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for `text` after what was waited for before, and returns what was shown until then.
    ///
    /// # Errors
    /// With everything that was shown, if it does not come in time.
    ///
    /// # Panics
    /// If the collecting thread panicked.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> Result<String, String> {
        let mut deadline = Instant::now() + timeout;
        loop {
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            {
                let output = self.output.lock().expect("the collector does not panic");
                let new = &output[self.seen..];
                let found = new.windows(text.len()).position(|part| part == text.as_bytes());
                if let Some(at) = found {
                    self.seen += at + text.len();
                    return Ok(String::from_utf8_lossy(&new[..at]).into_owned());
                }
            }
            // What it showed last may still be on its way.
            if ended.is_some() {
                deadline = deadline.min(Instant::now() + LAST_OUTPUT);
            }
            if Instant::now() > deadline {
                let name = &self.name;
                return Err(format!(
                    "{name} ({ended:?}) did not show {text:?}:\n{}",
                    self.output()
                ));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// True until it has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the process has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        process::send(&self.child, signal)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// With what it showed, if it does not end in time.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, String> {
        process::wait_for_end(&mut self.child, timeout)?
            .ok_or_else(|| format!("{} does not end; it showed:\n{}", self.name, self.output()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait(); // likewise
    }
}

/// How long output may be under way after its writer's end.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
