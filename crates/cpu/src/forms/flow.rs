//! Near branches and the stack.

use x86::iced::Code;

use crate::access::is_canonical;
use crate::forms::Form;
use crate::forms::cond::{self, Cond};
use crate::op::{Env, Fault, Op};
use crate::state::Seg;
use crate::{Cpu, Word};

impl Cpu {
    /// Checks a branch target of operand size `T`, truncated to it.
    #[inline(always)]
    pub(crate) fn check_target<T: Word>(&mut self, target: u64) -> Result<u64, Fault> {
        if T::BITS == 64 {
            if is_canonical(target) {
                return Ok(target);
            }
        } else {
            let target = T::from_u64(target).to_u64();
            if self.is_64_bit() || target <= u64::from(self.seg[Seg::CS].limit) {
                return Ok(target);
            }
        }
        Err(self.gp())
    }

    #[inline(always)]
    fn jump_relative<T: Word>(&mut self, op: &Op) -> Result<(), Fault> {
        self.rip = self.check_target::<T>(self.next_rip(op).wrapping_add(op.imm))?;
        Ok(())
    }
}

fn jmp_rel<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.jump_relative::<T>(op)
}

fn jcc<C: Cond, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    if C::holds(cpu.flags) {
        return cpu.jump_relative::<T>(op);
    }
    Ok(())
}

fn jmp_r<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let target = T::get(cpu, op.r[0]).to_u64();
    cpu.rip = cpu.check_target::<T>(target)?;
    Ok(())
}

fn jmp_m<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let target = cpu.load::<T>(env, op)?.to_u64();
    cpu.rip = cpu.check_target::<T>(target)?;
    Ok(())
}

#[inline(always)]
fn call<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, target: u64) -> Result<(), Fault> {
    let target = cpu.check_target::<T>(target)?;
    cpu.push_then(env, T::from_u64(cpu.next_rip(op)), |cpu| cpu.rip = target)
}

fn call_rel<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    call::<T>(cpu, env, op, cpu.next_rip(op).wrapping_add(op.imm))
}

fn call_r<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let target = T::get(cpu, op.r[0]).to_u64();
    call::<T>(cpu, env, op, target)
}

fn call_m<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let target = cpu.load::<T>(env, op)?.to_u64();
    call::<T>(cpu, env, op, target)
}

/// RET, with the bytes to release in `imm`.
fn ret<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.top_then(env, |cpu, target: T| {
        cpu.rip = cpu.check_target::<T>(target.to_u64())?;
        let sp = cpu.sp().wrapping_add(size_of::<T>() as u64);
        cpu.set_sp(sp.wrapping_add(op.imm & 0xffff));
        Ok(())
    })
}

/// LOOP and its like. `C` is the counter's width, `T` the branch's.
fn loop_while<C: Word, T: Word, W: LoopCond>(
    cpu: &mut Cpu,
    _: &mut Env<'_>,
    op: &Op,
) -> Result<(), Fault> {
    let count = C::get(cpu, 1).to_u64().wrapping_sub(1);
    let count = C::from_u64(count);
    if count.to_u64() != 0 && W::holds(cpu) {
        cpu.jump_relative::<T>(op)?;
    }
    C::set(cpu, 1, count);
    Ok(())
}

/// What LOOP looks at beside the counter.
trait LoopCond {
    fn holds(cpu: &Cpu) -> bool;
}

struct Always;
struct WhileEqual;
struct WhileUnequal;

impl LoopCond for Always {
    fn holds(_: &Cpu) -> bool {
        true
    }
}

impl LoopCond for WhileEqual {
    fn holds(cpu: &Cpu) -> bool {
        cpu.flags.zf()
    }
}

impl LoopCond for WhileUnequal {
    fn holds(cpu: &Cpu) -> bool {
        !cpu.flags.zf()
    }
}

fn jcxz<C: Word, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    if C::get(cpu, 1).to_u64() == 0 {
        return cpu.jump_relative::<T>(op);
    }
    Ok(())
}

fn push_r<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = T::get(cpu, op.r[0]);
    cpu.push(env, value)
}

fn push_m<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = cpu.load::<T>(env, op)?;
    cpu.push(env, value)
}

fn push_i<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.push(env, T::from_u64(op.imm))
}

fn pop_r<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.top_then(env, |cpu, value: T| {
        cpu.set_sp(cpu.sp().wrapping_add(size_of::<T>() as u64));
        T::set(cpu, op.r[0], value);
        Ok(())
    })
}

/// POP to memory: an address that uses the stack pointer uses its new value.
fn pop_m<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let old_sp = cpu.gpr[4];
    let value = cpu.pop::<T>(env)?;
    let result = cpu.store(env, op, value);
    if result.is_err() {
        cpu.gpr[4] = old_sp;
    }
    result
}

fn pusha<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let size = size_of::<T>() as u64;
    let sp = cpu.sp();
    // The lowest word first, so that a fault leaves nothing half done where it matters.
    cpu.check_stack_store(env, sp.wrapping_sub(8 * size), 8 * size as u32)?;
    for r in 0..8u8 {
        let value = T::get(cpu, r);
        cpu.store_stack(env, sp.wrapping_sub((u64::from(r) + 1) * size), value)?;
    }
    cpu.set_sp(sp.wrapping_sub(8 * size));
    Ok(())
}

fn popa<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let size = size_of::<T>() as u64;
    let sp = cpu.sp();
    let mut values = [T::from_u64(0); 8];
    for (at, value) in values.iter_mut().enumerate() {
        *value = cpu.load_stack(env, sp.wrapping_add(at as u64 * size))?;
    }
    for (at, value) in values.into_iter().enumerate().filter(|(at, _)| *at != 3) {
        T::set(cpu, 7 - at as u8, value);
    }
    cpu.set_sp(sp.wrapping_add(8 * size));
    Ok(())
}

/// ENTER: the frame's size in `imm`, the nesting level in `imm2`.
fn enter<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let size = size_of::<T>() as u64;
    let level = u64::from(op.imm2 & 31);
    let sp = cpu.sp();
    let frame = sp.wrapping_sub(size);
    let bottom = frame.wrapping_sub(level * size);
    let new_sp = bottom.wrapping_sub(op.imm & 0xffff);
    // All that is written, then the word at the new top, which must be writable too.
    cpu.check_stack_store(env, bottom, ((level + 1) * size) as u32)?;
    cpu.check_stack_store(env, new_sp, size as u32)?;
    let old_frame = cpu.gpr[5];
    for n in 1..level {
        cpu.load_stack::<T>(env, old_frame.wrapping_sub(n * size))?;
    }
    // Nothing faults any more. The old frame may overlap the new one, so the order counts.
    cpu.store_stack(env, frame, T::from_u64(old_frame))?;
    for n in 1..level {
        let pointer = cpu.load_stack::<T>(env, old_frame.wrapping_sub(n * size))?;
        cpu.store_stack(env, frame.wrapping_sub(n * size), pointer)?;
    }
    // With a 16-bit stack the upper half of ESP goes along.
    let new_frame = cpu.gpr[4] & !cpu.stack_mask | frame & cpu.stack_mask;
    if level > 0 {
        cpu.store_stack(env, bottom, T::from_u64(new_frame))?;
    }
    T::set(cpu, 5, T::from_u64(new_frame));
    cpu.set_sp(new_sp);
    Ok(())
}

fn leave<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let frame = cpu.gpr[5] & cpu.stack_mask;
    let value = cpu.load_stack::<T>(env, frame)?;
    cpu.set_sp(frame.wrapping_add(size_of::<T>() as u64));
    T::set(cpu, 5, value);
    Ok(())
}

/// The forms of this module.
#[rustfmt::skip]
pub(super) const FORMS: &[Form] = &[
    Form::reg(Code::Jo_rel8_16, jcc::<cond::O, u16>).ends(),
    Form::reg(Code::Jo_rel8_32, jcc::<cond::O, u32>).ends(),
    Form::reg(Code::Jo_rel8_64, jcc::<cond::O, u64>).ends(),
    Form::reg(Code::Jo_rel16, jcc::<cond::O, u16>).ends(),
    Form::reg(Code::Jo_rel32_32, jcc::<cond::O, u32>).ends(),
    Form::reg(Code::Jo_rel32_64, jcc::<cond::O, u64>).ends(),
    Form::reg(Code::Jno_rel8_16, jcc::<cond::No, u16>).ends(),
    Form::reg(Code::Jno_rel8_32, jcc::<cond::No, u32>).ends(),
    Form::reg(Code::Jno_rel8_64, jcc::<cond::No, u64>).ends(),
    Form::reg(Code::Jno_rel16, jcc::<cond::No, u16>).ends(),
    Form::reg(Code::Jno_rel32_32, jcc::<cond::No, u32>).ends(),
    Form::reg(Code::Jno_rel32_64, jcc::<cond::No, u64>).ends(),
    Form::reg(Code::Jb_rel8_16, jcc::<cond::B, u16>).ends(),
    Form::reg(Code::Jb_rel8_32, jcc::<cond::B, u32>).ends(),
    Form::reg(Code::Jb_rel8_64, jcc::<cond::B, u64>).ends(),
    Form::reg(Code::Jb_rel16, jcc::<cond::B, u16>).ends(),
    Form::reg(Code::Jb_rel32_32, jcc::<cond::B, u32>).ends(),
    Form::reg(Code::Jb_rel32_64, jcc::<cond::B, u64>).ends(),
    Form::reg(Code::Jae_rel8_16, jcc::<cond::Ae, u16>).ends(),
    Form::reg(Code::Jae_rel8_32, jcc::<cond::Ae, u32>).ends(),
    Form::reg(Code::Jae_rel8_64, jcc::<cond::Ae, u64>).ends(),
    Form::reg(Code::Jae_rel16, jcc::<cond::Ae, u16>).ends(),
    Form::reg(Code::Jae_rel32_32, jcc::<cond::Ae, u32>).ends(),
    Form::reg(Code::Jae_rel32_64, jcc::<cond::Ae, u64>).ends(),
    Form::reg(Code::Je_rel8_16, jcc::<cond::E, u16>).ends(),
    Form::reg(Code::Je_rel8_32, jcc::<cond::E, u32>).ends(),
    Form::reg(Code::Je_rel8_64, jcc::<cond::E, u64>).ends(),
    Form::reg(Code::Je_rel16, jcc::<cond::E, u16>).ends(),
    Form::reg(Code::Je_rel32_32, jcc::<cond::E, u32>).ends(),
    Form::reg(Code::Je_rel32_64, jcc::<cond::E, u64>).ends(),
    Form::reg(Code::Jne_rel8_16, jcc::<cond::Ne, u16>).ends(),
    Form::reg(Code::Jne_rel8_32, jcc::<cond::Ne, u32>).ends(),
    Form::reg(Code::Jne_rel8_64, jcc::<cond::Ne, u64>).ends(),
    Form::reg(Code::Jne_rel16, jcc::<cond::Ne, u16>).ends(),
    Form::reg(Code::Jne_rel32_32, jcc::<cond::Ne, u32>).ends(),
    Form::reg(Code::Jne_rel32_64, jcc::<cond::Ne, u64>).ends(),
    Form::reg(Code::Jbe_rel8_16, jcc::<cond::Be, u16>).ends(),
    Form::reg(Code::Jbe_rel8_32, jcc::<cond::Be, u32>).ends(),
    Form::reg(Code::Jbe_rel8_64, jcc::<cond::Be, u64>).ends(),
    Form::reg(Code::Jbe_rel16, jcc::<cond::Be, u16>).ends(),
    Form::reg(Code::Jbe_rel32_32, jcc::<cond::Be, u32>).ends(),
    Form::reg(Code::Jbe_rel32_64, jcc::<cond::Be, u64>).ends(),
    Form::reg(Code::Ja_rel8_16, jcc::<cond::A, u16>).ends(),
    Form::reg(Code::Ja_rel8_32, jcc::<cond::A, u32>).ends(),
    Form::reg(Code::Ja_rel8_64, jcc::<cond::A, u64>).ends(),
    Form::reg(Code::Ja_rel16, jcc::<cond::A, u16>).ends(),
    Form::reg(Code::Ja_rel32_32, jcc::<cond::A, u32>).ends(),
    Form::reg(Code::Ja_rel32_64, jcc::<cond::A, u64>).ends(),
    Form::reg(Code::Js_rel8_16, jcc::<cond::S, u16>).ends(),
    Form::reg(Code::Js_rel8_32, jcc::<cond::S, u32>).ends(),
    Form::reg(Code::Js_rel8_64, jcc::<cond::S, u64>).ends(),
    Form::reg(Code::Js_rel16, jcc::<cond::S, u16>).ends(),
    Form::reg(Code::Js_rel32_32, jcc::<cond::S, u32>).ends(),
    Form::reg(Code::Js_rel32_64, jcc::<cond::S, u64>).ends(),
    Form::reg(Code::Jns_rel8_16, jcc::<cond::Ns, u16>).ends(),
    Form::reg(Code::Jns_rel8_32, jcc::<cond::Ns, u32>).ends(),
    Form::reg(Code::Jns_rel8_64, jcc::<cond::Ns, u64>).ends(),
    Form::reg(Code::Jns_rel16, jcc::<cond::Ns, u16>).ends(),
    Form::reg(Code::Jns_rel32_32, jcc::<cond::Ns, u32>).ends(),
    Form::reg(Code::Jns_rel32_64, jcc::<cond::Ns, u64>).ends(),
    Form::reg(Code::Jp_rel8_16, jcc::<cond::P, u16>).ends(),
    Form::reg(Code::Jp_rel8_32, jcc::<cond::P, u32>).ends(),
    Form::reg(Code::Jp_rel8_64, jcc::<cond::P, u64>).ends(),
    Form::reg(Code::Jp_rel16, jcc::<cond::P, u16>).ends(),
    Form::reg(Code::Jp_rel32_32, jcc::<cond::P, u32>).ends(),
    Form::reg(Code::Jp_rel32_64, jcc::<cond::P, u64>).ends(),
    Form::reg(Code::Jnp_rel8_16, jcc::<cond::Np, u16>).ends(),
    Form::reg(Code::Jnp_rel8_32, jcc::<cond::Np, u32>).ends(),
    Form::reg(Code::Jnp_rel8_64, jcc::<cond::Np, u64>).ends(),
    Form::reg(Code::Jnp_rel16, jcc::<cond::Np, u16>).ends(),
    Form::reg(Code::Jnp_rel32_32, jcc::<cond::Np, u32>).ends(),
    Form::reg(Code::Jnp_rel32_64, jcc::<cond::Np, u64>).ends(),
    Form::reg(Code::Jl_rel8_16, jcc::<cond::L, u16>).ends(),
    Form::reg(Code::Jl_rel8_32, jcc::<cond::L, u32>).ends(),
    Form::reg(Code::Jl_rel8_64, jcc::<cond::L, u64>).ends(),
    Form::reg(Code::Jl_rel16, jcc::<cond::L, u16>).ends(),
    Form::reg(Code::Jl_rel32_32, jcc::<cond::L, u32>).ends(),
    Form::reg(Code::Jl_rel32_64, jcc::<cond::L, u64>).ends(),
    Form::reg(Code::Jge_rel8_16, jcc::<cond::Ge, u16>).ends(),
    Form::reg(Code::Jge_rel8_32, jcc::<cond::Ge, u32>).ends(),
    Form::reg(Code::Jge_rel8_64, jcc::<cond::Ge, u64>).ends(),
    Form::reg(Code::Jge_rel16, jcc::<cond::Ge, u16>).ends(),
    Form::reg(Code::Jge_rel32_32, jcc::<cond::Ge, u32>).ends(),
    Form::reg(Code::Jge_rel32_64, jcc::<cond::Ge, u64>).ends(),
    Form::reg(Code::Jle_rel8_16, jcc::<cond::Le, u16>).ends(),
    Form::reg(Code::Jle_rel8_32, jcc::<cond::Le, u32>).ends(),
    Form::reg(Code::Jle_rel8_64, jcc::<cond::Le, u64>).ends(),
    Form::reg(Code::Jle_rel16, jcc::<cond::Le, u16>).ends(),
    Form::reg(Code::Jle_rel32_32, jcc::<cond::Le, u32>).ends(),
    Form::reg(Code::Jle_rel32_64, jcc::<cond::Le, u64>).ends(),
    Form::reg(Code::Jg_rel8_16, jcc::<cond::G, u16>).ends(),
    Form::reg(Code::Jg_rel8_32, jcc::<cond::G, u32>).ends(),
    Form::reg(Code::Jg_rel8_64, jcc::<cond::G, u64>).ends(),
    Form::reg(Code::Jg_rel16, jcc::<cond::G, u16>).ends(),
    Form::reg(Code::Jg_rel32_32, jcc::<cond::G, u32>).ends(),
    Form::reg(Code::Jg_rel32_64, jcc::<cond::G, u64>).ends(),
    Form::reg(Code::Jmp_rel8_16, jmp_rel::<u16>).ends(),
    Form::reg(Code::Jmp_rel8_32, jmp_rel::<u32>).ends(),
    Form::reg(Code::Jmp_rel8_64, jmp_rel::<u64>).ends(),
    Form::reg(Code::Jmp_rel16, jmp_rel::<u16>).ends(),
    Form::reg(Code::Call_rel16, call_rel::<u16>).ends(),
    Form::reg(Code::Jmp_rel32_32, jmp_rel::<u32>).ends(),
    Form::reg(Code::Call_rel32_32, call_rel::<u32>).ends(),
    Form::reg(Code::Jmp_rel32_64, jmp_rel::<u64>).ends(),
    Form::reg(Code::Call_rel32_64, call_rel::<u64>).ends(),
    Form::both(Code::Jmp_rm16, jmp_r::<u16>, jmp_m::<u16>).ends(),
    Form::both(Code::Call_rm16, call_r::<u16>, call_m::<u16>).ends(),
    Form::both(Code::Jmp_rm32, jmp_r::<u32>, jmp_m::<u32>).ends(),
    Form::both(Code::Call_rm32, call_r::<u32>, call_m::<u32>).ends(),
    Form::both(Code::Jmp_rm64, jmp_r::<u64>, jmp_m::<u64>).ends(),
    Form::both(Code::Call_rm64, call_r::<u64>, call_m::<u64>).ends(),
    Form::reg(Code::Retnw, ret::<u16>).ends(),
    Form::reg(Code::Retnw_imm16, ret::<u16>).ends(),
    Form::reg(Code::Retnd, ret::<u32>).ends(),
    Form::reg(Code::Retnd_imm16, ret::<u32>).ends(),
    Form::reg(Code::Retnq, ret::<u64>).ends(),
    Form::reg(Code::Retnq_imm16, ret::<u64>).ends(),
    Form::reg(Code::Loop_rel8_16_CX, loop_while::<u16, u16, Always>).ends(),
    Form::reg(Code::Loop_rel8_32_CX, loop_while::<u16, u32, Always>).ends(),
    Form::reg(Code::Loop_rel8_16_ECX, loop_while::<u32, u16, Always>).ends(),
    Form::reg(Code::Loop_rel8_32_ECX, loop_while::<u32, u32, Always>).ends(),
    Form::reg(Code::Loop_rel8_64_ECX, loop_while::<u32, u64, Always>).ends(),
    Form::reg(Code::Loop_rel8_16_RCX, loop_while::<u64, u16, Always>).ends(),
    Form::reg(Code::Loop_rel8_64_RCX, loop_while::<u64, u64, Always>).ends(),
    Form::reg(Code::Loope_rel8_16_CX, loop_while::<u16, u16, WhileEqual>).ends(),
    Form::reg(Code::Loope_rel8_32_CX, loop_while::<u16, u32, WhileEqual>).ends(),
    Form::reg(Code::Loope_rel8_16_ECX, loop_while::<u32, u16, WhileEqual>).ends(),
    Form::reg(Code::Loope_rel8_32_ECX, loop_while::<u32, u32, WhileEqual>).ends(),
    Form::reg(Code::Loope_rel8_64_ECX, loop_while::<u32, u64, WhileEqual>).ends(),
    Form::reg(Code::Loope_rel8_16_RCX, loop_while::<u64, u16, WhileEqual>).ends(),
    Form::reg(Code::Loope_rel8_64_RCX, loop_while::<u64, u64, WhileEqual>).ends(),
    Form::reg(Code::Loopne_rel8_16_CX, loop_while::<u16, u16, WhileUnequal>).ends(),
    Form::reg(Code::Loopne_rel8_32_CX, loop_while::<u16, u32, WhileUnequal>).ends(),
    Form::reg(Code::Loopne_rel8_16_ECX, loop_while::<u32, u16, WhileUnequal>).ends(),
    Form::reg(Code::Loopne_rel8_32_ECX, loop_while::<u32, u32, WhileUnequal>).ends(),
    Form::reg(Code::Loopne_rel8_64_ECX, loop_while::<u32, u64, WhileUnequal>).ends(),
    Form::reg(Code::Loopne_rel8_16_RCX, loop_while::<u64, u16, WhileUnequal>).ends(),
    Form::reg(Code::Loopne_rel8_64_RCX, loop_while::<u64, u64, WhileUnequal>).ends(),
    Form::reg(Code::Jcxz_rel8_16, jcxz::<u16, u16>).ends(),
    Form::reg(Code::Jcxz_rel8_32, jcxz::<u16, u32>).ends(),
    Form::reg(Code::Jecxz_rel8_16, jcxz::<u32, u16>).ends(),
    Form::reg(Code::Jecxz_rel8_32, jcxz::<u32, u32>).ends(),
    Form::reg(Code::Jecxz_rel8_64, jcxz::<u32, u64>).ends(),
    Form::reg(Code::Jrcxz_rel8_16, jcxz::<u64, u16>).ends(),
    Form::reg(Code::Jrcxz_rel8_64, jcxz::<u64, u64>).ends(),
    Form::reg(Code::Push_r16, push_r::<u16>),
    Form::both(Code::Push_rm16, push_r::<u16>, push_m::<u16>),
    Form::reg(Code::Pop_r16, pop_r::<u16>),
    Form::both(Code::Pop_rm16, pop_r::<u16>, pop_m::<u16>),
    Form::reg(Code::Push_r32, push_r::<u32>),
    Form::both(Code::Push_rm32, push_r::<u32>, push_m::<u32>),
    Form::reg(Code::Pop_r32, pop_r::<u32>),
    Form::both(Code::Pop_rm32, pop_r::<u32>, pop_m::<u32>),
    Form::reg(Code::Push_r64, push_r::<u64>),
    Form::both(Code::Push_rm64, push_r::<u64>, push_m::<u64>),
    Form::reg(Code::Pop_r64, pop_r::<u64>),
    Form::both(Code::Pop_rm64, pop_r::<u64>, pop_m::<u64>),
    Form::reg(Code::Push_imm16, push_i::<u16>),
    Form::reg(Code::Pushd_imm32, push_i::<u32>),
    Form::reg(Code::Pushq_imm32, push_i::<u64>),
    Form::reg(Code::Pushw_imm8, push_i::<u16>),
    Form::reg(Code::Pushd_imm8, push_i::<u32>),
    Form::reg(Code::Pushq_imm8, push_i::<u64>),
    Form::reg(Code::Pushaw, pusha::<u16>),
    Form::reg(Code::Pushad, pusha::<u32>),
    Form::reg(Code::Popaw, popa::<u16>),
    Form::reg(Code::Popad, popa::<u32>),
    Form::reg(Code::Enterw_imm16_imm8, enter::<u16>),
    Form::reg(Code::Leavew, leave::<u16>),
    Form::reg(Code::Enterd_imm16_imm8, enter::<u32>),
    Form::reg(Code::Leaved, leave::<u32>),
    Form::reg(Code::Enterq_imm16_imm8, enter::<u64>),
    Form::reg(Code::Leaveq, leave::<u64>),
];
