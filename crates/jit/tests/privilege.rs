//! What a kernel does between a program and itself: the same in the translator and on the interpreter, with cuts and
//! interrupts anywhere, and without leaving the translator.

mod both;
#[path = "../../cpu/tests/common/mod.rs"]
mod common;

use base::Icount;
use both::{INTERRUPT, STEPS, has_translator};
use common::{CODE, DATA, HANDLERS, PT, STACK, USER_STACK, Vm};
use cpu::{Marker, Profile};
use jit::Translator;
use x86::{Cr4, Rflags, Vector};

/// Maps everything once more, for the kernel alone.
const UPPER_HALF: u64 = 0xffff_8000_0000_0000;
const KERNEL: u64 = 0x7_0000;
/// Where GS points in the kernel: a place for the program's stack pointer, and the kernel's.
const PER_CPU: u64 = 0x7_8000;
const FAULT_STACK: u64 = 0x7_c000;
/// As Linux has it.
const FLAG_MASK: u64 = Rflags::ALL & !(Rflags::VM | Rflags::VIF | Rflags::VIP);

/// A program, and a kernel that SYSCALL leads to. The handler of interrupts returns at once; that of page faults counts in
/// R14 and goes on behind an instruction of one byte.
fn guest(program: &[u8], kernel: &[u8]) -> Vm {
    let mut vm = Vm::user(program);
    let pdpt = vm.read(0x1_0000) & !7;
    vm.write(0x1_0000 + 8 * 256, &(pdpt | 3).to_le_bytes());
    vm.write(KERNEL, kernel);
    vm.write(PER_CPU + 8, &(UPPER_HALF + STACK).to_le_bytes());
    let handlers: [(u8, &[u8]); 2] = [
        (INTERRUPT, &[0x48, 0xcf]),
        // inc r14; add rsp, 8; inc qword [rsp]; iretq
        (Vector::PF, &[0x49, 0xff, 0xc6, 0x48, 0x83, 0xc4, 8, 0x48, 0xff, 0x04, 0x24, 0x48, 0xcf]),
    ];
    for (vector, code) in handlers {
        let at = HANDLERS + 32 * u64::from(vector);
        vm.write(at, code);
        let gate = 0x2000 + 16 * u64::from(vector);
        vm.write(gate + 8, &((UPPER_HALF + at) >> 32).to_le_bytes());
    }
    // Page faults have a stack of their own.
    vm.write(0x2000 + 16 * u64::from(Vector::PF) + 4, &[1]);
    vm.write(0x3000 + 0x24, &(UPPER_HALF + FAULT_STACK).to_le_bytes());
    vm.write(0x3000 + 4, &(UPPER_HALF + STACK).to_le_bytes());
    // SYSRET wants the code segment behind the stack's.
    let program_code = vm.read(0x1000 + 0x18);
    vm.write(0x1000 + 0x28, &program_code.to_le_bytes());
    vm.change(|state| {
        state.sys.cr4 |= Cr4::SMAP | Cr4::FSGSBASE;
        state.sys.star = 0x08 << 32 | 0x18 << 48;
        state.sys.lstar = UPPER_HALF + KERNEL;
        state.sys.fmask = FLAG_MASK;
        state.sys.kernel_gs_base = UPPER_HALF + PER_CPU;
        for base in [&mut state.sys.gdtr.base, &mut state.sys.idtr.base, &mut state.sys.tr.base] {
            *base += UPPER_HALF;
        }
    });
    vm
}

fn compare(program: &[u8], kernel: &[u8], seed: u64) -> Vm {
    both::compare(|| guest(program, kernel), seed)
}

/// The forms that the translator leaves to the interpreter in one go without interrupts.
fn left(program: &[u8], kernel: &[u8]) -> Vec<(String, u64)> {
    let mut vm = guest(program, kernel);
    vm.cpu.set_profile(Some(Profile::new(Marker::default())));
    assert!(both::count(&mut vm, "entries") < 200);
    vm.cpu.profile().expect("it was set").left()
}

/// l: add rbx, 3; push rbx; syscall; pop rcx; adc rcx, rdx; jmp l
const PROGRAM: &[u8] = &[0x48, 0x83, 0xc3, 3, 0x53, 0x0f, 0x05, 0x59, 0x48, 0x11, 0xd1, 0xeb, 0xf3];

/// What a kernel does in a system call: changes stacks, looks at the program's memory and at control registers, and changes
/// FS.
const USUAL_KERNEL: &[u8] = &[
    0x0f, 0x01, 0xf8, // swapgs
    0x65, 0x48, 0x89, 0x24, 0x25, 0, 0, 0, 0, // mov gs:[0], rsp
    0x65, 0x48, 0x8b, 0x24, 0x25, 8, 0, 0, 0, // mov rsp, gs:[8]
    0x51, 0x41, 0x53, 0xfb, 0x90, // push rcx; push r11; sti; nop
    0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, // mov rax, gs:[0]
    0x0f, 0x01, 0xcb, // stac
    0x48, 0xff, 0x00, 0x50, 0x58, // inc qword [rax]; push rax; pop rax
    0x0f, 0x01, 0xca, // clac
    0x0f, 0x20, 0xd0, 0x0f, 0x20, 0xda, // mov rax, cr2; mov rdx, cr3
    0x0f, 0x01, 0x3c, 0x24, // invlpg [rsp]
    0xf3, 0x48, 0x0f, 0xae, 0xc2, // rdfsbase rdx
    0x48, 0x83, 0xc2, 8, // add rdx, 8
    0xf3, 0x48, 0x0f, 0xae, 0xd2, // wrfsbase rdx
    0x41, 0x5b, 0x59, 0xfa, // pop r11; pop rcx; cli
    0x65, 0x48, 0x8b, 0x24, 0x25, 0, 0, 0, 0, // mov rsp, gs:[0]
    0x0f, 0x01, 0xf8, 0x48, 0x0f, 0x07, // swapgs; sysretq
];

#[test]
fn system_calls_stay_in_the_translator() {
    if has_translator() {
        assert_eq!(left(PROGRAM, USUAL_KERNEL), []);
    }
}

/// Behaviour 28.
#[test]
fn system_calls_do_the_same_on_both_engines_wherever_they_are_cut_and_interrupted() {
    if has_translator() {
        for seed in 0..4 {
            compare(PROGRAM, USUAL_KERNEL, seed);
        }
    }
}

#[test]
fn strings_that_reach_a_page_for_the_first_time_stay_in_the_translator() {
    // l: and rdi, 1fffffh; or rdi, 200000h; mov ecx, 512; rep stosq; lea rsi, [rdi-4096]; mov ecx, 512; rep movsq; jmp l
    const PROGRAM: &[u8] = &[
        0x48, 0x81, 0xe7, 0xff, 0xff, 0x1f, 0, 0x48, 0x81, 0xcf, 0, 0, 0x20, 0, 0xb9, 0, 2, 0, 0,
        0xf3, 0x48, 0xab, 0x48, 0x8d, 0xb7, 0, 0xf0, 0xff, 0xff, 0xb9, 0, 2, 0, 0, 0xf3, 0x48,
        0xa5, 0xeb, 0xd9,
    ];
    if has_translator() {
        compare(PROGRAM, &[], 7);
        let left = left(PROGRAM, &[]);
        let (moves, others): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|(form, _)| form.starts_with("movs"));
        // A walk that comes to a page table for the first time has the page watched, and the TLB loses something.
        let count: u64 = others.into_iter().map(|(_, count)| count).sum();
        assert!(count <= 2, "{count}");
        // Where something is moved to, the interpreter walks: once for each page.
        let count: u64 = moves.into_iter().map(|(_, count)| count).sum();
        assert!(count <= STEPS / 1024 + 2, "{count}");
    }
}

/// Behaviour 28. The walk for the target sets Accessed and Dirty in what is moved, but only after that was read.
#[test]
fn a_table_entry_is_moved_as_it_was_before_its_page_was_stored_to() {
    // l: lea rsi, [rbx*8+13000h]; mov rdi, rbx; shl rdi, 12; mov ecx, 16; rep movsq; mov rax, [rdi-128]; add rdx, rax;
    // inc ebx; and ebx, 3ffh; or ebx, 200h; jmp l
    const PROGRAM: &[u8] = &[
        0x48, 0x8d, 0x34, 0xdd, 0, 0x30, 1, 0, 0x48, 0x89, 0xdf, 0x48, 0xc1, 0xe7, 0x0c, 0xb9,
        0x10, 0, 0, 0, 0xf3, 0x48, 0xa5, 0x48, 0x8b, 0x47, 0x80, 0x48, 0x01, 0xc2, 0xff, 0xc3,
        0x81, 0xe3, 0xff, 3, 0, 0, 0x81, 0xcb, 0, 2, 0, 0, 0xeb, 0xd2,
    ];
    if has_translator() {
        for seed in 0..4 {
            compare(PROGRAM, &[], seed);
        }
    }
}

#[test]
fn programs_memory_is_out_of_bounds_after_clac_where_it_was_used_before() {
    // stac; push rax; clac; push rax (which faults); stac; pop rax; clac; sysretq
    const KERNEL: &[u8] = &[
        0x0f, 0x01, 0xcb, 0x50, 0x0f, 0x01, 0xca, 0x50, 0x0f, 0x01, 0xcb, 0x58, 0x0f, 0x01, 0xca,
        0x48, 0x0f, 0x07,
    ];
    if has_translator() {
        let vm = compare(PROGRAM, KERNEL, 5);
        assert!(vm.cpu.gpr(14) > 1000, "{} page faults", vm.cpu.gpr(14));
    }
}

#[test]
fn programs_memory_is_out_of_bounds_after_a_system_call_that_returned_with_ac_set() {
    // test bl, 1; jz l; stac; l: push rax (which faults every second time); mov r11d, 202h; sysretq
    const KERNEL: &[u8] =
        &[0xf6, 0xc3, 1, 0x74, 3, 0x0f, 0x01, 0xcb, 0x50, 0x41, 0xbb, 2, 2, 0, 0, 0x48, 0x0f, 0x07];
    // l: inc rbx; lea rsp, [0x8f000]; syscall; jmp l
    const PROGRAM: &[u8] =
        &[0x48, 0xff, 0xc3, 0x48, 0x8d, 0x24, 0x25, 0, 0xf0, 8, 0, 0x0f, 0x05, 0xeb, 0xf1];
    if has_translator() {
        let vm = compare(PROGRAM, KERNEL, 6);
        assert!(vm.cpu.gpr(14) > 1000, "{} page faults", vm.cpu.gpr(14));
    }
}

#[test]
fn a_kernels_stack_is_out_of_bounds_when_it_has_returned_by_iret() {
    // swapgs; mov rsp, gs:[8]; mov rax, rsp; swapgs; push 23h; push rax; push 202h; push 2bh; push rcx; iretq
    const KERNEL: &[u8] = &[
        0x0f, 0x01, 0xf8, 0x65, 0x48, 0x8b, 0x24, 0x25, 8, 0, 0, 0, 0x48, 0x89, 0xe0, 0x0f, 0x01,
        0xf8, 0x6a, 0x23, 0x50, 0x68, 2, 2, 0, 0, 0x6a, 0x2b, 0x51, 0x48, 0xcf,
    ];
    // l: syscall; push rax (which faults); jmp l
    const PROGRAM: &[u8] = &[0x0f, 0x05, 0x50, 0xeb, 0xfb];
    if has_translator() {
        let vm = compare(PROGRAM, KERNEL, 8);
        assert!(vm.cpu.gpr(14) > 1000, "{} page faults", vm.cpu.gpr(14));
    }
}

#[test]
fn sysret_takes_over_whatever_flags_it_is_given() {
    // imul r11, rbx, -0x61c8864f; and r11d, mask; sysretq
    let kernel = |mask: u64| {
        let mask = (mask as u32).to_le_bytes();
        let start = [0x4c, 0x69, 0xdb, 0xb1, 0x79, 0x37, 0x9e, 0x41, 0x81, 0xe3];
        [&start[..], &mask, &[0x48, 0x0f, 0x07]].concat()
    };
    // l: add rbx, 3; syscall; pushfq; pop rax; jmp l
    const PROGRAM: &[u8] = &[0x48, 0x83, 0xc3, 3, 0x0f, 0x05, 0x9c, 0x58, 0xeb, 0xf6];
    if has_translator() {
        // With TF the program would not get far.
        for mask in [Rflags::STATUS, 0x20_0ed7, Rflags::ALL & !Rflags::TF] {
            compare(PROGRAM, &kernel(mask), mask);
        }
        let usual = Rflags::STATUS | Rflags::DF | Rflags::IF | Rflags::ID;
        assert_eq!(left(PROGRAM, &kernel(usual)), []);
    }
}

#[test]
fn syscall_keeps_the_flags_that_are_not_masked() {
    // stc; std; l: syscall; jmp l
    const PROGRAM: &[u8] = &[0xf9, 0xfd, 0x0f, 0x05, 0xeb, 0xfc];
    // stac; pushfq; pop rdx; clac; sysretq
    const KERNEL: &[u8] = &[0x0f, 0x01, 0xcb, 0x9c, 0x5a, 0x0f, 0x01, 0xca, 0x48, 0x0f, 0x07];
    if !has_translator() {
        return;
    }
    let mut vm = guest(PROGRAM, KERNEL);
    let mut translator = Translator::new().expect("this host has a translator");
    vm.change(|state| state.sys.fmask = Rflags::AC | Rflags::IF);
    vm.cpu.run_with(&mut vm.mem, &mut vm.bus, Icount(1000), &mut translator);
    let wanted = Rflags::CF | Rflags::DF | Rflags::AC | Rflags::FIXED;
    assert_eq!(vm.cpu.gpr(2), wanted, "{:#x} in the kernel", vm.cpu.gpr(2));
    let program = vm.cpu.gpr(11);
    assert_eq!(program, Rflags::CF | Rflags::DF | Rflags::IF | Rflags::FIXED, "{program:#x}");
    assert!(vm.cpu.rip() >= CODE);
}

/// Behaviour 28.
#[test]
fn what_lies_at_a_fixed_place_is_another_thing_when_the_page_is_another_one() {
    // l: mov rax, [200000h]; add rbx, rax; inc qword [rip+...] (200010h); xor byte [14001h], 10h (the page's table entry);
    // jmp l
    const PROGRAM: &[u8] = &[
        0x48, 0x8b, 0x04, 0x25, 0, 0, 0x20, 0, 0x48, 0x01, 0xc3, 0x48, 0xff, 0x05, 0xfe, 0xff,
        0x0f, 0, 0x80, 0x34, 0x25, 1, 0x40, 1, 0, 0x10, 0xeb, 0xe4,
    ];
    if has_translator() {
        let vm = both::compare(
            || {
                let mut vm = guest(PROGRAM, &[]);
                vm.write(DATA, &1u64.to_le_bytes());
                vm.write(DATA + 0x1000, &0x1_0000_0000u64.to_le_bytes());
                vm
            },
            9,
        );
        let (low, high) = (vm.cpu.gpr(3) & 0xffff_ffff, vm.cpu.gpr(3) >> 32);
        assert!(low > 1000 && low.abs_diff(high) <= 1, "{low} and {high}");
    }
}

#[test]
fn what_a_kernel_finds_at_a_fixed_place_is_out_of_bounds_for_a_program_with_the_same_code() {
    // mov edx, n; f: mov rax, [200000h]; jmp rdx; n: syscall; jmp -19
    const PROGRAM: &[u8] = &[
        0xba, 15, 0, 0x10, 0, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0x20, 0, 0xff, 0xe2, 0x0f, 0x05, 0xeb,
        0xed,
    ];
    // lea rdx, [rip+7]; mov eax, f; jmp rax; sysretq
    const KERNEL: &[u8] =
        &[0x48, 0x8d, 0x15, 7, 0, 0, 0, 0xb8, 5, 0, 0x10, 0, 0xff, 0xe0, 0x48, 0x0f, 0x07];
    if has_translator() {
        let vm = both::compare(
            || {
                let mut vm = guest(PROGRAM, KERNEL);
                let entry = PT + 8 * (DATA >> 12);
                let supervisors = vm.read(entry) & !4;
                vm.write(entry, &supervisors.to_le_bytes());
                // Behind the fault, the rest of the instruction stores near what the kernel has loaded.
                vm.write(DATA, &(USER_STACK - 0x1000).to_le_bytes());
                // In the half where the program is, so that the kernel gets there without leaving the translator.
                vm.change(|state| {
                    state.sys.lstar = crate::KERNEL;
                });
                vm
            },
            10,
        );
        assert!(vm.cpu.gpr(14) > 1000, "{} page faults", vm.cpu.gpr(14));
    }
}

/// Behaviour 28.
#[test]
fn a_call_to_where_no_address_is_pushes_nothing() {
    // l: mov rcx, 7fffffffff00h; jmp rcx
    const PROGRAM: &[u8] = &[0x48, 0xb9, 0, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0xff, 0xe1];
    // l: call 800000000105h; mov rax, [rsp-8]; inc rbx; jmp l
    const AT_EDGE: &[u8] =
        &[0xe8, 0, 2, 0, 0, 0x48, 0x8b, 0x44, 0x24, 0xf8, 0x48, 0xff, 0xc3, 0xeb, 0xf1];
    // inc r14; add rsp, 8; add qword [rsp], 5; iretq
    const HANDLER: &[u8] =
        &[0x49, 0xff, 0xc6, 0x48, 0x83, 0xc4, 8, 0x48, 0x83, 0x04, 0x24, 5, 0x48, 0xcf];
    if has_translator() {
        let vm = both::compare(
            || {
                let mut vm = guest(PROGRAM, &[]);
                // The last page of programs' addresses is the last of RAM.
                for (table, from, to) in
                    [(0x1_0000, 0, 255), (0x1_1000, 0, 511), (0x1_2000, 1, 511)]
                {
                    let entry = vm.read(table + 8 * from);
                    vm.write(table + 8 * to, &entry.to_le_bytes());
                }
                vm.write(0x3f_ff00, AT_EDGE);
                vm.write(HANDLERS + 32 * u64::from(Vector::GP), HANDLER);
                vm
            },
            11,
        );
        assert!(vm.cpu.gpr(14) > 1000, "{} faults", vm.cpu.gpr(14));
        assert_eq!(vm.cpu.gpr(0), 0);
    }
}

/// Behaviour 28.
#[test]
fn a_program_does_not_get_where_its_kernel_has_jumped() {
    // syscall; jmp rdx
    const PROGRAM: &[u8] = &[0x0f, 0x05, 0xff, 0xe2];
    // lea rdx, [rip+2]; jmp rdx; inc rbx; sysretq
    const KERNEL: &[u8] =
        &[0x48, 0x8d, 0x15, 2, 0, 0, 0, 0xff, 0xe2, 0x48, 0xff, 0xc3, 0x48, 0x0f, 0x07];
    // inc r14; add rsp, 8; mov qword [rsp], 100000h; iretq
    const HANDLER: &[u8] =
        &[0x49, 0xff, 0xc6, 0x48, 0x83, 0xc4, 8, 0x48, 0xc7, 0x04, 0x24, 0, 0, 0x10, 0, 0x48, 0xcf];
    if has_translator() {
        let vm = both::compare(
            || {
                let mut vm = guest(PROGRAM, KERNEL);
                vm.write(HANDLERS + 32 * u64::from(Vector::PF), HANDLER);
                vm
            },
            12,
        );
        let (calls, faults) = (vm.cpu.gpr(3), vm.cpu.gpr(14));
        assert!(calls > 1000 && calls.abs_diff(faults) <= 1, "{calls} calls, {faults} faults");
    }
}
