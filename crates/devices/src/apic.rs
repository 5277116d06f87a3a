//! Local APIC, xAPIC and x2APIC (Intel SDM volume 3, chapter 12 "APIC").
//!
//! The timer's input clock is 1 GHz, so an undivided tick is one nanosecond of guest time; CPUID
//! leaf 15H has to give a crystal of the same frequency. The board has one CPU: INIT, start-up and
//! SMI messages are ignored, and arbitration does nothing. There are six LVT entries (no CMCI) and
//! no EOI-broadcast suppression. The state is that after firmware: LINT0 is ExtINT and unmasked,
//! LINT1 is NMI.
//!
//! Periods of the timer that pass unseen coalesce into one interrupt.

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

use crate::impossible;

/// `IA32_APIC_BASE`.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// `IA32_TSC_DEADLINE`.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First MSR of the x2APIC range; register offset = (msr - this) * 16.
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// Last MSR of the x2APIC range.
pub const MSR_X2APIC_LAST: u32 = 0x8ff;
/// Where the registers lie in memory after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;
/// Frequency of the timer's input, in hertz.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// How a message wants to be taken (bits 8 to 10 of ICR, LVT and redirection entries).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// By its vector.
    Fixed,
    /// By its vector, at the CPU with the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Reserved encoding.
    Reserved,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up.
    StartUp,
    /// The vector comes from the 8259 pair.
    ExtInt,
}

impl DeliveryMode {
    /// The mode that bits 8 to 10 of `register` name.
    #[must_use]
    pub fn of(register: u32) -> DeliveryMode {
        use DeliveryMode::*;
        [Fixed, LowestPriority, Smi, Reserved, Nmi, Init, StartUp, ExtInt]
            [(register >> 8 & 7) as usize]
    }
}

/// An interrupt message on its way to a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whom it is for: 8 bits from the I/O APIC.
    pub destination: u32,
    /// The destination is a set of logical identifiers.
    pub is_logical: bool,
    /// How it wants to be taken.
    pub mode: DeliveryMode,
    /// Its vector, for fixed and lowest priority.
    pub vector: u8,
    /// Level triggered: its EOI goes back to the I/O APIC.
    pub is_level: bool,
}

/// The countdown timer, in one-shot and periodic mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicTimerState {
    /// Initial count register.
    pub initial_count: u32,
    /// Divide configuration register: bits 0, 1 and 3.
    pub divide: u32,
    /// When the count reaches zero, in guest ns; `None` if it stands still.
    pub expires_ns: Option<u64>,
    /// `IA32_TSC_DEADLINE`; 0 if not armed.
    pub deadline_tsc: u64,
    /// When the TSC reaches it, in guest ns. Present exactly while `deadline_tsc` is not 0.
    pub deadline_ns: Option<u64>,
    /// TSC minus guest time, wrapping.
    pub tsc_offset: u64,
}

/// Saved state of the local APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicState {
    /// `IA32_APIC_BASE`.
    pub base_msr: u64,
    /// Bits of a physical address.
    pub phys_addr_bits: u8,
    /// Identifier in xAPIC mode. In x2APIC mode it is 0 and cannot be changed.
    pub id: u8,
    /// Task priority.
    pub tpr: u8,
    /// Logical destination, xAPIC mode: bits 24 to 31.
    pub ldr: u32,
    /// Destination format, xAPIC mode: bits 28 to 31.
    pub dfr: u32,
    /// Spurious interrupt vector register.
    pub svr: u32,
    /// In service.
    pub isr: [u32; 8],
    /// Trigger mode of what was accepted: 1 for level.
    pub tmr: [u32; 8],
    /// Requested.
    pub irr: [u32; 8],
    /// Error status as the guest reads it.
    pub esr: u32,
    /// Errors since the guest last wrote the error status.
    pub esr_pending: u32,
    /// Interrupt command.
    pub icr: u64,
    /// LVT: timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; LVT_COUNT],
    /// Levels of the pins LINT0 and LINT1.
    pub lint: [bool; 2],
    /// The timer.
    pub timer: ApicTimerState,
    /// An NMI that the CPU has not taken.
    pub nmi_pending: bool,
    /// Vectors of level interrupts whose EOI the I/O APIC has not seen.
    pub eoi_pending: Option<u8>,
}

impl Saved for ApicState {
    const KIND: &'static str = "local-apic";
    const VERSION: u16 = 1;
}

/// Number of LVT entries.
pub const LVT_COUNT: usize = 6;

/// The local APIC of the one CPU.
#[derive(Debug)]
pub struct Apic {
    state: ApicState,
}

impl Apic {
    /// The state at power-on, for a CPU whose physical addresses have `phys_addr_bits` bits.
    #[must_use]
    pub fn new(phys_addr_bits: u8) -> Apic {
        Apic {
            state: ApicState {
                base_msr: DEFAULT_BASE | BASE_BSP | BASE_ENABLE,
                phys_addr_bits,
                ..reset_state()
            },
        }
    }

    /// Where the registers lie in memory: one page, while the APIC is in xAPIC mode.
    #[must_use]
    pub fn mmio_base(&self) -> Option<u64> {
        (self.mode() == Mode::XApic).then_some(self.state.base_msr & self.base_mask())
    }

    /// False while `IA32_APIC_BASE` disables the APIC; CPUID's APIC bit follows it.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.mode() != Mode::Disabled
    }

    /// Reads `len` bytes at `offset` from [`Apic::mmio_base`].
    pub fn mmio_read(&mut self, now_ns: u64, offset: u64, len: u8) -> u64 {
        let byte = (offset & 0xf) as u32;
        if byte >= 4 {
            return 0;
        }
        let value = match self.read_register(now_ns, (offset & 0xff0) as u32) {
            Some(value) => value as u32,
            None => {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }
        };
        let shifted = u64::from(value >> (byte * 8));
        if len >= 4 { shifted } else { shifted & ((1 << (u32::from(len) * 8)) - 1) }
    }

    /// Writes `len` bytes at `offset` from [`Apic::mmio_base`]. Only whole registers take part: the
    /// manual leaves other accesses undefined, and they do nothing here.
    pub fn mmio_write(&mut self, now_ns: u64, offset: u64, len: u8, value: u64) {
        if offset & 0xf != 0 || len < 4 {
            return;
        }
        let value = value as u32;
        let register = (offset & 0xff0) as u32;
        match register {
            REG_ID => self.state.id = (value >> 24) as u8,
            REG_LDR => self.state.ldr = value & 0xff00_0000,
            REG_DFR => self.state.dfr = value | 0x0fff_ffff,
            REG_EOI => self.eoi(),
            REG_ESR => self.write_esr(),
            REG_ICR_HIGH => {
                self.state.icr =
                    self.state.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            }
            REG_ICR => {
                let high = self.state.icr & 0xffff_ffff_0000_0000;
                self.send_ipi(high | u64::from(value & ICR_LOW_MASK));
            }
            _ => {
                if !self.write_common(now_ns, register, value) {
                    self.error(ESR_ILLEGAL_REGISTER);
                }
            }
        }
    }

    /// Reads an MSR of the APIC. `None` is #GP.
    pub fn msr_read(&mut self, now_ns: u64, msr: u32) -> Option<u64> {
        match msr {
            MSR_APIC_BASE => Some(self.state.base_msr),
            MSR_TSC_DEADLINE => {
                self.handle_time(now_ns);
                Some(self.state.timer.deadline_tsc)
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if self.mode() == Mode::X2Apic => {
                let register = (msr - MSR_X2APIC_FIRST) << 4;
                match register {
                    REG_DFR | REG_ICR_HIGH => None,
                    REG_ICR => Some(self.state.icr),
                    _ => self.read_register(now_ns, register),
                }
            }
            _ => None,
        }
    }

    /// Writes an MSR of the APIC. `None` is #GP.
    pub fn msr_write(&mut self, now_ns: u64, msr: u32, value: u64) -> Option<()> {
        match msr {
            MSR_APIC_BASE => self.write_base(value),
            MSR_TSC_DEADLINE => {
                self.write_deadline(now_ns, value);
                Some(())
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if self.mode() == Mode::X2Apic => {
                self.x2apic_write(now_ns, (msr - MSR_X2APIC_FIRST) << 4, value)
            }
            _ => None,
        }
    }

    /// Task priority class, as CR8 has it.
    #[must_use]
    pub fn task_priority(&self) -> u8 {
        self.state.tpr >> 4
    }

    /// Sets the task priority class from CR8.
    pub fn set_task_priority(&mut self, class: u8) {
        self.state.tpr = class << 4;
    }

    /// Tells of a new TSC offset: TSC = guest ns + `offset`, wrapping.
    pub fn set_tsc_offset(&mut self, now_ns: u64, offset: u64) {
        self.handle_time(now_ns);
        self.state.timer.tsc_offset = offset;
        self.state.timer.deadline_ns = self.deadline_to_ns(now_ns);
        self.handle_time(now_ns);
    }

    /// Takes a message from the bus. False if it is for nobody here.
    pub fn handle_message(&mut self, message: Message) -> bool {
        if !self.is_enabled() || !self.is_destination(message) {
            return false;
        }
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.accept(message.vector, message.is_level)
            }
            DeliveryMode::Nmi => {
                self.state.nmi_pending = true;
                true
            }
            _ => true,
        }
    }

    /// Sets a pin: 0 is LINT0 (the 8259 pair), 1 is LINT1.
    pub fn set_lint(&mut self, pin: usize, level: bool) {
        let risen = level && !self.state.lint[pin];
        self.state.lint[pin] = level;
        if self.is_enabled() {
            self.service_lint(pin, risen);
        }
    }

    /// True if LINT0 lets the 8259 pair interrupt the CPU: it is ExtINT and not masked, or the APIC
    /// is disabled and the pin is INTR itself.
    #[must_use]
    pub fn accepts_ext_int(&self) -> bool {
        let lint0 = self.state.lvt[LVT_LINT0];
        !self.is_enabled()
            || lint0 & LVT_MASKED == 0 && DeliveryMode::of(lint0) == DeliveryMode::ExtInt
    }

    /// True if fixed interrupts are taken: the APIC is enabled by its base register and by software.
    #[must_use]
    pub fn accepts_fixed(&self) -> bool {
        self.is_enabled() && self.state.svr & SVR_ENABLE != 0
    }

    /// True if a requested interrupt has a higher priority than the CPU.
    #[must_use]
    pub fn interrupt_pending(&self) -> bool {
        self.deliverable().is_some()
    }

    /// The interrupt acknowledge cycle: moves the highest request into service. The spurious vector
    /// if there is none.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(vector) = self.deliverable() else { return self.state.svr as u8 };
        clear_bit(&mut self.state.irr, vector);
        set_bit(&mut self.state.isr, vector);
        vector
    }

    /// Takes an NMI.
    pub fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.state.nmi_pending)
    }

    /// True if there is an NMI to take.
    #[must_use]
    pub fn has_nmi(&self) -> bool {
        self.state.nmi_pending
    }

    /// Takes the vector of a level interrupt whose EOI is to be broadcast.
    pub fn take_eoi(&mut self) -> Option<u8> {
        self.state.eoi_pending.take()
    }

    /// When [`Apic::handle_time`] has an interrupt to raise, in guest ns.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        if self.state.lvt[LVT_TIMER] & LVT_MASKED != 0 || !self.is_enabled() {
            return None;
        }
        match self.timer_mode() {
            TimerMode::Deadline => self.state.timer.deadline_ns,
            _ => self.state.timer.expires_ns,
        }
    }

    /// Lets the timer see the time.
    pub fn handle_time(&mut self, now_ns: u64) {
        let expired = match self.timer_mode() {
            TimerMode::Deadline => {
                let expired = self.state.timer.deadline_ns.is_some_and(|at| at <= now_ns);
                if expired {
                    self.disarm_deadline();
                }
                expired
            }
            mode => self.count_down(now_ns, mode == TimerMode::Periodic),
        };
        if expired {
            self.raise_lvt(LVT_TIMER);
        }
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> ApicState {
        self.state.clone()
    }

    /// A local APIC in a saved state.
    ///
    /// # Errors
    /// If no local APIC can be in that state.
    pub fn restore(state: ApicState) -> Result<Apic, RestoreError> {
        let apic = Apic { state };
        let s = &apic.state;
        let bad = |why: &str| Err(impossible(ApicState::KIND, why));
        if !(32..=52).contains(&s.phys_addr_bits) || s.base_msr & apic.base_reserved() != 0 {
            return bad("a reserved bit of the base register is set");
        }
        if s.base_msr & (BASE_ENABLE | BASE_X2APIC) == BASE_X2APIC {
            return bad("x2APIC mode without the APIC");
        }
        if s.svr & !SVR_MASK != 0 || s.lvt.iter().zip(LVT_MASKS).any(|(lvt, mask)| lvt & !mask != 0)
        {
            return bad("a reserved register bit is set");
        }
        if [s.isr[0], s.irr[0], s.tmr[0]].iter().any(|word| word & 0xffff != 0) {
            return bad("a vector below 16 is in use");
        }
        if s.timer.divide & !0xb != 0
            || (s.timer.deadline_tsc != 0) != s.timer.deadline_ns.is_some()
            || s.timer.expires_ns.is_some() && s.timer.initial_count == 0
        {
            return bad("the timer's registers contradict each other");
        }
        Ok(apic)
    }

    fn mode(&self) -> Mode {
        match self.state.base_msr & (BASE_ENABLE | BASE_X2APIC) {
            BASE_ENABLE => Mode::XApic,
            0 | BASE_X2APIC => Mode::Disabled,
            _ => Mode::X2Apic,
        }
    }

    fn base_mask(&self) -> u64 {
        ((1 << self.state.phys_addr_bits) - 1) & !0xfff
    }

    fn base_reserved(&self) -> u64 {
        !(self.base_mask() | BASE_BSP | BASE_ENABLE | BASE_X2APIC)
    }

    fn write_base(&mut self, value: u64) -> Option<()> {
        let old = self.mode();
        if value & self.base_reserved() != 0 {
            return None;
        }
        let new = match value & (BASE_ENABLE | BASE_X2APIC) {
            0 => Mode::Disabled,
            BASE_ENABLE => Mode::XApic,
            BASE_X2APIC => return None,
            _ => Mode::X2Apic,
        };
        if (old, new) == (Mode::X2Apic, Mode::XApic) || (old, new) == (Mode::Disabled, Mode::X2Apic)
        {
            return None;
        }
        self.state.base_msr = value;
        if new == Mode::Disabled && old != Mode::Disabled {
            // CR8 belongs to the CPU and keeps its value; everything else is as after power-on.
            let s = &self.state;
            self.state = ApicState {
                base_msr: s.base_msr,
                phys_addr_bits: s.phys_addr_bits,
                tpr: s.tpr,
                lint: s.lint,
                nmi_pending: s.nmi_pending,
                timer: ApicTimerState { tsc_offset: s.timer.tsc_offset, ..Default::default() },
                ..reset_state()
            };
        }
        if new == Mode::X2Apic && old == Mode::XApic {
            self.state.id = 0;
            self.state.icr &= 0xffff_ffff;
        }
        Some(())
    }

    /// Reads a register that both modes have, except ICR. `None` if there is none.
    fn read_register(&mut self, now_ns: u64, register: u32) -> Option<u64> {
        let x2apic = self.mode() == Mode::X2Apic;
        let s = &self.state;
        let value = match register {
            REG_ID if x2apic => 0,
            REG_ID => u32::from(s.id) << 24,
            REG_VERSION => 0x14 | (LVT_COUNT as u32 - 1) << 16,
            REG_TPR => u32::from(s.tpr),
            REG_PPR => u32::from(self.ppr()),
            REG_ARBITRATION if !x2apic => 0,
            // Write-only. In memory they read as zero.
            REG_EOI if !x2apic => 0,
            REG_LDR if x2apic => 1,
            REG_LDR => s.ldr,
            REG_DFR => s.dfr,
            REG_SVR => s.svr,
            REG_ISR..=0x170 => s.isr[(register - REG_ISR) as usize >> 4],
            REG_TMR..=0x1f0 => s.tmr[(register - REG_TMR) as usize >> 4],
            REG_IRR..=0x270 => s.irr[(register - REG_IRR) as usize >> 4],
            REG_ESR => s.esr,
            REG_ICR => s.icr as u32,
            REG_ICR_HIGH => (s.icr >> 32) as u32,
            REG_LVT..=0x370 => s.lvt[(register - REG_LVT) as usize >> 4],
            REG_INITIAL_COUNT => s.timer.initial_count,
            REG_CURRENT_COUNT => self.current_count(now_ns),
            REG_DIVIDE => s.timer.divide,
            _ => return None,
        };
        Some(u64::from(value))
    }

    /// Writes a register that means the same in both modes. False if there is none.
    fn write_common(&mut self, now_ns: u64, register: u32, value: u32) -> bool {
        match register {
            REG_TPR => self.state.tpr = value as u8,
            REG_SVR => self.write_svr(value & SVR_MASK),
            REG_LVT..=0x370 => self.write_lvt(now_ns, (register - REG_LVT) as usize >> 4, value),
            REG_INITIAL_COUNT => self.write_initial_count(now_ns, value),
            REG_DIVIDE => self.write_divide(now_ns, value & 0xb),
            // Read-only registers take a write and ignore it.
            REG_VERSION | REG_PPR | REG_ARBITRATION | REG_CURRENT_COUNT => {}
            REG_ISR..=0x270 => {}
            _ => return false,
        }
        true
    }

    fn x2apic_write(&mut self, now_ns: u64, register: u32, value: u64) -> Option<()> {
        if register == REG_ICR {
            if value & !(0xffff_ffff_0000_0000 | u64::from(ICR_LOW_MASK | ICR_STATUS)) != 0 {
                return None;
            }
            self.send_ipi(value & !u64::from(ICR_STATUS));
            return Some(());
        }
        let value = u32::try_from(value).ok()?;
        let allowed = match register {
            REG_TPR | REG_SELF_IPI => 0xff,
            REG_EOI | REG_ESR => 0,
            REG_SVR => SVR_MASK,
            REG_LVT..=0x370 => LVT_MASKS[(register - REG_LVT) as usize >> 4] | LVT_STATUS,
            REG_INITIAL_COUNT => u32::MAX,
            REG_DIVIDE => 0xb,
            _ => return None,
        };
        if value & !allowed != 0 {
            return None;
        }
        match register {
            REG_EOI => self.eoi(),
            REG_ESR => self.write_esr(),
            REG_SELF_IPI => {
                self.state.icr = u64::from(value | ICR_SELF);
                self.send_fixed_to_self(value as u8, false);
            }
            _ => {
                self.write_common(now_ns, register, value);
            }
        }
        Some(())
    }

    fn write_svr(&mut self, value: u32) {
        self.state.svr = value;
        if value & SVR_ENABLE == 0 {
            self.state.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
        }
    }

    fn write_lvt(&mut self, now_ns: u64, index: usize, value: u32) {
        let mut value = value & LVT_MASKS[index] & !(LVT_REMOTE_IRR | LVT_STATUS);
        if self.state.svr & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        if index == LVT_TIMER {
            // What expired so far belongs to the old setting.
            self.handle_time(now_ns);
            let was = self.timer_mode();
            self.state.lvt[LVT_TIMER] = value;
            if (was == TimerMode::Deadline) != (self.timer_mode() == TimerMode::Deadline) {
                self.disarm_deadline();
                self.state.timer.expires_ns = None;
                self.state.timer.initial_count = 0;
            }
            return;
        }
        value |= self.state.lvt[index] & LVT_REMOTE_IRR;
        if value & LVT_LEVEL == 0 {
            value &= !LVT_REMOTE_IRR;
        }
        self.state.lvt[index] = value;
        if index == LVT_LINT0 || index == LVT_LINT1 {
            self.service_lint(index - LVT_LINT0, false);
        }
    }

    fn write_esr(&mut self) {
        self.state.esr = std::mem::take(&mut self.state.esr_pending);
    }

    /// Notes an error. The LVT entry fires once per error until the guest writes ESR, so an illegal
    /// vector in that entry ends by itself.
    fn error(&mut self, bit: u32) {
        let is_new = self.state.esr_pending & bit == 0;
        self.state.esr_pending |= bit;
        if is_new {
            self.raise_lvt(LVT_ERROR);
        }
    }

    fn raise_lvt(&mut self, index: usize) {
        let lvt = self.state.lvt[index];
        if lvt & LVT_MASKED == 0 {
            self.accept(lvt as u8, false);
        }
    }

    fn service_lint(&mut self, pin: usize, risen: bool) {
        let lvt = self.state.lvt[LVT_LINT0 + pin];
        if lvt & LVT_MASKED != 0 {
            return;
        }
        match DeliveryMode::of(lvt) {
            DeliveryMode::Nmi if risen => self.state.nmi_pending = true,
            // LINT1 is always edge triggered.
            DeliveryMode::Fixed if pin == 0 && lvt & LVT_LEVEL != 0 => {
                let waits = self.state.lint[pin] && lvt & LVT_REMOTE_IRR == 0;
                if waits && self.accept(lvt as u8, true) {
                    self.state.lvt[LVT_LINT0] |= LVT_REMOTE_IRR;
                }
            }
            DeliveryMode::Fixed if risen => {
                self.accept(lvt as u8, false);
            }
            _ => {}
        }
    }

    /// Takes a vector into IRR. False if the APIC is disabled by software.
    fn accept(&mut self, vector: u8, is_level: bool) -> bool {
        if vector < VECTOR_MIN {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
            return true;
        }
        if self.state.svr & SVR_ENABLE == 0 {
            return false;
        }
        set_bit(&mut self.state.irr, vector);
        if is_level {
            set_bit(&mut self.state.tmr, vector);
        } else {
            clear_bit(&mut self.state.tmr, vector);
        }
        true
    }

    fn eoi(&mut self) {
        let Some(vector) = highest_bit(&self.state.isr) else { return };
        clear_bit(&mut self.state.isr, vector);
        if !bit(&self.state.tmr, vector) {
            return;
        }
        self.state.eoi_pending = Some(vector);
        let lint0 = &mut self.state.lvt[LVT_LINT0];
        if *lint0 & LVT_REMOTE_IRR != 0 && *lint0 as u8 == vector {
            *lint0 &= !LVT_REMOTE_IRR;
            self.service_lint(0, false);
        }
    }

    /// Processor priority: the higher of the task's and of what is in service.
    fn ppr(&self) -> u8 {
        let in_service = highest_bit(&self.state.isr).unwrap_or(0);
        if self.state.tpr >> 4 >= in_service >> 4 { self.state.tpr } else { in_service & 0xf0 }
    }

    fn deliverable(&self) -> Option<u8> {
        if !self.is_enabled() {
            return None;
        }
        highest_bit(&self.state.irr).filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// True if the message addresses this APIC.
    pub(crate) fn is_destination_of(&self, message: Message) -> bool {
        self.is_enabled() && self.is_destination(message)
    }

    fn is_destination(&self, message: Message) -> bool {
        let dest = message.destination;
        let x2apic = self.mode() == Mode::X2Apic;
        // A message from the I/O APIC has 8 bits, and all ones means everybody in both modes.
        if dest == 0xff || x2apic && dest == u32::MAX {
            return true;
        }
        match (x2apic, message.is_logical) {
            (true, false) => dest == 0,
            (false, false) => dest == u32::from(self.state.id),
            // Cluster 0, member 0.
            (true, true) => dest >> 16 == 0 && dest & 1 != 0,
            (false, true) => {
                let ldr = self.state.ldr >> 24;
                match self.state.dfr >> 28 {
                    0xf => dest & ldr != 0,
                    0 => (dest >> 4 == 0xf || dest >> 4 == ldr >> 4) && dest & ldr & 0xf != 0,
                    _ => false,
                }
            }
        }
    }

    fn send_fixed_to_self(&mut self, vector: u8, is_level: bool) {
        if vector < VECTOR_MIN {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
        } else {
            self.accept(vector, is_level);
        }
    }

    fn send_ipi(&mut self, icr: u64) {
        self.state.icr = icr;
        let low = icr as u32;
        let mode = DeliveryMode::of(low);
        let is_fixed = matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if is_fixed && (low as u8) < VECTOR_MIN {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
            return;
        }
        let x2apic = self.mode() == Mode::X2Apic;
        let destination = if x2apic { (icr >> 32) as u32 } else { (icr >> 56) as u32 };
        // In x2APIC mode 0xff is an address like others; only all 32 ones are everybody.
        let misses = x2apic && destination == 0xff;
        let is_for_us = match low >> 18 & 3 {
            0 => {
                let is_logical = low & ICR_LOGICAL != 0;
                let message =
                    Message { destination, is_logical, mode, vector: low as u8, is_level: false };
                if misses { is_logical } else { self.is_destination(message) }
            }
            // All excluding self: nobody is there.
            3 => false,
            _ => true,
        };
        if !is_for_us {
            return;
        }
        match mode {
            // Messages between processors are edge triggered, whatever the register says.
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.accept(low as u8, false);
            }
            DeliveryMode::Nmi => self.state.nmi_pending = true,
            _ => {}
        }
    }

    fn timer_mode(&self) -> TimerMode {
        match self.state.lvt[LVT_TIMER] >> 17 & 3 {
            1 => TimerMode::Periodic,
            2 => TimerMode::Deadline,
            // 3 is reserved.
            _ => TimerMode::OneShot,
        }
    }

    /// Ticks of the input clock to one of the counter: 1 to 128.
    fn divisor(&self) -> u64 {
        let divide = self.state.timer.divide;
        let exponent = (divide & 3 | divide >> 1 & 4) + 1;
        1 << (exponent & 7)
    }

    fn current_count(&mut self, now_ns: u64) -> u32 {
        self.handle_time(now_ns);
        if self.timer_mode() == TimerMode::Deadline {
            return 0;
        }
        let left_ns = self.state.timer.expires_ns.map_or(0, |at| at.saturating_sub(now_ns));
        left_ns.div_ceil(self.divisor()) as u32
    }

    /// True if the count reached zero.
    fn count_down(&mut self, now_ns: u64, is_periodic: bool) -> bool {
        let Some(expires_ns) = self.state.timer.expires_ns.filter(|at| *at <= now_ns) else {
            return false;
        };
        let period_ns = u64::from(self.state.timer.initial_count) * self.divisor();
        self.state.timer.expires_ns = (is_periodic && period_ns != 0).then(|| {
            let periods = (now_ns - expires_ns) / period_ns + 1;
            expires_ns.saturating_add(periods.saturating_mul(period_ns))
        });
        true
    }

    fn write_initial_count(&mut self, now_ns: u64, count: u32) {
        if self.timer_mode() == TimerMode::Deadline {
            return;
        }
        self.handle_time(now_ns);
        self.state.timer.initial_count = count;
        let length_ns = u64::from(count) * self.divisor();
        self.state.timer.expires_ns = (count != 0).then(|| now_ns.saturating_add(length_ns));
    }

    fn write_divide(&mut self, now_ns: u64, value: u32) {
        let count = self.current_count(now_ns);
        self.state.timer.divide = value;
        if self.state.timer.expires_ns.is_some() {
            let left_ns = u64::from(count) * self.divisor();
            self.state.timer.expires_ns = Some(now_ns.saturating_add(left_ns));
        }
    }

    fn write_deadline(&mut self, now_ns: u64, value: u64) {
        if self.timer_mode() != TimerMode::Deadline {
            return;
        }
        self.handle_time(now_ns);
        self.state.timer.deadline_tsc = value;
        self.state.timer.deadline_ns = self.deadline_to_ns(now_ns);
        self.handle_time(now_ns);
    }

    fn deadline_to_ns(&self, now_ns: u64) -> Option<u64> {
        let timer = &self.state.timer;
        let tsc = now_ns.wrapping_add(timer.tsc_offset);
        let left_ns = timer.deadline_tsc.saturating_sub(tsc);
        (timer.deadline_tsc != 0).then(|| now_ns.saturating_add(left_ns))
    }

    fn disarm_deadline(&mut self) {
        self.state.timer.deadline_tsc = 0;
        self.state.timer.deadline_ns = None;
    }
}

/// Everything that a reset sets, with a disabled APIC.
fn reset_state() -> ApicState {
    let mut lvt = [LVT_MASKED; LVT_COUNT];
    lvt[LVT_LINT0] = (DeliveryMode::ExtInt as u32) << 8;
    lvt[LVT_LINT1] = (DeliveryMode::Nmi as u32) << 8;
    ApicState {
        base_msr: 0,
        phys_addr_bits: 0,
        id: 0,
        tpr: 0,
        ldr: 0,
        dfr: u32::MAX,
        svr: 0xff,
        isr: [0; 8],
        tmr: [0; 8],
        irr: [0; 8],
        esr: 0,
        esr_pending: 0,
        icr: 0,
        lvt,
        lint: [false; 2],
        timer: ApicTimerState::default(),
        nmi_pending: false,
        eoi_pending: None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Disabled,
    XApic,
    X2Apic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimerMode {
    OneShot,
    Periodic,
    Deadline,
}

fn bit(words: &[u32; 8], vector: u8) -> bool {
    words[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
}

fn set_bit(words: &mut [u32; 8], vector: u8) {
    words[usize::from(vector >> 5)] |= 1 << (vector & 31);
}

fn clear_bit(words: &mut [u32; 8], vector: u8) {
    words[usize::from(vector >> 5)] &= !(1 << (vector & 31));
}

fn highest_bit(words: &[u32; 8]) -> Option<u8> {
    let index = words.iter().rposition(|word| *word != 0)?;
    Some((index as u32 * 32 + words[index].ilog2()) as u8)
}

const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

const VECTOR_MIN: u8 = 16;

const REG_ID: u32 = 0x20;
const REG_VERSION: u32 = 0x30;
const REG_TPR: u32 = 0x80;
const REG_ARBITRATION: u32 = 0x90;
const REG_PPR: u32 = 0xa0;
const REG_EOI: u32 = 0xb0;
const REG_LDR: u32 = 0xd0;
const REG_DFR: u32 = 0xe0;
const REG_SVR: u32 = 0xf0;
const REG_ISR: u32 = 0x100;
const REG_TMR: u32 = 0x180;
const REG_IRR: u32 = 0x200;
const REG_ESR: u32 = 0x280;
const REG_ICR: u32 = 0x300;
const REG_ICR_HIGH: u32 = 0x310;
const REG_LVT: u32 = 0x320;
const REG_INITIAL_COUNT: u32 = 0x380;
const REG_CURRENT_COUNT: u32 = 0x390;
const REG_DIVIDE: u32 = 0x3e0;
const REG_SELF_IPI: u32 = 0x3f0;

/// Vector, software enable, focus checking.
const SVR_MASK: u32 = 0x3ff;
const SVR_ENABLE: u32 = 1 << 8;

const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// Vector, mode, destination mode, level, trigger and shorthand; the status bit reads as idle.
const ICR_LOW_MASK: u32 = 0x000c_cfff;
const ICR_STATUS: u32 = 1 << 12;
const ICR_LOGICAL: u32 = 1 << 11;
const ICR_SELF: u32 = 1 << 18;

const LVT_TIMER: usize = 0;
const LVT_LINT0: usize = 3;
const LVT_LINT1: usize = 4;
const LVT_ERROR: usize = 5;
const LVT_STATUS: u32 = 1 << 12;
const LVT_REMOTE_IRR: u32 = 1 << 14;
const LVT_LEVEL: u32 = 1 << 15;
const LVT_MASKED: u32 = 1 << 16;
/// The bits that each entry has, without the status bit.
const LVT_MASKS: [u32; LVT_COUNT] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_e7ff, 0x1_e7ff, 0x1_00ff];

#[cfg(test)]
mod tests;
