//! Guests that reset themselves all the time: each reset ends a slice, and slices stay invisible.

use base::Icount;
use machine::event::Output;
use machine::{BootPayload, ClockMode, Machine, MachineConfig, Stop};

fn machine(code: &[u8]) -> Machine {
    let config = MachineConfig {
        clock: ClockMode::Virtual,
        reboots: true,
        ..MachineConfig::for_test(2 << 20)
    };
    Machine::new(config, BootPayload::for_test(code)).unwrap()
}

#[test]
fn a_run_ends_at_every_reset_of_a_guest_that_faults_for_ever() {
    let mut machine = machine(&[0x0f, 0x0b]); // ud2, without an IDT: a triple fault is one step
    for reset in 1..=5 {
        assert_eq!(machine.run(Icount(1_000)), Stop::Rebooted);
        assert_eq!((machine.icount(), machine.boot_count()), (Icount(reset), reset + 1));
    }
    // One that is due at the very end is done there, and has no stop of its own.
    assert_eq!(machine.run(Icount(6)), Stop::Reached);
    assert_eq!(machine.boot_count(), 7);
    assert_eq!(machine.run(Icount(6)), Stop::Reached);
    assert_eq!(machine.boot_count(), 7);
}

#[test]
fn resets_come_at_the_same_steps_however_a_run_is_cut() {
    // By the clock, the guest either faults thrice, or says "x" and resets itself by a port.
    #[rustfmt::skip]
    const CODE: &[u8] = &[
        0x0f, 0x31, 0xa8, 0x04, 0x75, 0x02, // rdtsc; test al, 4; jnz +2
        0x0f, 0x0b,                         // ud2
        0x66, 0xba, 0xf8, 0x03,             // mov dx, 0x3f8
        0xb0, 0x78, 0xee,                   // mov al, 'x'; out dx, al
        0x66, 0xba, 0xf9, 0x0c,             // mov dx, 0xcf9
        0xb0, 0x06, 0xee,                   // mov al, 6; out dx, al
    ];
    let until = Icount(3_001);
    let run = |slice: u64| {
        let (mut machine, mut outputs) = (machine(CODE), Vec::new());
        while machine.icount() < until {
            machine.run(machine.icount().plus(slice).min(until));
            while let Some(output) = machine.poll_output() {
                outputs.push((machine.icount(), output));
            }
        }
        (machine.digest(), machine.boot_count(), outputs)
    };
    let (digest, boot_count, outputs) = run(1 << 30);
    assert!(outputs.len() > 50 && boot_count as usize > outputs.len() + 50, "both kinds happen");
    assert!(matches!(outputs[0].1, Output::ConsoleOutput { .. }));
    for slice in [1, 2, 7, 100] {
        assert!(run(slice) == (digest, boot_count, outputs.clone()), "slices of {slice}");
    }
}
