//! Code that changes, moves, or straddles pages.

mod common;

use common::{CODE, DATA, HANDLERS, Vm};
use cpu::CpuStop;

#[test]
fn a_store_into_the_next_instruction_of_the_block_is_obeyed() {
    // mov byte [rip+1], 0x42 (the immediate below); mov al, 0; hlt
    let mut vm = Vm::long(&[0xc6, 0x05, 0x01, 0, 0, 0, 0x42, 0xb0, 0x00, 0xf4]);
    vm.run_to_halt(5);
    assert_eq!(vm.cpu.gpr(0), 0x42);
}

#[test]
fn a_write_to_the_last_byte_of_what_is_no_instruction_is_obeyed() {
    // l: nops; 15 prefixes: #GP, whose handler makes the last one a nop; dec ecx; jne l; hlt
    let mut code = vec![0x90; 22];
    code.extend([0x66; 15]);
    code.extend([0xff, 0xc9, 0x75, (-41i8) as u8, 0xf4]);
    let mut vm = Vm::long(&code);
    // inc ebx; mov byte [l + 36], 0x90; add rsp, 8; iretq
    let mut handler = vec![0xff, 0xc3, 0xc6, 0x04, 0x25];
    handler.extend((CODE as u32 + 36).to_le_bytes());
    handler.extend([0x90, 0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf]);
    vm.write(HANDLERS + 32 * 13, &handler);
    vm.cpu.set_gpr(1, 2);
    vm.run_to_halt(200);
    assert_eq!(vm.cpu.rip(), CODE + code.len() as u64);
    assert_eq!(vm.cpu.gpr(3), 1, "it faults only as long as it is no instruction");
}

#[test]
fn a_loop_that_patches_itself_runs_every_version() {
    // l: mov al, 0; add bl, al; inc byte [rip-10] (the immediate of mov); cmp al, 9; jne l; hlt
    let code =
        [0xb0, 0x00, 0x00, 0xc3, 0xfe, 0x05, 0xf7, 0xff, 0xff, 0xff, 0x3c, 0x09, 0x75, 0xf2, 0xf4];
    let mut vm = Vm::long(&code);
    vm.run_to_halt(100);
    assert_eq!(vm.cpu.gpr(3), (0..=9).sum::<u64>());
}

#[test]
fn a_device_that_writes_code_is_obeyed_by_the_next_instruction() {
    // out 0x80, al; mov al, 0; hlt
    let mut vm = Vm::long(&[0xe6, 0x80, 0xb0, 0x00, 0xf4]);
    vm.run(2); // the block is decoded and has run
    vm.change(|state| state.rip = CODE);
    vm.bus.dma = Some((0x80, CODE + 3, vec![0x33]));
    vm.run_to_halt(5);
    assert_eq!(vm.cpu.gpr(0), 0x33);
}

#[test]
fn code_written_between_two_runs_is_obeyed() {
    // mov al, 1; jmp back
    let mut vm = Vm::long(&[0xb0, 0x01, 0xeb, 0xfc]);
    vm.run(10);
    assert_eq!(vm.cpu.gpr(0), 1);
    vm.write(CODE + 1, &[2]);
    vm.run(10);
    assert_eq!(vm.cpu.gpr(0), 2);
}

#[test]
fn a_straddling_instruction_follows_both_of_its_pages() {
    // mov eax, imm32 with two bytes of the immediate on the second page; then jmp back.
    let mut code = vec![0x90; 0x1010];
    code[0xffd..0x1004].copy_from_slice(&[0xb8, 0x11, 0x22, 0x33, 0x44, 0xeb, 0xf9]);
    let mut vm = Vm::long(&code);
    vm.change(|state| state.rip = CODE + 0xffd);
    vm.run(4);
    assert_eq!(vm.cpu.gpr(0), 0x4433_2211);
    // The second page's bytes change.
    vm.write(CODE + 0x1000, &[0x55]);
    vm.run(4);
    assert_eq!(vm.cpu.gpr(0), 0x4455_2211);
    // The second page is mapped elsewhere.
    vm.write(DATA, &[0x66, 0x77, 0xeb, 0xf9]);
    vm.set_pte(CODE + 0x1000, DATA | 7);
    vm.run(4);
    assert_eq!(vm.cpu.gpr(0), 0x7766_2211);
    // And not at all.
    vm.set_pte(CODE + 0x1000, 0);
    vm.change(|state| state.rip = CODE + 0xffd);
    vm.run_to_halt(4);
    assert_eq!((vm.halted_in(), vm.cpu.sys().cr2), (14, CODE + 0x1000));
    assert_eq!(
        vm.stack_word(1),
        CODE + 0xffd,
        "the fault is the instruction's, not the next one's"
    );
}

#[test]
fn one_page_of_code_at_two_addresses_runs_at_both() {
    // lea rax, [rip]; hlt
    let mut vm = Vm::long(&[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xf4]);
    vm.run_to_halt(3);
    assert_eq!(vm.cpu.gpr(0), CODE + 7);
    vm.set_pte(DATA, CODE | 7);
    vm.change(|state| {
        state.rip = DATA;
        state.sys.halted = false;
    });
    vm.run_to_halt(3);
    assert_eq!(vm.cpu.gpr(0), DATA + 7);
}

#[test]
fn the_same_bytes_mean_something_else_in_another_mode() {
    // 48 b8 imm: in 32-bit code dec eax; mov eax, imm32.
    let bytes = [0x48, 0xb8, 1, 0, 0, 0, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4];
    let mut vm = Vm::long(&bytes);
    vm.run_to_halt(5);
    assert_eq!(vm.cpu.gpr(0), 0xf4f4_f4f4_0000_0001);
    let mut vm = Vm::protected(&bytes);
    assert_eq!(vm.run(5), CpuStop::Halted);
    assert_eq!((vm.cpu.gpr(0), vm.cpu.icount().0), (1, 3));
}

#[test]
fn sixteen_bytes_of_prefixes_are_gp_and_undefined_bytes_ud() {
    let mut vm = Vm::long(&[0x66; 15]);
    vm.run_to_halt(3);
    assert_eq!(vm.halted_in(), 13);
    for bytes in
        [&[0x0f, 0x0b][..], &[0x0f, 0xff, 0xc0], &[0xf0, 0x90], &[0x06], &[0x0f, 0x38, 0xff]]
    {
        let mut vm = Vm::long(bytes);
        vm.run_to_halt(3);
        assert_eq!(vm.halted_in(), 6, "{bytes:02x?}");
        assert_eq!(vm.stack_word(0), CODE);
    }
}

#[test]
fn an_undefined_instruction_behind_others_faults_at_its_own_address() {
    let mut vm = Vm::long(&[0x90, 0x90, 0x0f, 0x0b]);
    vm.run_to_halt(5);
    assert_eq!((vm.halted_in(), vm.stack_word(0)), (6, CODE + 2));
    let mut vm = Vm::long(&[0x90, 0x06]);
    vm.run_to_halt(5);
    assert_eq!((vm.halted_in(), vm.stack_word(0)), (6, CODE + 1));
}

#[test]
fn jumping_out_of_the_code_segment_is_gp_on_the_jump() {
    // In real mode with a limit of 64 KiB: jmp far past it is not possible, but running past is.
    let mut vm = Vm::real(&[0x90]);
    vm.write(4 * 13, &[0x00, 0x60, 0, 0]); // #GP's handler at 0:6000
    vm.write(0x6000, &[0xf4]);
    vm.write(0xffff, &[0xb8]); // mov ax, imm16 at the limit
    vm.change(|state| state.rip = 0xffff);
    assert_eq!(vm.run(3), CpuStop::Halted);
    assert_eq!(vm.cpu.rip(), 0x6001);
}
