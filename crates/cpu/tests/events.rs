//! Interrupts, exceptions, traps and what holds them off.

mod common;

use base::Gpa;
use common::{CODE, DATA, HANDLERS, KERNEL_CODE, STACK, USER_CODE, USER_DATA, USER_STACK, Vm};
use cpu::{CpuStop, Shadow};
use x86::{Dr6, Dr7, Rflags};

const IDT: u64 = 0x2000;

#[test]
fn an_interrupt_is_taken_at_the_first_boundary_that_allows_it() {
    // nop; sti; nop; nop; hlt
    let mut vm = Vm::long(&[0x90, 0xfb, 0x90, 0x90, 0xf4]);
    vm.bus.interrupt = Some(0x40);
    vm.run_to_halt(10);
    assert_eq!(vm.halted_in(), 0x40);
    // After the instruction that follows STI: three steps, then the delivery.
    assert_eq!(vm.bus.acknowledged, [3]);
    assert_eq!(vm.stack_word(0), CODE + 3);
    assert_eq!(vm.stack_word(2) & Rflags::IF, Rflags::IF);
    assert_eq!(vm.cpu.rflags() & Rflags::IF, 0);
    // Three instructions, the delivery, HLT.
    assert_eq!(vm.cpu.icount().0, 5);
}

#[test]
fn the_shadow_of_sti_outlives_the_end_of_a_run() {
    let mut vm = Vm::long(&[0xfb, 0x90, 0x90, 0xf4]);
    vm.bus.interrupt = Some(0x40);
    vm.run(1);
    assert_eq!(vm.cpu.sys().shadow, Shadow::Sti);
    let state = vm.cpu.save();
    vm.cpu.restore(&state).unwrap();
    vm.run_to_halt(10);
    assert_eq!(vm.bus.acknowledged, [2]);
}

#[test]
fn mov_ss_holds_off_interrupts_and_nmi_for_one_instruction() {
    // mov ss, ax; nop; nop; hlt
    let mut vm = Vm::long(&[0x8e, 0xd0, 0x90, 0x90, 0xf4]);
    vm.change(|state| {
        state.gpr[0] = 0x10;
        state.rflags |= Rflags::IF;
    });
    vm.run(1);
    vm.bus.nmi = true;
    vm.run_to_halt(10);
    assert_eq!((vm.halted_in(), vm.stack_word(0)), (2, CODE + 3));
}

#[test]
fn hlt_waits_for_an_interrupt_and_costs_no_steps() {
    // sti; hlt; mov al, 1; hlt
    let mut vm = Vm::long(&[0xfb, 0xf4, 0xb0, 0x01, 0xf4]);
    assert_eq!(vm.run(100), CpuStop::Halted);
    assert_eq!((vm.cpu.icount().0, vm.cpu.rip()), (2, CODE + 2));
    assert_eq!(vm.run(100), CpuStop::Halted);
    assert_eq!(vm.cpu.icount().0, 2);
    vm.bus.interrupt = Some(0x41);
    vm.run_to_halt(10);
    assert_eq!((vm.halted_in(), vm.stack_word(0)), (0x41, CODE + 2));
}

#[test]
fn a_second_nmi_waits_for_iret() {
    let mut vm = Vm::long(&[0x90, 0x90, 0xf4]);
    // The handler: inc rbx; iretq.
    vm.write(HANDLERS + 32 * 2, &[0x48, 0xff, 0xc3, 0x48, 0xcf]);
    vm.bus.nmi = true;
    vm.run(2); // the delivery and INC
    vm.bus.nmi = true;
    vm.run(1); // IRET
    assert_eq!(vm.cpu.gpr(3), 1);
    vm.run(2);
    assert_eq!(vm.cpu.gpr(3), 2, "the second NMI came right after IRET");
}

#[test]
fn an_interrupt_from_user_mode_switches_to_the_tss_stack_and_iret_returns() {
    let mut vm = Vm::user(&[0x90, 0x90, 0xf4]);
    vm.write(HANDLERS + 32 * 0x40, &[0x48, 0xcf]);
    vm.bus.interrupt = Some(0x40);
    vm.run(1);
    assert_eq!((vm.cpu.cpl(), vm.cpu.gpr(4)), (0, STACK - 40));
    assert_eq!(vm.stack_word(1), u64::from(USER_CODE));
    assert_eq!((vm.stack_word(3), vm.stack_word(4)), (USER_STACK, u64::from(USER_DATA)));
    assert_eq!(vm.cpu.segment(cpu::Seg::CS).selector, KERNEL_CODE);
    vm.run(1);
    assert_eq!((vm.cpu.cpl(), vm.cpu.gpr(4), vm.cpu.rip()), (3, USER_STACK, CODE));
}

#[test]
fn the_frame_of_a_misaligned_stack_is_aligned() {
    let mut vm = Vm::long(&[0xcc]);
    vm.change(|state| state.gpr[4] = STACK - 5);
    vm.run(1);
    assert_eq!(vm.cpu.gpr(4), STACK - 16 - 40);
    assert_eq!(vm.stack_word(3), STACK - 5);
}

#[test]
fn int_n_from_user_mode_obeys_the_gate_and_counts_one_step() {
    let mut vm = Vm::user(&[0xcd, 0x50]);
    vm.run(1);
    assert_eq!((vm.cpu.rip(), vm.stack_word(0)), (HANDLERS + 32 * 0x50, CODE + 2));
    // DPL 0: #GP with the gate as error code.
    let mut vm = Vm::user(&[0xcd, 0x50]);
    let gate = vm.read(IDT + 16 * 0x50) & !(3 << 45);
    vm.write(IDT + 16 * 0x50, &gate.to_le_bytes());
    vm.run_to_halt(5);
    assert_eq!((vm.halted_in(), vm.stack_word(0), vm.stack_word(1)), (13, 0x50 * 8 + 2, CODE));
}

#[test]
fn a_fault_while_delivering_a_fault_is_a_double_fault_and_a_third_shuts_down() {
    // #GP with no gate for #GP: contributory after contributory.
    let mut vm = Vm::user(&[0xf4]);
    vm.mem.write_obj(Gpa(IDT + 16 * 13), 0u64).unwrap();
    vm.run_to_halt(5);
    assert_eq!((vm.halted_in(), vm.stack_word(0)), (8, 0));
    assert_eq!(vm.cpu.icount().0, 2, "one delivery and the handler's HLT");
    let mut vm = Vm::user(&[0xf4]);
    vm.change(|state| state.sys.idtr.limit = 0);
    assert_eq!(vm.run(5), CpuStop::Shutdown);
    assert_eq!(vm.run(5), CpuStop::Shutdown);
}

#[test]
fn a_page_fault_whose_delivery_faults_otherwise_reports_the_last_address() {
    let mut vm = Vm::user(&[0x48, 0x8b, 0x07]); // mov rax, [rdi]
    vm.set_pte(DATA, 0);
    vm.set_pte(STACK - 0x1000, 0);
    vm.change(|state| state.gpr[7] = DATA);
    // The stack for the frame is absent: #PF, #PF, then #DF meets the same stack.
    assert_eq!(vm.run(5), CpuStop::Shutdown);
    assert_eq!(vm.cpu.sys().cr2 & !0xfff, STACK - 0x1000);
}

#[test]
fn the_trap_flag_traps_after_each_instruction() {
    // nop; nop; hlt, with TF set. The handler of #DB: inc rbx; iretq.
    let mut vm = Vm::long(&[0x90, 0x90, 0xf4]);
    vm.write(HANDLERS + 32, &[0x48, 0xff, 0xc3, 0x48, 0xcf]);
    vm.change(|state| state.rflags |= Rflags::TF);
    vm.run(8);
    assert_eq!((vm.cpu.gpr(3), vm.cpu.rip()), (2, CODE + 2));
    assert_eq!(vm.cpu.sys().dr6 & Dr6::BS, Dr6::BS);
    assert_eq!(vm.cpu.icount().0, 8, "per instruction: itself, the delivery, INC, IRET");
}

#[test]
fn popf_that_sets_tf_traps_after_the_next_instruction() {
    // push 0x102; popfq; nop; nop
    let mut vm = Vm::long(&[0x68, 0x02, 0x01, 0, 0, 0x9d, 0x90, 0x90]);
    vm.run_to_halt(10);
    assert_eq!((vm.halted_in(), vm.stack_word(0)), (1, CODE + 7));
}

#[test]
fn an_instruction_breakpoint_is_a_fault_and_rf_steps_over_it() {
    let mut vm = Vm::long(&[0x90, 0x90, 0x90, 0xf4]);
    // The handler: or qword [rsp+16], RF; iretq.
    vm.write(HANDLERS + 32, &[0x80, 0x4c, 0x24, 0x12, 0x01, 0x48, 0xcf]);
    vm.change(|state| {
        state.sys.dr[0] = CODE + 1;
        state.sys.dr7 = Dr7::FIXED | 2;
    });
    vm.run(2);
    assert_eq!((vm.cpu.rip(), vm.stack_word(0)), (HANDLERS + 32, CODE + 1));
    assert_eq!(vm.cpu.sys().dr6 & 0xf, 1);
    assert_eq!(vm.run(10), CpuStop::Halted);
    assert_eq!(vm.cpu.rip(), CODE + 4);
}

#[test]
fn a_data_breakpoint_traps_after_the_store() {
    // mov [rdi], al; nop; hlt
    let mut vm = Vm::long(&[0x88, 0x07, 0x90, 0xf4]);
    vm.change(|state| {
        state.gpr[7] = DATA + 5;
        state.sys.dr[2] = DATA + 4;
        state.sys.dr7 = Dr7::FIXED | 2 << 4 | 1 << 24 | 3 << 26; // 4 bytes, on stores
    });
    vm.run_to_halt(10);
    assert_eq!((vm.halted_in(), vm.stack_word(0)), (1, CODE + 2));
    assert_eq!(vm.cpu.sys().dr6 & 0xf, 4);
}

#[test]
fn a_rep_instruction_is_interrupted_between_two_iterations_and_goes_on() {
    // rep stosb; hlt
    let mut vm = Vm::long(&[0xf3, 0xaa, 0xf4]);
    vm.write(HANDLERS + 32 * 0x40, &[0x48, 0xff, 0xc3, 0x48, 0xcf]); // inc rbx; iretq
    vm.change(|state| {
        state.gpr[0] = 0x5a;
        state.gpr[1] = 5000;
        state.gpr[7] = DATA;
        state.rflags |= Rflags::IF;
    });
    assert_eq!(vm.run(1234), CpuStop::Reached);
    assert_eq!((vm.cpu.gpr(1), vm.cpu.gpr(7), vm.cpu.rip()), (3766, DATA + 1234, CODE));
    vm.bus.interrupt = Some(0x40);
    assert_eq!(vm.run(100_000), CpuStop::Halted);
    assert_eq!((vm.cpu.gpr(1), vm.cpu.gpr(3)), (0, 1));
    // 5000 iterations, the delivery, INC, IRET and HLT; the instruction itself adds nothing.
    assert_eq!(vm.cpu.icount().0, 5004);
    assert_eq!(vm.read(DATA + 4992), 0x5a5a_5a5a_5a5a_5a5a);
}

#[test]
fn a_rep_instruction_with_count_zero_is_one_step() {
    let mut vm = Vm::long(&[0xf3, 0xaa, 0xf4]);
    vm.run_to_halt(5);
    assert_eq!(vm.cpu.icount().0, 2);
}

#[test]
fn a_rep_instruction_that_faults_keeps_the_iterations_it_did() {
    let mut vm = Vm::user(&[0xf3, 0xa4]); // rep movsb
    vm.set_pte(DATA + 0x1000, 0);
    vm.change(|state| {
        state.gpr[1] = 100;
        state.gpr[6] = CODE;
        state.gpr[7] = DATA + 0x1000 - 40;
    });
    vm.run_to_halt(200);
    assert_eq!((vm.halted_in(), vm.stack_word(1)), (14, CODE));
    assert_eq!((vm.cpu.gpr(1), vm.cpu.gpr(7)), (60, DATA + 0x1000));
    assert_eq!(vm.cpu.icount().0, 42, "40 iterations, the delivery, HLT");
}

#[test]
fn a_stop_that_the_board_asks_for_comes_at_the_next_boundary() {
    let mut vm = Vm::long(&[0x90, 0x90, 0x90]);
    vm.bus.stop = true;
    assert_eq!(vm.run(5), CpuStop::StopRequested);
    assert_eq!(vm.cpu.icount().0, 0);
    vm.bus.stop = false;
    assert_eq!(vm.run(2), CpuStop::Reached);
}

#[test]
fn every_call_to_the_board_is_stamped_with_the_steps_before_it() {
    // nop; out 0x80, al; nop; out 0x81, al; hlt
    let mut vm = Vm::long(&[0x90, 0xe6, 0x80, 0x90, 0xe6, 0x81, 0xf4]);
    vm.run_to_halt(10);
    let stamps: Vec<_> = vm.bus.port_writes.iter().map(|(now, port, _)| (*now, *port)).collect();
    assert_eq!(stamps, [(1, 0x80), (3, 0x81)]);
}

#[test]
fn rdtsc_counts_the_steps_before_it() {
    // nop; nop; rdtsc; hlt
    let mut vm = Vm::long(&[0x90, 0x90, 0x0f, 0x31, 0xf4]);
    vm.run_to_halt(10);
    assert_eq!(vm.cpu.gpr(0), 2);
}

#[test]
fn syscall_and_sysret_switch_between_the_flat_segments() {
    let mut vm = Vm::user(&[0x0f, 0x05, 0x90]);
    vm.write(DATA, &[0x48, 0x0f, 0x07]); // sysretq
    vm.change(|state| {
        state.sys.star = 0x08 << 32 | 0x0b << 48;
        state.sys.lstar = DATA;
        state.sys.fmask = Rflags::IF;
    });
    let flags = vm.cpu.rflags();
    vm.run(1);
    assert_eq!((vm.cpu.cpl(), vm.cpu.rip(), vm.cpu.gpr(1)), (0, DATA, CODE + 2));
    assert_eq!((vm.cpu.gpr(11), vm.cpu.rflags() & Rflags::IF), (flags, 0));
    vm.run(1);
    assert_eq!((vm.cpu.cpl(), vm.cpu.rip(), vm.cpu.rflags()), (3, CODE + 2, flags));
    assert_eq!(vm.cpu.segment(cpu::Seg::CS).selector, 0x1b);
}

#[test]
fn unknown_model_specific_registers_are_gp() {
    for code in [&[0x0f, 0x32][..], &[0x0f, 0x30]] {
        let mut vm = Vm::long(code);
        vm.change(|state| state.gpr[1] = 0x1234_5678);
        vm.run_to_halt(5);
        assert_eq!((vm.halted_in(), vm.stack_word(0), vm.stack_word(1)), (13, 0, CODE));
    }
}

#[test]
fn privileged_instructions_are_gp_in_user_mode() {
    for code in [
        &[0xf4][..],
        &[0xfa],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x30],
        &[0x0f, 0x01, 0x17],
        &[0xe6, 0x80],
    ] {
        let mut vm = Vm::user(code);
        vm.run_to_halt(5);
        assert_eq!(vm.halted_in(), 13, "{code:02x?}");
    }
}

#[test]
fn alignment_checks_apply_to_user_mode_with_am_and_ac() {
    let check = |ac: u64, expected: Option<u8>| {
        let mut vm = Vm::user(&[0x48, 0x8b, 0x07, 0x0f, 0x0b]); // mov rax, [rdi]; ud2
        vm.change(|state| {
            state.sys.cr0 |= x86::Cr0::AM;
            state.rflags |= ac;
            state.gpr[7] = DATA + 1;
        });
        vm.run_to_halt(5);
        assert_eq!(vm.halted_in(), expected.unwrap_or(6));
    };
    check(Rflags::AC, Some(17));
    check(0, None);
}

#[test]
fn real_mode_interrupts_go_through_the_vector_table() {
    // sti; int 0x21; hlt at 7c00
    let mut vm = Vm::real(&[0xcd, 0x21, 0xf4]);
    vm.write(4 * 0x21, &[0x00, 0x60, 0, 0]);
    vm.write(0x6000, &[0x43, 0xcf]); // inc bx; iret
    assert_eq!(vm.run(10), CpuStop::Halted);
    assert_eq!((vm.cpu.gpr(3), vm.cpu.rip()), (1, 0x7c03));
    assert_eq!(vm.cpu.gpr(4), 0x7000);
}

/// Two 32-bit tasks: the first calls the second by its TSS, the second returns by IRET.
#[test]
fn a_far_call_to_a_tss_switches_tasks_and_iret_switches_back() {
    // call 0x48:0; hlt
    let mut vm = Vm::protected(&[0x9a, 0, 0, 0, 0, 0x48, 0, 0xf4]);
    let (gdt, tss) = (0x1000, DATA + 0x1000);
    let tss_descriptor = 0x67 | (tss & 0xff_ffff) << 16 | 0x89 << 40;
    vm.mem.write_obj(Gpa(gdt + 0x48), tss_descriptor).unwrap();
    vm.change(|state| {
        state.sys.gdtr.limit = 0x4f;
        state.gpr[3] = 0x1111;
    });
    let fields = [(32, DATA), (36, 2), (52, 0x2222), (56, 0x6_0000)];
    let selectors = [(72, 0x10u64), (76, 0x28), (80, 0x10), (84, 0x10), (88, 0x10), (92, 0x10)];
    for (at, value) in fields.into_iter().chain(selectors) {
        vm.write(tss + at, &(value as u32).to_le_bytes());
    }
    vm.write(DATA, &[0x43, 0xcf, 0xf4]); // inc ebx; iret
    vm.run(1);
    assert_eq!((vm.cpu.rip(), vm.cpu.gpr(3), vm.cpu.gpr(4)), (DATA, 0x2222, 0x6_0000));
    assert_eq!((vm.cpu.sys().tr.selector, vm.cpu.rflags() & Rflags::NT), (0x48, Rflags::NT));
    assert_eq!(vm.read(tss) & 0xffff, u64::from(common::TSS_SELECTOR), "the link to the caller");
    assert_eq!(vm.run(10), CpuStop::Halted);
    assert_eq!((vm.cpu.rip(), vm.cpu.gpr(3)), (CODE + 8, 0x1111));
    assert_eq!(vm.cpu.sys().tr.selector, common::TSS_SELECTOR);
    assert_eq!(vm.read(tss + 52) & 0xffff_ffff, 0x2223, "the second task is saved");
    assert_eq!(vm.read(gdt + 0x48) >> 41 & 1, 0, "and no longer busy");
    assert_eq!(vm.cpu.icount().0, 4, "call, INC, IRET, HLT");
}
