//! The x87 forms: memory operands, pointers, and the list.

use x86::iced::Code;

use super::arith::{
    Arith, PACKED_INDEFINITE, int_operand, load_packed, store_float, store_int, store_packed,
};
use super::environment::{
    fldcw, fldenv, fnclex, fninit, fnsave, fnstcw, fnstenv, fnstsw, fnstsw_ax, frstor, nothing,
    wait,
};
use super::transcendental::{self, Trig};
use crate::forms::{Form, Gate};
use crate::op::{Env, Fault, Op};
use crate::softfloat::{
    self as sf, EXTENDED, Float, FpEnv, IntWidth, Parts, RemainderMode, Rounding,
};
use crate::sse::set_order;
use crate::state::{F80, Seg};
use crate::{Cpu, Flags};

/// The significands of FLDL2T and its like, to 128 bits, with their exponents.
const LOG2_10: (i32, u128) = (1, 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4c);
const LOG2_E: (i32, u128) = (0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88);
const PI: (i32, u128) = (1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);
const LOG10_2: (i32, u128) = (-2, 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178);
const LN_2: (i32, u128) = (-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);

/// A constant, rounded as the control word says, without an exception.
fn constant(env: &mut FpEnv, (exp, sig): (i32, u128)) -> F80 {
    F80::pack(FpEnv { ..*env }.round(EXTENDED, false, exp, sig))
}

/// Sets the instruction pointer. Instructions that compute do so once nothing can fault any more.
#[inline(always)]
fn note_instruction(cpu: &mut Cpu, op: &Op) {
    let ip = cpu.op_rip(op);
    cpu.x87.ip = if cpu.is_protected() {
        ip
    } else {
        cpu.segment(Seg::CS).base.wrapping_add(ip) & 0xffff_ffff
    };
}

/// Sets both pointers.
#[inline(always)]
fn note_operand(cpu: &mut Cpu, op: &Op) {
    note_instruction(cpu, op);
    let offset = cpu.effective_address(op);
    cpu.x87.dp = if cpu.is_protected() {
        offset
    } else {
        cpu.segment(usize::from(op.seg).min(Seg::GS)).base.wrapping_add(offset) & 0xffff_ffff
    };
}

/// A form that works on the register stack alone.
macro_rules! x87 {
    ($code:ident, $f:expr) => {
        Form::reg(Code::$code, |cpu, _, op| {
            cpu.raise_pending_x87()?;
            note_instruction(cpu, op);
            let work: fn(&mut crate::X87State, &Op) = $f;
            work(&mut cpu.x87, op);
            Ok(())
        })
        .gated(Gate::X87)
    };
}

/// ST(0) = ST(0) op memory.
macro_rules! arith_mem {
    ($code:ident, $width:ty, $unpack:expr, $arith:ident) => {
        Form::mem(Code::$code, |cpu, env, op| {
            cpu.raise_pending_x87()?;
            let source = cpu.load::<$width>(env, op)?;
            note_operand(cpu, op);
            cpu.x87.arith(Arith::$arith, 0, Some($unpack(source)), false);
            Ok(())
        })
        .gated(Gate::X87)
    };
}

/// ST(0) = ST(0) op ST(i).
macro_rules! arith_st0 {
    ($code:ident, $arith:ident) => {
        x87!($code, |x87, op| {
            let source = x87.operand(op.r[1]);
            x87.arith(Arith::$arith, 0, source, false);
        })
    };
}

/// ST(i) = ST(i) op ST(0).
macro_rules! arith_sti {
    ($code:ident, $arith:ident, $pop:expr) => {
        x87!($code, |x87, op| {
            let source = x87.operand(0);
            x87.arith(Arith::$arith, op.r[0], source, $pop);
        })
    };
}

/// ST(0) against memory.
macro_rules! compare_mem {
    ($code:ident, $width:ty, $unpack:expr, $pops:expr) => {
        Form::mem(Code::$code, |cpu, env, op| {
            cpu.raise_pending_x87()?;
            let other = cpu.load::<$width>(env, op)?;
            note_operand(cpu, op);
            cpu.x87.compare(Some($unpack(other)), true, $pops);
            Ok(())
        })
        .gated(Gate::X87)
    };
}

/// ST(0) against ST(i), into RFLAGS.
macro_rules! compare_flags {
    ($code:ident, $quiet_invalid:expr, $pop:expr) => {
        Form::reg(Code::$code, |cpu, _, op| {
            cpu.raise_pending_x87()?;
            note_instruction(cpu, op);
            let other = cpu.x87.operand(op.r[1]);
            let compared = cpu.x87.order(other, $quiet_invalid);
            set_order(cpu, compared.order);
            if compared.goes_on {
                cpu.x87.pop_times(u8::from($pop));
            }
            Ok(())
        })
        .gated(Gate::X87)
    };
}

macro_rules! conditional {
    ($code:ident, $condition:expr) => {
        Form::reg(Code::$code, |cpu, _, op| {
            cpu.raise_pending_x87()?;
            note_instruction(cpu, op);
            let condition = $condition(cpu.flags);
            cpu.x87.move_if(op.r[1], condition);
            Ok(())
        })
        .gated(Gate::X87)
    };
}

/// Pushes a converted memory operand.
macro_rules! load_mem {
    ($code:ident, $width:ty, $convert:expr) => {
        Form::mem(Code::$code, |cpu, env, op| {
            cpu.raise_pending_x87()?;
            let value = cpu.load::<$width>(env, op)?;
            note_operand(cpu, op);
            let convert: fn(&mut FpEnv, $width) -> F80 = $convert;
            cpu.x87.load(|fp| convert(fp, value));
            Ok(())
        })
        .gated(Gate::X87)
    };
}

/// Stores ST(0), converted.
macro_rules! store_mem {
    ($code:ident, $width:ty, $indefinite:expr, $convert:expr, $pop:expr) => {
        Form::mem(Code::$code, |cpu, env, op| {
            cpu.raise_pending_x87()?;
            let convert: fn(&mut FpEnv, F80) -> $width = $convert;
            let prepared = cpu.x87.prepare_store($indefinite, convert);
            match prepared.value {
                Some(value) => cpu.store(env, op, value)?,
                None => check_operand(cpu, env, op, size_of::<$width>() as u32)?,
            }
            note_operand(cpu, op);
            cpu.x87.commit_store(&prepared, $pop);
            Ok(())
        })
        .gated(Gate::X87)
    };
}

fn load_80(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    convert: fn(u128) -> F80,
) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    let linear = cpu.linear(op, 10, false)?;
    let stack = op.has(Op::STACK);
    let mut bytes = [0; 16];
    if crosses_page(linear) {
        cpu.read_bytes(env, linear, &mut bytes[..10], stack)?;
    } else {
        bytes[..8].copy_from_slice(&cpu.load_linear::<u64>(env, linear, stack)?.to_le_bytes());
        let rest: u16 = cpu.load_linear(env, linear.wrapping_add(8), stack)?;
        bytes[8..10].copy_from_slice(&rest.to_le_bytes());
    }
    note_operand(cpu, op);
    cpu.x87.load(|_| convert(u128::from_le_bytes(bytes)));
    Ok(())
}

fn store_80(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    indefinite: u128,
    convert: fn(&mut FpEnv, F80) -> u128,
) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    let prepared = cpu.x87.prepare_store(indefinite, convert);
    let Some(value) = prepared.value else {
        check_operand(cpu, env, op, 10)?;
        note_operand(cpu, op);
        cpu.x87.commit_store(&prepared, true);
        return Ok(());
    };
    let linear = cpu.linear(op, 10, true)?;
    let stack = op.has(Op::STACK);
    if crosses_page(linear) {
        cpu.write_bytes(env, linear, &value.to_le_bytes()[..10], stack)?;
    } else {
        // Where the first store may go, the second may.
        cpu.store_linear(env, linear, value as u64, stack)?;
        cpu.store_linear(env, linear.wrapping_add(8), (value >> 64) as u16, stack)?;
    }
    note_operand(cpu, op);
    cpu.x87.commit_store(&prepared, true);
    Ok(())
}

/// An operand that an unmasked exception keeps from being stored has to be accessible all the same.
fn check_operand(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, len: u32) -> Result<(), Fault> {
    let linear = cpu.linear(op, len, true)?;
    cpu.check_store(env, linear, len, op.has(Op::STACK))
}

fn crosses_page(linear: u64) -> bool {
    linear & 0xfff > 0x1000 - 10
}

/// Every x87 form.
pub(crate) const FORMS: &[Form] = &[
    arith_mem!(Fadd_m32fp, u32, |v: u32| v.unpack(), Add),
    arith_mem!(Fadd_m64fp, u64, |v: u64| v.unpack(), Add),
    arith_mem!(Fiadd_m16int, u16, |v: u16| int_operand((v as i16).into()), Add),
    arith_mem!(Fiadd_m32int, u32, |v: u32| int_operand((v as i32).into()), Add),
    arith_st0!(Fadd_st0_sti, Add),
    arith_sti!(Fadd_sti_st0, Add, false),
    arith_sti!(Faddp_sti_st0, Add, true),
    arith_mem!(Fmul_m32fp, u32, |v: u32| v.unpack(), Mul),
    arith_mem!(Fmul_m64fp, u64, |v: u64| v.unpack(), Mul),
    arith_mem!(Fimul_m16int, u16, |v: u16| int_operand((v as i16).into()), Mul),
    arith_mem!(Fimul_m32int, u32, |v: u32| int_operand((v as i32).into()), Mul),
    arith_st0!(Fmul_st0_sti, Mul),
    arith_sti!(Fmul_sti_st0, Mul, false),
    arith_sti!(Fmulp_sti_st0, Mul, true),
    arith_mem!(Fsub_m32fp, u32, |v: u32| v.unpack(), Sub),
    arith_mem!(Fsub_m64fp, u64, |v: u64| v.unpack(), Sub),
    arith_mem!(Fisub_m16int, u16, |v: u16| int_operand((v as i16).into()), Sub),
    arith_mem!(Fisub_m32int, u32, |v: u32| int_operand((v as i32).into()), Sub),
    arith_st0!(Fsub_st0_sti, Sub),
    arith_sti!(Fsub_sti_st0, Sub, false),
    arith_sti!(Fsubp_sti_st0, Sub, true),
    arith_mem!(Fsubr_m32fp, u32, |v: u32| v.unpack(), SubR),
    arith_mem!(Fsubr_m64fp, u64, |v: u64| v.unpack(), SubR),
    arith_mem!(Fisubr_m16int, u16, |v: u16| int_operand((v as i16).into()), SubR),
    arith_mem!(Fisubr_m32int, u32, |v: u32| int_operand((v as i32).into()), SubR),
    arith_st0!(Fsubr_st0_sti, SubR),
    arith_sti!(Fsubr_sti_st0, SubR, false),
    arith_sti!(Fsubrp_sti_st0, SubR, true),
    arith_mem!(Fdiv_m32fp, u32, |v: u32| v.unpack(), Div),
    arith_mem!(Fdiv_m64fp, u64, |v: u64| v.unpack(), Div),
    arith_mem!(Fidiv_m16int, u16, |v: u16| int_operand((v as i16).into()), Div),
    arith_mem!(Fidiv_m32int, u32, |v: u32| int_operand((v as i32).into()), Div),
    arith_st0!(Fdiv_st0_sti, Div),
    arith_sti!(Fdiv_sti_st0, Div, false),
    arith_sti!(Fdivp_sti_st0, Div, true),
    arith_mem!(Fdivr_m32fp, u32, |v: u32| v.unpack(), DivR),
    arith_mem!(Fdivr_m64fp, u64, |v: u64| v.unpack(), DivR),
    arith_mem!(Fidivr_m16int, u16, |v: u16| int_operand((v as i16).into()), DivR),
    arith_mem!(Fidivr_m32int, u32, |v: u32| int_operand((v as i32).into()), DivR),
    arith_st0!(Fdivr_st0_sti, DivR),
    arith_sti!(Fdivr_sti_st0, DivR, false),
    arith_sti!(Fdivrp_sti_st0, DivR, true),
    compare_mem!(Fcom_m32fp, u32, |v: u32| v.unpack(), 0),
    compare_mem!(Fcom_m64fp, u64, |v: u64| v.unpack(), 0),
    compare_mem!(Ficom_m16int, u16, |v: u16| int_operand((v as i16).into()), 0),
    compare_mem!(Ficom_m32int, u32, |v: u32| int_operand((v as i32).into()), 0),
    compare_mem!(Fcomp_m32fp, u32, |v: u32| v.unpack(), 1),
    compare_mem!(Fcomp_m64fp, u64, |v: u64| v.unpack(), 1),
    compare_mem!(Ficomp_m16int, u16, |v: u16| int_operand((v as i16).into()), 1),
    compare_mem!(Ficomp_m32int, u32, |v: u32| int_operand((v as i32).into()), 1),
    x87!(Fcom_st0_sti, |x87, op| {
        let other = x87.operand(op.r[1]);
        x87.compare(other, true, 0);
    }),
    x87!(Fcom_st0_sti_DCD0, |x87, op| {
        let other = x87.operand(op.r[1]);
        x87.compare(other, true, 0);
    }),
    x87!(Fcomp_st0_sti, |x87, op| {
        let other = x87.operand(op.r[1]);
        x87.compare(other, true, 1);
    }),
    x87!(Fcomp_st0_sti_DCD8, |x87, op| {
        let other = x87.operand(op.r[1]);
        x87.compare(other, true, 1);
    }),
    x87!(Fcomp_st0_sti_DED0, |x87, op| {
        let other = x87.operand(op.r[1]);
        x87.compare(other, true, 1);
    }),
    x87!(Fucom_st0_sti, |x87, op| {
        let other = x87.operand(op.r[1]);
        x87.compare(other, false, 0);
    }),
    x87!(Fucomp_st0_sti, |x87, op| {
        let other = x87.operand(op.r[1]);
        x87.compare(other, false, 1);
    }),
    x87!(Fcompp, |x87, _| {
        let other = x87.operand(1);
        x87.compare(other, true, 2);
    }),
    x87!(Fucompp, |x87, _| {
        let other = x87.operand(1);
        x87.compare(other, false, 2);
    }),
    compare_flags!(Fcomi_st0_sti, true, false),
    compare_flags!(Fucomi_st0_sti, false, false),
    compare_flags!(Fcomip_st0_sti, true, true),
    compare_flags!(Fucomip_st0_sti, false, true),
    x87!(Ftst, |x87, _| x87.compare(Some(F80::ZERO.unpack()), true, 0)),
    x87!(Fxam, |x87, _| x87.examine()),
    conditional!(Fcmovb_st0_sti, |flags: Flags| flags.cf()),
    conditional!(Fcmovnb_st0_sti, |flags: Flags| !flags.cf()),
    conditional!(Fcmove_st0_sti, |flags: Flags| flags.zf()),
    conditional!(Fcmovne_st0_sti, |flags: Flags| !flags.zf()),
    conditional!(Fcmovu_st0_sti, |flags: Flags| flags.pf()),
    conditional!(Fcmovnu_st0_sti, |flags: Flags| !flags.pf()),
    conditional!(Fcmovbe_st0_sti, |flags: Flags| flags.cf() || flags.zf()),
    conditional!(Fcmovnbe_st0_sti, |flags: Flags| !(flags.cf() || flags.zf())),
    load_mem!(Fld_m32fp, u32, |env, v| sf::convert::<u32, F80>(env, v)),
    load_mem!(Fld_m64fp, u64, |env, v| sf::convert::<u64, F80>(env, v)),
    load_mem!(Fild_m16int, u16, |env, v| sf::from_i64(env, (v as i16).into())),
    load_mem!(Fild_m32int, u32, |env, v| sf::from_i64(env, (v as i32).into())),
    load_mem!(Fild_m64int, u64, |env, v| sf::from_i64(env, v as i64)),
    Form::mem(Code::Fld_m80fp, |cpu, env, op| load_80(cpu, env, op, F80::from_bits))
        .gated(Gate::X87),
    Form::mem(Code::Fbld_m80bcd, |cpu, env, op| load_80(cpu, env, op, load_packed))
        .gated(Gate::X87),
    x87!(Fld_sti, |x87, op| x87.load_register(op.r[0])),
    store_mem!(Fst_m32fp, u32, u32::pack(Parts::DEFAULT_NAN), store_float::<u32>, false),
    store_mem!(Fst_m64fp, u64, u64::pack(Parts::DEFAULT_NAN), store_float::<u64>, false),
    store_mem!(Fstp_m32fp, u32, u32::pack(Parts::DEFAULT_NAN), store_float::<u32>, true),
    store_mem!(Fstp_m64fp, u64, u64::pack(Parts::DEFAULT_NAN), store_float::<u64>, true),
    store_mem!(
        Fist_m16int,
        u16,
        IntWidth::I16.indefinite() as u16,
        |env: &mut FpEnv, v| {
            let rounding = env.rounding;
            store_int(env, v, IntWidth::I16, rounding) as u16
        },
        false
    ),
    store_mem!(
        Fist_m32int,
        u32,
        IntWidth::I32.indefinite() as u32,
        |env: &mut FpEnv, v| {
            let rounding = env.rounding;
            store_int(env, v, IntWidth::I32, rounding) as u32
        },
        false
    ),
    store_mem!(
        Fistp_m16int,
        u16,
        IntWidth::I16.indefinite() as u16,
        |env: &mut FpEnv, v| {
            let rounding = env.rounding;
            store_int(env, v, IntWidth::I16, rounding) as u16
        },
        true
    ),
    store_mem!(
        Fistp_m32int,
        u32,
        IntWidth::I32.indefinite() as u32,
        |env: &mut FpEnv, v| {
            let rounding = env.rounding;
            store_int(env, v, IntWidth::I32, rounding) as u32
        },
        true
    ),
    store_mem!(
        Fistp_m64int,
        u64,
        IntWidth::I64.indefinite() as u64,
        |env: &mut FpEnv, v| {
            let rounding = env.rounding;
            store_int(env, v, IntWidth::I64, rounding) as u64
        },
        true
    ),
    store_mem!(
        Fisttp_m16int,
        u16,
        IntWidth::I16.indefinite() as u16,
        |env, v| store_int(env, v, IntWidth::I16, Rounding::Zero) as u16,
        true
    ),
    store_mem!(
        Fisttp_m32int,
        u32,
        IntWidth::I32.indefinite() as u32,
        |env, v| store_int(env, v, IntWidth::I32, Rounding::Zero) as u32,
        true
    ),
    store_mem!(
        Fisttp_m64int,
        u64,
        IntWidth::I64.indefinite() as u64,
        |env, v| store_int(env, v, IntWidth::I64, Rounding::Zero) as u64,
        true
    ),
    Form::mem(Code::Fstp_m80fp, |cpu, env, op| {
        store_80(cpu, env, op, F80::DEFAULT_NAN.to_bits(), |_, value| value.to_bits())
    })
    .gated(Gate::X87),
    Form::mem(Code::Fbstp_m80bcd, |cpu, env, op| {
        store_80(cpu, env, op, PACKED_INDEFINITE, store_packed)
    })
    .gated(Gate::X87),
    x87!(Fst_sti, |x87, op| x87.store_register(op.r[0], false)),
    x87!(Fstp_sti, |x87, op| x87.store_register(op.r[0], true)),
    x87!(Fstp_sti_DFD0, |x87, op| x87.store_register(op.r[0], true)),
    x87!(Fstp_sti_DFD8, |x87, op| x87.store_register(op.r[0], true)),
    x87!(Fstpnce_sti, |x87, op| x87.store_register_unchecked(op.r[0])),
    x87!(Fxch_st0_sti, |x87, op| x87.exchange(op.r[1])),
    x87!(Fxch_st0_sti_DDC8, |x87, op| x87.exchange(op.r[1])),
    x87!(Fxch_st0_sti_DFC8, |x87, op| x87.exchange(op.r[1])),
    x87!(Fldl2t, |x87, _| x87.load(|env| constant(env, LOG2_10))),
    x87!(Fldl2e, |x87, _| x87.load(|env| constant(env, LOG2_E))),
    x87!(Fldpi, |x87, _| x87.load(|env| constant(env, PI))),
    x87!(Fldlg2, |x87, _| x87.load(|env| constant(env, LOG10_2))),
    x87!(Fldln2, |x87, _| x87.load(|env| constant(env, LN_2))),
    x87!(Fld1, |x87, _| x87.load(|_| F80::ONE)),
    x87!(Fldz, |x87, _| x87.load(|_| F80::ZERO)),
    x87!(Fchs, |x87, _| x87.set_sign(|sign| !sign)),
    x87!(Fabs, |x87, _| x87.set_sign(|_| false)),
    x87!(Fsqrt, |x87, _| x87.unary(sf::sqrt_unpacked)),
    x87!(Frndint, |x87, _| x87.round_to_integral()),
    x87!(Fscale, |x87, _| x87.scale()),
    x87!(Fxtract, |x87, _| x87.extract()),
    x87!(Fprem, |x87, _| x87.remainder(RemainderMode::Truncate)),
    x87!(Fprem1, |x87, _| x87.remainder(RemainderMode::Nearest)),
    x87!(F2xm1, |x87, _| x87.unary(|env, _, x| transcendental::exp2_minus_one(env, &x))),
    x87!(Fyl2x, |x87, _| x87.binary_pop(transcendental::log2_times)),
    x87!(Fyl2xp1, |x87, _| x87.binary_pop(transcendental::log2_plus_one_times)),
    x87!(Fpatan, |x87, _| x87.binary_pop(transcendental::arctangent)),
    x87!(Fsin, |x87, _| x87.trig(Trig::Sin)),
    x87!(Fcos, |x87, _| x87.trig(Trig::Cos)),
    x87!(Fsincos, |x87, _| x87.trig_pair(Trig::Sin, Trig::Cos)),
    x87!(Fptan, |x87, _| x87.trig_pair(Trig::Tan, Trig::Tan)),
    x87!(Ffree_sti, |x87, op| x87.release(op.r[0])),
    x87!(Ffreep_sti, |x87, op| {
        x87.release(op.r[0]);
        x87.pop();
    }),
    x87!(Fincstp, |x87, _| {
        x87.set_c1(false);
        x87.set_top(x87.top().wrapping_add(1));
    }),
    x87!(Fdecstp, |x87, _| {
        x87.set_c1(false);
        x87.set_top(x87.top().wrapping_sub(1));
    }),
    x87!(Fnop, |_, _| ()),
    Form::mem(Code::Fnstenv_m14byte, |cpu, env, op| fnstenv(cpu, env, op, false)).gated(Gate::X87),
    Form::mem(Code::Fldenv_m14byte, |cpu, env, op| fldenv(cpu, env, op, false)).gated(Gate::X87),
    Form::mem(Code::Fnstenv_m28byte, |cpu, env, op| fnstenv(cpu, env, op, true)).gated(Gate::X87),
    Form::mem(Code::Fldenv_m28byte, |cpu, env, op| fldenv(cpu, env, op, true)).gated(Gate::X87),
    Form::mem(Code::Fnsave_m94byte, |cpu, env, op| fnsave(cpu, env, op, false)).gated(Gate::X87),
    Form::mem(Code::Frstor_m94byte, |cpu, env, op| frstor(cpu, env, op, false)).gated(Gate::X87),
    Form::mem(Code::Fnsave_m108byte, |cpu, env, op| fnsave(cpu, env, op, true)).gated(Gate::X87),
    Form::mem(Code::Frstor_m108byte, |cpu, env, op| frstor(cpu, env, op, true)).gated(Gate::X87),
    Form::mem(Code::Fldcw_m2byte, fldcw).gated(Gate::X87),
    Form::mem(Code::Fnstcw_m2byte, fnstcw).gated(Gate::X87),
    Form::mem(Code::Fnstsw_m2byte, fnstsw).gated(Gate::X87),
    Form::reg(Code::Fnstsw_AX, fnstsw_ax).gated(Gate::X87),
    Form::reg(Code::Fninit, fninit).gated(Gate::X87),
    Form::reg(Code::Fnclex, fnclex).gated(Gate::X87),
    Form::reg(Code::Wait, wait).gated(Gate::Wait),
    Form::reg(Code::Fneni, nothing).gated(Gate::X87),
    Form::reg(Code::Fndisi, nothing).gated(Gate::X87),
    Form::reg(Code::Fnsetpm, nothing).gated(Gate::X87),
];
