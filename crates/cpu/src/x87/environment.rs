//! Control instructions of the x87: control and status word, FSTENV, FSAVE and what loads them.

use x86::{Cr0, Vector};

use crate::op::{Env, Fault, Op};
use crate::state::{F80, X87State};
use crate::{Cpu, Word};

impl Cpu {
    /// What a waiting instruction does first: #MF if an unmasked exception is pending.
    #[inline(always)]
    pub(crate) fn raise_pending_x87(&mut self) -> Result<(), Fault> {
        if self.x87.status & super::stack::status::ES != 0 && self.sys().cr0 & Cr0::NE != 0 {
            return Err(self.fault(Vector::MF));
        }
        Ok(())
    }
}

/// The layout of FSTENV's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// 28 bytes rather than 14.
    wide: bool,
    /// Protected mode's rather than that of real and virtual 8086 mode.
    protected: bool,
}

impl Layout {
    fn of(cpu: &Cpu, wide: bool) -> Layout {
        Layout { wide, protected: cpu.is_protected() }
    }

    fn len(self) -> usize {
        if self.wide { 28 } else { 14 }
    }

    /// The seven words of the image.
    fn words(self, x87: &X87State) -> [u32; 7] {
        let (ip, dp) = (x87.ip as u32, x87.dp as u32);
        let (opcode, cs, ds) = (u32::from(x87.opcode), u32::from(x87.cs), u32::from(x87.ds));
        let pointers = match (self.protected, self.wide) {
            (true, _) => [ip, cs | opcode << 16, dp, ds],
            (false, true) => [ip & 0xffff, ip >> 16 << 12 | opcode, dp & 0xffff, dp >> 16 << 12],
            (false, false) => [ip, ip >> 4 & 0xf000 | opcode, dp, dp >> 4 & 0xf000],
        };
        let mut words = [0; 7];
        words[0] = x87.control.into();
        words[1] = x87.status.into();
        words[2] = x87.tag_word().into();
        words[3..].copy_from_slice(&pointers);
        // Reserved halves read as ones.
        for reserved in [0, 1, 2, 6] {
            words[reserved] |= if reserved == 6 && !self.protected { 0 } else { 0xffff_0000 };
        }
        words
    }

    fn encode(self, x87: &X87State) -> Vec<u8> {
        let words = self.words(x87);
        if self.wide {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        } else {
            words.iter().flat_map(|word| (*word as u16).to_le_bytes()).collect()
        }
    }

    fn decode(self, bytes: &[u8], x87: &mut X87State) {
        let word = |n: usize| -> u32 {
            if self.wide {
                let (words, _) = bytes.as_chunks();
                u32::from_le_bytes(words[n])
            } else {
                let (words, _) = bytes.as_chunks();
                u16::from_le_bytes(words[n]).into()
            }
        };
        x87.set_tag_word(word(2) as u16);
        x87.status = word(1) as u16;
        x87.set_control(word(0) as u16);
        let (ip, dp) = match (self.protected, self.wide) {
            (true, _) => (word(3), word(5)),
            (false, true) => {
                let high = |n| (word(n) >> 12 & 0xffff) << 16;
                (word(3) & 0xffff | high(4), word(5) & 0xffff | high(6))
            }
            (false, false) => (word(3) | word(4) >> 12 << 16, word(5) | word(6) >> 12 << 16),
        };
        x87.ip = ip.into();
        x87.dp = dp.into();
        x87.cs = 0;
        x87.ds = 0;
        x87.opcode = 0;
    }
}

/// FSTENV masks all exceptions after storing.
pub(super) fn fnstenv(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let layout = Layout::of(cpu, wide);
    let image = layout.encode(&cpu.x87);
    store_image(cpu, env, op, &image, wide)?;
    cpu.x87.set_control(cpu.x87.control | 0x3f);
    Ok(())
}

pub(super) fn fldenv(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    let layout = Layout::of(cpu, wide);
    let mut image = [0; 28];
    let image = &mut image[..layout.len()];
    load_image(cpu, env, op, image, wide)?;
    layout.decode(image, &mut cpu.x87);
    Ok(())
}

/// The environment, then ST(0) to ST(7); the FPU is left as after FNINIT.
pub(super) fn fnsave(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let mut image = Layout::of(cpu, wide).encode(&cpu.x87);
    for i in 0..8 {
        image.extend_from_slice(&cpu.x87.st(i).to_bits().to_le_bytes()[..10]);
    }
    store_image(cpu, env, op, &image, wide)?;
    cpu.x87.init();
    Ok(())
}

pub(super) fn frstor(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    let layout = Layout::of(cpu, wide);
    let mut image = [0; 108];
    let image = &mut image[..layout.len() + 80];
    load_image(cpu, env, op, image, wide)?;
    let (environment, registers) = image.split_at(layout.len());
    layout.decode(environment, &mut cpu.x87);
    let top = cpu.x87.top();
    let (registers, _) = registers.as_chunks::<10>();
    for (i, bytes) in registers.iter().enumerate() {
        let mut bits = [0; 16];
        bits[..10].copy_from_slice(bytes);
        let register = (usize::from(top) + i) & 7;
        cpu.x87.regs[register] = F80::from_bits(u128::from_le_bytes(bits));
    }
    Ok(())
}

/// Stores an image word by word, so that alignment is checked as for its words.
fn store_image(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    image: &[u8],
    wide: bool,
) -> Result<(), Fault> {
    let linear = cpu.linear(op, image.len() as u32, true)?;
    let stack = op.has(Op::STACK);
    cpu.check_store(env, linear, image.len() as u32, stack)?;
    let at = |cpu: &Cpu, offset: usize| cpu.wrap(linear.wrapping_add(offset as u64));
    let (halves, _) = image.as_chunks::<2>();
    let (words, _) = image.as_chunks::<4>();
    if wide {
        for (n, word) in words.iter().enumerate() {
            let to = at(cpu, 4 * n);
            cpu.store_linear(env, to, u32::from_le_bytes(*word), stack)?;
        }
    } else {
        for (n, half) in halves.iter().enumerate() {
            let to = at(cpu, 2 * n);
            cpu.store_linear(env, to, u16::from_le_bytes(*half), stack)?;
        }
    }
    Ok(())
}

fn load_image(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    image: &mut [u8],
    wide: bool,
) -> Result<(), Fault> {
    let linear = cpu.linear(op, image.len() as u32, false)?;
    let stack = op.has(Op::STACK);
    let at = |cpu: &Cpu, offset: usize| cpu.wrap(linear.wrapping_add(offset as u64));
    for (n, bytes) in image.chunks_exact_mut(if wide { 4 } else { 2 }).enumerate() {
        let from = at(cpu, n * bytes.len());
        if wide {
            bytes.copy_from_slice(&cpu.load_linear::<u32>(env, from, stack)?.to_le_bytes());
        } else {
            bytes.copy_from_slice(&cpu.load_linear::<u16>(env, from, stack)?.to_le_bytes());
        }
    }
    Ok(())
}

pub(super) fn fldcw(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    let control = cpu.load(env, op)?;
    cpu.x87.set_control(control);
    Ok(())
}

pub(super) fn fnstcw(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.store(env, op, cpu.x87.control)
}

pub(super) fn fnstsw(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.store(env, op, cpu.x87.status)
}

pub(super) fn fnstsw_ax(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    u16::set(cpu, 0, cpu.x87.status);
    Ok(())
}

pub(super) fn fninit(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.x87.init();
    Ok(())
}

pub(super) fn fnclex(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    // The six exceptions, the stack fault, ES and B.
    cpu.x87.status &= 0x7f00;
    Ok(())
}

pub(super) fn wait(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()
}

/// FNENI, FNDISI, FNSETPM: without effect since the 387.
pub(super) fn nothing(_: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    Ok(())
}
