//! The two queues between the machine's thread and the rest of the process.
//!
//! [`Mailbox`]: what the machine's thread is told, and the inputs for its guest. [`Outbox`]: what the
//! machine did, in its order. Both are bounded: by what a network card would drop, by the requests a
//! guest has in flight, and by the machine's waiting when nobody reads.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base::{Digest, Frame, Generation, Icount, LogPos, Nanos};
use ft::{Control, Pace, Progress, RunState, Window};
use host::Wake;
use machine::event::{Console, Control as Switch, DiskResult, Output};
use machine::{CpuModel, Machine, Off, Profile};
use replay::EngineDifference;

/// Frames that wait for the guest; a frame beyond them is lost, as in a full network card.
const FRAMES_MAX: usize = 1024;
/// Console bytes that wait for the guest; whoever brings more waits.
const CONSOLE_LEN_MAX: usize = 64 << 10;

/// What the machine's thread is told. Commands are done in order, before inputs.
#[derive(Debug)]
pub(crate) enum Command {
    /// Become the machine that `state` holds and follow a log that continues at `pos`.
    Load { state: Vec<u8>, pos: LogPos },
    /// These are the next entries of the log.
    Replay(Vec<replay::format::Entry>),
    /// Stop following and become the machine that makes the log, with guest time moved on.
    GoLive { advance: Nanos },
    /// Write a step of the protocol to the log.
    Append(Control),
    /// Save the machine for a backup.
    TakeSnapshot(Generation),
    /// Run at this pace.
    SetPace(Pace),
    /// Write the end of the recording and end the thread.
    Finish,
}

/// Inputs that wait for the guest, by kind: each kind keeps its order.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) frames: VecDeque<(u8, Frame)>,
    pub(crate) disk: VecDeque<(u8, u64, DiskResult)>,
    pub(crate) serial: VecDeque<u8>,
    pub(crate) virtio_console: VecDeque<u8>,
    pub(crate) switches: VecDeque<Switch>,
}

impl Inputs {
    fn console(&mut self, console: Console) -> &mut VecDeque<u8> {
        match console {
            Console::Serial => &mut self.serial,
            Console::Virtio => &mut self.virtio_console,
        }
    }
}

#[derive(Debug, Default)]
struct Mail {
    commands: VecDeque<Command>,
    inputs: Inputs,
    /// Something came that a waiting machine has not looked at.
    news: bool,
    /// The machine's thread waits: it has to be woken.
    waits: bool,
    /// How many threads wait for room.
    typists: u32,
}

/// The queue to the machine's thread.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    came: Condvar,
    taken: Condvar,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, put: impl FnOnce(&mut Mail)) {
        let mut mail = self.lock();
        put(&mut mail);
        self.tell(mail);
    }

    /// Wakes the machine's thread, if it waits: a wake-up that nobody needs is a system call, too.
    fn tell(&self, mut mail: MutexGuard<'_, Mail>) {
        mail.news = true;
        let waits = mail.waits;
        drop(mail);
        if waits {
            self.came.notify_one();
        }
    }

    pub(crate) fn command(&self, command: Command) {
        self.put(|mail| mail.commands.push_back(command));
    }

    /// Hands frames to the guest, as many as there is room for.
    pub(crate) fn frames(&self, nic: u8, frames: Vec<Frame>) {
        self.put(|mail| {
            let room = FRAMES_MAX.saturating_sub(mail.inputs.frames.len());
            mail.inputs.frames.extend(frames.into_iter().take(room).map(|frame| (nic, frame)));
        });
    }

    pub(crate) fn disk_done(&self, disk: u8, request: u64, result: DiskResult) {
        self.put(|mail| mail.inputs.disk.push_back((disk, request, result)));
    }

    pub(crate) fn switch(&self, switch: Switch) {
        self.put(|mail| mail.inputs.switches.push_back(switch));
    }

    /// Hands typed bytes to the guest; waits while there is no room, but no longer than a second.
    /// False if they found none.
    pub(crate) fn console(&self, console: Console, bytes: &[u8]) -> bool {
        let give_up = Instant::now() + Duration::from_secs(1);
        let mut mail = self.lock();
        while mail.inputs.console(console).len() + bytes.len() > CONSOLE_LEN_MAX {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            mail.typists += 1;
            mail = self.taken.wait_timeout(mail, left).unwrap_or_else(PoisonError::into_inner).0;
            mail.typists -= 1;
        }
        mail.inputs.console(console).extend(bytes);
        self.tell(mail);
        true
    }

    pub(crate) fn take_command(&self) -> Option<Command> {
        self.lock().commands.pop_front()
    }

    /// Lets the machine's thread take inputs.
    pub(crate) fn take_inputs<R>(&self, take: impl FnOnce(&mut Inputs) -> R) -> R {
        let mut mail = self.lock();
        mail.news = !mail.commands.is_empty();
        let taken = take(&mut mail.inputs);
        let has_typists = mail.typists > 0;
        drop(mail);
        if has_typists {
            self.taken.notify_all();
        }
        taken
    }

    /// Waits until `count` disk requests are done, or a command comes.
    pub(crate) fn wait_for_disk(&self, count: usize) {
        let mut mail = self.lock();
        while mail.inputs.disk.len() < count && mail.commands.is_empty() {
            mail.waits = true;
            mail = self.came.wait(mail).unwrap_or_else(PoisonError::into_inner);
            mail.waits = false;
        }
    }

    /// Waits until something new comes, or until `timeout` is over.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let mut mail = self.lock();
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        while !mail.news && mail.commands.is_empty() {
            mail.waits = true;
            mail = match deadline {
                None => self.came.wait(mail).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.came.wait_timeout(mail, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        mail.waits = false;
        mail.news = false;
    }
}

/// What the machine did.
#[derive(Debug)]
pub(crate) enum Item {
    /// It wrote an entry to the log, so many bytes. They are there only if somebody may follow the log.
    Entry { entry: ft::Entry, len: u64 },
    /// It produced an output.
    Output(Produced),
    /// A disk request has its completion in the log.
    DiskDone { disk: u8, request: u64 },
    /// It was saved for a backup.
    /// The guest stood still for `stun`.
    Snapshot { generation: Generation, icount: Icount, digest: Digest, state: Vec<u8>, stun: Nanos },
    /// It was restored from a start state, with these requests in flight.
    Loaded { digest: Digest, unfinished: Vec<Output> },
    /// It could not be restored.
    LoadFailed(String),
    /// It differs from the one it follows.
    Diverged { window: Window, why: String },
    /// The guest is off.
    Off(Off),
    /// Two engines made different things of the guest, which does not go on.
    Different(Box<EngineDifference>),
    /// The log cannot be recorded any further.
    RecordingFailed(String),
    /// The thread ends.
    Finished(Box<Totals>),
}

/// An output and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Produced {
    pub(crate) pos: LogPos,
    pub(crate) output: Arc<Output>,
    /// For console output: the number of its first byte.
    pub(crate) console_first: u64,
}

/// A run in numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Steps since power-on.
    pub icount: Icount,
    /// Guest time since power-on.
    pub guest_ns: u64,
    /// Digest of the whole machine.
    pub digest: Digest,
    /// What CPU the guest has.
    pub cpu: CpuModel,
    /// The translator ran the guest, with the interpreter for what it leaves; else the interpreter alone.
    pub translated: bool,
    /// How often two engines were compared.
    pub comparisons: u64,
    /// Counts of what CPU and engine did in this process.
    pub counts: Vec<(&'static str, u64)>,
    /// What the machine's thread spent its time on, in shares of it, if somebody looked.
    pub time: Vec<(&'static str, f64)>,
    /// Forms of instructions that the engine left to the interpreter one by one, and how often, if somebody
    /// looked.
    pub left: Vec<(String, u64)>,
}

impl Totals {
    pub(crate) fn of(machine: &Machine) -> Totals {
        Totals {
            icount: machine.icount(),
            guest_ns: machine.guest_ns(),
            digest: machine.digest(),
            cpu: machine.config().cpu,
            translated: machine.has_engine(),
            comparisons: 0,
            counts: machine.counts(),
            time: Vec::new(),
            left: machine.profile().map(Profile::left).unwrap_or_default(),
        }
    }
}

#[derive(Debug, Default)]
struct Outgoing {
    items: VecDeque<Item>,
    progress: Progress,
    run: RunState,
}

/// The queue from the machine's thread.
#[derive(Debug)]
pub(crate) struct Outbox {
    outgoing: Mutex<Outgoing>,
    wake: Arc<Wake>,
}

impl Outbox {
    pub(crate) fn new(wake: Arc<Wake>) -> Outbox {
        Outbox { outgoing: Mutex::default(), wake }
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over what the machine did and where it is now.
    pub(crate) fn put(
        &self,
        items: impl IntoIterator<Item = Item>,
        progress: Progress,
        run: RunState,
    ) {
        let mut outgoing = self.lock();
        outgoing.items.extend(items);
        outgoing.progress = progress;
        outgoing.run = run;
    }

    /// Has the other thread look.
    pub(crate) fn ring(&self) {
        self.wake.ring();
    }

    /// Everything since the last call, and where the machine was after it.
    pub(crate) fn take(&self) -> (VecDeque<Item>, Progress, RunState) {
        let mut outgoing = self.lock();
        (std::mem::take(&mut outgoing.items), outgoing.progress, outgoing.run)
    }
}
