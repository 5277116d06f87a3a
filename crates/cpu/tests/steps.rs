//! However a run is cut, and whatever the caches forget, the guest sees the same.

mod common;

use base::{Gpa, Icount, SeededRng};
use common::{CODE, Copycat, DATA, HANDLERS, RAM_BYTES, Vm};
use cpu::{CpuState, CpuStop};

/// Steps of one random program.
const STEPS: u64 = 1500;
/// An interrupt line goes up every so many steps.
const INTERRUPT_PERIOD: u64 = 97;
const PROGRAMS: u64 = 15;

/// A program of random bytes. Handlers skip a byte of what faulted and return.
fn random_program(seed: u64) -> Vm {
    let mut rng = SeededRng::new(seed);
    let mut code = vec![0; 0x3000];
    rng.fill(&mut code);
    seed_with_common_instructions(&mut rng, &mut code);
    let mut vm = if seed.is_multiple_of(3) { Vm::long(&code) } else { Vm::user(&code) };
    for vector in 0..256u64 {
        let has_error = matches!(vector, 8 | 10..=14 | 17);
        let mut handler = Vec::new();
        if has_error {
            handler.extend([0x48, 0x83, 0xc4, 0x08]); // add rsp, 8
        }
        if vector < 32 {
            handler.extend([0x48, 0xff, 0x04, 0x24]); // inc qword [rsp]
        }
        handler.extend([0x48, 0xcf]); // iretq
        vm.write(HANDLERS + 32 * vector, &handler);
    }
    vm.change(|state| {
        for (n, reg) in state.gpr.iter_mut().enumerate().filter(|(n, _)| *n != 4) {
            *reg = match n % 3 {
                0 => DATA + rng.below(0x2000),
                1 => CODE + rng.below(0x3000),
                _ => rng.u64(),
            };
        }
        state.rflags |= rng.u64() & 0x8d5 | 0x200;
        state.rip = CODE + rng.below(0x3000);
    });
    vm
}

/// Random bytes alone seldom loop, store or repeat.
fn seed_with_common_instructions(rng: &mut SeededRng, code: &mut [u8]) {
    let pieces: [&[u8]; 14] = [
        &[0xf3, 0xa4],                               // rep movsb
        &[0xf3, 0x48, 0xab],                         // rep stosq
        &[0xf2, 0xae],                               // repne scasb
        &[0xfb],                                     // sti
        &[0x48, 0x89, 0x07],                         // mov [rdi], rax
        &[0x48, 0x89, 0x44, 0x24, 0xf8],             // mov [rsp-8], rax
        &[0xb9, 0x10, 0x00, 0x00, 0x00],             // mov ecx, 16
        &[0xe2, 0xf0],                               // loop -16
        &[0xeb, 0x05],                               // jmp +5
        &[0x48, 0x8d, 0x3d, 0x10, 0x00, 0x00, 0x00], // lea rdi, [rip+16]
        &[0x66, 0xc7, 0x07, 0x90, 0x90],             // mov word [rdi], 0x9090
        &[0x0f, 0xa2],                               // cpuid
        &[0x0f, 0x31],                               // rdtsc
        &[0xe6, 0x80],                               // out 0x80, al
    ];
    for _ in 0..code.len() / 12 {
        let piece = pieces[rng.below(pieces.len() as u64) as usize];
        let at = rng.below((code.len() - piece.len()) as u64) as usize;
        code[at..at + piece.len()].copy_from_slice(piece);
    }
}

/// What a run leaves behind: all that the guest could see.
#[derive(PartialEq)]
struct Outcome {
    state: CpuState,
    ram: Vec<u8>,
    port_writes: Vec<(u64, u16, u32)>,
    acknowledged: Vec<u64>,
}

/// Runs a program, cut into slices of `slice()` steps; `between` is called after each.
fn run(seed: u64, slice: impl FnMut() -> u64, between: impl FnMut(&mut Vm)) -> Outcome {
    run_by(seed, slice, between, |vm, until| vm.cpu.run(&mut vm.mem, &mut vm.bus, until))
}

/// The same, each slice run by `run_slice`.
fn run_by(
    seed: u64,
    mut slice: impl FnMut() -> u64,
    mut between: impl FnMut(&mut Vm),
    mut run_slice: impl FnMut(&mut Vm, Icount) -> CpuStop,
) -> Outcome {
    let mut vm = random_program(seed);
    while vm.cpu.icount().0 < STEPS {
        let now = vm.cpu.icount().0;
        let next_interrupt = (now / INTERRUPT_PERIOD + 1) * INTERRUPT_PERIOD;
        let until = now.saturating_add(slice()).min(next_interrupt).min(STEPS);
        let stop = run_slice(&mut vm, Icount(until));
        match stop {
            CpuStop::Reached => assert_eq!(vm.cpu.icount().0, until),
            CpuStop::Shutdown => break,
            CpuStop::Halted if vm.cpu.rflags() & 0x200 == 0 => break,
            CpuStop::Halted => vm.bus.interrupt = Some(0x40),
            CpuStop::StopRequested => unreachable!("the test never asks for it"),
        }
        if vm.cpu.icount().0.is_multiple_of(INTERRUPT_PERIOD) {
            vm.bus.interrupt = Some(0x40);
        }
        between(&mut vm);
    }
    let mut ram = vec![0; RAM_BYTES as usize];
    vm.mem.read(Gpa(0), &mut ram).unwrap();
    Outcome {
        state: vm.cpu.save(),
        ram,
        port_writes: vm.bus.port_writes,
        acknowledged: vm.bus.acknowledged,
    }
}

fn check_same(seed: u64, how: &str, expected: &Outcome, actual: &Outcome) {
    assert_eq!(expected.state, actual.state, "program {seed}, {how}");
    let difference = expected.ram.iter().zip(&actual.ram).position(|(a, b)| a != b);
    assert_eq!(difference, None, "program {seed}, {how}: RAM differs at this address");
    assert!(expected == actual, "program {seed}, {how}: the board saw something else");
}

/// Behaviour 13, behaviour 16, behaviour 28.
#[test]
fn random_programs_pass_through_the_same_states_however_they_are_cut() {
    for seed in 0..PROGRAMS {
        let whole = run(seed, || u64::MAX, |_| {});
        let mut rng = SeededRng::new(seed);
        let cut = run(seed, || 1 + rng.below(40), |_| {});
        check_same(seed, "cut at random", &whole, &cut);
        let single = run(seed, || 1, |_| {});
        check_same(seed, "step by step", &whole, &single);
    }
}

#[test]
fn random_programs_cannot_tell_whether_an_engine_runs_them() {
    let mut steps = 0;
    for seed in 0..PROGRAMS {
        let whole = run(seed, || u64::MAX, |_| {});
        for slice_max in [u64::MAX / 2, 40, 1] {
            let mut rng = SeededRng::new(seed);
            let mut engine = Copycat::new(seed);
            let copied = run_by(
                seed,
                || 1 + rng.below(slice_max),
                |_| {},
                |vm, until| vm.cpu.run_with(&mut vm.mem, &mut vm.bus, until, &mut engine),
            );
            check_same(seed, &format!("an engine, slices up to {slice_max}"), &whole, &copied);
            steps += engine.steps;
        }
    }
    assert!(steps > PROGRAMS * 100, "the engine made no more than {steps} steps");
}

#[test]
fn random_programs_cannot_tell_when_caches_are_dropped() {
    for seed in 0..PROGRAMS {
        let whole = run(seed, || u64::MAX, |_| {});
        let mut rng = SeededRng::new(seed);
        let dropped = run(seed, || 1 + rng.below(60), |vm| vm.cpu.drop_caches());
        check_same(seed, "caches dropped", &whole, &dropped);
        let mut rng = SeededRng::new(seed);
        let saved = run(
            seed,
            || 1 + rng.below(300),
            |vm| {
                let state = vm.cpu.save();
                vm.cpu = cpu::Cpu::new();
                vm.cpu.restore(&state).unwrap();
                vm.mem.marks_mut().take_written();
            },
        );
        check_same(seed, "saved and restored", &whole, &saved);
    }
}

#[test]
fn programs_run_far_enough_to_mean_something() {
    let finished = (0..PROGRAMS)
        .filter(|seed| run(*seed, || u64::MAX, |_| {}).state.icount.0 == STEPS)
        .count();
    assert!(finished as u64 > PROGRAMS / 2, "only {finished} of {PROGRAMS} ran to the end");
}
