//! Memory accesses of instructions.
//!
//! The fast path is a TLB hit inside one page. Everything else is in the slow path: walks, device
//! memory, accesses that cross a page, the first store to a page, pages that are watched, and, in a
//! view of the TLB that is never filled, alignment checks and data breakpoints.
//!
//! An access that crosses a page translates both pages before it changes anything.

use base::Gpa;
use mem::Pod;
use x86::{Cr0, Rflags, Vector};

use crate::op::{Env, Fault, Op};
use crate::state::Seg;
use crate::tlb::View;
use crate::walk::Kind;
use crate::{Cpu, Word};

/// The longest single access.
const ACCESS_BYTES_MAX: usize = 32;

/// Who asks for memory, and for what.
#[derive(Clone, Copy)]
struct Asker {
    view: View,
    /// Faults are #SS rather than #GP.
    stack: bool,
    /// Made by an instruction's operand: alignment and breakpoints apply.
    explicit: bool,
}

impl Cpu {
    /// The offset part of the memory operand, without its segment: what LEA gives.
    #[inline(always)]
    #[must_use]
    pub fn effective_address(&self, op: &Op) -> u64 {
        let base = self.gpr[usize::from(op.base & 31)];
        let index = self.gpr[usize::from(op.index & 31)];
        let sum = base.wrapping_add(index << (op.scale & 3)).wrapping_add(op.disp);
        sum & u64::MAX >> (op.addr_shift & 63)
    }

    /// The linear address of the memory operand, its segment's checks done for `len` bytes.
    #[inline(always)]
    pub fn linear(&mut self, op: &Op, len: u32, write: bool) -> Result<u64, Fault> {
        let offset = self.effective_address(op);
        if op.has(Op::CHECKED) {
            return self.linear_checked(usize::from(op.seg), offset, len, write);
        }
        Ok(offset.wrapping_add(self.seg_base[usize::from(op.seg & 7)]))
    }

    /// Like [`Cpu::linear`], for a place `delta` bytes beyond the operand's address.
    #[inline(always)]
    pub fn linear_plus(
        &mut self,
        op: &Op,
        delta: u64,
        len: u32,
        write: bool,
    ) -> Result<u64, Fault> {
        let offset = self.effective_address(op).wrapping_add(delta);
        let offset = offset & u64::MAX >> (op.addr_shift & 63);
        if op.has(Op::CHECKED) {
            return self.linear_checked(usize::from(op.seg), offset, len, write);
        }
        Ok(offset.wrapping_add(self.seg_base[usize::from(op.seg & 7)]))
    }

    /// Reads the memory operand.
    ///
    /// # Errors
    /// The exception that the access raises.
    #[inline(always)]
    pub fn load<T: Pod>(&mut self, env: &mut Env<'_>, op: &Op) -> Result<T, Fault> {
        let linear = self.linear(op, size_of::<T>() as u32, false)?;
        self.load_linear(env, linear, op.has(Op::STACK))
    }

    /// Reads the memory operand and goes on with it. The slow path is out of line as a whole, so that
    /// the fast one needs no stack frame.
    ///
    /// # Errors
    /// The exception that the access raises, or that of `then`.
    #[inline(always)]
    pub fn load_then<T: Pod>(
        &mut self,
        env: &mut Env<'_>,
        op: &Op,
        then: impl FnOnce(&mut Cpu, T) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        if !op.has(Op::CHECKED) {
            let base = self.seg_base[usize::from(op.seg & 7)];
            let linear = self.effective_address(op).wrapping_add(base);
            let entry = self.tlb.entry(self.tlb_base, linear);
            let inside = linear.wrapping_sub(entry.read);
            if inside <= (4096 - size_of::<T>()) as u64 {
                let value = env.mem.load(self.tlb.place(entry, inside));
                return then(self, value);
            }
        }
        load_then_slow(self, env, op, then)
    }

    /// Writes the memory operand.
    ///
    /// # Errors
    /// The exception that the access raises; then nothing was written.
    #[inline(always)]
    pub fn store<T: Pod>(&mut self, env: &mut Env<'_>, op: &Op, value: T) -> Result<(), Fault> {
        if !op.has(Op::CHECKED) {
            let base = self.seg_base[usize::from(op.seg & 7)];
            let linear = self.effective_address(op).wrapping_add(base);
            let entry = self.tlb.entry(self.tlb_base, linear);
            let inside = linear.wrapping_sub(entry.write);
            if inside <= (4096 - size_of::<T>()) as u64 {
                env.mem.store(self.tlb.place(entry, inside), value);
                return Ok(());
            }
        }
        store_operand_slow(self, env, op, value)
    }

    /// Like [`Cpu::load`], for an operand that has to be aligned to its size: #GP(0) if not.
    ///
    /// # Errors
    /// The exception that the access raises.
    #[inline(always)]
    pub fn load_aligned<T: Pod>(&mut self, env: &mut Env<'_>, op: &Op) -> Result<T, Fault> {
        let linear = self.linear(op, size_of::<T>() as u32, false)?;
        if linear & (size_of::<T>() as u64 - 1) != 0 {
            return Err(self.gp());
        }
        self.load_linear(env, linear, op.has(Op::STACK))
    }

    /// Like [`Cpu::store`], for an operand that has to be aligned to its size: #GP(0) if not.
    ///
    /// # Errors
    /// The exception that the access raises; then nothing was written.
    #[inline(always)]
    pub fn store_aligned<T: Pod>(
        &mut self,
        env: &mut Env<'_>,
        op: &Op,
        value: T,
    ) -> Result<(), Fault> {
        let linear = self.linear(op, size_of::<T>() as u32, true)?;
        if linear & (size_of::<T>() as u64 - 1) != 0 {
            return Err(self.gp());
        }
        self.store_linear(env, linear, value, op.has(Op::STACK))
    }

    /// Replaces the memory operand by a function of it. The operand must be writable even if the
    /// value stays.
    ///
    /// # Errors
    /// The exception that the access raises; then `change` was not called.
    #[inline(always)]
    pub fn modify<T: Word>(
        &mut self,
        env: &mut Env<'_>,
        op: &Op,
        change: impl FnOnce(&mut Cpu, T) -> T,
    ) -> Result<(), Fault> {
        if !op.has(Op::CHECKED) {
            let base = self.seg_base[usize::from(op.seg & 7)];
            let linear = self.effective_address(op).wrapping_add(base);
            let entry = self.tlb.entry(self.tlb_base, linear);
            let inside = linear.wrapping_sub(entry.write);
            if inside <= (4096 - size_of::<T>()) as u64 {
                let at = self.tlb.place(entry, inside);
                let value = change(self, env.mem.load(at));
                env.mem.store(at, value);
                return Ok(());
            }
        }
        modify_slow(self, env, op, change)
    }

    /// [`Cpu::modify`] at a linear address.
    #[inline(always)]
    pub(crate) fn modify_linear<T: Word>(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        stack: bool,
        change: impl FnOnce(&mut Cpu, T) -> T,
    ) -> Result<(), Fault> {
        let entry = self.tlb.entry(self.tlb_base, linear);
        let inside = linear.wrapping_sub(entry.write);
        if inside <= (4096 - size_of::<T>()) as u64 {
            let at = self.tlb.place(entry, inside);
            let value = change(self, env.mem.load(at));
            env.mem.store(at, value);
            return Ok(());
        }
        self.check_store(env, linear, size_of::<T>() as u32, stack)?;
        let old = self.load_linear(env, linear, stack)?;
        let value = change(self, old);
        self.store_linear(env, linear, value, stack)
    }

    /// Reads at a linear address with the rights of the running code.
    ///
    /// # Errors
    /// The exception that the access raises.
    #[inline(always)]
    pub fn load_linear<T: Pod>(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        stack: bool,
    ) -> Result<T, Fault> {
        let entry = self.tlb.entry(self.tlb_base, linear);
        let inside = linear.wrapping_sub(entry.read);
        if inside <= (4096 - size_of::<T>()) as u64 {
            return Ok(env.mem.load(self.tlb.place(entry, inside)));
        }
        let mut bytes = [0; ACCESS_BYTES_MAX];
        self.read_slow(env, linear, &mut bytes[..size_of::<T>()], stack)?;
        Ok(bytes_to(&bytes))
    }

    /// Writes at a linear address with the rights of the running code.
    ///
    /// # Errors
    /// The exception that the access raises; then nothing was written.
    #[inline(always)]
    pub fn store_linear<T: Pod>(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        value: T,
        stack: bool,
    ) -> Result<(), Fault> {
        let entry = self.tlb.entry(self.tlb_base, linear);
        let inside = linear.wrapping_sub(entry.write);
        if inside <= (4096 - size_of::<T>()) as u64 {
            env.mem.store(self.tlb.place(entry, inside), value);
            return Ok(());
        }
        self.write_slow(env, linear, mem::bytes_of(&value), stack)
    }

    /// Reads any number of bytes at a linear address, for operands larger than a register.
    ///
    /// # Errors
    /// The exception that the access raises.
    #[cold]
    pub fn read_bytes(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        bytes: &mut [u8],
        stack: bool,
    ) -> Result<(), Fault> {
        for (number, chunk) in bytes.chunks_mut(ACCESS_BYTES_MAX).enumerate() {
            let at = self.wrap(linear.wrapping_add((number * ACCESS_BYTES_MAX) as u64));
            self.read_slow(env, at, chunk, stack)?;
        }
        Ok(())
    }

    /// Writes any number of bytes at a linear address.
    ///
    /// # Errors
    /// The exception that the access raises; then nothing was written.
    #[cold]
    pub fn write_bytes(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        bytes: &[u8],
        stack: bool,
    ) -> Result<(), Fault> {
        self.check_store(env, linear, bytes.len() as u32, stack)?;
        for (number, chunk) in bytes.chunks(ACCESS_BYTES_MAX).enumerate() {
            let at = self.wrap(linear.wrapping_add((number * ACCESS_BYTES_MAX) as u64));
            self.write_slow(env, at, chunk, stack)?;
        }
        Ok(())
    }

    /// Raises what a store of `len` (at most a page) bytes would raise. Dirty bits get set.
    ///
    /// # Errors
    /// The exception.
    #[cold]
    pub fn check_store(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        len: u32,
        stack: bool,
    ) -> Result<(), Fault> {
        let asker = self.operand(stack);
        self.check_address(linear, len as usize, Kind::Write, asker)?;
        let last = self.wrap(linear.wrapping_add(u64::from(len) - 1));
        self.translate(env, linear, Kind::Write, asker.view)?;
        if (linear ^ last) >> 12 != 0 {
            self.translate(env, last & !0xfff, Kind::Write, asker.view)?;
        }
        Ok(())
    }

    /// Reads a descriptor table, TSS or the like: always with supervisor rights.
    pub(crate) fn load_system<T: Pod>(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
    ) -> Result<T, Fault> {
        let entry = self.tlb.entry(self.tlb.base_of(View::Supervisor, false), linear);
        let inside = linear.wrapping_sub(entry.read);
        if inside <= (4096 - size_of::<T>()) as u64 {
            return Ok(env.mem.load(self.tlb.place(entry, inside)));
        }
        let mut bytes = [0; ACCESS_BYTES_MAX];
        let asker = Asker { view: View::Supervisor, stack: false, explicit: false };
        self.read_as(env, linear, &mut bytes[..size_of::<T>()], asker)?;
        Ok(bytes_to(&bytes))
    }

    /// Writes a descriptor or TSS: with supervisor rights.
    pub(crate) fn store_system<T: Pod>(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        value: T,
    ) -> Result<(), Fault> {
        self.store_in_view(env, linear, value, View::Supervisor)
    }

    /// Writes part of an event's frame, with the rights of the frame's stack.
    pub(crate) fn store_in_view<T: Pod>(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        value: T,
        view: View,
    ) -> Result<(), Fault> {
        let entry = self.tlb.entry(self.tlb.base_of(view, false), linear);
        let inside = linear.wrapping_sub(entry.write);
        if inside <= (4096 - size_of::<T>()) as u64 {
            env.mem.store(self.tlb.place(entry, inside), value);
            return Ok(());
        }
        let asker = Asker { view, stack: true, explicit: false };
        self.write_as(env, linear, mem::bytes_of(&value), asker)
    }

    /// Raises what writing an event's frame would raise.
    pub(crate) fn check_store_in_view(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        len: u32,
        view: View,
    ) -> Result<(), Fault> {
        let entry = self.tlb.entry(self.tlb.base_of(view, false), linear);
        if linear.wrapping_sub(entry.write) <= 4096 - u64::from(len) {
            return Ok(());
        }
        let asker = Asker { view, stack: true, explicit: false };
        self.check_address(linear, len as usize, Kind::Write, asker)?;
        let last = self.wrap(linear.wrapping_add(u64::from(len) - 1));
        self.translate(env, linear, Kind::Write, view)?;
        if (linear ^ last) >> 12 != 0 {
            self.translate(env, last & !0xfff, Kind::Write, view)?;
        }
        Ok(())
    }

    /// Checks a segment's type and limit; the linear address. Legacy modes only.
    #[cold]
    pub(crate) fn linear_checked(
        &mut self,
        seg_index: usize,
        offset: u64,
        len: u32,
        write: bool,
    ) -> Result<u64, Fault> {
        let seg = self.seg[seg_index];
        let access = seg.access();
        let type_ok = !self.is_protected()
            || access.has(x86::Access::P)
                && if write { access.is_writable() } else { access.is_readable() };
        let last = offset + u64::from(len) - 1;
        let inside = if access.is_expand_down() {
            let top = if access.has(x86::Access::D) { 0xffff_ffff } else { 0xffff };
            offset > u64::from(seg.limit) && last <= top
        } else {
            last <= u64::from(seg.limit)
        };
        if type_ok && inside {
            return Ok(seg.base.wrapping_add(offset) & 0xffff_ffff);
        }
        let vector = if seg_index == Seg::SS { Vector::SS } else { Vector::GP };
        Err(self.fault(vector))
    }

    /// A linear address in its mode's width.
    #[inline]
    pub(crate) fn wrap(&self, linear: u64) -> u64 {
        if self.is_long_mode() { linear } else { linear & 0xffff_ffff }
    }

    fn operand(&self, stack: bool) -> Asker {
        Asker { view: self.view, stack, explicit: true }
    }

    #[cold]
    #[inline(never)]
    fn read_slow(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        bytes: &mut [u8],
        stack: bool,
    ) -> Result<(), Fault> {
        self.read_as(env, linear, bytes, self.operand(stack))
    }

    #[cold]
    #[inline(never)]
    fn write_slow(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        bytes: &[u8],
        stack: bool,
    ) -> Result<(), Fault> {
        self.write_as(env, linear, bytes, self.operand(stack))
    }

    fn read_as(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        bytes: &mut [u8],
        asker: Asker,
    ) -> Result<(), Fault> {
        self.check_address(linear, bytes.len(), Kind::Read, asker)?;
        let first_len = bytes.len().min(4096 - (linear & 0xfff) as usize);
        let first = self.translate(env, linear, Kind::Read, asker.view)?;
        if first_len < bytes.len() {
            let next = self.wrap(linear.wrapping_add(first_len as u64));
            let second = self.translate(env, next, Kind::Read, asker.view)?;
            self.read_physical(env, second, &mut bytes[first_len..]);
        }
        self.read_physical(env, first, &mut bytes[..first_len]);
        Ok(())
    }

    fn write_as(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        bytes: &[u8],
        asker: Asker,
    ) -> Result<(), Fault> {
        self.check_address(linear, bytes.len(), Kind::Write, asker)?;
        let first_len = bytes.len().min(4096 - (linear & 0xfff) as usize);
        let first = self.translate(env, linear, Kind::Write, asker.view)?;
        if first_len < bytes.len() {
            let next = self.wrap(linear.wrapping_add(first_len as u64));
            let second = self.translate(env, next, Kind::Write, asker.view)?;
            self.write_physical(env, first, &bytes[..first_len]);
            self.write_physical(env, second, &bytes[first_len..]);
            return Ok(());
        }
        self.write_physical(env, first, bytes);
        Ok(())
    }

    /// Canonical form, alignment and data breakpoints.
    fn check_address(
        &mut self,
        linear: u64,
        len: usize,
        kind: Kind,
        asker: Asker,
    ) -> Result<(), Fault> {
        if self.is_long_mode() {
            let last = linear.wrapping_add(len as u64 - 1);
            if !is_canonical(linear) || !is_canonical(last) {
                let vector = if asker.stack { Vector::SS } else { Vector::GP };
                return Err(self.fault(vector));
            }
        }
        if !asker.explicit {
            return Ok(());
        }
        let checks_alignment =
            self.cpl == 3 && self.sys.cr0 & Cr0::AM != 0 && self.rflags & Rflags::AC != 0;
        let align = match len {
            2 | 4 | 8 => len as u64,
            10 => 8,
            _ => 1,
        };
        if checks_alignment && linear & (align - 1) != 0 {
            return Err(self.fault(Vector::AC));
        }
        self.note_data_breakpoints(linear, len as u64, kind == Kind::Write);
        Ok(())
    }

    fn note_data_breakpoints(&mut self, linear: u64, len: u64, write: bool) {
        let dr7 = self.sys.dr7;
        for n in 0..4 {
            let kind = dr7 >> (16 + 4 * n) & 3;
            let applies = kind == 3 || kind == 1 && write;
            if dr7 >> (2 * n) & 3 == 0 || !applies {
                continue;
            }
            let bytes = [1, 2, 8, 4][(dr7 >> (18 + 4 * n) & 3) as usize];
            let start = self.sys.dr[n as usize] & !(bytes - 1);
            if linear < start.wrapping_add(bytes) && start < linear.wrapping_add(len) {
                self.sys.pending_debug |= 1 << n;
                self.attention = true;
            }
        }
    }

    /// Reads bytes of one page.
    fn read_physical(&mut self, env: &mut Env<'_>, gpa: Gpa, bytes: &mut [u8]) {
        if env.mem.read(gpa, bytes).is_ok() {
            return;
        }
        let now = self.now();
        for (at, len) in device_accesses(gpa, bytes.len()) {
            let value = env.bus.mmio_read(env.mem, now, Gpa(gpa.0 + at as u64), len as u8);
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
        self.after_bus(env);
    }

    /// Writes bytes of one page.
    fn write_physical(&mut self, env: &mut Env<'_>, gpa: Gpa, bytes: &[u8]) {
        if env.mem.write(gpa, bytes).is_ok() {
            if env.mem.has_watched_writes() {
                self.absorb_writes(env.mem);
            }
            return;
        }
        let now = self.now();
        for (at, len) in device_accesses(gpa, bytes.len()) {
            let mut word = [0; 8];
            word[..len].copy_from_slice(&bytes[at..at + len]);
            let (gpa, value) = (Gpa(gpa.0 + at as u64), u64::from_le_bytes(word));
            env.bus.mmio_write(env.mem, now, gpa, len as u8, value);
        }
        self.after_bus(env);
    }

    /// After a call to the bus: it may have written RAM, and may want attention.
    pub(crate) fn after_bus(&mut self, env: &mut Env<'_>) {
        if env.mem.has_watched_writes() {
            self.absorb_writes(env.mem);
        }
        self.attention = true;
    }

    /// The linear address of a stack access at `offset`.
    #[inline(always)]
    fn stack_linear(&mut self, offset: u64, len: u32, write: bool) -> Result<u64, Fault> {
        if self.stack_checked {
            return self.linear_checked(Seg::SS, offset, len, write);
        }
        Ok(offset.wrapping_add(self.stack_base))
    }

    /// Raises what a store to the stack would raise.
    pub(crate) fn check_stack_store(
        &mut self,
        env: &mut Env<'_>,
        offset: u64,
        len: u32,
    ) -> Result<(), Fault> {
        let linear = self.stack_linear(offset & self.stack_mask, len, true)?;
        self.check_store(env, linear, len, true)
    }

    /// Sets the stack pointer in the stack's width.
    #[inline(always)]
    pub(crate) fn set_sp(&mut self, offset: u64) {
        let mask = self.stack_mask;
        self.gpr[4] = match mask {
            u64::MAX => offset,
            0xffff => self.gpr[4] & !mask | offset & mask,
            _ => offset & mask,
        };
    }

    /// The stack pointer in the stack's width.
    #[inline(always)]
    pub(crate) fn sp(&self) -> u64 {
        self.gpr[4] & self.stack_mask
    }

    /// Pushes a word.
    ///
    /// # Errors
    /// The exception that the store raises; then the stack pointer is unchanged.
    #[inline(always)]
    pub fn push<T: Word>(&mut self, env: &mut Env<'_>, value: T) -> Result<(), Fault> {
        self.push_then(env, value, |_| {})
    }

    /// Pushes a word and then does something that cannot fail.
    #[inline(always)]
    pub(crate) fn push_then<T: Word>(
        &mut self,
        env: &mut Env<'_>,
        value: T,
        then: impl FnOnce(&mut Cpu),
    ) -> Result<(), Fault> {
        let offset = self.gpr[4].wrapping_sub(size_of::<T>() as u64) & self.stack_mask;
        if !self.stack_checked {
            let linear = offset.wrapping_add(self.stack_base);
            let entry = self.tlb.entry(self.tlb_base, linear);
            let inside = linear.wrapping_sub(entry.write);
            if inside <= (4096 - size_of::<T>()) as u64 {
                env.mem.store(self.tlb.place(entry, inside), value);
                self.set_sp(offset);
                then(self);
                return Ok(());
            }
        }
        push_slow(self, env, value, then)
    }

    /// Pops a word.
    ///
    /// # Errors
    /// The exception that the load raises; then the stack pointer is unchanged.
    #[inline(always)]
    pub fn pop<T: Word>(&mut self, env: &mut Env<'_>) -> Result<T, Fault> {
        let offset = self.sp();
        let value = self.load_stack(env, offset)?;
        self.set_sp(offset.wrapping_add(size_of::<T>() as u64));
        Ok(value)
    }

    /// Reads the word on top of the stack and goes on with it. The stack pointer stays.
    #[inline(always)]
    pub(crate) fn top_then<T: Word>(
        &mut self,
        env: &mut Env<'_>,
        then: impl FnOnce(&mut Cpu, T) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        if !self.stack_checked {
            let linear = self.sp().wrapping_add(self.stack_base);
            let entry = self.tlb.entry(self.tlb_base, linear);
            let inside = linear.wrapping_sub(entry.read);
            if inside <= (4096 - size_of::<T>()) as u64 {
                let value = env.mem.load(self.tlb.place(entry, inside));
                return then(self, value);
            }
        }
        top_slow(self, env, then)
    }

    /// Reads from the stack at an offset into SS.
    #[inline(always)]
    pub(crate) fn load_stack<T: Word>(
        &mut self,
        env: &mut Env<'_>,
        offset: u64,
    ) -> Result<T, Fault> {
        let linear = self.stack_linear(offset & self.stack_mask, size_of::<T>() as u32, false)?;
        self.load_linear(env, linear, true)
    }

    /// Writes to the stack at an offset into SS.
    #[inline(always)]
    pub(crate) fn store_stack<T: Word>(
        &mut self,
        env: &mut Env<'_>,
        offset: u64,
        value: T,
    ) -> Result<(), Fault> {
        let linear = self.stack_linear(offset & self.stack_mask, size_of::<T>() as u32, true)?;
        self.store_linear(env, linear, value, true)
    }
}

#[cold]
#[inline(never)]
fn load_then_slow<T: Pod>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    then: impl FnOnce(&mut Cpu, T) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let value = cpu.load(env, op)?;
    then(cpu, value)
}

#[cold]
#[inline(never)]
fn store_operand_slow<T: Pod>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    value: T,
) -> Result<(), Fault> {
    let linear = cpu.linear(op, size_of::<T>() as u32, true)?;
    cpu.store_linear(env, linear, value, op.has(Op::STACK))
}

#[cold]
#[inline(never)]
fn modify_slow<T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    change: impl FnOnce(&mut Cpu, T) -> T,
) -> Result<(), Fault> {
    let linear = cpu.linear(op, size_of::<T>() as u32, true)?;
    cpu.modify_linear(env, linear, op.has(Op::STACK), change)
}

#[cold]
#[inline(never)]
fn push_slow<T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    value: T,
    then: impl FnOnce(&mut Cpu),
) -> Result<(), Fault> {
    let offset = cpu.gpr[4].wrapping_sub(size_of::<T>() as u64) & cpu.stack_mask;
    cpu.store_stack(env, offset, value)?;
    cpu.set_sp(offset);
    then(cpu);
    Ok(())
}

#[cold]
#[inline(never)]
fn top_slow<T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    then: impl FnOnce(&mut Cpu, T) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let value = cpu.load_stack(env, cpu.sp())?;
    then(cpu, value)
}

/// True if bits 47 to 63 are equal.
#[inline]
#[must_use]
pub fn is_canonical(linear: u64) -> bool {
    (linear as i64) << 16 >> 16 == linear as i64
}

fn bytes_to<T: Pod>(bytes: &[u8; ACCESS_BYTES_MAX]) -> T {
    mem::from_bytes(&bytes[..size_of::<T>()])
}

/// Cuts an access to device memory into aligned pieces of 1, 2, 4 or 8 bytes: `(start, length)`.
/// An access that is one such piece, aligned or not, stays whole.
fn device_accesses(gpa: Gpa, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = len - at;
        if left == 0 {
            return None;
        }
        let piece = if at == 0 && matches!(left, 1 | 2 | 4 | 8) {
            left
        } else {
            let alignment = 1 << (gpa.0 + at as u64).trailing_zeros().min(3);
            alignment.min(1 << left.ilog2())
        };
        at += piece;
        Some((at - piece, piece))
    })
}
