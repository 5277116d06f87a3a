//! Page tables: rights, Accessed and Dirty, and a TLB that cannot be noticed.

mod common;

use base::Gpa;
use common::{CODE, DATA, PT, Vm, pte_at};
use cpu::CpuStop;
use x86::{Cr0, Cr4, Rflags};

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const NX: u64 = 1 << 63;

/// mov rax, [rdi]; hlt
const LOAD: &[u8] = &[0x48, 0x8b, 0x07, 0xf4];
/// mov [rdi], rax; hlt
const STORE: &[u8] = &[0x48, 0x89, 0x07, 0xf4];
/// call rdi
const FETCH: &[u8] = &[0xff, 0xd7];

fn with_rdi(mut vm: Vm, rdi: u64) -> Vm {
    vm.change(|state| state.gpr[7] = rdi);
    vm
}

#[test]
fn a_load_sets_accessed_and_a_store_sets_dirty_and_nothing_else_is_marked() {
    let mut vm = with_rdi(Vm::long(LOAD), DATA);
    vm.run_to_halt(10);
    assert_eq!(vm.pte(DATA) & (A | D), A);
    assert_eq!(vm.pte(DATA + 0x1000) & (A | D), 0);
    let mut vm = with_rdi(Vm::long(STORE), DATA);
    vm.run_to_halt(10);
    assert_eq!(vm.pte(DATA) & (A | D), A | D);
    // The page after the code was not fetched from, although decoding may look ahead.
    assert_eq!(vm.pte(CODE + 0x1000) & A, 0);
}

#[test]
fn an_instruction_that_is_not_reached_sets_no_accessed_bit() {
    // jmp over the page's last bytes; behind it an instruction that straddles into the next page.
    let mut code = vec![0x90; 0x1000];
    code[0] = 0xf4;
    code[0xffe..].copy_from_slice(&[0x48, 0xb8]); // mov rax, imm64
    let mut vm = Vm::long(&code);
    vm.run_to_halt(3);
    assert_eq!(vm.pte(CODE + 0x1000) & A, 0);
    vm.change(|state| {
        state.rip = CODE + 0xffe;
        state.sys.halted = false;
    });
    vm.run(1);
    assert_eq!(vm.pte(CODE + 0x1000) & A, A);
}

#[test]
fn a_fault_sets_neither_accessed_nor_dirty() {
    let mut vm = with_rdi(Vm::user(STORE), DATA);
    vm.set_pte(DATA, DATA | P | US);
    vm.run(1);
    assert_eq!(vm.pte(DATA) & (A | D), 0);
}

/// Checks the error code of the page fault that code raises at DATA with a page-table entry.
fn check_fault(vm: Vm, pte: u64, expected: Option<u64>) {
    let mut vm = with_rdi(vm, DATA);
    vm.set_pte(DATA, pte);
    vm.write(DATA, &[0xf4]);
    vm.run(2);
    let faulted = vm.cpu.sys().cr2 == DATA;
    let error = faulted.then(|| vm.stack_word(0));
    assert_eq!(error, expected, "entry {pte:#x}");
}

#[test]
fn page_rights_hold_for_user_and_supervisor() {
    let page = DATA | P;
    check_fault(Vm::user(LOAD), page | US, None);
    check_fault(Vm::user(LOAD), page, Some(5));
    check_fault(Vm::user(LOAD), DATA, Some(4));
    check_fault(Vm::user(STORE), page | US, Some(7));
    check_fault(Vm::user(STORE), page | US | RW, None);
    check_fault(Vm::user(FETCH), page | US | NX, Some(0x15));
    check_fault(Vm::long(STORE), page, Some(3));
    check_fault(Vm::long(LOAD), page, None);
    check_fault(Vm::long(LOAD), page | 1 << 45, Some(9));
    check_fault(Vm::long(FETCH), page | NX, Some(0x11));
    let mut no_wp = Vm::long(STORE);
    no_wp.change(|state| state.sys.cr0 &= !Cr0::WP);
    check_fault(no_wp, page, None);
}

#[test]
fn smep_and_smap_keep_the_supervisor_out_of_user_pages() {
    let with = |code, cr4: u64, rflags: u64| {
        let mut vm = Vm::long(code);
        // Only the page at DATA stays a user page.
        for page in 0..1024 {
            let pte = vm.read(PT + 8 * page) & !US;
            vm.write(PT + 8 * page, &pte.to_le_bytes());
        }
        vm.change(|state| {
            state.sys.cr4 |= cr4;
            state.rflags |= rflags;
        });
        vm
    };
    let user_page = DATA | P | RW | US;
    check_fault(with(FETCH, Cr4::SMEP, 0), user_page, Some(0x11));
    check_fault(with(LOAD, Cr4::SMAP, 0), user_page, Some(1));
    check_fault(with(STORE, Cr4::SMAP, 0), user_page, Some(3));
    check_fault(with(LOAD, Cr4::SMAP, Rflags::AC), user_page, None);
    check_fault(with(LOAD, Cr4::SMAP, 0), DATA | P | RW, None);
}

/// The TLB contract: a store to a walked entry takes effect at once, without INVLPG.
#[test]
fn a_changed_entry_is_obeyed_by_the_next_instruction() {
    // mov rax, [rdi]; mov [rsi], rcx; mov rbx, [rdi]; hlt
    let code = [0x48, 0x8b, 0x07, 0x48, 0x89, 0x0e, 0x48, 0x8b, 0x1f, 0xf4];
    let mut vm = Vm::long(&code);
    vm.write(DATA, &[1]);
    vm.write(DATA + 0x1000, &[2]);
    vm.change(|state| {
        state.gpr[7] = DATA;
        state.gpr[6] = pte_at(DATA);
        state.gpr[1] = (DATA + 0x1000) | P | RW | US;
    });
    vm.run_to_halt(10);
    assert_eq!((vm.cpu.gpr(0), vm.cpu.gpr(3)), (1, 2));
}

#[test]
fn clearing_accessed_without_invlpg_sets_it_again_at_the_next_access() {
    // mov rax, [rdi]; and byte [rsi], ~0x20; mov rax, [rdi]; hlt
    let code = [0x48, 0x8b, 0x07, 0x80, 0x26, 0xdf, 0x48, 0x8b, 0x07, 0xf4];
    let mut vm = Vm::long(&code);
    vm.change(|state| {
        state.gpr[7] = DATA;
        state.gpr[6] = pte_at(DATA);
    });
    vm.run(2);
    assert_eq!(vm.pte(DATA) & A, 0);
    vm.run_to_halt(10);
    assert_eq!(vm.pte(DATA) & A, A);
}

#[test]
fn an_upper_table_that_changes_is_obeyed_at_once() {
    // mov rax, [rdi]; mov [rsi], rcx; mov rbx, [rdi]; hlt
    let code = [0x48, 0x8b, 0x07, 0x48, 0x89, 0x0e, 0x48, 0x8b, 0x1f, 0xf4];
    let mut vm = Vm::long(&code);
    let linear = 0x40_0000u64; // the third entry of the page directory, empty at first
    let pd = PT - 0x1000;
    let table = DATA + 0x8000;
    vm.mem.write_obj(Gpa(pd + 16), (PT + 0x1000) | 7).unwrap();
    vm.mem.write_obj(Gpa(table), DATA | 7).unwrap();
    vm.write(0x20_0000, &[0x11]); // what PT + 0x1000 maps first
    vm.write(DATA, &[0x11]);
    vm.mem.write_obj(Gpa(table), (DATA + 0x3000) | 7).unwrap();
    vm.write(DATA + 0x3000, &[0x22]);
    vm.change(|state| {
        state.gpr[7] = linear;
        state.gpr[6] = pd + 16;
        state.gpr[1] = table | 7;
    });
    vm.run_to_halt(10);
    assert_eq!((vm.cpu.gpr(0), vm.cpu.gpr(3)), (0x11, 0x22));
}

#[test]
fn unmapping_the_running_code_faults_at_the_next_instruction() {
    // mov [rsi], rcx; nop; hlt
    let mut vm = Vm::long(&[0x48, 0x89, 0x0e, 0x90, 0xf4]);
    vm.change(|state| {
        state.gpr[6] = pte_at(CODE);
        state.gpr[1] = 0;
    });
    vm.run_to_halt(10);
    assert_eq!(vm.halted_in(), 14);
    assert_eq!(vm.cpu.sys().cr2, CODE + 3);
    assert_eq!((vm.stack_word(0), vm.stack_word(1)), (0x10, CODE + 3));
}

#[test]
fn a_store_across_two_pages_is_all_or_nothing() {
    let mut vm = with_rdi(Vm::user(STORE), DATA + 0xffc);
    vm.change(|state| state.gpr[0] = u64::MAX);
    vm.set_pte(DATA + 0x1000, 0);
    vm.run_to_halt(5);
    assert_eq!((vm.halted_in(), vm.cpu.sys().cr2), (14, DATA + 0x1000));
    assert_eq!(vm.read(DATA + 0xff8), 0, "nothing was written before the fault");
}

#[test]
fn non_canonical_addresses_are_gp_or_with_the_stack_ss() {
    let mut vm = with_rdi(Vm::long(LOAD), 1 << 47);
    vm.run_to_halt(5);
    assert_eq!(vm.halted_in(), 13);
    // push rax with a non-canonical stack pointer: #SS cannot be delivered on that stack, so an
    // interrupt stack is needed; from CPL 3 the handler has its own.
    let mut vm = Vm::user(&[0x50]);
    vm.change(|state| state.gpr[4] = 1 << 47 | 4);
    vm.run_to_halt(5);
    assert_eq!(vm.halted_in(), 12);
}

/// The last bytes below the canonical boundary: two NOPs, then the first byte of an instruction of two.
/// The tables' entry for what follows the boundary's sign-extended address maps the first pages.
fn at_the_boundary() -> Vm {
    const ROOT: u64 = 0x1_0000;
    const TABLES: u64 = 0x30_0000;
    let mut vm = Vm::long(&[]);
    for level in 0..3 {
        let entry = (TABLES + 0x1000 * (level + 1)) | 7;
        vm.write(TABLES + 0x1000 * level + 0xff8, &entry.to_le_bytes());
    }
    let pml4e = |index: u64| ROOT + 8 * index;
    vm.write(pml4e(255), &(TABLES | 7).to_le_bytes());
    let first = vm.read(pml4e(0));
    vm.write(pml4e(256), &first.to_le_bytes());
    vm.write(TABLES + 0x3ffd, &[0x90, 0x90, 0x89]);
    vm.write(0, &[0xc0, 0xf4]);
    vm.change(|state| state.rip = (1 << 47) - 3);
    vm
}

#[test]
fn code_that_runs_out_of_the_canonical_addresses_is_gp_where_it_leaves_them() {
    let mut vm = at_the_boundary();
    vm.write(0x30_3fff, &[0x90]);
    vm.run_to_halt(6);
    assert_eq!((vm.halted_in(), vm.stack_word(0), vm.stack_word(1)), (13, 0, 1 << 47));
}

#[test]
fn an_instruction_that_reaches_beyond_the_canonical_addresses_is_gp() {
    let mut vm = at_the_boundary();
    vm.run_to_halt(6);
    assert_eq!((vm.halted_in(), vm.stack_word(0), vm.stack_word(1)), (13, 0, (1 << 47) - 1));
}

#[test]
fn device_memory_is_read_and_written_at_its_width() {
    // mov eax, [rdi]; mov [rdi+8], al; hlt
    let mut vm = with_rdi(Vm::long(&[0x8b, 0x07, 0x88, 0x47, 0x08, 0xf4]), DATA);
    vm.set_pte(DATA, 0xfee0_0000 | P | RW);
    vm.bus.mmio.insert(0xfee0_0000, 0x1234_5678);
    vm.run_to_halt(5);
    assert_eq!(vm.cpu.gpr(0), 0x1234_5678);
    assert_eq!(vm.bus.mmio_writes, [(1, 0xfee0_0008, 1, 0x78)]);
}

#[test]
fn two_level_and_pae_tables_map_large_and_small_pages() {
    for pae in [false, true] {
        // mov eax, [edi]; mov [edi], eax; hlt
        let mut vm = Vm::protected(&[0x8b, 0x07, 0x89, 0x07, 0xf4]);
        vm.write(DATA + 0x123, &[0x77, 0, 0, 0]);
        let root = 0x30_0000u64;
        let linear = 0x8000_0123u64;
        let table = root + 0x3000;
        if pae {
            vm.mem.write_obj(Gpa(root), (root + 0x1000) | 1).unwrap();
            vm.mem.write_obj(Gpa(root + 16), (root + 0x2000) | 1).unwrap();
            vm.mem.write_obj(Gpa(root + 0x1000), 0x83u64).unwrap();
            vm.mem.write_obj(Gpa(root + 0x1008), 0x20_0083u64).unwrap();
            vm.mem.write_obj(Gpa(root + 0x2000), table | 3).unwrap();
            vm.mem.write_obj(Gpa(table), DATA | 3).unwrap();
        } else {
            vm.mem.write_obj(Gpa(root), 0x83u32).unwrap();
            vm.mem.write_obj(Gpa(root + 4 * 512), table as u32 | 3).unwrap();
            vm.mem.write_obj(Gpa(table), DATA as u32 | 3).unwrap();
        }
        vm.change(|state| {
            state.gpr[7] = linear;
            state.sys.cr3 = root;
            state.sys.cr4 |= if pae { Cr4::PAE } else { Cr4::PSE };
            state.sys.cr0 |= Cr0::PG | Cr0::WP;
            state.sys.pdpte = [(root + 0x1000) | 1, 0, (root + 0x2000) | 1, 0];
        });
        assert_eq!(vm.run(5), CpuStop::Halted, "PAE {pae}");
        assert_eq!(vm.cpu.gpr(0), 0x77);
        assert_eq!(vm.read(table) & (A | D), A | D, "PAE {pae}");
    }
}
