//! Moves of the elements that a mask chooses: VMASKMOVPS and its like, and gathers.
//!
//! Elements that are not chosen are not accessed and raise nothing. A masked store stores all that is chosen or, if
//! one of them faults, nothing. A gather loads element by element from the lowest on; each that is done has its
//! mask cleared, so that after a fault the instruction goes on where it was (SDM VPGATHERDD).

use x86::iced::Code;

use super::{Vector, Ymm};
use crate::Cpu;
use crate::forms::{Form, Gate};
use crate::op::{Env, Fault, Op};
use crate::sse::lanes::Lane;

/// An element of a vector in memory.
trait Element: Lane + mem::Pod {
    const BYTES: u64 = size_of::<Self>() as u64;
    const ALL: Self;
    const NONE: Self;

    fn is_chosen(self) -> bool;
}

impl Element for u32 {
    const ALL: u32 = u32::MAX;
    const NONE: u32 = 0;

    fn is_chosen(self) -> bool {
        self >> 31 != 0
    }
}

impl Element for u64 {
    const ALL: u64 = u64::MAX;
    const NONE: u64 = 0;

    fn is_chosen(self) -> bool {
        self >> 63 != 0
    }
}

/// Element `index` of a vector that is given as halves.
fn element<E: Element>(vector: Ymm, index: usize) -> E {
    let per_half = 16 / size_of::<E>();
    E::split(vector[index / per_half]).as_ref()[index % per_half]
}

fn set_element<E: Element>(vector: &mut Ymm, index: usize, value: E) {
    let per_half = 16 / size_of::<E>();
    let half = &mut vector[index / per_half];
    let mut lanes = E::split(*half);
    lanes.as_mut()[index % per_half] = value;
    *half = E::join(lanes);
}

/// The elements among the first `count` that `mask` chooses.
fn chosen<E: Element>(mask: Ymm, count: usize) -> impl Iterator<Item = usize> {
    (0..count).filter(move |index| element::<E>(mask, *index).is_chosen())
}

/// The linear address of an element, its segment's checks done.
fn element_address<E: Element>(
    cpu: &mut Cpu,
    op: &Op,
    index: usize,
    write: bool,
) -> Result<u64, Fault> {
    let delta = E::BYTES * index as u64;
    if op.has(Op::CHECKED) {
        return cpu.linear_plus(op, delta, E::BYTES as u32, write);
    }
    // Only the operand's own address wraps at the address size.
    let linear = cpu.linear(op, E::BYTES as u32, write)?;
    Ok(cpu.wrap(linear.wrapping_add(delta)))
}

fn masked_load<E: Element>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    count: usize,
) -> Result<(), Fault> {
    let mask = Ymm::get(cpu, op, 1);
    let mut result = [0; 2];
    for index in chosen::<E>(mask, count) {
        let linear = element_address::<E>(cpu, op, index, false)?;
        let value = cpu.load_linear::<E>(env, linear, op.has(Op::STACK))?;
        set_element(&mut result, index, value);
    }
    result.set(cpu, op, 0);
    Ok(())
}

fn masked_store<E: Element>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    count: usize,
) -> Result<(), Fault> {
    let (mask, value) = (Ymm::get(cpu, op, 1), Ymm::get(cpu, op, 2));
    let stack = op.has(Op::STACK);
    for index in chosen::<E>(mask, count) {
        let linear = element_address::<E>(cpu, op, index, true)?;
        cpu.check_store(env, linear, E::BYTES as u32, stack)?;
    }
    for index in chosen::<E>(mask, count) {
        let linear = element_address::<E>(cpu, op, index, true)?;
        cpu.store_linear(env, linear, element::<E>(value, index), stack)?;
    }
    Ok(())
}

/// A gather of `count` elements `E` by indices `I`.
fn gather<E: Element, I: Element + Into<u64>>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    count: usize,
) -> Result<(), Fault> {
    let indices = {
        let number = usize::from(op.index & 15);
        [cpu.sse.xmm[number], cpu.sse.ymm_high[number]]
    };
    // What is beyond the elements is never loaded, and 0 in the end.
    let (mut result, mut mask) = (Ymm::get(cpu, op, 0), Ymm::get(cpu, op, 2));
    let mut whole = [0; 2];
    (0..count).for_each(|index| set_element(&mut whole, index, E::ALL));
    for index in 0..count {
        let is_chosen = element::<E>(mask, index).is_chosen();
        set_element(&mut mask, index, if is_chosen { E::ALL } else { E::NONE });
    }
    mask = mask.zip_halves(whole, |_, a, b| a & b);
    result = result.zip_halves(whole, |_, a, b| a & b);
    mask.set(cpu, op, 2);
    result.set(cpu, op, 0);
    for index in chosen::<E>(mask, count) {
        let value: u64 = element::<I>(indices, index).into();
        let shift = 64 - 8 * I::BYTES;
        let offset = ((value << shift) as i64 >> shift) << op.scale;
        // The index register's number means a vector register.
        let base = Op { index: Cpu::GPR_ZERO, ..*op };
        let linear = cpu.linear_plus(&base, offset as u64, E::BYTES as u32, false)?;
        let loaded = cpu.load_linear::<E>(env, linear, op.has(Op::STACK))?;
        set_element(&mut result, index, loaded);
        set_element(&mut mask, index, E::NONE);
        result.set(cpu, op, 0);
        mask.set(cpu, op, 2);
    }
    Ok(())
}

/// A form with a memory operand.
macro_rules! form {
    ($code:ident, $f:ident::<$($element:ty),*>($count:literal)) => {
        Form::mem(Code::$code, |cpu, env, op| $f::<$($element),*>(cpu, env, op, $count))
            .gated(Gate::Avx)
    };
}

/// The forms of this module.
pub(super) const FORMS: &[Form] = &[
    form!(VEX_Vmaskmovps_xmm_xmm_m128, masked_load::<u32>(4)),
    form!(VEX_Vmaskmovps_m128_xmm_xmm, masked_store::<u32>(4)),
    form!(VEX_Vmaskmovps_ymm_ymm_m256, masked_load::<u32>(8)),
    form!(VEX_Vmaskmovps_m256_ymm_ymm, masked_store::<u32>(8)),
    form!(VEX_Vmaskmovpd_xmm_xmm_m128, masked_load::<u64>(2)),
    form!(VEX_Vmaskmovpd_m128_xmm_xmm, masked_store::<u64>(2)),
    form!(VEX_Vmaskmovpd_ymm_ymm_m256, masked_load::<u64>(4)),
    form!(VEX_Vmaskmovpd_m256_ymm_ymm, masked_store::<u64>(4)),
    form!(VEX_Vpmaskmovd_xmm_xmm_m128, masked_load::<u32>(4)),
    form!(VEX_Vpmaskmovd_m128_xmm_xmm, masked_store::<u32>(4)),
    form!(VEX_Vpmaskmovd_ymm_ymm_m256, masked_load::<u32>(8)),
    form!(VEX_Vpmaskmovd_m256_ymm_ymm, masked_store::<u32>(8)),
    form!(VEX_Vpmaskmovq_xmm_xmm_m128, masked_load::<u64>(2)),
    form!(VEX_Vpmaskmovq_m128_xmm_xmm, masked_store::<u64>(2)),
    form!(VEX_Vpmaskmovq_ymm_ymm_m256, masked_load::<u64>(4)),
    form!(VEX_Vpmaskmovq_m256_ymm_ymm, masked_store::<u64>(4)),
    form!(VEX_Vpgatherdd_xmm_vm32x_xmm, gather::<u32, u32>(4)),
    form!(VEX_Vpgatherdd_ymm_vm32y_ymm, gather::<u32, u32>(8)),
    form!(VEX_Vpgatherdq_xmm_vm32x_xmm, gather::<u64, u32>(2)),
    form!(VEX_Vpgatherdq_ymm_vm32x_ymm, gather::<u64, u32>(4)),
    form!(VEX_Vpgatherqd_xmm_vm64x_xmm, gather::<u32, u64>(2)),
    form!(VEX_Vpgatherqd_xmm_vm64y_xmm, gather::<u32, u64>(4)),
    form!(VEX_Vpgatherqq_xmm_vm64x_xmm, gather::<u64, u64>(2)),
    form!(VEX_Vpgatherqq_ymm_vm64y_ymm, gather::<u64, u64>(4)),
    form!(VEX_Vgatherdps_xmm_vm32x_xmm, gather::<u32, u32>(4)),
    form!(VEX_Vgatherdps_ymm_vm32y_ymm, gather::<u32, u32>(8)),
    form!(VEX_Vgatherdpd_xmm_vm32x_xmm, gather::<u64, u32>(2)),
    form!(VEX_Vgatherdpd_ymm_vm32x_ymm, gather::<u64, u32>(4)),
    form!(VEX_Vgatherqps_xmm_vm64x_xmm, gather::<u32, u64>(2)),
    form!(VEX_Vgatherqps_xmm_vm64y_xmm, gather::<u32, u64>(4)),
    form!(VEX_Vgatherqpd_xmm_vm64x_xmm, gather::<u64, u64>(2)),
    form!(VEX_Vgatherqpd_ymm_vm64y_ymm, gather::<u64, u64>(4)),
];
