//! What the x87's computing instructions do to the register stack.

use super::stack::status::{C0, C1, C2, C3};
use super::transcendental::{self, Trig};
use crate::softfloat::{
    self as sf, Class, EXTENDED, Float, Format, FpEnv, IntWidth, Ordering, Parts, Remainder,
    RemainderMode, Rounding, Unpacked, flag,
};
use crate::state::{F80, X87State};

/// The six basic operations: `destination = destination op source`, R meaning reversed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arith {
    Add,
    Mul,
    Sub,
    SubR,
    Div,
    DivR,
}

impl Arith {
    fn compute(self, env: &mut FpEnv, format: Format, a: Unpacked, b: Unpacked) -> Parts {
        match self {
            Arith::Add => sf::add_unpacked(env, format, a, b),
            Arith::Mul => sf::mul_unpacked(env, format, a, b),
            Arith::Sub => sf::sub_unpacked(env, format, a, b),
            Arith::SubR => sf::sub_unpacked(env, format, b, a),
            Arith::Div => sf::div_unpacked(env, format, a, b),
            Arith::DivR => sf::div_unpacked(env, format, b, a),
        }
    }
}

/// An integer operand.
pub(super) fn int_operand(value: i64) -> Unpacked {
    let magnitude = value.unsigned_abs();
    if magnitude == 0 {
        return Unpacked::zero();
    }
    let shift = magnitude.leading_zeros();
    Unpacked::finite(value < 0, 63 - shift as i32, magnitude << shift)
}

impl X87State {
    /// `ST(destination) = ST(destination) op source`, then perhaps a pop.
    pub(super) fn arith(
        &mut self,
        op: Arith,
        destination: u8,
        source: Option<Unpacked>,
        pop: bool,
    ) {
        let (Some(a), Some(b)) = (self.operand(destination), source) else {
            if self.stack_underflow() {
                self.put(destination, F80::DEFAULT_NAN);
                self.pop_times(pop.into());
            }
            return;
        };
        let mut env = self.env();
        let result = op.compute(&mut env, self.precision(), a, b);
        if self.finish(&env) {
            self.put(destination, F80::pack(result));
            self.pop_times(pop.into());
        }
    }

    /// ST(0) = f(ST(0)).
    pub(super) fn unary(&mut self, f: impl FnOnce(&mut FpEnv, Format, Unpacked) -> Parts) {
        let Some(a) = self.operand(0) else {
            if self.stack_underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
            return;
        };
        let mut env = self.env();
        let result = f(&mut env, self.precision(), a);
        if self.finish(&env) {
            self.put(0, F80::pack(result));
        }
    }

    /// ST(1) = f(ST(1), ST(0)), then a pop.
    pub(super) fn binary_pop(&mut self, f: impl FnOnce(&mut FpEnv, &Unpacked, &Unpacked) -> Parts) {
        let (Some(x), Some(y)) = (self.operand(0), self.operand(1)) else {
            if self.stack_underflow() {
                self.put(1, F80::DEFAULT_NAN);
                self.pop();
            }
            return;
        };
        let mut env = self.env();
        let result = f(&mut env, &y, &x);
        if self.finish(&env) {
            self.put(1, F80::pack(result));
            self.pop();
        }
    }

    /// FLD: pushes a value, converted by `convert`. A denormal is pushed even if it is to be reported.
    pub(super) fn load(&mut self, convert: impl FnOnce(&mut FpEnv) -> F80) {
        if !self.is_empty(7) {
            if self.stack_overflow() {
                self.push(F80::DEFAULT_NAN);
            }
            return;
        }
        let mut env = self.env();
        let value = convert(&mut env);
        self.finish(&env);
        if env.flags & !env.masked & flag::IE == 0 {
            self.push(value);
        }
    }

    /// FLD ST(i).
    pub(super) fn load_register(&mut self, i: u8) {
        if self.is_empty(i) {
            if self.stack_underflow() {
                self.push(F80::DEFAULT_NAN);
            }
            return;
        }
        let value = self.st(i);
        self.load(|_| value);
    }

    /// FST ST(i) and FSTP ST(i).
    pub(super) fn store_register(&mut self, i: u8, pop: bool) {
        self.set_c1(false);
        let value = if !self.is_empty(0) {
            self.st(0)
        } else if self.stack_underflow() {
            F80::DEFAULT_NAN
        } else {
            return;
        };
        self.put(i, value);
        self.pop_times(pop.into());
    }

    /// What FST to memory stores: ST(0) through `convert`, or `indefinite` for an empty register.
    /// Changes nothing yet; [`X87State::commit_store`] does.
    pub(super) fn prepare_store<T>(
        &self,
        indefinite: T,
        convert: impl FnOnce(&mut FpEnv, F80) -> T,
    ) -> Prepared<T> {
        let mut env = self.env();
        if self.is_empty(0) {
            env.raise(flag::IE);
            let value = (env.masked & flag::IE != 0).then_some(indefinite);
            return Prepared { value, env, underflow: true };
        }
        let value = convert(&mut env, self.st(0));
        // Overflow and underflow, too, keep an unmasked exception's result from memory. It is not
        // rounded then.
        let stops = env.flags & !env.masked & !flag::PE != 0;
        if stops {
            env.flags &= !flag::PE;
            env.rounded_up = false;
        }
        Prepared { value: (!stops).then_some(value), env, underflow: false }
    }

    /// Notes what a store met, and pops if it took place.
    pub(super) fn commit_store<T>(&mut self, prepared: &Prepared<T>, pop: bool) {
        if prepared.underflow {
            self.stack_underflow();
        } else {
            self.finish(&prepared.env);
        }
        if prepared.value.is_some() {
            self.pop_times(pop.into());
        }
    }

    /// FCOM and its like: C3, C2, C0. An unmasked exception keeps the pops from happening, not the
    /// codes.
    pub(super) fn compare(&mut self, other: Option<Unpacked>, quiet_invalid: bool, pops: u8) {
        let Compared { order, goes_on } = self.order(other, quiet_invalid);
        self.set_codes(match order {
            Ordering::Greater => 0,
            Ordering::Less => C0,
            Ordering::Equal => C3,
            Ordering::Unordered => C3 | C2 | C0,
        });
        if goes_on {
            self.pop_times(pops);
        }
    }

    /// The order of ST(0) and `other`. An empty register is unordered.
    pub(super) fn order(&mut self, other: Option<Unpacked>, quiet_invalid: bool) -> Compared {
        let (Some(a), Some(b)) = (self.operand(0), other) else {
            return Compared { order: Ordering::Unordered, goes_on: self.stack_underflow() };
        };
        let mut env = self.env();
        let order = sf::compare_unpacked(&mut env, &a, &b, quiet_invalid);
        Compared { order, goes_on: self.finish(&env) }
    }

    /// FXAM: the class of ST(0), and its sign in C1 even if it is empty.
    pub(super) fn examine(&mut self) {
        let value = self.st(0);
        let unpacked = value.unpack();
        let codes = match unpacked.class {
            _ if self.is_empty(0) => C3 | C0,
            Class::Unsupported => 0,
            Class::Quiet | Class::Signaling => C0,
            Class::Finite if unpacked.denormal => C3 | C2,
            Class::Finite => C2,
            Class::Infinity => C2 | C0,
            Class::Zero => C3,
        };
        self.set_codes(codes);
        self.set_c1(value.sign());
    }

    /// FCHS and FABS: the sign of ST(0), without a look at its value.
    pub(super) fn set_sign(&mut self, sign: impl FnOnce(bool) -> bool) {
        self.set_c1(false);
        if self.is_empty(0) {
            if self.stack_underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
            return;
        }
        let mut value = self.st(0);
        value.sign_exponent = value.sign_exponent & 0x7fff | u16::from(sign(value.sign())) << 15;
        self.put(0, value);
    }

    /// FXCH. An empty register counts as the default NaN.
    pub(super) fn exchange(&mut self, i: u8) {
        self.set_c1(false);
        if (self.is_empty(0) || self.is_empty(i)) && !self.stack_underflow() {
            return;
        }
        let value = |x87: &X87State, i| if x87.is_empty(i) { F80::DEFAULT_NAN } else { x87.st(i) };
        let (first, other) = (value(self, 0), value(self, i));
        self.put(0, other);
        self.put(i, first);
    }

    /// FCMOVcc.
    pub(super) fn move_if(&mut self, i: u8, condition: bool) {
        if self.is_empty(0) || self.is_empty(i) {
            if self.stack_underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
        } else if condition {
            self.put(0, self.st(i));
        }
    }

    /// FRNDINT.
    pub(super) fn round_to_integral(&mut self) {
        let value = self.st(0);
        self.unary(|env, _, _| {
            let rounding = env.rounding;
            parts_of(sf::round_to_integral(env, value, rounding, flag::PE | flag::DE))
        });
    }

    /// FSTP as D9 D8: an empty register is popped without a fault or a store.
    pub(super) fn store_register_unchecked(&mut self, i: u8) {
        if self.is_empty(0) {
            self.set_c1(false);
            self.pop();
        } else {
            self.store_register(i, true);
        }
    }

    /// FPREM and FPREM1: the quotient's low bits go to C0 (bit 2), C3 (bit 1) and C1 (bit 0). A NaN
    /// leaves C0 and C3 alone.
    pub(super) fn remainder(&mut self, mode: RemainderMode) {
        self.set_c2(false);
        let (Some(a), Some(b)) = (self.operand(0), self.operand(1)) else {
            if self.stack_underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
            return;
        };
        let mut env = self.env();
        let Remainder { value, quotient } = sf::remainder(&mut env, mode, a, b);
        if !self.finish(&env) {
            return;
        }
        self.put(0, F80::pack(value));
        if value.is_nan() {
            return;
        }
        let bits = quotient.unwrap_or(0);
        let code = |bit: u64, code: u16| if bits >> bit & 1 != 0 { code } else { 0 };
        let incomplete = if quotient.is_none() { C2 } else { 0 };
        self.set_codes(code(2, C0) | code(1, C3) | incomplete);
        self.set_c1(code(0, C1) != 0);
    }

    /// FSCALE: ST(0) times two to the power of ST(1), cut to an integer.
    pub(super) fn scale(&mut self) {
        let Some(by) = self.operand(1) else {
            if self.stack_underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
            return;
        };
        self.unary(|env, _, a| scaled(env, a, by));
    }

    /// FXTRACT: the exponent replaces ST(0), the significand is pushed.
    pub(super) fn extract(&mut self) {
        let Some(a) = self.operand_with_room() else { return };
        let mut env = self.env();
        let (exponent, significand) = extracted(&mut env, &a);
        if self.finish(&env) {
            self.put(0, F80::pack(exponent));
            self.push(F80::pack(significand));
        }
    }

    /// FSIN and FCOS; C2 if the argument is too large.
    pub(super) fn trig(&mut self, function: Trig) {
        self.set_c2(false);
        let Some(a) = self.operand(0) else {
            if self.stack_underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
            return;
        };
        let mut env = self.env();
        let result = transcendental::trig(&mut env, function, &a);
        self.set_c2(result.is_none());
        if self.finish(&env)
            && let Some(result) = result
        {
            self.put(0, F80::pack(result));
        }
    }

    /// FPTAN and FSINCOS: a result, and another that is pushed.
    pub(super) fn trig_pair(&mut self, function: Trig, pushed: Trig) {
        self.set_c2(false);
        let Some(a) = self.operand_with_room() else { return };
        let mut env = self.env();
        let result = transcendental::trig(&mut env, function, &a);
        self.set_c2(result.is_none());
        let above = match pushed {
            _ if a.class >= Class::Infinity => result,
            Trig::Tan => Some(Parts { sign: false, exp: 0, sig: 1 << 63 }),
            _ => transcendental::trig(&mut env, pushed, &a),
        };
        if self.finish(&env)
            && let (Some(result), Some(above)) = (result, above)
        {
            self.put(0, F80::pack(result));
            self.push(F80::pack(above));
        }
    }

    /// ST(0) for an instruction that also pushes, its stack faults dealt with.
    fn operand_with_room(&mut self) -> Option<Unpacked> {
        let operand = self.operand(0);
        let masked = match (&operand, self.is_empty(7)) {
            (Some(_), true) => return operand,
            (None, _) => self.stack_underflow(),
            (Some(_), false) => self.stack_overflow(),
        };
        if masked {
            self.put(0, F80::DEFAULT_NAN);
            self.push(F80::DEFAULT_NAN);
        }
        None
    }
}

/// What a comparison found.
pub(super) struct Compared {
    pub(super) order: Ordering,
    /// No unmasked exception: pops take place.
    pub(super) goes_on: bool,
}

/// A store to memory, computed but not yet done.
pub(super) struct Prepared<T> {
    /// What to store; `None` if an unmasked exception forbids it.
    pub(super) value: Option<T>,
    env: FpEnv,
    underflow: bool,
}

/// ST(0) as FST stores it in another format. Denormal operands are not noted.
pub(super) fn store_float<F: Float>(env: &mut FpEnv, value: F80) -> F {
    let result = sf::convert(env, value);
    env.flags &= !flag::DE;
    result
}

/// ST(0) as FIST stores it.
pub(super) fn store_int(env: &mut FpEnv, value: F80, width: IntWidth, rounding: Rounding) -> i64 {
    let result = sf::to_int(env, value.unpack(), rounding, width);
    if rounding == Rounding::Zero {
        env.rounded_up = false;
    }
    result
}

/// Eighteen digits in ten bytes, with the sign in the top one.
pub(super) const PACKED_INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;

/// ST(0) as FBSTP stores it.
pub(super) fn store_packed(env: &mut FpEnv, value: F80) -> u128 {
    const LIMIT: u64 = 1_000_000_000_000_000_000;
    let unpacked = value.unpack();
    // No 64-bit integer is out of FIST's range that is in this one.
    let mut trial = FpEnv { flags: 0, ..*env };
    let integer = sf::to_int(&mut trial, unpacked, env.rounding, IntWidth::I64);
    let mut magnitude = integer.unsigned_abs();
    if trial.flags & flag::IE != 0 || magnitude >= LIMIT {
        env.raise(flag::IE);
        return PACKED_INDEFINITE;
    }
    env.raise(trial.flags);
    env.rounded_up = trial.rounded_up;
    let mut packed = u128::from(unpacked.sign) << 79;
    for digit in 0..18 {
        packed |= u128::from(magnitude % 10) << (4 * digit);
        magnitude /= 10;
    }
    packed
}

/// What FBLD loads. A digit above 9 counts as its value (the SDM leaves it undefined).
pub(super) fn load_packed(packed: u128) -> F80 {
    let magnitude =
        (0..18).rev().fold(0u64, |sum, digit| sum * 10 + (packed >> (4 * digit) & 15) as u64);
    let value = parts_of_int(magnitude);
    F80::pack(Parts { sign: packed >> 79 & 1 != 0, ..value })
}

fn parts_of_int(magnitude: u64) -> Parts {
    if magnitude == 0 {
        return Parts::zero(false);
    }
    let shift = magnitude.leading_zeros();
    Parts { sign: false, exp: 63 - shift as i32, sig: magnitude << shift }
}

/// The parts of a value that has this format already.
fn parts_of(value: F80) -> Parts {
    let unpacked = value.unpack();
    match unpacked.class {
        Class::Finite if unpacked.denormal => {
            Parts { sign: unpacked.sign, exp: EXTENDED.exp_min, sig: value.significand }
        }
        _ => unpacked.to_parts(),
    }
}

fn scaled(env: &mut FpEnv, a: Unpacked, by: Unpacked) -> Parts {
    if a.class.max(by.class) >= Class::Quiet {
        return env.pick_nan(&a, &by);
    }
    match (by.class, a.class) {
        (Class::Infinity, Class::Zero) if !by.sign => return env.invalid(),
        (Class::Infinity, Class::Infinity) if by.sign => return env.invalid(),
        _ => {}
    }
    if a.denormal || by.denormal {
        env.raise(flag::DE);
    }
    match (by.class, a.class) {
        (_, Class::Infinity | Class::Zero) => a.to_parts(),
        (Class::Infinity, _) if by.sign => Parts::zero(a.sign),
        (Class::Infinity, _) => Parts::infinity(a.sign),
        _ => {
            // Beyond 2^17 nothing but overflow or underflow is left.
            const FAR: i64 = 1 << 17;
            let power = sf::to_int(&mut FpEnv { ..*env }, by, Rounding::Zero, IntWidth::I64);
            let power = match by.exp {
                ..=16 => power,
                _ if by.sign => -FAR,
                _ => FAR,
            };
            env.round(EXTENDED, a.sign, a.exp + power as i32, u128::from(a.sig) << 64)
        }
    }
}

fn extracted(env: &mut FpEnv, a: &Unpacked) -> (Parts, Parts) {
    match a.class {
        Class::Quiet | Class::Signaling | Class::Unsupported => {
            let nan = env.pick_nan(a, a);
            (nan, nan)
        }
        Class::Infinity => (Parts::infinity(false), a.to_parts()),
        Class::Zero => {
            env.raise(flag::ZE);
            (Parts::infinity(true), a.to_parts())
        }
        Class::Finite => {
            if a.denormal {
                env.raise(flag::DE);
            }
            let exponent = parts_of_int(a.exp.unsigned_abs().into());
            (Parts { sign: a.exp < 0, ..exponent }, Parts { sign: a.sign, exp: 0, sig: a.sig })
        }
    }
}
