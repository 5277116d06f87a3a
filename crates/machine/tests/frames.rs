//! A guest that sends frames: when they leave.

use base::Icount;
use machine::event::{Control, Event, Output};
use machine::{BootPayload, ClockMode, Machine, MachineConfig, NicConfig, Stop};

/// Where the guest's code starts.
const CODE: u32 = 0x10_0020;
/// The window of the network device: behind the entropy device and the console.
const DEVICE: u32 = 0xd000_2000;
const DESCRIPTORS: u32 = 0x18_0000;
const AVAIL: u32 = 0x18_1000;
const USED: u32 = 0x18_2000;
const BUFFER: u32 = 0x18_3000;
/// From the first kick until the frames leave, in nanoseconds, which are steps here.
const DELAY_NS: u64 = 50_000;

const HALT: &[u8] = &[0xf4];
const SPIN: &[u8] = &[0xeb, 0xfe];

/// Writes of words that set the device up and kick two frames one after the other. The status that starts
/// the device counts as a kick, too: it is the write of this number.
fn writes() -> (Vec<[u32; 2]>, u64) {
    let device = |(offset, value): (u32, u32)| [DEVICE + offset, value];
    let version_1 = [(0x24, 1), (0x20, 1)];
    let rings = [(0x30, 1), (0x38, 16), (0x80, DESCRIPTORS), (0x90, AVAIL), (0xa0, USED)];
    let mut writes: Vec<[u32; 2]> = [(0x70, 3)].into_iter().map(device).collect();
    writes.extend(version_1.into_iter().chain([(0x70, 11)]).map(device));
    writes.extend(rings.into_iter().chain([(0x44, 1), (0x70, 15)]).map(device));
    let started = writes.len() as u64 - 1;
    for descriptor in [DESCRIPTORS, DESCRIPTORS + 16] {
        writes.extend([[descriptor, BUFFER], [descriptor + 8, 12 + 60], [descriptor + 12, 0]]);
    }
    writes.extend([[AVAIL + 4, 1 << 16], [AVAIL, 1 << 16], [DEVICE + 0x50, 1]]);
    writes.extend([[AVAIL, 2 << 16], [DEVICE + 0x50, 1]]);
    (writes, started)
}

fn machine(end: &[u8]) -> Machine {
    let (writes, _) = writes();
    // mov esi, the writes; mov ecx, their number; lodsd; mov edi, eax; lodsd; mov [edi], eax; loop
    let table = CODE + 18 + end.len() as u32;
    let mut code = vec![0xbe];
    code.extend(table.to_le_bytes());
    code.push(0xb9);
    code.extend((writes.len() as u32).to_le_bytes());
    code.extend([0xad, 0x89, 0xc7, 0xad, 0x89, 0x07, 0xe2, 0xf8]);
    code.extend(end);
    code.extend(writes.iter().flatten().flat_map(|word| word.to_le_bytes()));
    let config = MachineConfig {
        clock: ClockMode::Virtual,
        nics: vec![NicConfig { mac: [2; 6] }],
        ..MachineConfig::for_test(2 << 20)
    };
    Machine::new(config, BootPayload::for_test(&code)).unwrap()
}

/// When frames left, and how many each time.
fn run(ending: &[u8], slice: u64) -> Vec<(u64, usize)> {
    let (mut machine, mut sent) = (machine(ending), Vec::new());
    let end = Icount(2 * DELAY_NS);
    while machine.icount() < end {
        let stop = machine.run(machine.icount().plus(slice).min(end));
        while let Some(output) = machine.poll_output() {
            let Output::FramesSent { frames, .. } = output else { continue };
            sent.push((machine.icount().0, frames.len()));
        }
        if stop == Stop::Halted {
            break;
        }
    }
    sent
}

/// The step at which a write is done: two steps come before the first, each takes five.
fn step_of_write(number: u64) -> u64 {
    2 + number * 5 + 4
}

#[test]
fn frames_of_a_guest_that_goes_on_leave_together_after_a_while() {
    let (_, started) = writes();
    let due = step_of_write(started) - 1 + DELAY_NS;
    assert_eq!(run(SPIN, 1 << 30), [(due, 2)]);
}

#[test]
fn frames_of_a_guest_that_halts_leave_at_once() {
    let (writes, _) = writes();
    let halted = 2 + writes.len() as u64 * 5 + 1;
    assert_eq!(run(HALT, 1 << 30), [(halted, 2)]);
}

#[test]
fn frames_leave_at_the_same_step_however_a_run_is_cut() {
    for end in [SPIN, HALT] {
        let whole = run(end, 1 << 30);
        for slice in [1, 7, 1_000] {
            assert_eq!(run(end, slice), whole, "slices of {slice}");
        }
    }
}

#[test]
fn frames_leave_before_the_power_is_cut_and_before_a_reset() {
    // mov dx, 0xcf9; mov al, 6; out dx, al
    let resets: &[u8] = &[0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee];
    for (end, control) in
        [(resets, None), (SPIN, Some(Control::Reset)), (SPIN, Some(Control::PowerOff))]
    {
        let mut machine = machine(end);
        assert_eq!(machine.run(Icount(2 + writes().0.len() as u64 * 5)), Stop::Reached);
        control.into_iter().for_each(|control| machine.inject(Event::Control(control)));
        assert_eq!(machine.run(Icount(DELAY_NS / 2)), Stop::OutputsReady);
        let sent = machine.poll_output();
        assert!(matches!(sent, Some(Output::FramesSent { frames, .. }) if frames.len() == 2));
    }
}
