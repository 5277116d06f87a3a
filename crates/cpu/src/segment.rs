//! Segment registers and descriptors (Intel SDM vol. 3, chapters 3 and 5).

use x86::{Access, Descriptor, Selector, SystemType, Vector};

use crate::Cpu;
use crate::op::{Env, Fault};
use crate::state::{Seg, Segment};

/// A descriptor and where it is.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) descriptor: Descriptor,
    pub(crate) linear: u64,
}

impl Segment {
    /// The register's content for a code or data descriptor.
    pub(crate) fn from_descriptor(selector: Selector, descriptor: Descriptor) -> Segment {
        Segment {
            selector: selector.0,
            access: descriptor.access().0 | Access::ACCESSED,
            limit: descriptor.limit(),
            base: descriptor.base(),
        }
    }

    /// A null selector's content.
    pub(crate) fn null(selector: Selector) -> Segment {
        Segment { selector: selector.0, access: 0, limit: 0, base: 0 }
    }

    /// A null SS: it still says the privilege level.
    pub(crate) fn null_stack(cpl: u8) -> Segment {
        Segment { selector: u16::from(cpl), access: u16::from(cpl) << 5, limit: 0, base: 0 }
    }

    /// A segment as a real-mode load sets it: limit and rights stay.
    pub(crate) fn real(self, selector: u16) -> Segment {
        Segment { selector, base: u64::from(selector) << 4, ..self }
    }

    /// A flat segment as SYSCALL and its like set it.
    pub(crate) fn flat(selector: u16, access: u16) -> Segment {
        Segment { selector, access, limit: u32::MAX, base: 0 }
    }
}

/// Rights of the flat segments that SYSCALL, SYSRET, SYSENTER and SYSEXIT load.
pub(crate) struct FlatAccess;

impl FlatAccess {
    const COMMON: u16 = Access::P | Access::S | Access::WRITABLE | Access::ACCESSED | Access::G;
    pub(crate) const CODE64: u16 = FlatAccess::COMMON | Access::CODE | Access::L;
    pub(crate) const CODE32: u16 = FlatAccess::COMMON | Access::CODE | Access::D;
    pub(crate) const STACK: u16 = FlatAccess::COMMON | Access::D;
    pub(crate) const DPL3: u16 = 3 << 5;
}

impl Cpu {
    /// The descriptor that a selector names; the exception `vector` if there is none.
    pub(crate) fn find_descriptor(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        vector: u8,
        ext: u32,
    ) -> Result<Found, Fault> {
        let (base, limit) = if selector.is_local() {
            let ldtr = self.sys.ldtr;
            let limit = if ldtr.access & Access::P == 0 { 0 } else { ldtr.limit };
            (ldtr.base, limit)
        } else {
            (self.sys.gdtr.base, u32::from(self.sys.gdtr.limit))
        };
        if selector.offset() + 7 > limit {
            return Err(self.fault_with(vector, selector.error_code() | ext));
        }
        let linear = self.wrap(base.wrapping_add(u64::from(selector.offset())));
        let descriptor = Descriptor(self.load_system(env, linear)?);
        Ok(Found { descriptor, linear })
    }

    /// The upper half of a 16-byte descriptor.
    pub(crate) fn upper_half(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        linear: u64,
        vector: u8,
        ext: u32,
    ) -> Result<u64, Fault> {
        let limit =
            if selector.is_local() { self.sys.ldtr.limit } else { u32::from(self.sys.gdtr.limit) };
        if selector.offset() + 15 > limit {
            return Err(self.fault_with(vector, selector.error_code() | ext));
        }
        self.load_system(env, linear.wrapping_add(8))
    }

    /// Sets a descriptor's Accessed bit in memory.
    pub(crate) fn mark_descriptor(
        &mut self,
        env: &mut Env<'_>,
        found: &Found,
    ) -> Result<(), Fault> {
        if found.descriptor.access().has(Access::ACCESSED) {
            return Ok(());
        }
        let rights = (found.descriptor.0 >> 40) as u8 | Access::ACCESSED as u8;
        self.store_system(env, found.linear.wrapping_add(5), rights)
    }

    /// Loads DS, ES, FS, GS or SS as MOV does.
    pub(crate) fn load_segment(
        &mut self,
        env: &mut Env<'_>,
        index: usize,
        selector: Selector,
    ) -> Result<(), Fault> {
        if !self.is_protected() {
            self.seg[index] = self.seg[index].real(selector.0);
        } else if index == Seg::SS {
            self.seg[index] = self.stack_segment(env, selector)?;
        } else {
            self.seg[index] = self.data_segment(env, selector)?;
        }
        self.update_mode();
        Ok(())
    }

    fn data_segment(&mut self, env: &mut Env<'_>, selector: Selector) -> Result<Segment, Fault> {
        if selector.is_null() {
            return Ok(Segment::null(selector));
        }
        let found = self.find_descriptor(env, selector, Vector::GP, 0)?;
        let access = found.descriptor.access();
        let privileged = !access.is_conforming() && access.dpl() < self.cpl.max(selector.rpl());
        if !access.is_readable() || privileged {
            return Err(self.fault_with(Vector::GP, selector.error_code()));
        }
        if !access.has(Access::P) {
            return Err(self.fault_with(Vector::NP, selector.error_code()));
        }
        self.mark_descriptor(env, &found)?;
        Ok(Segment::from_descriptor(selector, found.descriptor))
    }

    fn stack_segment(&mut self, env: &mut Env<'_>, selector: Selector) -> Result<Segment, Fault> {
        if selector.is_null() {
            let allowed = self.is_64_bit() && self.cpl < 3 && selector.rpl() == self.cpl;
            return if allowed { Ok(Segment::null_stack(self.cpl)) } else { Err(self.gp()) };
        }
        self.stack_segment_for(env, selector, self.cpl, Vector::GP, 0)
    }

    /// A stack segment for privilege level `cpl`. `vector` reports what does not fit; absence is #SS.
    pub(crate) fn stack_segment_for(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        cpl: u8,
        vector: u8,
        ext: u32,
    ) -> Result<Segment, Fault> {
        if selector.is_null() {
            return Err(self.fault_with(vector, ext));
        }
        let found = self.find_descriptor(env, selector, vector, ext)?;
        let access = found.descriptor.access();
        if selector.rpl() != cpl || access.dpl() != cpl || !access.is_writable() {
            return Err(self.fault_with(vector, selector.error_code() | ext));
        }
        if !access.has(Access::P) {
            return Err(self.fault_with(Vector::SS, selector.error_code() | ext));
        }
        self.mark_descriptor(env, &found)?;
        Ok(Segment::from_descriptor(selector, found.descriptor))
    }

    /// Checks that a code segment is present and of one kind, and marks it.
    pub(crate) fn code_segment(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        cpl: u8,
        found: &Found,
        ext: u32,
    ) -> Result<Segment, Fault> {
        let access = found.descriptor.access();
        if self.is_long_mode() && access.has(Access::L | Access::D) {
            return Err(self.fault_with(Vector::GP, selector.error_code() | ext));
        }
        if !access.has(Access::P) {
            return Err(self.fault_with(Vector::NP, selector.error_code() | ext));
        }
        self.mark_descriptor(env, found)?;
        let visible = Selector(selector.0 & !3 | u16::from(cpl));
        Ok(Segment::from_descriptor(visible, found.descriptor))
    }

    /// Checks an instruction pointer against the code segment it is for.
    pub(crate) fn check_entry(&mut self, code: &Segment, rip: u64, ext: u32) -> Result<(), Fault> {
        let is_64_bit = self.is_long_mode() && code.access & Access::L != 0;
        let ok =
            if is_64_bit { crate::access::is_canonical(rip) } else { rip <= u64::from(code.limit) };
        if ok { Ok(()) } else { Err(self.fault_with(Vector::GP, ext)) }
    }

    /// Goes to a code segment, its checks done.
    pub(crate) fn enter_code(&mut self, code: Segment, cpl: u8, rip: u64) {
        self.seg[Seg::CS] = code;
        self.cpl = cpl;
        self.rip = rip;
        self.update_mode();
    }

    /// After a return to an outer level: segments that it may not use become null.
    pub(crate) fn drop_inner_segments(&mut self) {
        for index in [Seg::ES, Seg::DS, Seg::FS, Seg::GS] {
            let access = self.seg[index].access();
            if !access.is_conforming() && access.dpl() < self.cpl {
                let keep_base = self.is_long_mode() && matches!(index, Seg::FS | Seg::GS);
                let base = if keep_base { self.seg[index].base } else { 0 };
                self.seg[index] = Segment { base, ..Segment::null(Selector(0)) };
            }
        }
    }

    /// The stack pointer and segment that the TSS holds for a level: legacy modes.
    pub(crate) fn stack_of_tss(
        &mut self,
        env: &mut Env<'_>,
        cpl: u8,
        ext: u32,
    ) -> Result<(Selector, u64), Fault> {
        let tr = self.sys.tr;
        let is_32 = tr.access & 0xf == SystemType::TSS32_BUSY;
        let (at, size) =
            if is_32 { (4 + 8 * u32::from(cpl), 8) } else { (2 + 4 * u32::from(cpl), 4) };
        if at + size - 1 > tr.limit {
            return Err(self.fault_with(Vector::TS, Selector(tr.selector).error_code() | ext));
        }
        let linear = self.wrap(tr.base.wrapping_add(u64::from(at)));
        if is_32 {
            let pointer: u32 = self.load_system(env, linear)?;
            let segment: u16 = self.load_system(env, self.wrap(linear.wrapping_add(4)))?;
            Ok((Selector(segment), u64::from(pointer)))
        } else {
            let pointer: u16 = self.load_system(env, linear)?;
            let segment: u16 = self.load_system(env, self.wrap(linear.wrapping_add(2)))?;
            Ok((Selector(segment), u64::from(pointer)))
        }
    }

    /// A 64-bit stack pointer of the TSS: `RSP0` to `RSP2` at 4, `IST1` to `IST7` at 36.
    pub(crate) fn pointer_of_tss(
        &mut self,
        env: &mut Env<'_>,
        at: u32,
        ext: u32,
    ) -> Result<u64, Fault> {
        let tr = self.sys.tr;
        if at + 7 > tr.limit {
            return Err(self.fault_with(Vector::TS, Selector(tr.selector).error_code() | ext));
        }
        self.load_system(env, tr.base.wrapping_add(u64::from(at)))
    }
}
