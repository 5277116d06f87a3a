//! Calls and returns: the translator does what the interpreter does wherever a return leads.

mod both;
#[path = "../../cpu/tests/common/mod.rs"]
mod common;

use both::{INTERRUPT, compare, has_translator};
use common::{CODE, DATA, HANDLERS, Vm};

/// Programs of a page or two, at [`CODE`] and, as all memory, 1 GiB further up. The handler of interrupts returns at once.
fn guest(program: &[u8], next_page: &[u8]) -> Vm {
    let mut vm = Vm::user(program);
    vm.write(CODE + 0x1000, next_page);
    let directory = vm.read(0x1_1000);
    vm.write(0x1_1000 + 8, &directory.to_le_bytes());
    vm.write(HANDLERS + 32 * u64::from(INTERRUPT), &[0x48, 0xcf]);
    vm
}

fn check(program: &[u8], next_page: &[u8]) {
    if has_translator() {
        for seed in 0..4 {
            compare(|| guest(program, next_page), seed);
        }
    }
}

/// l: mov ecx, 3000; call f; inc rbx; jmp l; f: dec ecx; je r; call f; add rbx, rcx; r: ret
const DEEP: &[u8] = &[
    0xb9, 0xb8, 0x0b, 0, 0, 0xe8, 5, 0, 0, 0, 0x48, 0xff, 0xc3, 0xeb, 0xf1, 0xff, 0xc9, 0x74, 8,
    0xe8, 0xf7, 0xff, 0xff, 0xff, 0x48, 0x01, 0xcb, 0xc3,
];

#[test]
fn calls_that_are_deeper_than_the_ring_return() {
    check(DEEP, &[]);
}

#[test]
fn returns_stay_in_translated_code() {
    if has_translator() {
        let mut vm = guest(DEEP, &[]);
        assert!(both::count(&mut vm, "entries") < 50);
    }
}

#[test]
fn a_return_follows_an_address_that_was_changed_on_the_stack() {
    // l: call f; add rbx, 1; jmp l; add rbx, 7; jmp l; f: inc rdx; test dl, 3; jne r; add qword [rsp], 6; r: ret
    check(
        &[
            0xe8, 0x0c, 0, 0, 0, 0x48, 0x83, 0xc3, 1, 0xeb, 0xf5, 0x48, 0x83, 0xc3, 7, 0xeb, 0xef,
            0x48, 0xff, 0xc2, 0xf6, 0xc2, 3, 0x75, 8, 0x48, 0x81, 0x04, 0x24, 6, 0, 0, 0, 0xc3,
        ],
        &[],
    );
}

/// l: call f; lea rax, [rip]; add rbx, rax; jmp l, with f at 0x11 or on the next page.
const CALLER: [&[u8]; 2] = [
    &[0xe8, 0x0c, 0, 0, 0, 0x48, 0x8d, 0x05, 0, 0, 0, 0, 0x48, 0x01, 0xc3, 0xeb, 0xef],
    &[0xe8, 0xfb, 0x0f, 0, 0, 0x48, 0x8d, 0x05, 0, 0, 0, 0, 0x48, 0x01, 0xc3, 0xeb, 0xef],
];
/// f: inc rdx; test dl, 1; jne r; xor qword [rsp], 40000000h; r: ret
const TO_THE_ALIAS: &[u8] =
    &[0x48, 0xff, 0xc2, 0xf6, 0xc2, 1, 0x75, 8, 0x48, 0x81, 0x34, 0x24, 0, 0, 0, 0x40, 0xc3];

#[test]
fn a_return_to_the_same_code_at_another_address_goes_on_there() {
    check(&[CALLER[0], TO_THE_ALIAS].concat(), &[]);
}

#[test]
fn calls_to_another_page_return_to_the_page_they_were_made_on() {
    check(CALLER[1], TO_THE_ALIAS);
}

#[test]
fn a_return_finds_code_that_was_changed_since_the_call() {
    // l: call f; p: add rbx, 1; jmp l; f: inc rdx; test dl, 15; jne r; mov [p + 3], dl; r: ret
    check(
        &[
            0xe8, 6, 0, 0, 0, 0x48, 0x83, 0xc3, 1, 0xeb, 0xf5, 0x48, 0xff, 0xc2, 0xf6, 0xc2, 0x0f,
            0x75, 6, 0x88, 0x15, 0xef, 0xff, 0xff, 0xff, 0xc3,
        ],
        &[],
    );
}

#[test]
fn a_return_past_its_caller_leads_to_the_callers_caller() {
    // l: call f; add rbx, 1; jmp l; f: call g; ret; g: inc rdx; test dl, 1; je r; add rsp, 8; r: ret
    check(
        &[
            0xe8, 6, 0, 0, 0, 0x48, 0x83, 0xc3, 1, 0xeb, 0xf5, 0xe8, 1, 0, 0, 0, 0xc3, 0x48, 0xff,
            0xc2, 0xf6, 0xc2, 1, 0x74, 4, 0x48, 0x83, 0xc4, 8, 0xc3,
        ],
        &[],
    );
}

/// Behaviour 28.
#[test]
fn jumps_and_returns_find_what_is_at_address_0() {
    // xor eax, eax; push rax; test bl, 1; jne r; pop rax; jmp rax; r: ret
    const PROGRAM: &[u8] = &[0x31, 0xc0, 0x50, 0xf6, 0xc3, 1, 0x75, 3, 0x58, 0xff, 0xe0, 0xc3];
    // inc rbx; mov eax, 100000h; jmp rax
    const AT_ZERO: &[u8] = &[0x48, 0xff, 0xc3, 0xb8, 0, 0, 0x10, 0, 0xff, 0xe0];
    if has_translator() {
        let guest = || {
            let mut vm = guest(PROGRAM, &[]);
            vm.write(0, AT_ZERO);
            vm
        };
        assert!(compare(guest, 5).cpu.gpr(3) > 1000);
    }
}

/// Behaviour 28.
#[test]
fn a_branch_to_where_another_page_is_now_finds_that_ones_code() {
    // l: mov eax, 200000h; jmp rax; f: xor byte [14001h], 10h (the page's table entry); ret
    const PROGRAM: &[u8] =
        &[0xb8, 0, 0, 0x20, 0, 0xff, 0xe0, 0x80, 0x34, 0x25, 1, 0x40, 1, 0, 0x10, 0xc3];
    // call f; inc rbx, or on the other page rdx; mov eax, l; jmp rax
    const CALLER: &[u8] =
        &[0xe8, 2, 0, 0xf0, 0xff, 0x48, 0xff, 0xc3, 0xb8, 0, 0, 0x10, 0, 0xff, 0xe0];
    if has_translator() {
        let guest = || {
            let mut vm = guest(PROGRAM, &[]);
            vm.write(DATA, CALLER);
            vm.write(DATA + 0x1000, CALLER);
            vm.write(DATA + 0x1007, &[0xc2]);
            vm
        };
        let vm = compare(guest, 6);
        let (one, other) = (vm.cpu.gpr(3), vm.cpu.gpr(2));
        assert!(one > 1000 && one.abs_diff(other) <= 1, "{one} and {other}");
    }
}
