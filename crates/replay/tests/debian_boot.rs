//! Debian's kernel as a witness of determinism: the same machine, however its way is cut into slices,
//! saved, restored, recorded and replayed.

use std::path::PathBuf;
use std::sync::Arc;

use base::{Digest, Icount, LogPos, SeededRng};
use cpu::{Cpu, Engine, Env, Next};
use engines::EngineKind;
use machine::event::{Console, Event, Output};
use machine::{BootPayload, ClockMode, CpuModel, Machine, MachineConfig, Stop};
use mem::{GuestMem, WatchedWrite};
use replay::format::{Body, Decoder, Encoder, End, Item};
use replay::{
    Compared, Comparison, EngineDifference, Equip, Passed, Progress, Recorder, Replayer, Shadow,
};

/// Far enough for the kernel to unpack itself, patch itself and start its drivers.
const BOOT_STEPS: u64 = 120_000_000;

fn payload() -> BootPayload {
    let images = std::env::var_os("LOCKSTEP_IMAGES")
        .expect("LOCKSTEP_IMAGES names no folder of guest images: run `cargo xtask test`");
    let read = |name: &str| {
        let path = PathBuf::from(&images).join("bare").join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    BootPayload {
        kernel: read("vmlinuz"),
        initrd: Some(read("initrd.img")),
        cmdline: "console=ttyS0 mitigations=off cryptomgr.notests earlyprintk=ttyS0".to_owned(),
    }
}

/// A machine at power-on. The environment says what runs it.
fn machine(clock: ClockMode) -> Machine {
    machine_with(clock, CpuModel::V2)
}

fn machine_with(clock: ClockMode, cpu: CpuModel) -> Machine {
    let config = MachineConfig { clock, cpu, ..MachineConfig::for_test(256 << 20) };
    let machine = Machine::new(config, payload()).expect("Debian's kernel loads");
    with_engine(machine, EngineKind::from_environment().expect("a kind of engine"))
}

fn with_engine(mut machine: Machine, kind: EngineKind) -> Machine {
    machine.set_engine(kind.make().expect("the engine that was asked for"));
    machine
}

/// Runs to `until` in slices that `slice` chooses and drops the outputs.
fn run_in_slices(machine: &mut Machine, until: Icount, mut slice: impl FnMut() -> u64) -> usize {
    let mut console_len = 0;
    while machine.icount() < until {
        let stop = machine.run(machine.icount().plus(slice()).min(until));
        while let Some(output) = machine.poll_output() {
            if let Output::ConsoleOutput { bytes, .. } = output {
                console_len += bytes.len();
            }
        }
        assert!(!matches!(stop, Stop::Halted | Stop::Off(_)), "the boot came to {stop:?}");
    }
    console_len
}

/// behaviours 13, 16, 25, 29: the same start gives the same states at the same steps, with no log
/// at all and in slices of any size.
#[test]
fn a_boot_is_the_same_however_it_is_sliced() {
    let digests = |mut slice: Box<dyn FnMut() -> u64>| -> Vec<(usize, Digest)> {
        let mut machine = machine(ClockMode::Virtual);
        (1..=3)
            .map(|third| {
                let until = Icount(BOOT_STEPS / 3 * third);
                let console_len = run_in_slices(&mut machine, until, &mut slice);
                (console_len, machine.digest())
            })
            .collect()
    };
    let whole = digests(Box::new(|| BOOT_STEPS));
    let mut rng = SeededRng::new(5);
    let sliced = digests(Box::new(move || match rng.below(50) {
        0 => 1 + rng.below(3),
        _ => 1 + rng.below(30_000),
    }));
    assert!(whole[2].0 > 1000, "the kernel printed {} bytes", whole[2].0);
    assert_eq!(whole, sliced);
}

/// behaviour 2: a machine restored from a snapshot, with cold caches, goes through the same states. Its CPU has
/// all that there is, so that all of its state is in the snapshot.
#[test]
fn a_boot_goes_on_the_same_from_a_snapshot() {
    let mut machine = machine_with(ClockMode::Virtual, CpuModel::ALL);
    for share in [4, 3, 2] {
        run_in_slices(&mut machine, Icount(BOOT_STEPS / share), || 1_000_000);
        let kind = EngineKind::from_environment().expect("a kind of engine");
        let copy = Machine::restore(&machine.save()).expect("its own snapshot");
        let mut copy = with_engine(copy, kind);
        assert_eq!(copy.digest(), machine.digest());
        let until = machine.icount().plus(BOOT_STEPS / 10);
        run_in_slices(&mut machine, until, || 1_000_000);
        run_in_slices(&mut copy, until, || 1_000_000);
        assert_eq!(copy.digest(), machine.digest(), "after a snapshot at 1/{share}");
    }
}

/// Runs a slice, with anchors at random places and rates and keys pressed at random.
fn boot_a_little(recorder: &mut Recorder, rng: &mut SeededRng, guest_ns: &mut u64) {
    let until = recorder.machine().icount().plus(1 + rng.below(300_000));
    match recorder.run(until) {
        Stop::Reached | Stop::OutputsReady | Stop::Rebooted => {}
        Stop::Halted => *guest_ns += 1_000_000,
        Stop::Off(off) => panic!("the boot ended: {off:?}"),
    }
    *guest_ns = recorder.machine().guest_ns().max(*guest_ns) + rng.below(200_000);
    let ns_per_step_q32 = (1 + rng.below(20)) << 31;
    recorder.inject(Event::Anchor { guest_ns: *guest_ns, ns_per_step_q32 });
    if rng.one_in(20) {
        let bytes = vec![rng.u64() as u8; 1 + rng.below(3) as usize];
        recorder.inject(Event::ConsoleInput { console: Console::Serial, bytes });
    }
}

/// A boot with clock anchors at random places and rates and keys pressed at random: its log, and
/// the machine's digest at the end. The environment says what runs it.
fn recorded_boot(seed: u64) -> (Vec<u8>, Digest) {
    recorded_boot_with(EngineKind::from_environment().expect("a kind of engine"), seed)
}

fn recorded_boot_with(kind: EngineKind, seed: u64) -> (Vec<u8>, Digest) {
    let mut rng = SeededRng::new(seed);
    let machine = with_engine(machine(ClockMode::Real), kind);
    let mut recorder = Recorder::new(machine, LogPos(0));
    let mut encoder = Encoder::new(LogPos(0), Icount(0));
    let mut log = Encoder::encode_start(&recorder.save());
    let mut guest_ns = 0;
    while recorder.machine().icount() < Icount(BOOT_STEPS) {
        boot_a_little(&mut recorder, &mut rng, &mut guest_ns);
        if rng.one_in(10) {
            recorder.record_digest();
        }
        while recorder.poll_output().is_some() {}
        recorder.take_entries().into_iter().for_each(|entry| encoder.push(entry));
        log.extend(encoder.take_bytes());
    }
    recorder.record_end(End::RecordingStopped);
    recorder.take_entries().into_iter().for_each(|entry| encoder.push(entry));
    log.extend(encoder.take_bytes());
    (log, recorder.machine().digest())
}

/// Follows a log to its end; `edit` may change its entries. The environment says what runs it.
fn follow(log: &[u8], edit: impl FnMut(&mut Body)) -> (Progress, Replayer) {
    follow_with(EngineKind::from_environment().expect("a kind of engine"), log, edit)
}

fn follow_with(
    kind: EngineKind,
    log: &[u8],
    mut edit: impl FnMut(&mut Body),
) -> (Progress, Replayer) {
    let mut decoder = Decoder::new();
    decoder.feed(log);
    let Ok(Some(Item::Start(start))) = decoder.poll() else { panic!("no start state") };
    let machine = with_engine(Machine::restore(&start).expect("a start state"), kind);
    let mut replayer = Replayer::new(machine, LogPos(0));
    while let Some(Item::Entry(mut entry)) = decoder.poll().expect("a whole log") {
        edit(&mut entry.body);
        replayer.feed(entry);
    }
    loop {
        match replayer.advance(100_000) {
            Progress::Running => {}
            end => return (end, replayer),
        }
    }
}

/// behaviours 13, 18, 26: a log with real-time anchors and console input replays to equal digests.
#[test]
fn a_recorded_boot_replays_to_the_same_digest() {
    let (log, digest) = recorded_boot(7);
    let (end, replayer) = follow(&log, |_| {});
    assert_eq!(end, Progress::Passed(Passed::End(End::RecordingStopped)));
    assert!(replayer.digest_count() > 20);
    assert_eq!(replayer.machine().digest(), digest);
}

/// behaviours 68, 156: one changed input is found, and named by the window in which it lies.
#[test]
fn a_changed_entry_is_found_as_a_divergence() {
    let (log, _) = recorded_boot(8);
    let mut anchors = 0;
    let (end, replayer) = follow(&log, |body| {
        if let Body::Event(Event::Anchor { guest_ns, .. }) = body {
            anchors += 1;
            if anchors == 150 {
                *guest_ns += 50_000_000;
            }
        }
    });
    let Progress::Diverged(divergence) = end else { panic!("it ended as {end:?}") };
    assert!(divergence.agreed < divergence.seen, "{divergence}");
    assert!(replayer.digest_count() > 0);
}

/// behaviours 13, 26: what one engine records, the other records alike and follows, and a snapshot goes from
/// one to the other: an engine is no part of the state.
#[test]
fn a_boot_goes_on_the_same_with_another_engine() {
    if let Err(why) = EngineKind::Translator.make() {
        eprintln!("skipped: {why}");
        return;
    }
    let kinds = [EngineKind::Interpreter, EngineKind::Translator];
    let recordings = kinds.map(|kind| recorded_boot_with(kind, 11));
    assert!(recordings[0] == recordings[1], "the recordings differ");
    for ((log, digest), follower) in recordings.iter().zip([kinds[1], kinds[0]]) {
        let (end, replayer) = follow_with(follower, log, |_| {});
        assert_eq!(end, Progress::Passed(Passed::End(End::RecordingStopped)), "{follower}");
        assert!(replayer.digest_count() > 20);
        assert_eq!(replayer.machine().digest(), *digest, "{follower}");
    }
    let digests = kinds.map(|kind| {
        let mut rng = SeededRng::new(3);
        let mut machine = with_engine(machine(ClockMode::Virtual), kind);
        run_in_slices(&mut machine, Icount(BOOT_STEPS / 2), || 1 + rng.below(400_000));
        let other = kinds.into_iter().find(|other| *other != kind).expect("there are two");
        let copy = Machine::restore(&machine.save()).expect("its own snapshot");
        let mut copy = with_engine(copy, other);
        run_in_slices(&mut copy, Icount(BOOT_STEPS), || 1 + rng.below(400_000));
        // And on the same machine, with its caches.
        let mut machine = with_engine(machine, other);
        run_in_slices(&mut machine, Icount(BOOT_STEPS), || 1 + rng.below(400_000));
        assert_eq!(copy.digest(), machine.digest(), "from {kind} to {other}");
        copy.digest()
    });
    assert_eq!(digests[0], digests[1]);
}

/// An engine that leaves everything to the interpreter, but for one write to RAM from step `at` on.
struct Mistaken {
    at: u64,
    done: bool,
}

impl Engine for Mistaken {
    fn run(&mut self, cpu: &mut Cpu, env: &mut Env<'_>, _: u64) -> Next {
        if cpu.icount().0 >= self.at && !std::mem::replace(&mut self.done, true) {
            env.mem.write_obj(base::Gpa((256 << 20) - 8), 0x5au8).expect("the last bytes of RAM");
        }
        Next::Block
    }

    fn drop_code(&mut self, _: &mut Cpu, _: &mut GuestMem, _: WatchedWrite) {}

    fn stats(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

fn equip_mistaken(at: u64) -> Equip {
    Arc::new(move |machine: &mut Machine| {
        machine.set_engine(Some(Box::new(Mistaken { at, done: false })));
    })
}

/// Looks that a difference is one that [`Mistaken`] makes at step `at`. The kernel runs in 64-bit mode by then,
/// and keeps a block shorter than 40 instructions.
fn check_found(found: &EngineDifference, at: u64) {
    assert!(found.is_first, "{found}");
    assert!((at..at + 40).contains(&found.differs.0), "{found}");
    assert!(found.what.iter().any(|line| line.starts_with("RAM at 0xffffff8")), "{found}");
    assert_eq!(found.listing.len(), 24, "{found}");
}

/// Replays a log on the interpreter and on an engine that makes its mistake at step `at`.
fn compare(log: &[u8], at: u64) -> (Compared, u64) {
    let mut decoder = Decoder::new();
    decoder.feed(log);
    let Ok(Some(Item::Start(start))) = decoder.poll() else { panic!("no start state") };
    let mut comparison =
        Comparison::new(start, LogPos(0), equip_mistaken(at)).expect("a start state");
    while let Some(Item::Entry(entry)) = decoder.poll().expect("a whole log") {
        comparison.feed(entry);
    }
    loop {
        match comparison.advance() {
            Compared::Equal(Progress::Running) => {}
            end => return (end, comparison.comparisons()),
        }
    }
}

#[test]
fn engines_that_differ_are_seen_to_at_the_step() {
    let (log, _) = recorded_boot(5);
    let (end, comparisons) = compare(&log, u64::MAX);
    assert_eq!(end, Compared::Equal(Progress::Passed(Passed::End(End::RecordingStopped))));
    assert!(comparisons > BOOT_STEPS / 2_000_000, "compared {comparisons} times");

    let at = BOOT_STEPS / 3;
    let (Compared::Different(found), _) = compare(&log, at) else { panic!("no difference") };
    check_found(&found, at);
}

/// A live boot with the interpreter beside it: the steps between comparisons until they differ, if they do.
fn shadowed_boot(at: u64, end: u64) -> Result<u64, Box<EngineDifference>> {
    let mut rng = SeededRng::new(7);
    let mut machine = machine(ClockMode::Real);
    let equip = equip_mistaken(at);
    equip(&mut machine);
    let shadow = Shadow::new(&machine, LogPos(0), (u64::MAX, 1), equip).expect("a shadow");
    let mut recorder = Recorder::new(machine, LogPos(0));
    recorder.set_shadow(shadow);
    let mut guest_ns = 0;
    while recorder.machine().icount() < Icount(end) {
        boot_a_little(&mut recorder, &mut rng, &mut guest_ns);
        recorder.compare()?;
        while recorder.poll_output().is_some() {}
        drop(recorder.take_entries());
        if rng.one_in(10) {
            recorder.record_digest();
        }
    }
    Ok(recorder.shadow().expect("it is still there").comparisons())
}

#[test]
fn a_live_machine_and_its_shadow_are_equal_and_a_mistake_is_seen_to_at_the_step() {
    let end = BOOT_STEPS / 2;
    let comparisons = shadowed_boot(u64::MAX, end).expect("no difference");
    assert!(comparisons > end / 300_000, "compared {comparisons} times");
    let at = BOOT_STEPS / 3;
    check_found(&shadowed_boot(at, end).expect_err("a difference"), at);
}
