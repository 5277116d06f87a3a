//! Links between pages of code where the tables are written: they stay as long as the pages lead where they did and the
//! guest cannot see that nobody looked.

mod both;
#[path = "../../cpu/tests/common/mod.rs"]
mod common;

use both::{INTERRUPT, compare, has_translator};
use common::{CODE, DATA, HANDLERS, Vm};
use x86::Vector;

/// A program, and one function on a page of its own at 200000h, whose table entry is at 14000h.
fn guest(program: &[u8]) -> Vm {
    let mut vm = Vm::user(program);
    vm.write(HANDLERS + 32 * u64::from(INTERRUPT), &[0x48, 0xcf]);
    // inc rdx; ret
    vm.write(DATA, &[0x48, 0xff, 0xc2, 0xc3]);
    vm
}

/// l: call 200000h; xor byte [14001h], 2 (a bit that means nothing); jmp l
const WRITES_ITS_TABLE: &[u8] =
    &[0xe8, 0xfb, 0xff, 0x0f, 0, 0x80, 0x34, 0x25, 1, 0x40, 1, 0, 2, 0xeb, 0xf1];

#[test]
fn jumps_between_pages_stay_linked_where_an_entry_is_written_that_leads_to_the_same_page() {
    assert_eq!(CODE, 0x10_0000);
    if !has_translator() {
        return;
    }
    assert!(compare(|| guest(WRITES_ITS_TABLE), 1).cpu.gpr(2) > 1000);
    let mut vm = guest(WRITES_ITS_TABLE);
    assert!(both::count(&mut vm, "exits_to_another_page") < 10);
}

/// Behaviour 28.
#[test]
fn a_branch_to_a_page_sets_accessed_when_it_is_made_and_not_before() {
    // l: mov eax, 200000h; call rax; add rbx, [14000h]; and byte [14000h], ~20h (Accessed); add rsi, [14000h]; jmp l
    const BY_TABLE: &[u8] = &[
        0xb8, 0, 0, 0x20, 0, 0xff, 0xd0, 0x48, 0x03, 0x1c, 0x25, 0, 0x40, 1, 0, 0x80, 0x24, 0x25,
        0, 0x40, 1, 0, 0xdf, 0x48, 0x03, 0x34, 0x25, 0, 0x40, 1, 0, 0xeb, 0xdf,
    ];
    // The same with call 200000h.
    const DIRECTLY: &[u8] = &[
        0xe8, 0xfb, 0xff, 0x0f, 0, 0x48, 0x03, 0x1c, 0x25, 0, 0x40, 1, 0, 0x80, 0x24, 0x25, 0,
        0x40, 1, 0, 0xdf, 0x48, 0x03, 0x34, 0x25, 0, 0x40, 1, 0, 0xeb, 0xe1,
    ];
    if has_translator() {
        for program in [BY_TABLE, DIRECTLY] {
            let vm = compare(|| guest(program), 2);
            let calls = vm.cpu.gpr(2);
            let accessed = vm.read(0x1_4000) | 0x20;
            assert!(calls > 1000);
            for (sum, entry) in [(vm.cpu.gpr(3), accessed), (vm.cpu.gpr(6), accessed & !0x20)] {
                let is = |calls| sum == entry.wrapping_mul(calls);
                assert!(is(calls) || is(calls - 1), "{sum:#x} of {calls} times {entry:#x}");
            }
        }
    }
}

/// Behaviour 28.
#[test]
fn a_branch_to_a_page_that_is_out_of_bounds_now_faults() {
    // l: call 200000h; xor byte [14000h], 4 (User); jmp l
    const PROGRAM: &[u8] =
        &[0xe8, 0xfb, 0xff, 0x0f, 0, 0x80, 0x34, 0x25, 0, 0x40, 1, 0, 4, 0xeb, 0xf1];
    // xor byte [14000h], 4; inc r14; add rsp, 8; iretq
    const HANDLER: &[u8] =
        &[0x80, 0x34, 0x25, 0, 0x40, 1, 0, 4, 0x49, 0xff, 0xc6, 0x48, 0x83, 0xc4, 8, 0x48, 0xcf];
    if has_translator() {
        let guest = || {
            let mut vm = guest(PROGRAM);
            vm.write(HANDLERS + 32 * u64::from(Vector::PF), HANDLER);
            vm
        };
        let vm = compare(guest, 3);
        let (calls, faults) = (vm.cpu.gpr(2), vm.cpu.gpr(14));
        assert!(calls > 1000 && calls.abs_diff(faults) <= 1, "{calls} calls, {faults} faults");
    }
}

/// Behaviour 28.
#[test]
fn an_instruction_on_two_pages_that_are_mapped_twice_is_what_was_written_there_last() {
    // l: mov eax, 200ffdh; call rax; add rbx, rax; mov eax, 210ffdh; call rax; add rbx, rax; and then
    const CALLS: [u8; 20] = [
        0xb8, 0xfd, 0x0f, 0x20, 0, 0xff, 0xd0, 0x48, 0x01, 0xc3, 0xb8, 0xfd, 0x0f, 0x21, 0, 0xff,
        0xd0, 0x48, 0x01, 0xc3,
    ];
    // inc byte [201001h]; jmp l; or xor byte [200ffdh], 28h, which makes a NOP of it and back; jmp l
    let writes: [&[u8]; 2] = [
        &[0xfe, 0x04, 0x25, 1, 0x10, 0x20, 0, 0xeb, 0xe3],
        &[0x80, 0x34, 0x25, 0xfd, 0x0f, 0x20, 0, 0x28, 0xeb, 0xe2],
    ];
    if has_translator() {
        for write in writes {
            let guest = || {
                let mut vm = guest(&[&CALLS, write].concat());
                // mov eax, 90909090h, from three bytes before the page's end on; inc rdx; ret
                vm.write(DATA + 0xffd, &[0xb8, 0x90, 0x90, 0x90, 0x90, 0x48, 0xff, 0xc2, 0xc3]);
                for page in [0, 0x1000] {
                    vm.set_pte(0x21_0000 + page, vm.pte(DATA + page));
                }
                vm
            };
            assert!(compare(guest, 4).cpu.gpr(2) > 1000);
        }
    }
}
