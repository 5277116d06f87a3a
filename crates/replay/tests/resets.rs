//! A guest that resets itself all the time, recorded and followed.

use std::sync::Arc;

use base::{Icount, LogPos, SeededRng};
use machine::event::{Control, Event};
use machine::{BootPayload, ClockMode, Machine, MachineConfig};
use replay::format::End;
use replay::{Passed, Progress, Recorder, Replayer, Shadow};

/// By the clock, the guest either faults thrice, or says "x" and resets itself by a port.
fn machine() -> Machine {
    #[rustfmt::skip]
    const CODE: &[u8] = &[
        0x0f, 0x31, 0xa8, 0x04, 0x75, 0x02, // rdtsc; test al, 4; jnz +2
        0x0f, 0x0b,                         // ud2
        0x66, 0xba, 0xf8, 0x03,             // mov dx, 0x3f8
        0xb0, 0x78, 0xee,                   // mov al, 'x'; out dx, al
        0x66, 0xba, 0xf9, 0x0c,             // mov dx, 0xcf9
        0xb0, 0x06, 0xee,                   // mov al, 6; out dx, al
    ];
    let config =
        MachineConfig { clock: ClockMode::Real, reboots: true, ..MachineConfig::for_test(2 << 20) };
    Machine::new(config, BootPayload::for_test(CODE)).unwrap()
}

/// Inputs come where a slice ends, so most of them at a reset. The follower gives its caller a turn at
/// every reset, and takes the same way; so does one that follows live.
#[test]
fn a_guest_that_resets_for_ever_is_followed_reset_by_reset() {
    for seed in 0..4 {
        let mut rng = SeededRng::new(seed);
        let mut recorder = Recorder::new(machine(), LogPos(0));
        let equip = Arc::new(|_: &mut Machine| {});
        let shadow = Shadow::new(recorder.machine(), LogPos(0), (40, seed), equip);
        recorder.set_shadow(shadow.unwrap());
        let (mut guest_ns, mut sent) = (0, Vec::new());
        while recorder.machine().icount() < Icount(2_000) {
            let slice = 1 + rng.below(40);
            recorder.run(recorder.machine().icount().plus(slice));
            if rng.one_in(2) {
                recorder.compare().unwrap_or_else(|found| panic!("seed {seed}: {found}"));
            }
            guest_ns = recorder.machine().guest_ns().max(guest_ns) + rng.below(100);
            match rng.below(8) {
                0..3 => recorder.inject(Event::Anchor { guest_ns, ns_per_step_q32: 3 << 32 }),
                3 => recorder.inject(Event::Control(Control::Reset)),
                4 => recorder.record_digest(),
                _ => {}
            }
            sent.extend(std::iter::from_fn(|| recorder.poll_output()));
        }
        recorder.record_end(End::RecordingStopped);
        sent.extend(std::iter::from_fn(|| recorder.poll_output()));

        let mut replayer = Replayer::new(machine(), LogPos(0));
        recorder.take_entries().into_iter().for_each(|entry| replayer.feed(entry));
        let mut replayed = Vec::new();
        loop {
            let boot_count = replayer.machine().boot_count();
            let progress = replayer.advance(1 + rng.below(1_000));
            assert!(replayer.machine().boot_count() <= boot_count + 1, "seed {seed}");
            replayed.extend(replayer.take_outputs());
            match progress {
                Progress::Running => {}
                Progress::Passed(Passed::End(_)) => break,
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        assert!(replayed == sent && !sent.is_empty(), "seed {seed}");
        assert_eq!(replayer.machine().boot_count(), recorder.machine().boot_count());
        assert_eq!(replayer.machine().digest(), recorder.machine().digest(), "seed {seed}");
    }
}
