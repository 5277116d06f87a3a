//! Fused multiply-add: `x * y + z` with one rounding.

use super::{Vector, Ymm, avx};
use crate::forms::Form;
use crate::op::Fault;
use crate::sse::float::{self, FloatLane, Fused};
use crate::sse::{Source, compute, xmm};
use crate::{Cpu, Op};

const ADD: Fused = Fused { negates_product: false, subtracts: [false, false] };
const SUB: Fused = Fused { negates_product: false, subtracts: [true, true] };
const NEGATED_ADD: Fused = Fused { negates_product: true, subtracts: [false, false] };
const NEGATED_SUB: Fused = Fused { negates_product: true, subtracts: [true, true] };
const ADD_SUB: Fused = Fused { negates_product: false, subtracts: [true, false] };
const SUB_ADD: Fused = Fused { negates_product: false, subtracts: [false, true] };

/// The operands as x, y and z: the digits in an instruction's name say which is which.
type Order = [usize; 3];
const O132: Order = [0, 2, 1];
const O213: Order = [1, 0, 2];
const O231: Order = [1, 2, 0];

#[inline(always)]
fn ordered<T: Copy>(operands: [T; 3], order: Order) -> [T; 3] {
    order.map(|n| operands[n])
}

/// A packed instruction on these operands.
#[inline(always)]
fn fuse_packed<V: Vector, F: FloatLane>(
    cpu: &mut Cpu,
    op: &Op,
    operands: [V; 3],
    order: Order,
    what: Fused,
) -> Result<(), Fault> {
    let [x, y, z] = ordered(operands, order);
    let result = compute(cpu, |fp| {
        let mut halves = [0; 2];
        z.map_halves(|half, z| {
            halves[half as usize] = z;
            z
        });
        x.zip_halves(y, |half, x, y| {
            float::fused_packed::<F>(fp, what, x, y, halves[half as usize])
        })
    })?;
    result.set(cpu, op, 0);
    Ok(())
}

/// A scalar instruction on these operands.
#[inline(always)]
fn fuse_scalar<F: FloatLane>(
    cpu: &mut Cpu,
    op: &Op,
    operands: [u128; 3],
    order: Order,
    what: Fused,
) -> Result<(), Fault> {
    let result = compute(cpu, |fp| {
        float::fused_scalar::<F>(fp, what, ordered(operands, order), operands[0])
    })?;
    result.set(cpu, op, 0);
    Ok(())
}

macro_rules! packed {
    ($xmm:ident, $ymm:ident, $lane:ty, $order:expr, $what:expr) => {
        [
            packed!(@ $xmm, u128, $lane, $order, $what),
            packed!(@ $ymm, Ymm, $lane, $order, $what),
        ]
    };
    (@ $code:ident, $length:ty, $lane:ty, $order:expr, $what:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let operands = [0, 1, 2].map(|n| <$length>::get(cpu, op, n));
                fuse_packed::<_, $lane>(cpu, op, operands, $order, $what)
            },
            |cpu, env, op| {
                let last = cpu.load::<$length>(env, op)?;
                let operands = [<$length>::get(cpu, op, 0), <$length>::get(cpu, op, 1), last];
                fuse_packed::<_, $lane>(cpu, op, operands, $order, $what)
            }
        )
    };
}

macro_rules! scalar {
    ($code:ident, $lane:ty, $order:expr, $what:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let operands = [0, 1, 2].map(|n| xmm(cpu, op, n));
                fuse_scalar::<$lane>(cpu, op, operands, $order, $what)
            },
            |cpu, env, op| {
                let last = <$lane>::fetch(cpu, env, op)?;
                let operands = [xmm(cpu, op, 0), xmm(cpu, op, 1), last];
                fuse_scalar::<$lane>(cpu, op, operands, $order, $what)
            }
        )
    };
}

/// The packed forms.
pub(super) const PACKED: &[[Form; 2]] = &[
    packed!(VEX_Vfmadd132ps_xmm_xmm_xmmm128, VEX_Vfmadd132ps_ymm_ymm_ymmm256, u32, O132, ADD),
    packed!(VEX_Vfmadd132pd_xmm_xmm_xmmm128, VEX_Vfmadd132pd_ymm_ymm_ymmm256, u64, O132, ADD),
    packed!(VEX_Vfmadd213ps_xmm_xmm_xmmm128, VEX_Vfmadd213ps_ymm_ymm_ymmm256, u32, O213, ADD),
    packed!(VEX_Vfmadd213pd_xmm_xmm_xmmm128, VEX_Vfmadd213pd_ymm_ymm_ymmm256, u64, O213, ADD),
    packed!(VEX_Vfmadd231ps_xmm_xmm_xmmm128, VEX_Vfmadd231ps_ymm_ymm_ymmm256, u32, O231, ADD),
    packed!(VEX_Vfmadd231pd_xmm_xmm_xmmm128, VEX_Vfmadd231pd_ymm_ymm_ymmm256, u64, O231, ADD),
    packed!(VEX_Vfmsub132ps_xmm_xmm_xmmm128, VEX_Vfmsub132ps_ymm_ymm_ymmm256, u32, O132, SUB),
    packed!(VEX_Vfmsub132pd_xmm_xmm_xmmm128, VEX_Vfmsub132pd_ymm_ymm_ymmm256, u64, O132, SUB),
    packed!(VEX_Vfmsub213ps_xmm_xmm_xmmm128, VEX_Vfmsub213ps_ymm_ymm_ymmm256, u32, O213, SUB),
    packed!(VEX_Vfmsub213pd_xmm_xmm_xmmm128, VEX_Vfmsub213pd_ymm_ymm_ymmm256, u64, O213, SUB),
    packed!(VEX_Vfmsub231ps_xmm_xmm_xmmm128, VEX_Vfmsub231ps_ymm_ymm_ymmm256, u32, O231, SUB),
    packed!(VEX_Vfmsub231pd_xmm_xmm_xmmm128, VEX_Vfmsub231pd_ymm_ymm_ymmm256, u64, O231, SUB),
    packed!(
        VEX_Vfnmadd132ps_xmm_xmm_xmmm128,
        VEX_Vfnmadd132ps_ymm_ymm_ymmm256,
        u32,
        O132,
        NEGATED_ADD
    ),
    packed!(
        VEX_Vfnmadd132pd_xmm_xmm_xmmm128,
        VEX_Vfnmadd132pd_ymm_ymm_ymmm256,
        u64,
        O132,
        NEGATED_ADD
    ),
    packed!(
        VEX_Vfnmadd213ps_xmm_xmm_xmmm128,
        VEX_Vfnmadd213ps_ymm_ymm_ymmm256,
        u32,
        O213,
        NEGATED_ADD
    ),
    packed!(
        VEX_Vfnmadd213pd_xmm_xmm_xmmm128,
        VEX_Vfnmadd213pd_ymm_ymm_ymmm256,
        u64,
        O213,
        NEGATED_ADD
    ),
    packed!(
        VEX_Vfnmadd231ps_xmm_xmm_xmmm128,
        VEX_Vfnmadd231ps_ymm_ymm_ymmm256,
        u32,
        O231,
        NEGATED_ADD
    ),
    packed!(
        VEX_Vfnmadd231pd_xmm_xmm_xmmm128,
        VEX_Vfnmadd231pd_ymm_ymm_ymmm256,
        u64,
        O231,
        NEGATED_ADD
    ),
    packed!(
        VEX_Vfnmsub132ps_xmm_xmm_xmmm128,
        VEX_Vfnmsub132ps_ymm_ymm_ymmm256,
        u32,
        O132,
        NEGATED_SUB
    ),
    packed!(
        VEX_Vfnmsub132pd_xmm_xmm_xmmm128,
        VEX_Vfnmsub132pd_ymm_ymm_ymmm256,
        u64,
        O132,
        NEGATED_SUB
    ),
    packed!(
        VEX_Vfnmsub213ps_xmm_xmm_xmmm128,
        VEX_Vfnmsub213ps_ymm_ymm_ymmm256,
        u32,
        O213,
        NEGATED_SUB
    ),
    packed!(
        VEX_Vfnmsub213pd_xmm_xmm_xmmm128,
        VEX_Vfnmsub213pd_ymm_ymm_ymmm256,
        u64,
        O213,
        NEGATED_SUB
    ),
    packed!(
        VEX_Vfnmsub231ps_xmm_xmm_xmmm128,
        VEX_Vfnmsub231ps_ymm_ymm_ymmm256,
        u32,
        O231,
        NEGATED_SUB
    ),
    packed!(
        VEX_Vfnmsub231pd_xmm_xmm_xmmm128,
        VEX_Vfnmsub231pd_ymm_ymm_ymmm256,
        u64,
        O231,
        NEGATED_SUB
    ),
    packed!(
        VEX_Vfmaddsub132ps_xmm_xmm_xmmm128,
        VEX_Vfmaddsub132ps_ymm_ymm_ymmm256,
        u32,
        O132,
        ADD_SUB
    ),
    packed!(
        VEX_Vfmaddsub132pd_xmm_xmm_xmmm128,
        VEX_Vfmaddsub132pd_ymm_ymm_ymmm256,
        u64,
        O132,
        ADD_SUB
    ),
    packed!(
        VEX_Vfmaddsub213ps_xmm_xmm_xmmm128,
        VEX_Vfmaddsub213ps_ymm_ymm_ymmm256,
        u32,
        O213,
        ADD_SUB
    ),
    packed!(
        VEX_Vfmaddsub213pd_xmm_xmm_xmmm128,
        VEX_Vfmaddsub213pd_ymm_ymm_ymmm256,
        u64,
        O213,
        ADD_SUB
    ),
    packed!(
        VEX_Vfmaddsub231ps_xmm_xmm_xmmm128,
        VEX_Vfmaddsub231ps_ymm_ymm_ymmm256,
        u32,
        O231,
        ADD_SUB
    ),
    packed!(
        VEX_Vfmaddsub231pd_xmm_xmm_xmmm128,
        VEX_Vfmaddsub231pd_ymm_ymm_ymmm256,
        u64,
        O231,
        ADD_SUB
    ),
    packed!(
        VEX_Vfmsubadd132ps_xmm_xmm_xmmm128,
        VEX_Vfmsubadd132ps_ymm_ymm_ymmm256,
        u32,
        O132,
        SUB_ADD
    ),
    packed!(
        VEX_Vfmsubadd132pd_xmm_xmm_xmmm128,
        VEX_Vfmsubadd132pd_ymm_ymm_ymmm256,
        u64,
        O132,
        SUB_ADD
    ),
    packed!(
        VEX_Vfmsubadd213ps_xmm_xmm_xmmm128,
        VEX_Vfmsubadd213ps_ymm_ymm_ymmm256,
        u32,
        O213,
        SUB_ADD
    ),
    packed!(
        VEX_Vfmsubadd213pd_xmm_xmm_xmmm128,
        VEX_Vfmsubadd213pd_ymm_ymm_ymmm256,
        u64,
        O213,
        SUB_ADD
    ),
    packed!(
        VEX_Vfmsubadd231ps_xmm_xmm_xmmm128,
        VEX_Vfmsubadd231ps_ymm_ymm_ymmm256,
        u32,
        O231,
        SUB_ADD
    ),
    packed!(
        VEX_Vfmsubadd231pd_xmm_xmm_xmmm128,
        VEX_Vfmsubadd231pd_ymm_ymm_ymmm256,
        u64,
        O231,
        SUB_ADD
    ),
];

/// The scalar forms.
pub(super) const SCALAR: &[Form] = &[
    scalar!(VEX_Vfmadd132ss_xmm_xmm_xmmm32, u32, O132, ADD),
    scalar!(VEX_Vfmadd132sd_xmm_xmm_xmmm64, u64, O132, ADD),
    scalar!(VEX_Vfmadd213ss_xmm_xmm_xmmm32, u32, O213, ADD),
    scalar!(VEX_Vfmadd213sd_xmm_xmm_xmmm64, u64, O213, ADD),
    scalar!(VEX_Vfmadd231ss_xmm_xmm_xmmm32, u32, O231, ADD),
    scalar!(VEX_Vfmadd231sd_xmm_xmm_xmmm64, u64, O231, ADD),
    scalar!(VEX_Vfmsub132ss_xmm_xmm_xmmm32, u32, O132, SUB),
    scalar!(VEX_Vfmsub132sd_xmm_xmm_xmmm64, u64, O132, SUB),
    scalar!(VEX_Vfmsub213ss_xmm_xmm_xmmm32, u32, O213, SUB),
    scalar!(VEX_Vfmsub213sd_xmm_xmm_xmmm64, u64, O213, SUB),
    scalar!(VEX_Vfmsub231ss_xmm_xmm_xmmm32, u32, O231, SUB),
    scalar!(VEX_Vfmsub231sd_xmm_xmm_xmmm64, u64, O231, SUB),
    scalar!(VEX_Vfnmadd132ss_xmm_xmm_xmmm32, u32, O132, NEGATED_ADD),
    scalar!(VEX_Vfnmadd132sd_xmm_xmm_xmmm64, u64, O132, NEGATED_ADD),
    scalar!(VEX_Vfnmadd213ss_xmm_xmm_xmmm32, u32, O213, NEGATED_ADD),
    scalar!(VEX_Vfnmadd213sd_xmm_xmm_xmmm64, u64, O213, NEGATED_ADD),
    scalar!(VEX_Vfnmadd231ss_xmm_xmm_xmmm32, u32, O231, NEGATED_ADD),
    scalar!(VEX_Vfnmadd231sd_xmm_xmm_xmmm64, u64, O231, NEGATED_ADD),
    scalar!(VEX_Vfnmsub132ss_xmm_xmm_xmmm32, u32, O132, NEGATED_SUB),
    scalar!(VEX_Vfnmsub132sd_xmm_xmm_xmmm64, u64, O132, NEGATED_SUB),
    scalar!(VEX_Vfnmsub213ss_xmm_xmm_xmmm32, u32, O213, NEGATED_SUB),
    scalar!(VEX_Vfnmsub213sd_xmm_xmm_xmmm64, u64, O213, NEGATED_SUB),
    scalar!(VEX_Vfnmsub231ss_xmm_xmm_xmmm32, u32, O231, NEGATED_SUB),
    scalar!(VEX_Vfnmsub231sd_xmm_xmm_xmmm64, u64, O231, NEGATED_SUB),
];
