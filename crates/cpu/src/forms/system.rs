//! System instructions: control, debug and model-specific registers, descriptor tables, CPUID, HLT.

use x86::iced::Code;
use x86::{
    Access, CpuLevel, Cr0, Cr4, Descriptor, Rflags, Selector, SystemType, Vector, cpuid, msr,
};

use crate::access::is_canonical;
use crate::forms::Form;
use crate::forms::far::is_visible;
use crate::op::{Env, Fault, Op};
use crate::state::{Seg, Segment, Shadow, TableRegister, is_xcr0};
use crate::{Cpu, Word, xsave};

impl Cpu {
    /// #GP(0) above CPL 0.
    #[inline]
    fn require_cpl0(&mut self) -> Result<(), Fault> {
        if self.cpl == 0 { Ok(()) } else { Err(self.gp()) }
    }

    /// #GP(0) if CR4.UMIP hides system state from programs.
    fn check_umip(&mut self) -> Result<(), Fault> {
        let hidden = self.sys.cr4 & Cr4::UMIP != 0 && self.cpl != 0;
        if hidden { Err(self.gp()) } else { Ok(()) }
    }
}

fn mov_r_cr<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = match op.r[1] {
        0 => cpu.sys.cr0,
        2 => cpu.sys.cr2,
        3 => cpu.sys.cr3,
        4 => cpu.sys.cr4,
        8 if cpu.is_64_bit() => 0,
        _ => return Err(cpu.ud()),
    };
    cpu.require_cpl0()?;
    let value = if op.r[1] == 8 { u64::from(env.bus.task_priority()) } else { value };
    T::set(cpu, op.r[0], T::from_u64(value));
    Ok(())
}

fn mov_cr_r<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = T::get(cpu, op.r[1]).to_u64();
    if !matches!(op.r[0], 0 | 2 | 3 | 4 | 8) || op.r[0] == 8 && !cpu.is_64_bit() {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    match op.r[0] {
        0 => cpu.write_cr0(env, value)?,
        2 => cpu.sys.cr2 = value,
        3 => cpu.write_cr3(env, value)?,
        4 => cpu.write_cr4(env, value)?,
        _ => {
            if value > 15 {
                return Err(cpu.gp());
            }
            env.bus.set_task_priority(cpu.now(), value as u8);
            cpu.after_bus(env);
        }
    }
    Ok(())
}

fn mov_r_dr<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let number = cpu.check_debug_register(op.r[1])?;
    let value = match number {
        6 => cpu.sys.dr6,
        7 => cpu.sys.dr7,
        _ => cpu.sys.dr[usize::from(number & 3)],
    };
    T::set(cpu, op.r[0], T::from_u64(value));
    Ok(())
}

fn mov_dr_r<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let number = cpu.check_debug_register(op.r[0])?;
    let value = T::get(cpu, op.r[1]).to_u64();
    cpu.write_debug_register(number, value)
}

fn smsw_r<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.check_umip()?;
    T::set(cpu, op.r[0], T::from_u64(cpu.sys.cr0));
    Ok(())
}

fn smsw_m(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.check_umip()?;
    cpu.store(env, op, cpu.sys.cr0 as u16)
}

fn lmsw(cpu: &mut Cpu, env: &mut Env<'_>, value: u16) -> Result<(), Fault> {
    let low = Cr0::PE | Cr0::MP | Cr0::EM | Cr0::TS;
    let kept = cpu.sys.cr0 & !low | cpu.sys.cr0 & Cr0::PE;
    cpu.write_cr0(env, kept | u64::from(value) & low)
}

fn lmsw_r(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    lmsw(cpu, env, u16::get(cpu, op.r[0]))
}

fn lmsw_m(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    let value = cpu.load(env, op)?;
    lmsw(cpu, env, value)
}

fn clts(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    cpu.sys.cr0 &= !Cr0::TS;
    cpu.update_mode();
    Ok(())
}

fn rdmsr(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    let value = cpu.read_msr(env, cpu.gpr(1) as u32)?;
    set_edx_eax(cpu, value);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    let value = cpu.gpr(0) & 0xffff_ffff | cpu.gpr(2) << 32;
    cpu.write_msr(env, cpu.gpr(1) as u32, value)
}

fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.set_gpr(0, value & 0xffff_ffff);
    cpu.set_gpr(2, value >> 32);
}

fn rdtsc(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    if cpu.sys.cr4 & Cr4::TSD != 0 && cpu.cpl != 0 {
        return Err(cpu.gp());
    }
    let tsc = cpu.tsc(env);
    set_edx_eax(cpu, tsc);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    rdtsc(cpu, env, op)?;
    cpu.set_gpr(1, cpu.sys.tsc_aux);
    Ok(())
}

fn rdpid(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.set_gpr(op.r[0], cpu.sys.tsc_aux);
    Ok(())
}

/// There are no performance counters.
fn rdpmc(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    Err(cpu.gp())
}

fn cpuid(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let apic_base = env.bus.msr_read(cpu.now(), msr::IA32_APIC_BASE);
    cpu.after_bus(env);
    let dynamic = cpuid::Dynamic {
        osxsave: cpu.sys.cr4 & Cr4::OSXSAVE != 0,
        limit_leaves: cpu.sys.misc_enable & 1 << 22 != 0,
        apic_disabled: apic_base.is_some_and(|base| base & 1 << 11 == 0),
        xcr0: cpu.sys.xcr0,
    };
    let leaf = cpuid::leaf(cpu.model, cpu.gpr(0) as u32, cpu.gpr(1) as u32, dynamic);
    for (r, value) in [(0, leaf.eax), (3, leaf.ebx), (1, leaf.ecx), (2, leaf.edx)] {
        cpu.set_gpr(r, u64::from(value));
    }
    Ok(())
}

fn xgetbv(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    if cpu.sys.cr4 & Cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    let value = match cpu.gpr(1) as u32 {
        0 => cpu.sys.xcr0,
        1 if cpu.model.level >= CpuLevel::V3 => cpu.sys.xcr0 & xsave::in_use(cpu),
        _ => return Err(cpu.gp()),
    };
    set_edx_eax(cpu, value);
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    if cpu.sys.cr4 & Cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let value = cpu.gpr(0) & 0xffff_ffff | cpu.gpr(2) << 32;
    if cpu.gpr(1) as u32 != 0 || !is_xcr0(cpu.model, value) {
        return Err(cpu.gp());
    }
    cpu.sys.xcr0 = value;
    cpu.update_mode();
    Ok(())
}

fn hlt(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    cpu.sys.halted = true;
    cpu.attention = true;
    Ok(())
}

fn cli(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    check_iopl(cpu)?;
    cpu.rflags &= !Rflags::IF;
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    check_iopl(cpu)?;
    if cpu.rflags & Rflags::IF == 0 {
        cpu.rflags |= Rflags::IF;
        cpu.cast_shadow(Shadow::Sti);
    }
    Ok(())
}

fn check_iopl(cpu: &mut Cpu) -> Result<(), Fault> {
    let iopl = (cpu.rflags & Rflags::IOPL) >> Rflags::IOPL_SHIFT;
    if u64::from(cpu.cpl) <= iopl { Ok(()) } else { Err(cpu.gp()) }
}

fn clac(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    set_ac(cpu, false)
}

fn stac(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    set_ac(cpu, true)
}

fn set_ac(cpu: &mut Cpu, ac: bool) -> Result<(), Fault> {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    cpu.rflags = cpu.rflags & !Rflags::AC | if ac { Rflags::AC } else { 0 };
    cpu.update_view();
    Ok(())
}

/// INVLPG, INVD and WBINVD: no cache is visible, so there is nothing to do.
fn privileged_nop(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.require_cpl0()
}

fn swapgs(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    cpu.swap_gs();
    Ok(())
}

fn check_fsgsbase(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.sys.cr4 & Cr4::FSGSBASE == 0 { Err(cpu.ud()) } else { Ok(()) }
}

fn rdbase<const N: usize, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    check_fsgsbase(cpu)?;
    let base = cpu.seg[N].base;
    T::set(cpu, op.r[0], T::from_u64(base));
    Ok(())
}

fn wrbase<const N: usize, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    check_fsgsbase(cpu)?;
    let base = T::get(cpu, op.r[0]).to_u64();
    if !is_canonical(base) {
        return Err(cpu.gp());
    }
    cpu.set_segment_base(N, base);
    Ok(())
}

fn mov_sreg_r(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let selector = u16::get(cpu, op.r[1]);
    mov_sreg(cpu, env, op, selector)
}

fn mov_sreg_m(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let selector = cpu.load(env, op)?;
    mov_sreg(cpu, env, op, selector)
}

fn mov_sreg(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, selector: u16) -> Result<(), Fault> {
    let index = usize::from(op.r[0]);
    if index == Seg::CS {
        return Err(cpu.ud());
    }
    cpu.load_segment(env, index, Selector(selector))?;
    if index == Seg::SS {
        cpu.cast_shadow(Shadow::MovSs);
    }
    Ok(())
}

fn mov_r_sreg<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let selector = u64::from(cpu.seg[usize::from(op.r[1])].selector);
    T::set(cpu, op.r[0], T::from_u64(selector));
    Ok(())
}

fn mov_m_sreg(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let selector = cpu.seg[usize::from(op.r[1])].selector;
    cpu.store(env, op, selector)
}

fn push_sreg<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let selector = u64::from(cpu.seg[usize::from(op.r[0])].selector);
    cpu.push(env, T::from_u64(selector))
}

fn pop_sreg<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let index = usize::from(op.r[0]);
    let sp = cpu.sp();
    let selector = cpu.load_stack::<T>(env, sp)?.to_u64() as u16;
    let old_mask = cpu.stack_mask;
    cpu.load_segment(env, index, Selector(selector))?;
    // POP SS moves the stack pointer in the old stack's width.
    let new_mask = std::mem::replace(&mut cpu.stack_mask, old_mask);
    cpu.set_sp(sp.wrapping_add(size_of::<T>() as u64));
    cpu.stack_mask = new_mask;
    if index == Seg::SS {
        cpu.cast_shadow(Shadow::MovSs);
    }
    Ok(())
}

/// SGDT and SIDT: `T` is the base's width.
fn store_table<T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    table: TableRegister,
) -> Result<(), Fault> {
    cpu.check_umip()?;
    let size = size_of::<T>();
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let linear = cpu.linear(op, 2 + size as u32, true)?;
    cpu.write_bytes(env, linear, &bytes[..2 + size], op.has(Op::STACK))
}

fn sgdt<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    store_table::<T>(cpu, env, op, cpu.sys.gdtr)
}

fn sidt<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    store_table::<T>(cpu, env, op, cpu.sys.idtr)
}

/// LGDT and LIDT. A 16-bit operand size loads 24 bits of base.
fn load_table<T: Word, const BASE_MASK: u64>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
) -> Result<TableRegister, Fault> {
    cpu.require_cpl0()?;
    let stack = op.has(Op::STACK);
    let linear = cpu.linear(op, 2 + size_of::<T>() as u32, false)?;
    let limit: u16 = cpu.load_linear(env, linear, stack)?;
    let base: T = cpu.load_linear(env, cpu.wrap(linear.wrapping_add(2)), stack)?;
    let base = base.to_u64() & BASE_MASK;
    if !is_canonical(base) {
        return Err(cpu.gp());
    }
    Ok(TableRegister { base, limit })
}

fn lgdt<T: Word, const BASE_MASK: u64>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
) -> Result<(), Fault> {
    cpu.sys.gdtr = load_table::<T, BASE_MASK>(cpu, env, op)?;
    Ok(())
}

fn lidt<T: Word, const BASE_MASK: u64>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
) -> Result<(), Fault> {
    cpu.sys.idtr = load_table::<T, BASE_MASK>(cpu, env, op)?;
    Ok(())
}

/// SLDT and STR: `TR` chooses.
fn store_system_r<const TR: bool, T: Word>(
    cpu: &mut Cpu,
    _: &mut Env<'_>,
    op: &Op,
) -> Result<(), Fault> {
    cpu.check_umip()?;
    let selector = if TR { cpu.sys.tr.selector } else { cpu.sys.ldtr.selector };
    T::set(cpu, op.r[0], T::from_u64(u64::from(selector)));
    Ok(())
}

fn store_system_m<const TR: bool>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.check_umip()?;
    let selector = if TR { cpu.sys.tr.selector } else { cpu.sys.ldtr.selector };
    cpu.store(env, op, selector)
}

/// A system segment for LLDT and LTR, its base completed in long mode.
fn system_segment(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    selector: Selector,
    is_type: fn(u16) -> bool,
) -> Result<(Segment, u64), Fault> {
    if selector.is_local() {
        return Err(cpu.fault_with(Vector::GP, selector.error_code()));
    }
    let found = cpu.find_descriptor(env, selector, Vector::GP, 0)?;
    let access = found.descriptor.access();
    if !is_type(access.system_type()) {
        return Err(cpu.fault_with(Vector::GP, selector.error_code()));
    }
    let mut base = found.descriptor.base();
    if cpu.is_long_mode() {
        let high = cpu.upper_half(env, selector, found.linear, Vector::GP, 0)?;
        base |= high << 32;
        if high >> 40 & 0x1f != 0 || !is_canonical(base) {
            return Err(cpu.fault_with(Vector::GP, selector.error_code()));
        }
    }
    if !access.has(Access::P) {
        return Err(cpu.fault_with(Vector::NP, selector.error_code()));
    }
    let limit = found.descriptor.limit();
    Ok((Segment { selector: selector.0, access: access.0, limit, base }, found.linear))
}

fn lldt(cpu: &mut Cpu, env: &mut Env<'_>, selector: u16) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    let selector = Selector(selector);
    if selector.is_null() {
        cpu.sys.ldtr = Segment::null(selector);
        return Ok(());
    }
    let (segment, _) = system_segment(cpu, env, selector, |kind| kind == SystemType::LDT)?;
    cpu.sys.ldtr = segment;
    Ok(())
}

fn ltr(cpu: &mut Cpu, env: &mut Env<'_>, selector: u16) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    let selector = Selector(selector);
    if selector.is_null() {
        return Err(cpu.gp());
    }
    let is_free_tss: fn(u16) -> bool = if cpu.is_long_mode() {
        |kind| kind == SystemType::TSS32
    } else {
        |kind| matches!(kind, SystemType::TSS16 | SystemType::TSS32)
    };
    let (mut segment, linear) = system_segment(cpu, env, selector, is_free_tss)?;
    segment.access |= 2;
    // The busy bit is in the descriptor's sixth byte.
    let rights: u8 = cpu.load_system(env, linear.wrapping_add(5))?;
    cpu.store_system(env, linear.wrapping_add(5), rights | 2)?;
    cpu.sys.tr = segment;
    Ok(())
}

fn lldt_r(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    lldt(cpu, env, u16::get(cpu, op.r[0]))
}

fn lldt_m(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    let selector = cpu.load(env, op)?;
    lldt(cpu, env, selector)
}

fn ltr_r(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    ltr(cpu, env, u16::get(cpu, op.r[0]))
}

fn ltr_m(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.require_cpl0()?;
    let selector = cpu.load(env, op)?;
    ltr(cpu, env, selector)
}

/// The descriptor that LAR, LSL, VERR and VERW look at; `None` if it is not there.
fn look_up(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    selector: Selector,
) -> Result<Option<Descriptor>, Fault> {
    if selector.is_null() {
        return Ok(None);
    }
    match cpu.find_descriptor(env, selector, Vector::GP, 0) {
        Ok(found) => Ok(Some(found.descriptor)),
        // The table's end is no fault here; a page fault is.
        Err(_) if cpu.exception.vector == Vector::GP => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn source_selector(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    slot: usize,
    mem: bool,
) -> Result<Selector, Fault> {
    let value = if mem { cpu.load::<u16>(env, op)? } else { u16::get(cpu, op.r[slot]) };
    Ok(Selector(value))
}

fn lar<T: Word, const MEM: bool>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let selector = source_selector(cpu, env, op, 1, MEM)?;
    let descriptor = look_up(cpu, env, selector)?;
    let long = cpu.is_long_mode();
    let known = |access: Access| {
        access.has(Access::S)
            || match access.system_type() {
                SystemType::LDT
                | SystemType::TSS32
                | SystemType::TSS32_BUSY
                | SystemType::CALL_GATE32 => true,
                SystemType::TSS16
                | SystemType::TSS16_BUSY
                | SystemType::CALL_GATE16
                | SystemType::TASK_GATE => !long,
                _ => false,
            }
    };
    let visible = descriptor.filter(|it| known(it.access()) && is_visible(cpu, selector, *it));
    cpu.flags = cpu.flags.with_zf(visible.is_some());
    if let Some(descriptor) = visible {
        T::set(cpu, op.r[0], T::from_u64(descriptor.0 >> 32 & 0x00ff_ff00));
    }
    Ok(())
}

fn lsl<T: Word, const MEM: bool>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let selector = source_selector(cpu, env, op, 1, MEM)?;
    let descriptor = look_up(cpu, env, selector)?;
    let long = cpu.is_long_mode();
    let known = |access: Access| {
        access.has(Access::S)
            || match access.system_type() {
                SystemType::LDT | SystemType::TSS32 | SystemType::TSS32_BUSY => true,
                SystemType::TSS16 | SystemType::TSS16_BUSY => !long,
                _ => false,
            }
    };
    let visible = descriptor.filter(|it| known(it.access()) && is_visible(cpu, selector, *it));
    cpu.flags = cpu.flags.with_zf(visible.is_some());
    if let Some(descriptor) = visible {
        T::set(cpu, op.r[0], T::from_u64(u64::from(descriptor.limit())));
    }
    Ok(())
}

/// VERR and VERW.
fn verify<const WRITE: bool, const MEM: bool>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
) -> Result<(), Fault> {
    let selector = source_selector(cpu, env, op, 0, MEM)?;
    let descriptor = look_up(cpu, env, selector)?;
    let ok = descriptor.is_some_and(|it| {
        let access = it.access();
        let type_ok = if WRITE { access.is_writable() } else { access.is_readable() };
        type_ok && is_visible(cpu, selector, it)
    });
    cpu.flags = cpu.flags.with_zf(ok);
    Ok(())
}

/// The requested privilege level of ARPL's destination, raised to that of its source; and whether
/// that changed it.
fn adjust_rpl(target: u16, source: u16) -> (u16, bool) {
    let raise = target & 3 < source & 3;
    (if raise { target & !3 | source & 3 } else { target }, raise)
}

fn arpl_r(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let (result, raise) = adjust_rpl(u16::get(cpu, op.r[0]), u16::get(cpu, op.r[1]));
    u16::set(cpu, op.r[0], result);
    cpu.flags = cpu.flags.with_zf(raise);
    Ok(())
}

fn arpl_m(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let target = cpu.load::<u16>(env, op)?;
    let (result, raise) = adjust_rpl(target, u16::get(cpu, op.r[1]));
    // A selector that stays is not written back.
    if raise {
        cpu.store(env, op, result)?;
    }
    cpu.flags = cpu.flags.with_zf(raise);
    Ok(())
}

/// The forms of this module.
#[rustfmt::skip]
pub(super) const FORMS: &[Form] = &[
    Form::reg(Code::Mov_r32_cr, mov_r_cr::<u32>),
    Form::reg(Code::Mov_cr_r32, mov_cr_r::<u32>).ends(),
    Form::reg(Code::Mov_r32_dr, mov_r_dr::<u32>),
    Form::reg(Code::Mov_dr_r32, mov_dr_r::<u32>).ends(),
    Form::reg(Code::Mov_r64_cr, mov_r_cr::<u64>),
    Form::reg(Code::Mov_cr_r64, mov_cr_r::<u64>).ends(),
    Form::reg(Code::Mov_r64_dr, mov_r_dr::<u64>),
    Form::reg(Code::Mov_dr_r64, mov_dr_r::<u64>).ends(),
    Form::both(Code::Smsw_rm16, smsw_r::<u16>, smsw_m),
    Form::both(Code::Lmsw_rm16, lmsw_r, lmsw_m).ends(),
    Form::both(Code::Sldt_rm16, store_system_r::<false, u16>, store_system_m::<false>).protected(),
    Form::both(Code::Str_rm16, store_system_r::<true, u16>, store_system_m::<true>).protected(),
    Form::both(Code::Lldt_rm16, lldt_r, lldt_m).protected(),
    Form::both(Code::Ltr_rm16, ltr_r, ltr_m).protected(),
    Form::both(Code::Mov_rm16_Sreg, mov_r_sreg::<u16>, mov_m_sreg),
    Form::both(Code::Mov_Sreg_rm16, mov_sreg_r, mov_sreg_m).ends(),
    Form::both(Code::Verr_rm16, verify::<false, false>, verify::<false, true>).protected(),
    Form::both(Code::Verw_rm16, verify::<true, false>, verify::<true, true>).protected(),
    Form::both(Code::Smsw_r32m16, smsw_r::<u32>, smsw_m),
    Form::both(Code::Lmsw_r32m16, lmsw_r, lmsw_m).ends(),
    Form::both(Code::Sldt_r32m16, store_system_r::<false, u32>, store_system_m::<false>).protected(),
    Form::both(Code::Str_r32m16, store_system_r::<true, u32>, store_system_m::<true>).protected(),
    Form::both(Code::Lldt_r32m16, lldt_r, lldt_m).protected(),
    Form::both(Code::Ltr_r32m16, ltr_r, ltr_m).protected(),
    Form::both(Code::Mov_r32m16_Sreg, mov_r_sreg::<u32>, mov_m_sreg),
    Form::both(Code::Mov_Sreg_r32m16, mov_sreg_r, mov_sreg_m).ends(),
    Form::both(Code::Verr_r32m16, verify::<false, false>, verify::<false, true>).protected(),
    Form::both(Code::Verw_r32m16, verify::<true, false>, verify::<true, true>).protected(),
    Form::both(Code::Smsw_r64m16, smsw_r::<u64>, smsw_m),
    Form::both(Code::Lmsw_r64m16, lmsw_r, lmsw_m).ends(),
    Form::both(Code::Sldt_r64m16, store_system_r::<false, u64>, store_system_m::<false>).protected(),
    Form::both(Code::Str_r64m16, store_system_r::<true, u64>, store_system_m::<true>).protected(),
    Form::both(Code::Lldt_r64m16, lldt_r, lldt_m).protected(),
    Form::both(Code::Ltr_r64m16, ltr_r, ltr_m).protected(),
    Form::both(Code::Mov_r64m16_Sreg, mov_r_sreg::<u64>, mov_m_sreg),
    Form::both(Code::Mov_Sreg_r64m16, mov_sreg_r, mov_sreg_m).ends(),
    Form::both(Code::Verr_r64m16, verify::<false, false>, verify::<false, true>).protected(),
    Form::both(Code::Verw_r64m16, verify::<true, false>, verify::<true, true>).protected(),
    Form::both(Code::Lar_r16_rm16, lar::<u16, false>, lar::<u16, true>).protected(),
    Form::both(Code::Lsl_r16_rm16, lsl::<u16, false>, lsl::<u16, true>).protected(),
    Form::both(Code::Lar_r32_r32m16, lar::<u32, false>, lar::<u32, true>).protected(),
    Form::both(Code::Lsl_r32_r32m16, lsl::<u32, false>, lsl::<u32, true>).protected(),
    Form::both(Code::Lar_r64_r64m16, lar::<u64, false>, lar::<u64, true>).protected(),
    Form::both(Code::Lsl_r64_r64m16, lsl::<u64, false>, lsl::<u64, true>).protected(),
    Form::both(Code::Arpl_rm16_r16, arpl_r, arpl_m).protected(),
    Form::both(Code::Arpl_r32m16_r32, arpl_r, arpl_m).protected(),
    Form::reg(Code::Pushw_ES, push_sreg::<u16>),
    Form::reg(Code::Pushd_ES, push_sreg::<u32>),
    Form::reg(Code::Pushw_CS, push_sreg::<u16>),
    Form::reg(Code::Pushd_CS, push_sreg::<u32>),
    Form::reg(Code::Pushw_SS, push_sreg::<u16>),
    Form::reg(Code::Pushd_SS, push_sreg::<u32>),
    Form::reg(Code::Pushw_DS, push_sreg::<u16>),
    Form::reg(Code::Pushd_DS, push_sreg::<u32>),
    Form::reg(Code::Popw_ES, pop_sreg::<u16>).ends(),
    Form::reg(Code::Popd_ES, pop_sreg::<u32>).ends(),
    Form::reg(Code::Popw_SS, pop_sreg::<u16>).ends(),
    Form::reg(Code::Popd_SS, pop_sreg::<u32>).ends(),
    Form::reg(Code::Popw_DS, pop_sreg::<u16>).ends(),
    Form::reg(Code::Popd_DS, pop_sreg::<u32>).ends(),
    Form::reg(Code::Pushw_FS, push_sreg::<u16>),
    Form::reg(Code::Popw_FS, pop_sreg::<u16>).ends(),
    Form::reg(Code::Pushd_FS, push_sreg::<u32>),
    Form::reg(Code::Popd_FS, pop_sreg::<u32>).ends(),
    Form::reg(Code::Pushq_FS, push_sreg::<u64>),
    Form::reg(Code::Popq_FS, pop_sreg::<u64>).ends(),
    Form::reg(Code::Pushw_GS, push_sreg::<u16>),
    Form::reg(Code::Popw_GS, pop_sreg::<u16>).ends(),
    Form::reg(Code::Pushd_GS, push_sreg::<u32>),
    Form::reg(Code::Popd_GS, pop_sreg::<u32>).ends(),
    Form::reg(Code::Pushq_GS, push_sreg::<u64>),
    Form::reg(Code::Popq_GS, pop_sreg::<u64>).ends(),
    Form::mem(Code::Sgdt_m1632_16, sgdt::<u32>),
    Form::mem(Code::Sgdt_m1632, sgdt::<u32>),
    Form::mem(Code::Sgdt_m1664, sgdt::<u64>),
    Form::mem(Code::Sidt_m1632_16, sidt::<u32>),
    Form::mem(Code::Sidt_m1632, sidt::<u32>),
    Form::mem(Code::Sidt_m1664, sidt::<u64>),
    Form::mem(Code::Lgdt_m1632_16, lgdt::<u32, 0xff_ffff>),
    Form::mem(Code::Lgdt_m1632, lgdt::<u32, { u64::MAX }>),
    Form::mem(Code::Lgdt_m1664, lgdt::<u64, { u64::MAX }>),
    Form::mem(Code::Lidt_m1632_16, lidt::<u32, 0xff_ffff>),
    Form::mem(Code::Lidt_m1632, lidt::<u32, { u64::MAX }>),
    Form::mem(Code::Lidt_m1664, lidt::<u64, { u64::MAX }>),
    Form::reg(Code::Rdfsbase_r32, rdbase::<{ Seg::FS }, u32>),
    Form::reg(Code::Wrfsbase_r32, wrbase::<{ Seg::FS }, u32>),
    Form::reg(Code::Rdfsbase_r64, rdbase::<{ Seg::FS }, u64>),
    Form::reg(Code::Wrfsbase_r64, wrbase::<{ Seg::FS }, u64>),
    Form::reg(Code::Rdgsbase_r32, rdbase::<{ Seg::GS }, u32>),
    Form::reg(Code::Wrgsbase_r32, wrbase::<{ Seg::GS }, u32>),
    Form::reg(Code::Rdgsbase_r64, rdbase::<{ Seg::GS }, u64>),
    Form::reg(Code::Wrgsbase_r64, wrbase::<{ Seg::GS }, u64>),
    Form::reg(Code::Clts, clts).ends(),
    Form::reg(Code::Rdmsr, rdmsr).ends(),
    Form::reg(Code::Wrmsr, wrmsr).ends(),
    Form::reg(Code::Rdtsc, rdtsc),
    Form::reg(Code::Rdtscp, rdtscp),
    Form::reg(Code::Rdpmc, rdpmc),
    Form::reg(Code::Cpuid, cpuid),
    Form::reg(Code::Xgetbv, xgetbv),
    Form::reg(Code::Xsetbv, xsetbv).ends(),
    Form::reg(Code::Cli, cli),
    Form::reg(Code::Clac, clac),
    Form::reg(Code::Stac, stac),
    Form::reg(Code::Swapgs, swapgs),
    Form::reg(Code::Sti, sti).ends(),
    Form::reg(Code::Hlt, hlt).ends(),
    Form::reg(Code::Rdpid_r32, rdpid),
    Form::reg(Code::Rdpid_r64, rdpid),
    Form::mem(Code::Invlpg_m, privileged_nop),
    Form::reg(Code::Invd, privileged_nop),
    Form::reg(Code::Wbinvd, privileged_nop),
];
