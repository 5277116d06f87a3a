//! SSE, MMX, x87 and XSAVE as a program meets them: bytes of code, run in 64-bit mode.

use base::{Gpa, Icount};
use cpu::{Cpu, CpuState, CpuStop, F80, NoBus, Seg, Segment, TableRegister};
use mem::GuestMem;
use x86::{Access, Cr0, Cr4, Efer, Vector};

const CODE: u64 = 0x1000;
const HANDLERS: u64 = 0x2000;
const IDT: u64 = 0x3000;
const GDT: u64 = 0x4000;
const TABLES: u64 = 0x8000;
const STACK: u64 = 0x8000;
/// Where tests keep their data. The page after the next one is not mapped.
const DATA: u64 = 0x20_0000 - 0x2000;
const HLT: u8 = 0xf4;

/// A machine with 2 MiB of identity-mapped memory, whose exception handlers halt.
struct Machine {
    mem: GuestMem,
    state: CpuState,
}

impl Machine {
    fn new() -> Machine {
        let mut mem = GuestMem::new(16 << 20).unwrap();
        for level in 0..2 {
            let next = TABLES + 0x1000 * (level + 1);
            mem.write_obj(Gpa(TABLES + 0x1000 * level), next | 7).unwrap();
        }
        // One large page, present, writable, user.
        mem.write_obj(Gpa(TABLES + 0x2000), 0x87u64).unwrap();
        for vector in 0..32u64 {
            let handler = HANDLERS + vector;
            let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
            mem.write_obj(Gpa(IDT + 16 * vector), gate).unwrap();
        }
        mem.write_obj(Gpa(GDT + 8), 0x00af_9b00_0000_ffffu64).unwrap();
        mem.write(Gpa(HANDLERS), &[HLT; 64]).unwrap();
        let mut state = CpuState::reset();
        state.sys.cr0 = Cr0::PE | Cr0::ET | Cr0::NE | Cr0::MP | Cr0::WP | Cr0::PG;
        state.sys.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
        state.sys.cr3 = TABLES;
        state.sys.efer = Efer::LME | Efer::LMA | Efer::NXE;
        state.sys.xcr0 = 3;
        state.sys.idtr = TableRegister { base: IDT, limit: 0x1ff };
        state.sys.gdtr = TableRegister { base: GDT, limit: 0xf };
        let code = Access::P | Access::S | Access::CODE | Access::WRITABLE | Access::ACCESSED;
        state.seg[Seg::CS] =
            Segment { selector: 8, access: code | Access::L, limit: u32::MAX, base: 0 };
        state.gpr[4] = STACK;
        state.x87.control = 0x037f;
        state.x87.full = 0;
        Machine { mem, state }
    }

    /// Runs the code up to its end or to an exception; the vector of the latter.
    fn run(&mut self, code: &[u8]) -> Option<u8> {
        self.mem.write(Gpa(CODE), code).unwrap();
        self.mem.write(Gpa(CODE + code.len() as u64), &[HLT]).unwrap();
        self.state.rip = CODE;
        let mut cpu = Cpu::new();
        cpu.restore(&self.state).unwrap();
        let stop = cpu.run(&mut self.mem, &mut NoBus, Icount(1000));
        assert_eq!(stop, CpuStop::Halted, "the code runs to a HLT");
        let state = cpu.save();
        let vector = (HANDLERS..HANDLERS + 32).contains(&(state.rip - 1));
        let vector = vector.then(|| (state.rip - 1 - HANDLERS) as u8);
        self.state.x87 = state.x87;
        self.state.sse = state.sse;
        self.state.gpr[..4].copy_from_slice(&state.gpr[..4]);
        self.state.rflags = state.rflags;
        vector
    }

    fn put<const N: usize>(&mut self, at: u64, bytes: [u8; N]) {
        self.mem.write(Gpa(at), &bytes).unwrap();
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.mem.read(Gpa(at), &mut bytes).unwrap();
        bytes
    }
}

/// addsd xmm0, xmm1
const ADDSD: [u8; 4] = [0xf2, 0x0f, 0x58, 0xc1];
/// divpd xmm0, xmm1
const DIVPD: [u8; 4] = [0x66, 0x0f, 0x5e, 0xc1];
/// movaps xmm0, [rax]
const MOVAPS: [u8; 3] = [0x0f, 0x28, 0x00];
/// movups xmm0, [rax]
const MOVUPS: [u8; 3] = [0x0f, 0x10, 0x00];
/// ldmxcsr [rax]
const LDMXCSR: [u8; 3] = [0x0f, 0xae, 0x10];
/// maskmovdqu xmm0, xmm1
const MASKMOVDQU: [u8; 4] = [0x66, 0x0f, 0xf7, 0xc1];
/// paddb mm0, mm1
const PADDB: [u8; 3] = [0x0f, 0xfc, 0xc1];
/// emms
const EMMS: [u8; 2] = [0x0f, 0x77];
/// fld1
const FLD1: [u8; 2] = [0xd9, 0xe8];
/// fldz
const FLDZ: [u8; 2] = [0xd9, 0xee];
/// fdivp st(1), st(0)
const FDIVP: [u8; 2] = [0xde, 0xf9];
/// fnstsw ax
const FNSTSW: [u8; 2] = [0xdf, 0xe0];
/// fxsave64 [rax], fxrstor64 [rax]
const FXSAVE64: [u8; 4] = [0x48, 0x0f, 0xae, 0x00];
const FXRSTOR64: [u8; 4] = [0x48, 0x0f, 0xae, 0x08];
/// xsave [rbx], xrstor [rbx]
const XSAVE: [u8; 3] = [0x0f, 0xae, 0x23];
const XRSTOR: [u8; 3] = [0x0f, 0xae, 0x2b];
const ONE: u128 = 0x3ff0_0000_0000_0000;

#[test]
fn units_that_are_switched_off_raise_their_exception() {
    type Change = fn(&mut CpuState);
    let rows: [(Change, &[u8], u8); 8] = [
        (|state| state.sys.cr0 |= Cr0::TS, &ADDSD, Vector::NM),
        (|state| state.sys.cr0 |= Cr0::TS, &PADDB, Vector::NM),
        (|state| state.sys.cr0 |= Cr0::TS, &FLD1, Vector::NM),
        (|state| state.sys.cr0 |= Cr0::EM, &ADDSD, Vector::UD),
        (|state| state.sys.cr0 |= Cr0::EM, &PADDB, Vector::UD),
        (|state| state.sys.cr0 |= Cr0::EM, &FLD1, Vector::NM),
        (|state| state.sys.cr4 &= !Cr4::OSFXSR, &ADDSD, Vector::UD),
        (|state| state.sys.cr4 &= !Cr4::OSXSAVE, &XSAVE, Vector::UD),
    ];
    for (row, (change, code, vector)) in rows.into_iter().enumerate() {
        let mut machine = Machine::new();
        change(&mut machine.state);
        assert_eq!(machine.run(code), Some(vector), "row {row}");
    }
}

#[test]
fn an_unmasked_sse_exception_keeps_the_register_and_notes_the_flag() {
    let mut machine = Machine::new();
    // Lane 0 divides by zero, lane 1 is inexact. Only division by zero is unmasked, and it is found
    // before any result is rounded.
    machine.state.sse.mxcsr = 0x1d80;
    machine.state.sse.xmm[0] = ONE << 64 | ONE;
    machine.state.sse.xmm[1] = 0x4008_0000_0000_0000 << 64;
    assert_eq!(machine.run(&DIVPD), Some(Vector::XM));
    assert_eq!(machine.state.sse.mxcsr, 0x1d84);
    assert_eq!(machine.state.sse.xmm[0], ONE << 64 | ONE);
    machine.state.sys.cr4 &= !Cr4::OSXMMEXCPT;
    assert_eq!(machine.run(&DIVPD), Some(Vector::UD));
    machine.state.sse.mxcsr = 0x1f80;
    assert_eq!(machine.run(&DIVPD), None);
    assert_eq!(machine.state.sse.mxcsr, 0x1fa4);
    assert_eq!(machine.state.sse.xmm[0] as u64, f64::INFINITY.to_bits());
}

#[test]
fn memory_operands_of_16_bytes_have_to_be_aligned_unless_the_move_says_otherwise() {
    let mut machine = Machine::new();
    machine.put(DATA, [7; 32]);
    machine.state.gpr[0] = DATA + 8;
    assert_eq!(machine.run(&MOVAPS), Some(Vector::GP));
    machine.state.gpr[0] = DATA + 8;
    assert_eq!(machine.run(&MOVUPS), None);
    assert_eq!(machine.state.sse.xmm[0].to_le_bytes(), [7; 16]);
}

#[test]
fn mxcsr_bits_that_do_not_exist_are_refused() {
    let mut machine = Machine::new();
    machine.state.gpr[0] = DATA;
    machine.put(DATA, 0x0001_1f80u32.to_le_bytes());
    assert_eq!(machine.run(&LDMXCSR), Some(Vector::GP));
    machine.put(DATA, 0xffffu32.to_le_bytes());
    assert_eq!(machine.run(&LDMXCSR), None);
    assert_eq!(machine.state.sse.mxcsr, 0xffff);
}

#[test]
fn a_masked_store_touches_the_chosen_bytes_only() {
    let mut machine = Machine::new();
    machine.state.sse.xmm[0] = u128::from_le_bytes(*b"0123456789abcdef");
    machine.state.sse.xmm[1] = 0x80 | 0xff << 24 | 0x7f << 32;
    machine.state.gpr[7] = DATA;
    machine.put(DATA, *b"................");
    assert_eq!(machine.run(&MASKMOVDQU), None);
    assert_eq!(&machine.get(DATA), b"0..3............");
    // The page beyond 2 MiB is not there.
    machine.state.gpr[7] = 0x20_0000 - 4;
    assert_eq!(machine.run(&MASKMOVDQU), None, "its bytes are not asked for");
    machine.state.sse.xmm[1] = 0;
    machine.state.gpr[7] = 0x40_0000;
    assert_eq!(machine.run(&MASKMOVDQU), None, "an empty mask asks for nothing");
    machine.state.sse.xmm[1] = 0x80 << 120 | 0x80;
    machine.state.gpr[7] = 0x20_0000 - 4;
    machine.put(0x20_0000 - 4, *b"....");
    assert_eq!(machine.run(&MASKMOVDQU), Some(Vector::PF));
    assert_eq!(&machine.get(0x20_0000 - 4), b"....", "nothing is stored before the fault");
}

#[test]
fn mmx_registers_are_the_x87_significands() {
    let mut machine = Machine::new();
    assert_eq!(machine.run(&[FLD1, FLD1].concat()), None);
    assert_eq!((machine.state.x87.status >> 11 & 7, machine.state.x87.full), (6, 0b1100_0000));
    machine.state.x87.regs[0].significand = 0x01ff;
    machine.state.x87.regs[1].significand = 0x0101;
    assert_eq!(machine.run(&PADDB), None);
    let x87 = &machine.state.x87;
    assert_eq!(x87.regs[0], F80 { significand: 0x0200, sign_exponent: 0xffff });
    assert_eq!((x87.status >> 11 & 7, x87.full), (0, 0xff));
    assert_eq!(machine.run(&EMMS), None);
    assert_eq!(machine.state.x87.full, 0);
}

#[test]
fn an_unmasked_x87_exception_waits_for_the_next_waiting_instruction() {
    let mut machine = Machine::new();
    machine.state.x87.control = 0x037b;
    assert_eq!(machine.run(&[FLD1, FLDZ, FDIVP, FNSTSW].concat()), None);
    assert_eq!(machine.state.gpr[0] & 0x80ff, 0x8084, "ZE, ES and B");
    assert_eq!(machine.state.x87.status >> 11 & 7, 6, "the operands are still there");
    for waiting in [&FLD1[..], &PADDB, &[0x9b]] {
        assert_eq!(machine.run(waiting), Some(Vector::MF), "{waiting:x?}");
    }
    assert_eq!(machine.run(&[0xdb, 0xe2]), None, "FNCLEX does not wait");
    assert_eq!(machine.run(&FLD1), None);
}

#[test]
fn a_full_stack_and_an_empty_one_are_told_apart_by_c1() {
    let mut machine = Machine::new();
    assert_eq!(machine.run(&FLD1.repeat(9)), None);
    assert_eq!(machine.state.x87.status & 0x241, 0x241, "overflow: IE, SF and C1");
    assert_eq!(machine.state.x87.regs[7], F80 { significand: 3 << 62, sign_exponent: 0xffff });
    // fninit, fstp st(0)
    assert_eq!(machine.run(&[0xdb, 0xe3, 0xdd, 0xd8]), None);
    assert_eq!(machine.state.x87.status & 0x241, 0x041, "underflow: C1 clear");
}

#[test]
fn the_environment_image_has_tags_and_pointers() {
    let mut machine = Machine::new();
    machine.state.gpr[0] = DATA;
    machine.state.gpr[3] = DATA + 0x100;
    machine.put(DATA + 0x100, 2.5f64.to_le_bytes());
    // fldz; fld qword [rbx]; fnstenv [rax]
    assert_eq!(machine.run(&[0xd9, 0xee, 0xdd, 0x03, 0xd9, 0x30]), None);
    let words: [u8; 28] = machine.get(DATA);
    let (words, _) = words.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let pointers = [CODE as u32 + 2, 0, DATA as u32 + 0x100, 0xffff_0000];
    assert_eq!(words[..3], [0xffff_037f, 0xffff_3000, 0xffff_4fff]);
    assert_eq!(words[3..], pointers, "of the last instruction that was not a control instruction");
}

#[test]
fn packed_decimal_goes_out_and_comes_back() {
    let mut machine = Machine::new();
    (machine.state.gpr[0], machine.state.gpr[3]) = (DATA, DATA + 16);
    let digits = [0x21, 0x43, 0x65, 0x87, 0x09, 0x21, 0x43, 0x65, 0x87, 0x80];
    machine.put(DATA, digits);
    // fbld [rax]; fbstp [rbx]
    assert_eq!(machine.run(&[0xdf, 0x20, 0xdf, 0x33]), None);
    assert_eq!(machine.get(DATA + 16), digits);
    // fldpi; fbstp [rbx]
    assert_eq!(machine.run(&[0xd9, 0xeb, 0xdf, 0x33]), None);
    assert_eq!(machine.get(DATA + 16), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(machine.state.x87.status & 0x3f, 0x20, "inexact");
    // fldl2t; fmul st(0),st(0) six times: above 10^18
    let code = [&[0xd9, 0xe9][..], &[0xd8, 0xc8].repeat(6), &[0xdf, 0x33]].concat();
    assert_eq!(machine.run(&code), None);
    assert_eq!(machine.get(DATA + 16), [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff]);
    // fbld [rax]; fld1; faddp; fbstp [rbx]: eighteen nines and one make nineteen digits
    machine.put(DATA, [0x99, 0x99, 0x99, 0x99, 0x99, 0x99, 0x99, 0x99, 0x99, 0]);
    assert_eq!(machine.run(&[0xdf, 0x20, 0xd9, 0xe8, 0xde, 0xc1, 0xdf, 0x33]), None);
    assert_eq!(machine.get(DATA + 16), [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff]);
}

#[test]
fn fxsave_and_fxrstor_carry_everything() {
    let mut machine = Machine::new();
    machine.state.gpr[0] = DATA;
    machine.put(DATA, [0xee; 512]);
    machine.state.sse.xmm = std::array::from_fn(|i| i as u128 * 0x0123_4567_89ab_cdef + 1);
    machine.state.sse.mxcsr = 0x7fa1;
    assert_eq!(machine.run(&[&FLD1[..], &FLDZ, &FXSAVE64].concat()), None);
    let saved = machine.state.clone();
    assert_eq!(machine.get(DATA + 28), 0xffffu32.to_le_bytes(), "MXCSR_MASK");
    assert_eq!(machine.get(DATA + 464), [0xee; 48], "the tail belongs to software");
    machine.state = Machine::new().state;
    machine.state.gpr[0] = DATA;
    assert_eq!(machine.run(&FXRSTOR64), None);
    assert_eq!((machine.state.x87, machine.state.sse), (saved.x87, saved.sse));

    let mut machine = Machine::new();
    machine.state.gpr[0] = DATA + 8;
    assert_eq!(machine.run(&FXSAVE64), Some(Vector::GP), "not aligned to 16");
    machine.state.gpr[0] = DATA;
    machine.put(DATA + 24, 0xffff_ffffu32.to_le_bytes());
    machine.state.sse.xmm[3] = 5;
    assert_eq!(machine.run(&FXRSTOR64), Some(Vector::GP), "MXCSR");
    assert_eq!(machine.state.sse.xmm[3], 5, "a refused image changes nothing");
}

#[test]
fn xsave_tells_initial_components_and_xrstor_brings_them_back() {
    let mut machine = Machine::new();
    (machine.state.gpr[0], machine.state.gpr[2], machine.state.gpr[3]) = (3, 0, DATA);
    machine.state.sse.xmm[1] = 9;
    machine.state.sse.mxcsr = 0x3f80;
    assert_eq!(machine.run(&XSAVE), None);
    assert_eq!(machine.get(DATA + 512), 2u64.to_le_bytes(), "x87 is initial, SSE is not");

    // SSE only: the x87 stays; marked initial, XMM is cleared but MXCSR is read.
    machine.put(DATA + 512, 0u64.to_le_bytes());
    assert_eq!(machine.run(&FLD1), None);
    let x87 = machine.state.x87.clone();
    machine.state.gpr[0] = 2;
    machine.state.sse.mxcsr = 0x1f80;
    assert_eq!(machine.run(&XRSTOR), None);
    assert_eq!((machine.state.sse.xmm[1], machine.state.sse.mxcsr), (0, 0x3f80));
    assert_eq!(machine.state.x87, x87);

    machine.state.gpr[0] = 3;
    assert_eq!(machine.run(&XRSTOR), None);
    assert_eq!((machine.state.x87.full, machine.state.x87.control), (0, 0x037f));
}

#[test]
fn xrstor_refuses_headers_that_mean_nothing() {
    for (at, value) in [(512, 4u64), (520, 1), (520, 1 << 63), (528, 1)] {
        let mut machine = Machine::new();
        (machine.state.gpr[0], machine.state.gpr[3]) = (3, DATA);
        machine.put(DATA + 24, 0x1f80u32.to_le_bytes());
        assert_eq!(machine.run(&XRSTOR), None);
        machine.put(DATA + at, value.to_le_bytes());
        assert_eq!(machine.run(&XRSTOR), Some(Vector::GP), "{value:#x} at {at}");
    }
    let mut machine = Machine::new();
    (machine.state.gpr[0], machine.state.gpr[3]) = (3, DATA + 16);
    assert_eq!(machine.run(&XRSTOR), Some(Vector::GP), "not aligned to 64");
}
