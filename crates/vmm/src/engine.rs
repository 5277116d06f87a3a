//! The machine's thread: runs the guest, feeds it its inputs and hands on what it does.
//!
//! The thread owns the machine, through a recorder on the side that makes the log and through a
//! replayer on the side that follows it. Between two slices of at most about a millisecond it takes
//! commands and inputs from its [`Mailbox`] and puts entries and outputs into its [`Outbox`]. A halted
//! guest costs nothing: the thread then waits for an input or for the guest's next timer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use base::{Icount, LogPos, Nanos, SeededRng};
use engines::EngineKind;
use ft::{Control, Pace, Progress, RunState, Speed, Window};
use machine::event::{Console, Event, Output};
use machine::{ClockMode, Doing, Machine, Marker, Stop};
use replay::format::{Body, End, Entry};
use replay::{EngineDifference, Recorder, Replayer, Shadow};

use crate::console::ConsoleHub;
use crate::mailbox::{Command, Item, Mailbox, Outbox, Produced, Totals};
use crate::pacer::{Anchor, IDLE_ANCHOR_NS, Pacer};
use crate::recording::Recording;

/// Steps in a slice when guest time does not follow real time.
const VIRTUAL_SLICE_STEPS: u64 = 100_000;
/// Steps between two digests of the machine in the log, about a fifth of a second.
const DIGEST_STEPS: u64 = 1 << 24;
/// With two engines that are compared, a digest comes when so many pages were written.
const COMPARED_PAGES_MAX: usize = 512;
/// Log entries that no output waits for are handed on after this long.
const FLUSH: Nanos = Nanos(5_000_000);
/// Steps between two looks at the mailbox while following a log.
const FOLLOW_STEPS: u64 = 200_000;
/// For how long a slow reader of the console holds the guest up before the next look.
const CONSOLE_FULL_WAIT: Duration = Duration::from_millis(1);
/// Most frames that one interrupt announces.
const FRAMES_PER_EVENT_MAX: usize = host::link::FRAMES_PER_READ_MAX;
/// Most console bytes in one event.
const CONSOLE_PER_EVENT_MAX: usize = 4096;

/// What the machine's thread needs.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) outbox: Arc<Outbox>,
    /// The serial console, which holds the guest up if its reader is slow.
    pub(crate) serial: Arc<ConsoleHub>,
    /// Says what the thread is at.
    pub(crate) marker: Marker,
}

impl Links {
    /// Waits for news, at most so long.
    fn wait(&self, timeout: Option<Duration>) {
        self.marker.set(Doing::Waiting);
        self.mailbox.wait(timeout);
        self.marker.set(Doing::Board);
    }
}

/// The machine's thread.
#[derive(Debug)]
pub(crate) struct Engine {
    links: Links,
    /// The source of random bytes where runs have to repeat; else the host's.
    rng: Option<SeededRng>,
    /// What was done since the last hand-over.
    items: Vec<Item>,
    handed_over: Nanos,
    /// Numbers of the next byte of each console.
    console_next: [u64; 2],
    recording: Option<Recording>,
    /// Somebody may follow the log: the machine was saved for a backup.
    is_followed: bool,
}

/// What to do after a step of the loop.
enum Next {
    Go,
    /// The thread ends.
    Finish,
    /// The follower becomes the side that makes the log.
    GoLive(Nanos),
}

/// The side that makes the log.
struct Live {
    recorder: Recorder,
    pacer: Option<Pacer>,
    pace: Pace,
    /// Random bytes that the guest has asked for.
    entropy_wanted: Vec<u32>,
    /// Disk requests that have no completion yet.
    disk_in_flight: usize,
    next_digest: Icount,
    /// The guest is off, and the thread only finishes what is left.
    ended: bool,
}

/// The side that follows it.
struct Following {
    replayer: Replayer,
    /// Answers that were fed and not executed yet, with the position that covers each.
    answers: VecDeque<(LogPos, Answered)>,
    /// Random bytes that the guest has asked for.
    entropy_wanted: VecDeque<u32>,
    fed: LogPos,
    diverged: bool,
}

/// An input that answers an output.
enum Answered {
    Disk { disk: u8, request: u64 },
    Entropy,
}

impl Engine {
    pub(crate) fn new(
        links: Links,
        rng: Option<SeededRng>,
        recording: Option<Recording>,
    ) -> Engine {
        let (console_next, handed_over) = ([0; 2], Nanos(0));
        let (items, is_followed) = (Vec::new(), false);
        Engine { links, rng, items, handed_over, console_next, recording, is_followed }
    }

    /// Runs `machine`, which was just powered on, until [`Command::Finish`], with another engine beside it if
    /// there is a shadow.
    pub(crate) fn run_powered_on(mut self, machine: Machine, shadow: Option<Shadow>) {
        let mut recorder = Recorder::new(machine, LogPos(0));
        if let Some(shadow) = shadow {
            recorder.set_shadow(shadow);
        }
        let live = Live::new(recorder, Pace::Stopped, Nanos(0));
        self.run_live(live);
    }

    /// Waits for a start state, follows its log with an engine of this kind and goes live if told so, until
    /// [`Command::Finish`].
    pub(crate) fn run_backup(mut self, kind: EngineKind) {
        let mut following: Option<Following> = None;
        loop {
            match self.handle_follow_commands(&mut following, kind) {
                Next::Finish => {
                    let totals =
                        following.map(|following| Totals::of(following.replayer.machine()));
                    self.items.push(Item::Finished(Box::new(totals.unwrap_or_default())));
                    self.hand_over(Progress::default(), RunState::Paused, true);
                    return;
                }
                Next::GoLive(advance) => {
                    let Some(following) = following.take() else { continue };
                    let live = self.go_live(following, advance);
                    return self.run_live(live);
                }
                Next::Go => {}
            }
            let waits = match &mut following {
                Some(following) => self.follow(following),
                None => true,
            };
            if waits {
                self.links.wait(None);
            }
        }
    }

    // ---- The side that follows.

    fn handle_follow_commands(
        &mut self,
        following: &mut Option<Following>,
        kind: EngineKind,
    ) -> Next {
        while let Some(command) = self.links.mailbox.take_command() {
            match (command, following.as_mut()) {
                (Command::Load { state, pos }, _) => {
                    *following = self.load(&state, pos, kind);
                }
                (Command::Replay(entries), Some(following)) => following.feed(entries),
                (Command::GoLive { advance }, _) => return Next::GoLive(advance),
                (Command::Finish, _) => return Next::Finish,
                // Nothing of these is for a follower.
                (
                    Command::Replay(_)
                    | Command::Append(_)
                    | Command::TakeSnapshot(_)
                    | Command::SetPace(_),
                    _,
                ) => {}
            }
        }
        Next::Go
    }

    fn load(&mut self, state: &[u8], pos: LogPos, kind: EngineKind) -> Option<Following> {
        let loaded = StartState::decode(state).and_then(|start| {
            let mut machine = Machine::restore(&start.machine).map_err(|error| describe(&error))?;
            machine.set_engine(kind.make().map_err(|error| describe(&error))?);
            engines::warn_of_lacks(kind, machine.config().cpu);
            Ok((start, machine))
        });
        let following = match loaded {
            Ok((start, machine)) => {
                self.console_next = start.console_next;
                let (digest, unfinished) = (machine.digest(), machine.unfinished_requests());
                self.items.push(Item::Loaded { digest, unfinished });
                Some(Following {
                    replayer: Replayer::new(machine, pos),
                    answers: VecDeque::new(),
                    entropy_wanted: start.entropy_wanted.into(),
                    fed: pos,
                    diverged: false,
                })
            }
            Err(why) => {
                self.items.push(Item::LoadFailed(why));
                None
            }
        };
        let progress = following.as_ref().map_or(Progress::default(), Following::progress);
        self.hand_over(progress, RunState::Running, true);
        following
    }

    /// Executes a little of the log; true if there is nothing left to execute.
    fn follow(&mut self, following: &mut Following) -> bool {
        if following.diverged {
            return true;
        }
        let progress = following.replayer.advance(FOLLOW_STEPS);
        for (pos, output) in following.replayer.take_outputs() {
            match output {
                Output::EntropyWanted { len } => following.entropy_wanted.push_back(len),
                output => self.push_output(pos, output),
            }
        }
        let executed = following.replayer.executed();
        while let Some((_, answered)) = following.answers.pop_front_if(|(pos, _)| *pos <= executed)
        {
            match answered {
                Answered::Disk { disk, request } => {
                    self.items.push(Item::DiskDone { disk, request });
                }
                Answered::Entropy => drop(following.entropy_wanted.pop_front()),
            }
        }
        let waits = match progress {
            replay::Progress::Running | replay::Progress::Passed(_) => false,
            replay::Progress::Waiting => true,
            replay::Progress::Diverged(divergence) => {
                following.diverged = true;
                let at = |icount, pos| Progress { icount, pos };
                let window = Window {
                    equal: at(divergence.agreed, divergence.agreed_pos),
                    differs: at(divergence.seen, LogPos(divergence.entry)),
                };
                self.items.push(Item::Diverged { window, why: divergence.to_string() });
                true
            }
        };
        let urgent = waits;
        self.hand_over(following.progress(), RunState::Running, urgent);
        waits
    }

    fn go_live(&mut self, following: Following, advance: Nanos) -> Live {
        let Following { replayer, entropy_wanted: entropy, .. } = following;
        let mut live = Live::new(replayer.go_live(), Pace::Stopped, advance);
        live.entropy_wanted = entropy.into();
        live.keep_time(true);
        self.publish(&mut live, true);
        live
    }

    // ---- The side that makes the log.

    fn run_live(&mut self, mut live: Live) {
        loop {
            if let Next::Finish = self.handle_live_commands(&mut live) {
                self.finish(live);
                return;
            }
            if live.pace == Pace::Stopped || live.ended {
                self.publish(&mut live, true);
                self.links.wait(Some(Duration::from_nanos(IDLE_ANCHOR_NS)));
                continue;
            }
            if self.links.serial.is_full() {
                self.publish(&mut live, true);
                thread::sleep(CONSOLE_FULL_WAIT);
                continue;
            }
            if let Some(wait) = live.keep_time(false) {
                self.publish(&mut live, false);
                self.links.wait(Some(Duration::from_nanos(wait.0)));
            }
            self.inject_inputs(&mut live);
            let stop = match live.run_slice() {
                Ok(stop) => stop,
                Err(found) => {
                    // What came out since the last comparison does not leave.
                    live.ended = true;
                    live.recorder.drop_outputs();
                    self.items.push(Item::Different(found));
                    continue;
                }
            };
            if let Stop::Off(off) = stop {
                live.ended = true;
                self.publish(&mut live, false);
                self.items.push(Item::Off(off));
            }
            let halted = stop == Stop::Halted;
            let at_once = halted || live.ended;
            self.publish(&mut live, at_once);
            if halted {
                self.wait_halted(&mut live);
            }
        }
    }

    fn handle_live_commands(&mut self, live: &mut Live) -> Next {
        while let Some(command) = self.links.mailbox.take_command() {
            match command {
                Command::SetPace(pace) => live.pace = pace,
                Command::Append(control) => self.append(live, control),
                Command::TakeSnapshot(generation) => {
                    let began = now();
                    self.publish(live, false);
                    self.is_followed = true;
                    let state = StartState {
                        console_next: self.console_next,
                        entropy_wanted: live.entropy_wanted.clone(),
                        machine: live.recorder.save(),
                    };
                    let machine = live.recorder.machine();
                    let (icount, digest) = (machine.icount(), machine.digest());
                    let state = state.encode();
                    let stun = Nanos(now().0 - began.0);
                    self.items.push(Item::Snapshot { generation, icount, digest, state, stun });
                    self.publish(live, true);
                }
                Command::Finish => return Next::Finish,
                Command::Load { .. } | Command::Replay(_) | Command::GoLive { .. } => {
                    unreachable!("a side that makes the log was told to follow one")
                }
            }
        }
        Next::Go
    }

    fn append(&mut self, live: &mut Live, control: Control) {
        self.publish(live, false);
        match control {
            Control::Armed(generation) => live.recorder.record_armed(generation),
            Control::End { generation, .. } => live.recorder.record_disarmed(generation),
        };
        let mut entries = live.recorder.take_entries();
        let entry = entries.pop().expect("an entry was just written");
        let bytes = encode_entry(&entry);
        let len = bytes.len() as u64;
        self.items.push(Item::Entry { entry: ft::Entry::control(control, bytes), len });
        self.record(entry);
        self.publish(live, true);
    }

    fn inject_inputs(&mut self, live: &mut Live) {
        if live.pacer.is_none() && live.disk_in_flight > 0 {
            // On the virtual clock a disk takes no time, so that its answers always come at one step.
            self.links.marker.set(Doing::Waiting);
            self.links.mailbox.wait_for_disk(live.disk_in_flight);
            self.links.marker.set(Doing::Board);
        }
        let recorder = &mut live.recorder;
        let room = |console| recorder.machine().console_room(console).min(CONSOLE_PER_EVENT_MAX);
        let (serial_room, virtio_room) = (room(Console::Serial), room(Console::Virtio));
        let mut events = self.links.mailbox.take_inputs(|inputs| {
            let mut events: Vec<Event> = inputs.switches.drain(..).map(Event::Control).collect();
            live.disk_in_flight = live.disk_in_flight.saturating_sub(inputs.disk.len());
            inputs.disk.make_contiguous().sort_by_key(|(disk, request, _)| (*disk, *request));
            let done = inputs.disk.drain(..);
            events.extend(done.map(|(disk, request, result)| Event::DiskDone {
                disk,
                request,
                result,
            }));
            let consoles = [
                (Console::Serial, &mut inputs.serial, serial_room),
                (Console::Virtio, &mut inputs.virtio_console, virtio_room),
            ];
            for (console, typed, room) in consoles {
                let len = typed.len().min(room);
                if len > 0 {
                    let bytes = typed.drain(..len).collect();
                    events.push(Event::ConsoleInput { console, bytes });
                }
            }
            let count = inputs.frames.len().min(FRAMES_PER_EVENT_MAX);
            for (nic, frame) in inputs.frames.drain(..count) {
                // Frames that came together are announced together.
                match events.last_mut() {
                    Some(Event::FramesReceived { nic: last, frames }) if *last == nic => {
                        frames.push(frame);
                    }
                    _ => events.push(Event::FramesReceived { nic, frames: vec![frame] }),
                }
            }
            events
        });
        for len in live.entropy_wanted.drain(..) {
            let mut bytes = vec![0; len as usize];
            match &mut self.rng {
                Some(rng) => rng.fill(&mut bytes),
                None => host::entropy(&mut bytes),
            }
            events.push(Event::Entropy { bytes });
        }
        if !events.is_empty() {
            live.keep_time(true);
        }
        events.into_iter().for_each(|event| live.recorder.inject(event));
    }

    /// Waits while the guest is halted: for news, or for the guest's next timer.
    fn wait_halted(&mut self, live: &mut Live) {
        let Some(pacer) = &live.pacer else {
            // On a virtual clock a halted guest has no timer: only an input wakes it.
            return self.links.wait(None);
        };
        let wait = pacer.halt_max(now(), live.recorder.machine().next_deadline_ns());
        self.links.wait(Some(Duration::from_nanos(wait.0)));
        live.keep_time(true);
    }

    /// Moves entries and outputs from the recorder to the outbox, in the machine's order.
    fn publish(&mut self, live: &mut Live, at_once: bool) {
        let entries = live.recorder.take_entries();
        let mut pos = LogPos(live.recorder.end().0 - entries.len() as u64);
        let mut urgent = at_once;
        let mut next_output = live.recorder.poll_output();
        for entry in entries {
            pos.0 += 1;
            let done = match &entry.body {
                Body::Event(Event::DiskDone { disk, request, .. }) => Some((*disk, *request)),
                _ => None,
            };
            let bytes = if self.is_followed { encode_entry(&entry) } else { Vec::new() };
            let len = if self.is_followed { bytes.len() as u64 } else { encoded_len(&entry) };
            self.items.push(Item::Entry { entry: ft::Entry::event(bytes), len });
            self.record(entry);
            if let Some((disk, request)) = done {
                self.items.push(Item::DiskDone { disk, request });
            }
            while let Some((_, output)) = next_output.take_if(|(at, _)| *at <= pos) {
                match output {
                    Output::EntropyWanted { len } => live.entropy_wanted.push(len),
                    output => {
                        urgent = true;
                        live.disk_in_flight +=
                            usize::from(matches!(output, Output::DiskRequest { .. }));
                        self.push_output(pos, output);
                    }
                }
                next_output = live.recorder.poll_output();
            }
        }
        let progress = Progress { icount: live.recorder.machine().icount(), pos };
        let run = if live.ended { RunState::Paused } else { RunState::Running };
        self.hand_over(progress, run, urgent);
    }

    fn push_output(&mut self, pos: LogPos, output: Output) {
        let mut console_first = 0;
        if let Output::ConsoleOutput { console, bytes } = &output {
            let next = &mut self.console_next[console_index(*console)];
            console_first = *next;
            *next += bytes.len() as u64;
        }
        self.items.push(Item::Output(Produced { pos, output: Arc::new(output), console_first }));
    }

    fn record(&mut self, entry: Entry) {
        if let Some(recording) = &mut self.recording {
            recording.push(entry);
        }
    }

    fn hand_over(&mut self, progress: Progress, run: RunState, urgent: bool) {
        let time = now();
        let due = urgent || time.0.saturating_sub(self.handed_over.0) >= FLUSH.0;
        if due
            && let Some(recording) = &mut self.recording
            && let Err(error) = recording.flush()
        {
            self.items.push(Item::RecordingFailed(describe(&error)));
            self.recording = None;
        }
        let news = !self.items.is_empty();
        self.links.outbox.put(self.items.drain(..), progress, run);
        if due {
            self.handed_over = time;
            if news {
                self.links.outbox.ring();
            }
        }
    }

    fn finish(&mut self, mut live: Live) {
        let end = match live.recorder.machine().off() {
            Some(_) => End::MachineOff,
            None => End::RecordingStopped,
        };
        live.recorder.record_end(end);
        for entry in live.recorder.take_entries() {
            self.record(entry);
        }
        if let Some(recording) = self.recording.take()
            && let Err(error) = recording.finish()
        {
            self.items.push(Item::RecordingFailed(describe(&error)));
        }
        let machine = live.recorder.machine();
        let comparisons = live.recorder.shadow().map_or(0, Shadow::comparisons);
        let totals = Totals { comparisons, ..Totals::of(machine) };
        self.items.push(Item::Finished(Box::new(totals)));
        let progress = Progress { icount: machine.icount(), pos: live.recorder.end() };
        self.hand_over(progress, RunState::Paused, true);
    }
}

impl Live {
    fn new(recorder: Recorder, pace: Pace, advance: Nanos) -> Live {
        let machine = recorder.machine();
        let pacer = (machine.config().clock == ClockMode::Real).then(|| {
            let mut pacer = Pacer::new(now(), machine.guest_ns());
            pacer.advance(advance);
            pacer
        });
        let next_digest = Icount((machine.icount().0 / DIGEST_STEPS + 1) * DIGEST_STEPS);
        let disk_in_flight = machine.unfinished_requests().len();
        let entropy_wanted = Vec::new();
        Live { recorder, pacer, pace, entropy_wanted, disk_in_flight, next_digest, ended: false }
    }

    /// Anchors the clock if it is time to, or `at_once`. Says how long a guest has to wait that is
    /// ahead of real time.
    fn keep_time(&mut self, at_once: bool) -> Option<Nanos> {
        let pacer = self.pacer.as_mut()?;
        let guest_ns = self.recorder.machine().guest_ns();
        let anchor = if at_once {
            Some(pacer.anchor(now(), guest_ns))
        } else {
            pacer.poll_anchor(now(), guest_ns)
        };
        if let Some(Anchor { guest_ns, ns_per_step_q32 }) = anchor {
            self.recorder.inject(Event::Anchor { guest_ns, ns_per_step_q32 });
        }
        pacer.wait(now(), self.recorder.machine().guest_ns())
    }

    /// Runs the guest for about a millisecond.
    fn run_slice(&mut self) -> Result<Stop, Box<EngineDifference>> {
        let start = self.recorder.machine().icount();
        let steps = match (self.recorder.shadow_mut(), &self.pacer) {
            (Some(shadow), _) => shadow.slice_steps(VIRTUAL_SLICE_STEPS),
            (None, Some(pacer)) => pacer.slice_steps(),
            (None, None) => VIRTUAL_SLICE_STEPS,
        };
        let began = now();
        let stop = self.recorder.run(start.plus(steps).min(self.next_digest));
        self.recorder.compare()?;
        let end = self.recorder.machine().icount();
        if end >= self.next_digest {
            self.next_digest = self.next_digest.plus(DIGEST_STEPS);
            self.recorder.record_digest();
        } else if self.recorder.shadow().is_some() {
            // A comparison looks at everything that was written since the last digest.
            let written = self.recorder.machine().memory().marks().written();
            if written.len() > COMPARED_PAGES_MAX {
                self.recorder.record_digest();
            }
        }
        let took = Nanos(now().0 - began.0);
        // How long a reset takes says nothing about steps.
        if let Some(pacer) = &mut self.pacer
            && stop != Stop::Rebooted
        {
            pacer.handle_ran(end.since(start), took);
        }
        if let Pace::Run(Speed(speed)) = self.pace
            && speed < Speed::FULL.0
        {
            let idle = took.0 * u64::from(Speed::FULL.0 - speed) / u64::from(speed.max(1));
            thread::sleep(Duration::from_nanos(idle));
        }
        Ok(stop)
    }
}

impl Following {
    fn feed(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.fed.0 += 1;
            let answered = match &entry.body {
                Body::Event(Event::DiskDone { disk, request, .. }) => {
                    Some(Answered::Disk { disk: *disk, request: *request })
                }
                Body::Event(Event::Entropy { .. }) => Some(Answered::Entropy),
                _ => None,
            };
            self.answers.extend(answered.map(|answered| (self.fed, answered)));
            self.replayer.feed(entry);
        }
    }

    fn progress(&self) -> Progress {
        Progress { icount: self.replayer.machine().icount(), pos: self.replayer.executed() }
    }
}

/// What a backup starts from: the machine, and what the shell has to know of it.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct StartState {
    console_next: [u64; 2],
    entropy_wanted: Vec<u32>,
    machine: Vec<u8>,
}

impl base::Saved for StartState {
    const KIND: &'static str = "start-state";
    const VERSION: u16 = 1;
}

impl StartState {
    fn encode(&self) -> Vec<u8> {
        base::save_bytes(self)
    }

    fn decode(bytes: &[u8]) -> Result<StartState, String> {
        base::restore_bytes(bytes).map(|(start, _)| start).map_err(|error| describe(&error))
    }
}

pub(crate) fn console_index(console: Console) -> usize {
    match console {
        Console::Serial => 0,
        Console::Virtio => 1,
    }
}

/// An entry as it travels on the channel.
fn encode_entry(entry: &Entry) -> Vec<u8> {
    let bytes = Vec::with_capacity(entry.held_bytes());
    postcard::to_io(entry, bytes).expect("plain data always serializes")
}

/// The length of what [`encode_entry`] would write.
fn encoded_len(entry: &Entry) -> u64 {
    let len = postcard::serialize_with_flavor(entry, postcard::ser_flavors::Size::default());
    len.map_or(0, |len: usize| len as u64)
}

/// What [`encode_entry`] wrote.
pub(crate) fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    postcard::from_bytes(bytes).ok()
}

/// An error with its causes, in one line.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn now() -> Nanos {
    host::clock::monotonic()
}
