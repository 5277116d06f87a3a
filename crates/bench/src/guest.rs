//! A machine in this process with a shell on its serial console.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use base::SeededRng;
use engines::EngineKind;
use machine::event::{Console, Event, Output};
use machine::{BootPayload, Machine, MachineConfig, Stop};
use nix::time::ClockId;
use serde_json::Value;

/// What the shell shows when it waits for a command: its prompt, and a question for the cursor's place.
const PROMPT: &str = "\r\n# \x1b[6n";
const RAM_BYTES: u64 = 256 << 20;
/// Steps between two looks at the keyboard, if the guest shows nothing.
const SLICE_STEPS: u64 = 1_000_000;
/// Steps after which a guest that does not show what it should is given up.
const STEPS_MAX: u64 = 20_000_000_000;

/// What something took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) steps: u64,
    /// Time on the host's CPU.
    pub(crate) cpu_s: f64,
    pub(crate) wall_s: f64,
}

impl Cost {
    /// Million steps per second of the host's CPU.
    pub(crate) fn mips(&self) -> f64 {
        self.steps as f64 / self.cpu_s / 1e6
    }
}

/// The machine. Its time is virtual, so each run takes the same steps.
pub(crate) struct Guest {
    machine: Machine,
    /// What the console showed since the last command.
    shown: Vec<u8>,
    rng: SeededRng,
    commands: u64,
}

impl Guest {
    /// Boots the image in `folder` with an engine until its shell waits for a command.
    pub(crate) fn boot(folder: &Path, kind: EngineKind) -> Result<(Guest, Cost)> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let payload = BootPayload {
            kernel: read("vmlinuz")?,
            initrd: Some(read("initrd.img")?),
            cmdline: "console=ttyS0 mitigations=off cryptomgr.notests".to_owned(),
        };
        let mut machine = Machine::new(MachineConfig::for_test(RAM_BYTES), payload)?;
        machine.set_engine(kind.make()?);
        let mut guest = Guest { machine, shown: Vec::new(), rng: SeededRng::new(1), commands: 0 };
        let cost = guest.run_until_shown(b"", PROMPT)?;
        Ok((guest, cost))
    }

    /// Types a command and waits for its end.
    pub(crate) fn run(&mut self, command: &str) -> Result<Cost> {
        self.commands += 1;
        // The console echoes the sum, so the result is seen only once the shell computes it.
        let number = self.commands;
        let line = format!("{command}; echo end-$(({number}+1000))-$?\n");
        let shown = format!("\nend-{}-0{PROMPT}", number + 1000);
        self.run_until_shown(line.as_bytes(), &shown)
            .with_context(|| format!("while the guest ran {command:?}"))
    }

    /// What CPU and engine counted so far.
    pub(crate) fn counts(&self) -> Value {
        self.machine.counts().into_iter().collect()
    }

    fn run_until_shown(&mut self, mut typed: &[u8], text: &str) -> Result<Cost> {
        let (start, wall, cpu) = (self.machine.icount().0, Instant::now(), thread_cpu_s()?);
        self.shown.clear();
        while !self.shown.ends_with(text.as_bytes()) {
            let len = typed.len().min(self.machine.console_room(Console::Serial));
            if len > 0 {
                let bytes = typed[..len].to_vec();
                typed = &typed[len..];
                self.machine.inject(Event::ConsoleInput { console: Console::Serial, bytes });
            }
            let stop = self.machine.run(self.machine.icount().plus(SLICE_STEPS));
            self.take_outputs();
            let steps = self.machine.icount().0 - start;
            // A command that failed shows another status.
            let is_done = self.shown.ends_with(PROMPT.as_bytes());
            let has_failed = is_done && !self.shown.ends_with(text.as_bytes());
            let is_stuck = stop == Stop::Halted && typed.is_empty();
            if matches!(stop, Stop::Off(_)) || is_stuck || has_failed || steps > STEPS_MAX {
                let shown = String::from_utf8_lossy(&self.shown);
                bail!("{text:?} was not shown after {steps} steps ({stop:?}), but:\n{shown}");
            }
        }
        Ok(Cost {
            steps: self.machine.icount().0 - start,
            cpu_s: thread_cpu_s()? - cpu,
            wall_s: wall.elapsed().as_secs_f64(),
        })
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::ConsoleOutput { bytes, .. } => self.shown.extend(bytes),
                Output::EntropyWanted { len } => {
                    let mut bytes = vec![0; len as usize];
                    self.rng.fill(&mut bytes);
                    self.machine.inject(Event::Entropy { bytes });
                }
                Output::FramesSent { .. } | Output::DiskRequest { .. } => {
                    unreachable!("the machine has neither network nor disk")
                }
            }
        }
    }
}

/// Time that this thread spent on a CPU.
fn thread_cpu_s() -> Result<f64> {
    let now = ClockId::CLOCK_THREAD_CPUTIME_ID.now().context("cannot read the thread's clock")?;
    Ok(now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
}
