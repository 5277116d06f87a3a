//! A byte emitter for the few host instructions that translations need beside the guest's own.

use x86::CpuLevel;

use crate::host::HOST;

/// Host register numbers.
pub(crate) mod reg {
    pub(crate) const RAX: u8 = 0;
    pub(crate) const RCX: u8 = 1;
    pub(crate) const RDX: u8 = 2;
    pub(crate) const RBX: u8 = 3;
    pub(crate) const RSP: u8 = 4;
    pub(crate) const RBP: u8 = 5;
    pub(crate) const RSI: u8 = 6;
    pub(crate) const RDI: u8 = 7;
    pub(crate) const R8: u8 = 8;
    pub(crate) const R9: u8 = 9;
    pub(crate) const R10: u8 = 10;
    pub(crate) const R11: u8 = 11;
    pub(crate) const R12: u8 = 12;
    pub(crate) const R13: u8 = 13;
    pub(crate) const R14: u8 = 14;
    pub(crate) const R15: u8 = 15;
}

/// An arithmetic operation by its number in the opcode map.
#[derive(Clone, Copy)]
pub(crate) enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Condition codes.
pub(crate) mod cc {
    pub(crate) const B: u8 = 2;
    pub(crate) const AE: u8 = 3;
    pub(crate) const E: u8 = 4;
    pub(crate) const NE: u8 = 5;
    pub(crate) const BE: u8 = 6;
    pub(crate) const A: u8 = 7;
    pub(crate) const S: u8 = 8;
    pub(crate) const NS: u8 = 9;
    pub(crate) const L: u8 = 12;
}

/// An operand in a register, or in memory at a distance from one.
#[derive(Clone, Copy)]
pub(crate) enum RegMem {
    Reg(u8),
    Mem(u8, i32),
    /// At a distance from the sum of two; the second one is not RSP.
    Sum(u8, u8, i32),
    /// The same with the second one shifted left by so many bits.
    Scaled(u8, u8, u8, i32),
}

/// A place in the buffer whose branch distance is filled in later.
#[derive(Clone, Copy)]
pub(crate) struct Hole(pub(crate) usize);

/// Machine code under construction, to be copied to `base`; from some place on to another address.
pub(crate) struct Emitter {
    pub(crate) bytes: Vec<u8>,
    base: u64,
    /// Where in `bytes` the part for the other address begins, and what to add to an address there.
    elsewhere: Option<(usize, u64)>,
}

impl Emitter {
    pub(crate) fn new(base: u64) -> Emitter {
        Emitter { bytes: Vec::with_capacity(1024), base, elsewhere: None }
    }

    /// Has what is emitted from now on go to another address. May be said once. Gives the length of what came before.
    pub(crate) fn go_elsewhere(&mut self, base: u64) -> usize {
        assert!(self.elsewhere.is_none(), "code is in two places at most");
        let split = self.bytes.len();
        self.elsewhere = Some((split, base.wrapping_sub(self.here())));
        split
    }

    /// The address of a place in the buffer.
    fn address(&self, at: usize) -> u64 {
        let address = self.base + at as u64;
        match self.elsewhere {
            Some((split, distance)) if at >= split => address.wrapping_add(distance),
            _ => address,
        }
    }

    /// The address of a hole.
    pub(crate) fn address_of(&self, hole: Hole) -> u64 {
        self.address(hole.0)
    }

    /// The address of what is emitted next.
    pub(crate) fn here(&self) -> u64 {
        self.address(self.bytes.len())
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.raw(&value.to_le_bytes());
    }

    fn rex(&mut self, wide: bool, r: u8, x: u8, b: u8) {
        let byte = 0x40 | u8::from(wide) << 3 | (r >> 3) << 2 | (x >> 3) << 1 | b >> 3;
        if byte != 0x40 {
            self.bytes.push(byte);
        }
    }

    /// ModRM and SIB for `[base + disp]`.
    fn modrm_mem(&mut self, r: u8, base: u8, disp: i32) {
        let (r, low) = ((r & 7) << 3, base & 7);
        let short = i8::try_from(disp).is_ok();
        let mode = if disp == 0 && low != 5 {
            0
        } else if short {
            0x40
        } else {
            0x80
        };
        self.bytes.push(mode | r | low);
        if low == 4 {
            self.bytes.push(0x24);
        }
        match mode {
            0 => {}
            0x40 => self.bytes.push(disp as u8),
            _ => self.imm32(disp),
        }
    }

    /// ModRM and SIB for `[base + index << shift + disp]`.
    fn modrm_sum(&mut self, r: u8, base: u8, index: u8, shift: u8, disp: i32) {
        let (r, sib) = ((r & 7) << 3, shift << 6 | (index & 7) << 3 | base & 7);
        match i8::try_from(disp) {
            Ok(short) => self.raw(&[0x44 | r, sib, short as u8]),
            Err(_) => {
                self.raw(&[0x84 | r, sib]);
                self.imm32(disp);
            }
        }
    }

    /// `mov dst, src`, 64 bits.
    pub(crate) fn mov(&mut self, dst: u8, src: u8) {
        self.rex(true, src, 0, dst);
        self.raw(&[0x89, 0xc0 | (src & 7) << 3 | dst & 7]);
    }

    /// `mov dst32, src32`: clears the upper half.
    pub(crate) fn mov32(&mut self, dst: u8, src: u8) {
        self.rex(false, src, 0, dst);
        self.raw(&[0x89, 0xc0 | (src & 7) << 3 | dst & 7]);
    }

    pub(crate) fn load(&mut self, dst: u8, base: u8, disp: i32) {
        self.rex(true, dst, 0, base);
        self.bytes.push(0x8b);
        self.modrm_mem(dst, base, disp);
    }

    pub(crate) fn store(&mut self, base: u8, disp: i32, src: u8) {
        self.rex(true, src, 0, base);
        self.bytes.push(0x89);
        self.modrm_mem(src, base, disp);
    }

    /// `mov qword [base + disp], value`, sign-extended.
    pub(crate) fn store_imm64(&mut self, base: u8, disp: i32, value: i32) {
        self.rex(true, 0, 0, base);
        self.bytes.push(0xc7);
        self.modrm_mem(0, base, disp);
        self.imm32(value);
    }

    pub(crate) fn mov_imm32(&mut self, dst: u8, value: u32) {
        self.rex(false, 0, 0, dst);
        self.bytes.push(0xb8 | dst & 7);
        self.imm32(value as i32);
    }

    pub(crate) fn mov_imm64(&mut self, dst: u8, value: u64) {
        self.rex(true, 0, 0, dst);
        self.bytes.push(0xb8 | dst & 7);
        self.raw(&value.to_le_bytes());
    }

    /// `lea dst, [base + disp]`.
    pub(crate) fn lea(&mut self, dst: u8, base: u8, disp: i32) {
        self.lea_sized(true, dst, base, disp);
    }

    /// `lea dst, [base + disp]`, only the lower half of it unless `wide`.
    pub(crate) fn lea_sized(&mut self, wide: bool, dst: u8, base: u8, disp: i32) {
        self.rex(wide, dst, 0, base);
        self.bytes.push(0x8d);
        self.modrm_mem(dst, base, disp);
    }

    /// `lea dst, [base + index << scale + disp]`; without a base if there is none.
    pub(crate) fn lea_index(&mut self, dst: u8, base: Option<u8>, index: u8, scale: u8, disp: i32) {
        self.lea_index_sized(true, dst, base, index, scale, disp);
    }

    /// The same, only the lower half of it unless `wide`.
    pub(crate) fn lea_index_sized(
        &mut self,
        wide: bool,
        dst: u8,
        base: Option<u8>,
        index: u8,
        scale: u8,
        disp: i32,
    ) {
        self.rex(wide, dst, index, base.unwrap_or(0));
        let low = base.unwrap_or(5) & 7;
        let short = i8::try_from(disp).ok().filter(|_| base.is_some());
        let mode = match base {
            None => 0,
            Some(_) if short.is_some() => 0x40,
            Some(_) => 0x80,
        };
        self.raw(&[0x8d, mode | (dst & 7) << 3 | 4, scale << 6 | (index & 7) << 3 | low]);
        match short {
            Some(short) => self.bytes.push(short as u8),
            None => self.imm32(disp),
        }
    }

    pub(crate) fn alu(&mut self, op: Alu, dst: u8, src: u8) {
        self.rex(true, src, 0, dst);
        self.raw(&[(op as u8) << 3 | 1, 0xc0 | (src & 7) << 3 | dst & 7]);
    }

    pub(crate) fn alu_mem(&mut self, op: Alu, dst: u8, base: u8, disp: i32) {
        self.rex(true, dst, 0, base);
        self.bytes.push((op as u8) << 3 | 3);
        self.modrm_mem(dst, base, disp);
    }

    /// `and qword [base + disp], value`, sign-extended.
    pub(crate) fn and_imm_mem(&mut self, base: u8, disp: i32, value: i32) {
        self.rex(true, 0, 0, base);
        self.bytes.push(0x81);
        self.modrm_mem(4, base, disp);
        self.imm32(value);
    }

    /// `or qword [base + disp], value`, sign-extended.
    pub(crate) fn or_imm_mem(&mut self, base: u8, disp: i32, value: i32) {
        self.rex(true, 0, 0, base);
        self.bytes.push(0x81);
        self.modrm_mem(1, base, disp);
        self.imm32(value);
    }

    /// `add qword [base + disp], value`, sign-extended.
    pub(crate) fn add_imm_mem(&mut self, base: u8, disp: i32, value: i32) {
        self.rex(true, 0, 0, base);
        self.bytes.push(0x81);
        self.modrm_mem(0, base, disp);
        self.imm32(value);
    }

    /// REP with a string instruction, given by its opcode and the size of its elements.
    pub(crate) fn repeat(&mut self, bytes: u32, opcode: u8) {
        if bytes == 2 {
            self.bytes.push(0x66);
        }
        self.bytes.push(0xf3);
        if bytes == 8 {
            self.bytes.push(0x48);
        }
        self.bytes.push(opcode);
    }

    /// `test byte [base + disp], value`.
    pub(crate) fn test_byte(&mut self, base: u8, disp: i32, value: u8) {
        self.rex(false, 0, 0, base);
        self.bytes.push(0xf6);
        self.modrm_mem(0, base, disp);
        self.bytes.push(value);
    }

    pub(crate) fn alu_imm(&mut self, op: Alu, dst: u8, value: i32) {
        self.rex(true, 0, 0, dst);
        let modrm = 0xc0 | (op as u8) << 3 | dst & 7;
        if let Ok(short) = i8::try_from(value) {
            self.raw(&[0x83, modrm, short as u8]);
        } else {
            self.raw(&[0x81, modrm]);
            self.imm32(value);
        }
    }

    /// Adds to the lower 16 bits, and leaves the others alone.
    pub(crate) fn add_low16(&mut self, dst: u8, value: i8) {
        self.bytes.push(0x66);
        self.rex(false, 0, 0, dst);
        self.raw(&[0x83, 0xc0 | dst & 7, value as u8]);
    }

    pub(crate) fn test(&mut self, a: u8, b: u8) {
        self.rex(true, b, 0, a);
        self.raw(&[0x85, 0xc0 | (b & 7) << 3 | a & 7]);
    }

    /// `dst` = the TLB entry that serves the linear address in `linear`; the frame has their place at `tlb`.
    pub(crate) fn tlb_entry(&mut self, dst: u8, linear: u8, tlb: i32) {
        if HOST.level == CpuLevel::V3 {
            self.rorx(dst, linear, 7);
        } else {
            self.mov(dst, linear);
            self.shift(5, dst, 7);
        }
        self.alu_imm(Alu::And, dst, 0x7fe0);
        self.alu_mem(Alu::Add, dst, reg::RSP, tlb);
    }

    /// `rorx dst, src, count`. The host has to be of level v3.
    fn rorx(&mut self, dst: u8, src: u8, count: u8) {
        let extended = (!dst >> 3 & 1) << 7 | 1 << 6 | (!src >> 3 & 1) << 5;
        // The opcode map 0F3A; W and the prefix F2.
        self.raw(&[0xc4, extended | 3, 0xfb, 0xf0, 0xc0 | (dst & 7) << 3 | src & 7, count]);
    }

    /// Shifts by a constant; `op` is 0 for ROL, 1 for ROR, 4 for SHL, 5 for SHR, 7 for SAR.
    pub(crate) fn shift(&mut self, op: u8, dst: u8, count: u8) {
        self.rex(true, 0, 0, dst);
        self.raw(&[0xc1, 0xc0 | op << 3 | dst & 7, count]);
    }

    pub(crate) fn push(&mut self, r: u8) {
        self.rex(false, 0, 0, r);
        self.bytes.push(0x50 | r & 7);
    }

    pub(crate) fn pop(&mut self, r: u8) {
        self.rex(false, 0, 0, r);
        self.bytes.push(0x58 | r & 7);
    }

    pub(crate) fn ret(&mut self) {
        self.bytes.push(0xc3);
    }

    /// `movups`, from or to `[base + disp]`.
    pub(crate) fn xmm_move(&mut self, xmm: u8, base: u8, disp: i32, store: bool) {
        self.rex(false, xmm, 0, base);
        self.raw(&[0x0f, 0x10 | u8::from(store)]);
        self.modrm_mem(xmm, base, disp);
    }

    /// `vinsertf128` from, or `vextractf128` to `[base + disp]`, of the upper half.
    pub(crate) fn ymm_upper_move(&mut self, ymm: u8, base: u8, disp: i32, store: bool) {
        let (source, opcode) = if store { (0, 0x19) } else { (ymm, 0x18) };
        let extended = (!ymm >> 3 & 1) << 7 | 1 << 6 | (!base >> 3 & 1) << 5;
        // The opcode map 0F3A; the prefix 66 and the length 256.
        self.raw(&[0xc4, extended | 3, (!source & 15) << 3 | 1 << 2 | 1, opcode]);
        self.modrm_mem(ymm, base, disp);
        self.bytes.push(1);
    }

    pub(crate) fn vzeroupper(&mut self) {
        self.raw(&[0xc5, 0xf8, 0x77]);
    }

    pub(crate) fn ldmxcsr(&mut self, base: u8, disp: i32) {
        self.rex(false, 0, 0, base);
        self.raw(&[0x0f, 0xae]);
        self.modrm_mem(2, base, disp);
    }

    pub(crate) fn stmxcsr(&mut self, base: u8, disp: i32) {
        self.rex(false, 0, 0, base);
        self.raw(&[0x0f, 0xae]);
        self.modrm_mem(3, base, disp);
    }

    /// An x87 instruction with `[base + disp]`, by its opcode and the number that goes on with it.
    pub(crate) fn x87_mem(&mut self, opcode: u8, number: u8, base: u8, disp: i32) {
        self.rex(false, 0, 0, base);
        self.bytes.push(opcode);
        self.modrm_mem(number, base, disp);
    }

    /// A conditional branch to be filled in.
    pub(crate) fn jcc(&mut self, cond: u8) -> Hole {
        self.raw(&[0x0f, 0x80 | cond]);
        self.imm32(0);
        Hole(self.bytes.len() - 4)
    }

    /// `dst = src * value`, the low half.
    pub(crate) fn multiply(&mut self, dst: u8, src: u8, value: i32) {
        self.rex(true, dst, 0, src);
        self.raw(&[0x69, 0xc0 | (dst & 7) << 3 | src & 7]);
        self.imm32(value);
    }

    /// `cmovcc dst, src`.
    pub(crate) fn cmov(&mut self, cond: u8, dst: u8, src: u8) {
        self.rex(true, dst, 0, src);
        self.raw(&[0x0f, 0x40 | cond, 0xc0 | (dst & 7) << 3 | src & 7]);
    }

    /// A branch to be filled in.
    pub(crate) fn jmp(&mut self) -> Hole {
        self.bytes.push(0xe9);
        self.imm32(0);
        Hole(self.bytes.len() - 4)
    }

    pub(crate) fn jmp_to(&mut self, target: u64) {
        let hole = self.jmp();
        self.fill_to(hole, target);
    }

    /// `dst` = an address in the cache, to be filled in.
    pub(crate) fn lea_rip(&mut self, dst: u8) -> Hole {
        self.rex(true, dst, 0, 0);
        self.raw(&[0x8d, 5 | (dst & 7) << 3]);
        self.imm32(0);
        Hole(self.bytes.len() - 4)
    }

    pub(crate) fn call_to(&mut self, target: u64) {
        self.bytes.push(0xe8);
        self.imm32(0);
        self.fill_to(Hole(self.bytes.len() - 4), target);
    }

    pub(crate) fn jmp_reg(&mut self, r: u8) {
        self.rex(false, 0, 0, r);
        self.raw(&[0xff, 0xe0 | r & 7]);
    }

    /// `jmp [base + disp]`.
    pub(crate) fn jmp_mem(&mut self, base: u8, disp: i32) {
        self.rex(false, 0, 0, base);
        self.bytes.push(0xff);
        self.modrm_mem(4, base, disp);
    }

    pub(crate) fn call_reg(&mut self, r: u8) {
        self.rex(false, 0, 0, r);
        self.raw(&[0xff, 0xd0 | r & 7]);
    }

    /// Makes a hole lead to what is emitted next.
    pub(crate) fn fill(&mut self, hole: Hole) {
        let here = self.here();
        self.fill_to(hole, here);
    }

    pub(crate) fn fill_to(&mut self, hole: Hole, target: u64) {
        let from = self.address_of(hole) + 4;
        let distance = target.wrapping_sub(from) as i64;
        let distance = i32::try_from(distance).expect("the code cache is smaller than 2 GiB");
        self.bytes[hole.0..hole.0 + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// An opcode with a ModRM byte for operands of 1, 2, 4 or 8 bytes.
    fn sized(&mut self, bytes: u32, opcode: &[u8], r: u8, rm: RegMem) {
        if bytes == 2 {
            self.bytes.push(0x66);
        }
        let (b, x) = match rm {
            RegMem::Reg(b) | RegMem::Mem(b, _) => (b, 0),
            RegMem::Sum(b, x, _) | RegMem::Scaled(b, x, ..) => (b, x),
        };
        if bytes == 1 {
            // With a REX prefix 4 to 7 are SPL to DIL.
            self.bytes.push(0x40 | (r >> 3) << 2 | (x >> 3) << 1 | b >> 3);
        } else {
            self.rex(bytes == 8, r, x, b);
        }
        self.raw(opcode);
        match rm {
            RegMem::Reg(b) => self.bytes.push(0xc0 | (r & 7) << 3 | b & 7),
            RegMem::Mem(b, disp) => self.modrm_mem(r, b, disp),
            RegMem::Sum(b, x, disp) => self.modrm_sum(r, b, x, 0, disp),
            RegMem::Scaled(b, x, shift, disp) => self.modrm_sum(r, b, x, shift, disp),
        }
    }

    /// The low bytes of a constant.
    fn imm_sized(&mut self, bytes: u32, value: i32) {
        let len = bytes.min(4) as usize;
        self.raw(&value.to_le_bytes()[..len]);
    }

    pub(crate) fn alu_sized(&mut self, op: Alu, bytes: u32, dst: u8, src: RegMem) {
        self.sized(bytes, &[(op as u8) << 3 | if bytes == 1 { 2 } else { 3 }], dst, src);
    }

    pub(crate) fn alu_imm_sized(&mut self, op: Alu, bytes: u32, dst: u8, value: i32) {
        self.sized(bytes, &[if bytes == 1 { 0x80 } else { 0x81 }], op as u8, RegMem::Reg(dst));
        self.imm_sized(bytes, value);
    }

    pub(crate) fn test_sized(&mut self, bytes: u32, a: u8, b: RegMem) {
        self.sized(bytes, &[if bytes == 1 { 0x84 } else { 0x85 }], a, b);
    }

    pub(crate) fn test_imm_sized(&mut self, bytes: u32, a: u8, value: i32) {
        self.sized(bytes, &[if bytes == 1 { 0xf6 } else { 0xf7 }], 0, RegMem::Reg(a));
        self.imm_sized(bytes, value);
    }

    pub(crate) fn neg_sized(&mut self, bytes: u32, a: u8) {
        self.sized(bytes, &[if bytes == 1 { 0xf6 } else { 0xf7 }], 3, RegMem::Reg(a));
    }

    /// MUL, IMUL, DIV, IDIV: 4 to 7.
    pub(crate) fn group3(&mut self, bytes: u32, op: u8, operand: RegMem) {
        self.sized(bytes, &[0xf7], op, operand);
    }

    pub(crate) fn shift_sized(&mut self, bytes: u32, op: u8, dst: u8, count: u8) {
        self.sized(bytes, &[0xc1], op, RegMem::Reg(dst));
        self.bytes.push(count);
    }

    pub(crate) fn load_sized(&mut self, bytes: u32, dst: u8, src: RegMem) {
        self.sized(bytes, &[if bytes == 1 { 0x8a } else { 0x8b }], dst, src);
    }

    pub(crate) fn mov_sized(&mut self, bytes: u32, dst: RegMem, src: u8) {
        self.sized(bytes, &[if bytes == 1 { 0x88 } else { 0x89 }], src, dst);
    }

    pub(crate) fn mov_imm_sized(&mut self, bytes: u32, dst: RegMem, value: i32) {
        self.sized(bytes, &[if bytes == 1 { 0xc6 } else { 0xc7 }], 0, dst);
        self.imm_sized(bytes, value);
    }

    /// `or [dst], src`.
    pub(crate) fn or_sized(&mut self, bytes: u32, dst: RegMem, src: u8) {
        self.sized(bytes, &[if bytes == 1 { 0x08 } else { 0x09 }], src, dst);
    }

    /// An instruction of the two-byte opcode map.
    pub(crate) fn two_byte(&mut self, bytes: u32, opcode: u8, dst: u8, src: RegMem) {
        self.sized(bytes, &[0x0f, opcode], dst, src);
    }

    /// CF, from the saved flags.
    pub(crate) fn carry_from_home(&mut self) {
        // bt eax, 8
        self.raw(&[0x0f, 0xba, 0xe0, 0x08]);
    }

    /// `seto al`.
    pub(crate) fn overflow_to_al(&mut self) {
        self.raw(&[0x0f, 0x90, 0xc0]);
    }

    /// Saves all flags but OF, and CF as AL, which holds OF, says.
    pub(crate) fn carry_from_al(&mut self) {
        // lahf; or ah, al
        self.raw(&[0x9f, 0x08, 0xc4]);
    }

    /// Saves the host's flags into AH and AL.
    pub(crate) fn save_flags(&mut self) {
        // lahf; seto al
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// Loads the host's flags from AH and AL, which keep their values.
    pub(crate) fn restore_flags(&mut self) {
        // cmp al, -127 overflows exactly if AL is 1; sahf sets the other five.
        self.raw(&[0x3c, 0x81, 0x9e]);
    }

    /// `dst` = OF of the flags at home, where it is in RFLAGS.
    pub(crate) fn overflow_from_home(&mut self, dst: u8) {
        self.mov(dst, reg::RAX);
        self.alu_imm(Alu::And, dst, 1);
        self.shift(4, dst, 11);
    }

    /// `dst` = SF, ZF, AF, PF and CF of the flags at home, where they are in RFLAGS.
    pub(crate) fn others_from_home(&mut self, dst: u8) {
        self.mov(dst, reg::RAX);
        self.shift(5, dst, 8);
        self.alu_imm(Alu::And, dst, 0xd5);
    }

    /// `setc al`.
    pub(crate) fn carry_to_al(&mut self) {
        self.raw(&[0x0f, 0x92, 0xc0]);
    }

    /// `mov al, 0`.
    pub(crate) fn clear_saved_of(&mut self) {
        self.raw(&[0xb0, 0]);
    }

    /// Saves these of the flags in AH as they are, and all others as 0.
    pub(crate) fn save_some_flags(&mut self, flags: u8) {
        // lahf; and ah, flags
        self.raw(&[0x9f, 0x80, 0xe4, flags]);
        self.clear_saved_of();
    }

    /// `and ah, !AF`.
    pub(crate) fn clear_saved_af(&mut self) {
        self.raw(&[0x80, 0xe4, 0xef]);
    }
}
