//! Processes that this one started, and no others.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A child process whose output is kept. It is killed when this value goes.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Mutex<Vec<u8>>>,
    collectors: [JoinHandle<()>; 2],
}

/// How long output may be under way after its writer's end.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

impl Process {
    /// Starts `command`; `name` is for messages. Standard output and error are collected. If the
    /// command's standard input is a pipe, [`Process::type_line`] writes to it.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start(name: &str, mut command: Command) -> io::Result<Process> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let output = Arc::new(Mutex::new(Vec::new()));
        let stdout = child.stdout.take().expect("it was asked to be piped");
        let stderr = child.stderr.take().expect("it was asked to be piped");
        let collectors =
            [collect(stdout, Arc::clone(&output)), collect(stderr, Arc::clone(&output))];
        let stdin = child.stdin.take();
        Ok(Process { name: name.to_owned(), child, stdin, output, collectors })
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// If that is no pipe, or nobody reads it any more.
    pub fn type_line(&mut self, line: &str) -> io::Result<()> {
        let stdin = self.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(format!("{line}\n").as_bytes())
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it wrote so far.
    ///
    /// # Panics
    /// If a collecting thread panicked.
    #[must_use]
    pub fn output(&self) -> String {
        let bytes = self.output.lock().expect("the collector does not panic");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until its output contains `text`.
    ///
    /// # Errors
    /// With the output so far, if it ends or `timeout` passes before.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        loop {
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() {
                self.wait_for_last_output();
            }
            if self.output().contains(text) {
                return Ok(());
            }
            if ended.is_some() || Instant::now() > deadline {
                let why =
                    ended.map_or("said nothing".to_owned(), |status| format!("ended ({status})"));
                let (name, output) = (&self.name, self.output());
                return Err(format!("{name} {why} before {text:?}; it wrote:\n{output}"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its exit status, if it has ended.
    pub fn poll_end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the process has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        send(&self.child, signal)
    }

    /// Waits for its end, and for its last words.
    ///
    /// # Errors
    /// With its output, if it does not end in time.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, String> {
        let status = wait_for_end(&mut self.child, timeout)?
            .ok_or_else(|| format!("{} does not end; it wrote:\n{}", self.name, self.output()))?;
        self.wait_for_last_output();
        Ok(status)
    }

    fn wait_for_last_output(&self) {
        let deadline = Instant::now() + LAST_OUTPUT;
        while !self.collectors.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it with SIGKILL and waits for it.
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait(); // likewise
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn collect(source: impl io::Read + Send + 'static, output: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while let Ok(1..) = source.read_until(b'\n', &mut line) {
            output.lock().expect("nobody panics while holding it").append(&mut line);
        }
    })
}

/// Sends a signal to a child that nobody has waited for.
pub(crate) fn send(child: &Child, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(child.id()).expect("a process id fits");
    Ok(kill(Pid::from_raw(pid), signal)?)
}

/// A child's exit status, if it ends in time.
pub(crate) fn wait_for_end(
    child: &mut Child,
    timeout: Duration,
) -> Result<Option<ExitStatus>, String> {
    let deadline = Instant::now() + timeout;
    loop {
        let status = child.try_wait().map_err(|error| error.to_string())?;
        if status.is_some() || Instant::now() > deadline {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
