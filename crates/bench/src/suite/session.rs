//! A process that runs the suite: its marks, and its CPU time at each.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::marks::Mark;

/// Time that passed, or that something took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    /// On the host's CPUs, by all threads.
    pub(crate) cpu_s: f64,
    pub(crate) wall_s: f64,
}

impl Spent {
    pub(crate) fn since(self, start: Spent) -> Spent {
        Spent { cpu_s: self.cpu_s - start.cpu_s, wall_s: self.wall_s - start.wall_s }
    }
}

/// Longest time between two lines. A workload that takes longer hangs, even if the host is busy.
const SILENCE_MAX: Duration = Duration::from_secs(1800);
/// How long the process may take to end once its guest is off.
const END_MAX: Duration = Duration::from_secs(20);

/// The process. It is killed when this value goes.
pub(crate) struct Session {
    name: String,
    child: Child,
    lines: mpsc::Receiver<(String, Spent)>,
    errors: Option<JoinHandle<String>>,
    /// Everything that it wrote so far, for messages.
    console: String,
}

/// What the process spent since its start.
#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
    cpu: ClockId,
}

impl Clock {
    fn now(self) -> io::Result<Spent> {
        let cpu = clock_gettime(self.cpu)?;
        let cpu_s = cpu.tv_sec() as f64 + cpu.tv_nsec() as f64 / 1e9;
        Ok(Spent { cpu_s, wall_s: self.start.elapsed().as_secs_f64() })
    }
}

fn cpu_clock(process: u32) -> Result<ClockId> {
    let pid = Pid::from_raw(i32::try_from(process).expect("a process id fits"));
    clock_getcpuclockid(pid).with_context(|| format!("process {process} has no clock"))
}

/// The CPU time of a process so far.
pub(crate) fn cpu_s_of(process: u32) -> Result<f64> {
    let clock = Clock { start: Instant::now(), cpu: cpu_clock(process)? };
    Ok(clock.now().context("the process has ended")?.cpu_s)
}

impl Session {
    /// Starts `command`; `name` is for messages.
    pub(crate) fn start(name: &str, mut command: Command) -> Result<Session> {
        let start = Instant::now();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let clock = Clock { start, cpu: cpu_clock(child.id())? };
        let stdout = child.stdout.take().expect("standard output is piped");
        let stderr = child.stderr.take().expect("standard error is piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || read_lines(stdout, clock, &sender));
        let errors = thread::spawn(move || io::read_to_string(stderr).unwrap_or_default());
        let (name, errors) = (name.to_owned(), Some(errors));
        Ok(Session { name, child, lines, errors, console: String::new() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next mark, and what the process had spent when it was read; none if its output ended.
    pub(crate) fn next_mark(&mut self) -> Result<Option<(Mark, Spent)>> {
        loop {
            match self.lines.recv_timeout(SILENCE_MAX) {
                Ok((line, at)) => {
                    self.console.push_str(&line);
                    if let Some(mark) = Mark::parse(&line) {
                        return Ok(Some((mark, at)));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.failed("was silent for too long"));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// Waits for a mark.
    pub(crate) fn wait_for(&mut self, wanted: &Mark) -> Result<Spent> {
        while let Some((mark, at)) = self.next_mark()? {
            if mark == *wanted {
                return Ok(at);
            }
        }
        Err(self.failed(&format!("ended before {wanted:?}")))
    }

    /// Gives the process time to end by itself. Some emulators stay when the guest powers off.
    pub(crate) fn end(&mut self) {
        let deadline = Instant::now() + END_MAX;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// An error with everything that the process wrote.
    fn failed(&mut self, why: &str) -> anyhow::Error {
        let _ = self.child.kill(); // it may have ended by itself
        let errors = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
        anyhow!("{} {why}; it wrote:\n{}{errors}", self.name, self.console)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait(); // likewise
    }
}

fn read_lines(from: impl Read, clock: Clock, to: &mpsc::Sender<(String, Spent)>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
        // A process that has just ended has no clock; what it wrote last is not measured.
        let now = clock.now().unwrap_or_default();
        if to.send((String::from_utf8_lossy(&line).into_owned(), now)).is_err() {
            return;
        }
        line.clear();
    }
}

/// What a run took and computed, by workload.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) spent: BTreeMap<String, Spent>,
    pub(crate) answers: BTreeMap<String, String>,
}

/// Whose CPU time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meter {
    /// The started process's: it emulates the kernel under which the marks are printed.
    Process,
    /// The workload's, as its mark says: it runs on this host's kernel.
    Workload,
}

/// Follows a session to its end, through all marks of all workloads, and tells of each when it ends.
pub(crate) fn follow(
    session: &mut Session,
    meter: Meter,
    tell: &mut dyn FnMut(&str, Spent),
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut begun: Option<(String, Spent)> = None;
    while let Some((mark, at)) = session.next_mark()? {
        match mark {
            Mark::Begin(workload) => begun = Some((workload, at)),
            Mark::End { workload, status: 0, cpu_s } => {
                let Some((_, start)) = begun.take_if(|(begun, _)| *begun == workload) else {
                    return Err(session.failed(&format!("ended {workload} without a begin")));
                };
                let mut spent = at.since(start);
                if meter == Meter::Workload {
                    spent.cpu_s = cpu_s;
                }
                tell(&workload, spent);
                outcome.spent.insert(workload, spent);
            }
            Mark::End { workload, status, .. } => {
                return Err(session.failed(&format!("failed in {workload} with status {status}")));
            }
            Mark::Answer { workload, checksum } => {
                outcome.answers.insert(workload, checksum);
            }
            Mark::Done(0) => {
                session.end();
                return Ok(outcome);
            }
            Mark::Done(status) => {
                return Err(session.failed(&format!("failed with status {status}")));
            }
            Mark::Init | Mark::Serving => {}
        }
    }
    match meter {
        Meter::Workload => Ok(outcome),
        Meter::Process => Err(session.failed("ended too early")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Session {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Session::start("the script", command).unwrap()
    }

    fn follow_all(script: &str, meter: Meter) -> Result<Outcome> {
        follow(&mut sh(script), meter, &mut |_, _| {})
    }

    #[test]
    fn a_workload_is_measured_and_so_is_the_next() {
        let script = "echo noise; echo suite: begin a; echo suite: end a 0 1500000 500000 9; \
             echo suite: answer a 17 1; echo suite: begin b; echo suite: end b 0 1 1 1; \
             echo lockstep.run: exit status 0";
        let outcome = follow_all(script, Meter::Workload).unwrap();
        assert_eq!(outcome.spent["a"].cpu_s, 2.0);
        assert_eq!(outcome.answers["a"], "17 1");
        let outcome = follow_all(script, Meter::Process).unwrap();
        assert!(outcome.spent.keys().eq(["a", "b"]), "{outcome:?}");
        // The script's own time is less than what it says.
        assert!(outcome.spent["a"].cpu_s < 2.0, "{outcome:?}");
    }

    #[test]
    fn a_process_spends_cpu_time() {
        let script =
            "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; echo suite: init; sleep 600";
        let mut session = sh(script);
        let at = session.wait_for(&Mark::Init).unwrap();
        assert!(at.cpu_s > 0.0 && at.wall_s > 0.0, "{at:?}");
        assert!(cpu_s_of(session.pid()).unwrap() >= at.cpu_s);
    }

    #[test]
    fn a_run_that_fails_or_ends_early_tells_what_it_wrote() {
        for (script, says) in [
            ("echo suite: begin a; echo oh >&2; echo suite: end a 3 1 1 1", "with status 3"),
            ("echo suite: begin a; echo oh", "ended too early"),
            ("echo oh; echo suite: end a 0 1 1 1", "without a begin"),
            ("echo oh; echo lockstep.run: exit status 1", "with status 1"),
        ] {
            let error = follow_all(script, Meter::Process).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("oh\n"), "{script}: {error}");
        }
    }

    #[test]
    fn waiting_for_a_mark_that_does_not_come_is_an_error() {
        let error = sh("echo suite: begin a").wait_for(&Mark::Serving).unwrap_err();
        assert!(error.to_string().contains("ended before Serving"), "{error}");
    }
}
