//! The board: which device answers at which address, what its interrupt line is, and when it next
//! needs the time. `docs/board.md` has the map.

use std::collections::VecDeque;

use base::{Gpa, Icount, RestoreError};
use cpu::Bus;
use devices::PowerRequest;
use devices::acpi::AcpiConfig;
use devices::debug_exit::{DebugExit, DebugExitState, TestEffect};
use devices::fw_cfg::{FwCfg, FwCfgState};
use devices::i8042::{I8042, I8042State};
use devices::interrupts::{Interrupts, InterruptsState};
use devices::layout::{IRQ_COM1, IRQ_RTC, IRQ_SCI, IRQ_TIMER, PORT_COM1};
use devices::pit::{Pit, PitState};
use devices::pm::{Pm, PmState};
use devices::reset::{ResetPorts, ResetState, is_pci_address};
use devices::rtc::{Rtc, RtcConfig, RtcState};
use devices::uart::{Uart, UartState};
use mem::{GuestMem, LOW_RAM_MAX};
use serde::{Deserialize, Serialize};

use crate::boot::{BoardTables, layout};
use crate::clock::{Clock, ClockMode};
use crate::config::MachineConfig;
use crate::event::{Console, Control, Event, Output};
use crate::machine::Off;
use crate::slots::{Slots, SlotsState};

/// Serial output is handed out when this many bytes wait.
const SERIAL_BATCH_BYTES: usize = 1024;
/// Serial output is handed out when it has waited this long, in guest nanoseconds.
const SERIAL_DELAY_NS: u64 = 1_000_000;
/// Frames that the guest sends are handed out when they have waited this long, in guest nanoseconds, or when
/// the guest halts: so that one output, and one kick by the guest, stands for many.
const FRAMES_DELAY_NS: u64 = 50_000;
/// How often in a row a virtual clock jumps without the CPU waking: a guest that sleeps with its
/// interrupts off while a timer ticks is as good as dead, and `run` has to end.
const JUMPS_MAX: u32 = 1 << 16;

/// Bits of a physical address that CPUID shows.
const PHYS_ADDR_BITS: u8 = x86::cpuid::PHYSICAL_ADDRESS_BITS as u8;

/// What the guest wants of the power switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Power {
    Reset,
    Off(Off),
}

/// What the board itself remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct OwnState {
    clock: Clock,
    /// Serial bytes that were not handed out yet. Fewer than [`SERIAL_BATCH_BYTES`].
    serial: Vec<u8>,
    /// When they have waited long enough.
    serial_due_ns: Option<u64>,
    /// When the frames that network devices have to send have waited long enough.
    frames_due_ns: Option<u64>,
    /// Outputs that nobody has polled yet.
    outputs: VecDeque<Output>,
    power: Option<Power>,
    off: Option<Off>,
    /// Jumps of the virtual clock since the CPU last ran.
    jumps: u32,
}

/// Saved state of everything on the board but CPU and RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BoardState {
    own: OwnState,
    interrupts: InterruptsState,
    uart: UartState,
    pit: PitState,
    rtc: RtcState,
    pm: PmState,
    i8042: I8042State,
    reset_ports: ResetState,
    fw_cfg: FwCfgState,
    debug_exit: Option<DebugExitState>,
    slots: SlotsState,
}

/// Everything on the board but CPU and RAM.
#[derive(Debug)]
pub(crate) struct Board {
    own: OwnState,
    interrupts: Interrupts,
    uart: Uart,
    pit: Pit,
    rtc: Rtc,
    pm: Pm,
    i8042: I8042,
    reset_ports: ResetPorts,
    fw_cfg: FwCfg,
    debug_exit: Option<DebugExit>,
    slots: Slots,
    mode: ClockMode,
    /// Where the running slice ends: an earlier deadline has to stop it.
    slice_end: Icount,
    stop_requested: bool,
}

impl Board {
    pub(crate) fn new(config: &MachineConfig) -> Board {
        Board {
            own: OwnState::default(),
            interrupts: Interrupts::new(PHYS_ADDR_BITS),
            uart: Uart::new(),
            pit: Pit::new(),
            rtc: Rtc::new(rtc_config(config)),
            pm: Pm::new(),
            i8042: I8042::new(),
            reset_ports: ResetPorts::new(),
            fw_cfg: FwCfg::new(config.ram_bytes),
            debug_exit: config.debug_exit.then(DebugExit::new),
            slots: Slots::new(config),
            mode: config.clock,
            slice_end: Icount(0),
            stop_requested: false,
        }
    }

    pub(crate) fn state(&self) -> BoardState {
        BoardState {
            own: self.own.clone(),
            interrupts: self.interrupts.state(),
            uart: self.uart.state(),
            pit: self.pit.state(),
            rtc: self.rtc.state(),
            pm: self.pm.state(),
            i8042: self.i8042.state(),
            reset_ports: self.reset_ports.state(),
            fw_cfg: self.fw_cfg.state(),
            debug_exit: self.debug_exit.as_ref().map(DebugExit::state),
            slots: self.slots.state(),
        }
    }

    pub(crate) fn restore(
        config: &MachineConfig,
        mem: &GuestMem,
        state: BoardState,
    ) -> Result<Board, RestoreError> {
        Ok(Board {
            own: state.own,
            interrupts: Interrupts::restore(state.interrupts)?,
            uart: Uart::restore(state.uart)?,
            pit: Pit::restore(state.pit)?,
            rtc: Rtc::restore(state.rtc)?,
            pm: Pm::restore(state.pm)?,
            i8042: I8042::restore(state.i8042)?,
            reset_ports: ResetPorts::restore(state.reset_ports)?,
            fw_cfg: FwCfg::new(config.ram_bytes).restore(state.fw_cfg)?,
            debug_exit: state.debug_exit.map(DebugExit::restore).transpose()?,
            slots: Slots::restore(config, mem, state.slots)?,
            ..Board::new(config)
        })
    }

    /// Power-cycles the devices. Guest time, outputs and the disks' requests in flight stay.
    pub(crate) fn reset(&mut self, mem: &mut GuestMem, config: &MachineConfig) {
        self.flush_serial();
        self.send_frames(mem);
        let mut old = std::mem::replace(self, Board::new(config));
        old.slots.reset();
        self.slots = old.slots;
        self.own = OwnState { power: None, ..old.own };
    }

    /// Guest time at `icount`.
    pub(crate) fn ns_at(&self, icount: Icount) -> u64 {
        self.own.clock.ns_at(icount)
    }

    pub(crate) fn off(&self) -> Option<Off> {
        self.own.off
    }

    pub(crate) fn set_off(&mut self, mem: &mut GuestMem, off: Off) {
        self.flush_serial();
        self.send_frames(mem);
        self.own.off = Some(off);
    }

    pub(crate) fn take_power(&mut self) -> Option<Power> {
        self.own.power.take()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.own.outputs.is_empty()
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.own.outputs.pop_front()
    }

    pub(crate) fn console_room(&self, console: Console) -> usize {
        match console {
            Console::Serial => self.uart.room(),
            Console::Virtio => self.slots.console_room(),
        }
    }

    pub(crate) fn unfinished_requests(&self) -> Vec<Output> {
        self.slots.unfinished_requests()
    }

    /// True if an NMI waits to be taken.
    pub(crate) fn has_nmi(&self) -> bool {
        self.interrupts.apic().has_nmi()
    }

    /// Guest time of the next timer.
    pub(crate) fn next_deadline_ns(&self) -> Option<u64> {
        let deadlines = [
            self.interrupts.next_deadline_ns(),
            self.pit.next_deadline_ns(),
            self.rtc.next_deadline_ns(),
            self.pm.next_deadline_ns(),
            self.own.serial_due_ns,
            self.own.frames_due_ns,
        ];
        deadlines.into_iter().flatten().min()
    }

    fn next_deadline(&self) -> Icount {
        self.next_deadline_ns().map_or(Icount::MAX, |ns| self.own.clock.icount_at(ns))
    }

    /// Prepares for the CPU to run: returns where it has to stop, `until` or an earlier timer.
    pub(crate) fn begin_slice(&mut self, until: Icount) -> Icount {
        self.stop_requested = false;
        self.own.jumps = 0;
        self.slice_end = until.min(self.next_deadline());
        self.slice_end
    }

    /// Lets every timer see the time, in this order.
    pub(crate) fn handle_time(&mut self, mem: &mut GuestMem, now: Icount) {
        let now_ns = self.ns_at(now);
        self.interrupts.handle_time(now_ns);
        self.pit.handle_time(now_ns);
        self.rtc.handle_time(now_ns);
        self.pm.handle_time(now_ns);
        if self.own.serial_due_ns.is_some_and(|due| due <= now_ns) {
            self.flush_serial();
        }
        if self.own.frames_due_ns.is_some_and(|due| due <= now_ns) {
            self.send_frames(mem);
        }
        self.update_lines();
    }

    /// The CPU waits in HLT: hands out what it wrote and sends what waits, and with a virtual clock jumps to
    /// the next deadline, unless an answer is awaited from outside. Returns true if it may wait no longer.
    pub(crate) fn handle_halt(&mut self, mem: &mut GuestMem, now: Icount) -> bool {
        self.flush_serial();
        if self.own.frames_due_ns.is_some() {
            self.send_frames(mem);
            self.update_lines();
            return true;
        }
        let stays = self.mode == ClockMode::Real || self.slots.awaits_answer();
        if stays || self.own.jumps >= JUMPS_MAX {
            return false;
        }
        let Some(deadline_ns) = self.next_deadline_ns() else { return false };
        self.own.jumps += 1;
        self.own.clock.jump_to(now, deadline_ns);
        true
    }

    pub(crate) fn set_anchor(
        &mut self,
        mem: &mut GuestMem,
        now: Icount,
        guest_ns: u64,
        ns_per_step_q32: u64,
    ) {
        self.own.jumps = 0;
        self.own.clock.set_anchor(now, guest_ns, ns_per_step_q32);
        self.handle_time(mem, now);
    }

    /// Any event but an anchor and a reset.
    pub(crate) fn handle_event(&mut self, mem: &mut GuestMem, event: Event) {
        self.own.jumps = 0;
        match event {
            Event::ConsoleInput { console: Console::Serial, bytes } => {
                // The shell asks for room first; what is too much was lost on the wire.
                let _ = self.uart.handle_rx(&bytes);
            }
            Event::ConsoleInput { console: Console::Virtio, bytes } => {
                self.slots.handle_console_input(mem, &bytes);
            }
            Event::FramesReceived { nic, frames } => self.slots.handle_frames(mem, nic, frames),
            Event::DiskDone { disk, request, result } => {
                self.slots.handle_disk_done(mem, disk, request, &result);
            }
            Event::Entropy { bytes } => self.slots.handle_entropy(mem, &bytes),
            Event::Control(Control::PowerButton) => self.pm.handle_power_button(),
            Event::Control(Control::PowerOff) => self.set_off(mem, Off::PoweredOff),
            Event::Control(Control::Announce) => self.slots.handle_announce(),
            Event::Control(Control::Reset) | Event::Anchor { .. } => {
                unreachable!("the machine handles these itself")
            }
        }
        self.slots.collect_outputs(&mut self.own.outputs);
        self.update_lines();
    }

    /// The ACPI tables, for the place where a PC's firmware keeps them.
    pub(crate) fn tables(&self) -> BoardTables {
        let config = AcpiConfig { base: Gpa(layout::FIRMWARE), virtio_count: self.slots.count() };
        let tables = devices::acpi::build(config);
        BoardTables { rsdp: tables.rsdp, pieces: tables.pieces }
    }

    fn send_frames(&mut self, mem: &mut GuestMem) {
        self.own.frames_due_ns = None;
        self.slots.send_frames(mem);
        self.slots.collect_outputs(&mut self.own.outputs);
    }

    fn flush_serial(&mut self) {
        self.own.serial_due_ns = None;
        if !self.own.serial.is_empty() {
            let bytes = std::mem::take(&mut self.own.serial);
            self.own.outputs.push_back(Output::ConsoleOutput { console: Console::Serial, bytes });
        }
    }

    fn collect_serial(&mut self, now_ns: u64) {
        if !self.uart.has_tx() {
            return;
        }
        self.own.serial.extend(self.uart.take_tx());
        if self.own.serial.len() >= SERIAL_BATCH_BYTES {
            self.flush_serial();
        } else if self.own.serial_due_ns.is_none() {
            self.own.serial_due_ns = Some(now_ns + SERIAL_DELAY_NS);
        }
    }

    fn update_lines(&mut self) {
        if self.pit.take_irq_edge() {
            self.interrupts.pulse_gsi(IRQ_TIMER);
        }
        self.interrupts.set_gsi(IRQ_COM1, self.uart.irq_level());
        self.interrupts.set_gsi(IRQ_RTC, self.rtc.irq_level());
        self.interrupts.set_gsi(IRQ_SCI, self.pm.irq_level());
        for (gsi, level) in self.slots.lines() {
            self.interrupts.set_gsi(gsi, level);
        }
    }

    /// After the guest touched a device: lines, and whether the slice has to end here.
    fn touched(&mut self, now: Icount) {
        self.slots.collect_outputs(&mut self.own.outputs);
        if self.own.frames_due_ns.is_none() && self.slots.waits_to_send() {
            self.own.frames_due_ns = Some(self.ns_at(now).saturating_add(FRAMES_DELAY_NS));
        }
        self.update_lines();
        if self.has_output() || self.own.power.is_some() || self.next_deadline() < self.slice_end {
            self.stop_requested = true;
        }
        debug_assert!(self.own.clock.anchor() <= now);
    }

    fn request_power(&mut self, request: Option<PowerRequest>) {
        self.own.power = match request {
            None => return,
            Some(PowerRequest::Off) => Some(Power::Off(Off::PoweredOff)),
            Some(PowerRequest::Reset) => Some(Power::Reset),
        };
    }

    fn handle_test_effect(&mut self, effect: TestEffect) {
        match effect {
            TestEffect::None => {}
            TestEffect::Exit(status) => self.own.power = Some(Power::Off(Off::DebugExit(status))),
            TestEffect::SetLine { gsi, level } => self.interrupts.set_gsi(gsi, level),
        }
    }

    /// Devices whose registers are wider than a byte. `None`: nothing of them is there.
    fn wide_port_read(&mut self, now_ns: u64, port: u16, len: u8) -> Option<u32> {
        if is_pci_address(port, len) {
            return Some(u32::MAX >> (32 - u32::from(len) * 8));
        }
        let debug_exit = self.debug_exit.as_ref();
        self.pm
            .port_read(now_ns, port, len)
            .or_else(|| self.fw_cfg.port_read(port, len))
            .or_else(|| debug_exit.and_then(|device| device.port_read(port, len)))
    }

    fn wide_port_write(&mut self, now_ns: u64, port: u16, len: u8, value: u32) -> Option<()> {
        if is_pci_address(port, len) {
            return Some(());
        }
        if let Some(request) = self.pm.port_write(now_ns, port, len, value) {
            self.request_power(request);
            return Some(());
        }
        if let Some(device) = &mut self.debug_exit
            && let Some(effect) = device.port_write(port, len, value)
        {
            self.handle_test_effect(effect);
            return Some(());
        }
        self.fw_cfg.port_write(port, value)
    }

    /// Devices of byte registers. `None`: nothing of them is there.
    fn byte_port_read(&mut self, now_ns: u64, port: u16) -> Option<u8> {
        if (PORT_COM1..PORT_COM1 + 8).contains(&port) {
            return Some(self.uart.read(port - PORT_COM1));
        }
        self.interrupts
            .port_read(port)
            .or_else(|| self.pit.port_read(now_ns, port))
            .or_else(|| self.rtc.port_read(now_ns, port))
            .or_else(|| self.i8042.port_read(port))
            .or_else(|| self.reset_ports.port_read(port))
    }

    /// A port where nothing is swallows the byte.
    fn byte_port_write(&mut self, now_ns: u64, port: u16, value: u8) {
        if (PORT_COM1..PORT_COM1 + 8).contains(&port) {
            self.uart.write(port - PORT_COM1, value);
            self.collect_serial(now_ns);
            return;
        }
        let taken = self.interrupts.port_write(port, value).is_some()
            || self.pit.port_write(now_ns, port, value).is_some()
            || self.rtc.port_write(now_ns, port, value).is_some();
        if taken {
            return;
        }
        let request =
            self.i8042.port_write(port, value).or_else(|| self.reset_ports.port_write(port, value));
        self.request_power(request.flatten());
    }
}

impl Bus for Board {
    fn mmio_read(&mut self, _mem: &mut GuestMem, now: Icount, gpa: Gpa, len: u8) -> u64 {
        let now_ns = self.ns_at(now);
        let value = self
            .interrupts
            .mmio_read(now_ns, gpa.0, len)
            .or_else(|| self.slots.mmio_read(gpa.0, len))
            .or_else(|| self.debug_exit.as_ref()?.mmio_read(gpa.0, len));
        self.touched(now);
        value.unwrap_or(u64::MAX >> (64 - u32::from(len) * 8))
    }

    /// An address where nothing is swallows the write.
    fn mmio_write(&mut self, mem: &mut GuestMem, now: Icount, gpa: Gpa, len: u8, value: u64) {
        let now_ns = self.ns_at(now);
        if self.interrupts.mmio_write(now_ns, gpa.0, len, value).is_none()
            && self.slots.mmio_write(mem, gpa.0, len, value).is_none()
            && let Some(device) = &mut self.debug_exit
        {
            let _ = device.mmio_write(gpa.0, len, value); // nothing else could be there
        }
        self.touched(now);
    }

    fn port_read(&mut self, _mem: &mut GuestMem, now: Icount, port: u16, len: u8) -> u32 {
        let now_ns = self.ns_at(now);
        let value = self.wide_port_read(now_ns, port, len).unwrap_or_else(|| {
            (0..u16::from(len)).fold(0, |value, at| {
                let byte = self.byte_port_read(now_ns, port.wrapping_add(at)).unwrap_or(0xff);
                value | u32::from(byte) << (at * 8)
            })
        });
        self.touched(now);
        value
    }

    fn port_write(&mut self, _mem: &mut GuestMem, now: Icount, port: u16, len: u8, value: u32) {
        let now_ns = self.ns_at(now);
        if self.wide_port_write(now_ns, port, len, value).is_none() {
            for at in 0..u16::from(len) {
                self.byte_port_write(now_ns, port.wrapping_add(at), (value >> (at * 8)) as u8);
            }
        }
        self.touched(now);
    }

    fn msr_read(&mut self, now: Icount, msr: u32) -> Option<u64> {
        let now_ns = self.ns_at(now);
        self.interrupts.msr_read(now_ns, msr)
    }

    fn msr_write(&mut self, now: Icount, msr: u32, value: u64) -> Option<()> {
        let now_ns = self.ns_at(now);
        self.interrupts.msr_write(now_ns, msr, value)?;
        self.touched(now);
        Some(())
    }

    fn guest_ns(&mut self, now: Icount) -> u64 {
        self.ns_at(now)
    }

    fn set_tsc_offset(&mut self, now: Icount, offset: u64) {
        let now_ns = self.ns_at(now);
        self.interrupts.set_tsc_offset(now_ns, offset);
        self.touched(now);
    }

    fn task_priority(&mut self) -> u8 {
        self.interrupts.task_priority()
    }

    fn set_task_priority(&mut self, now: Icount, class: u8) {
        self.interrupts.set_task_priority(class);
        self.touched(now);
    }

    fn interrupt_pending(&self) -> bool {
        self.interrupts.interrupt_pending()
    }

    fn acknowledge_interrupt(&mut self, now: Icount) -> u8 {
        let vector = self.interrupts.acknowledge();
        self.touched(now);
        vector
    }

    fn take_nmi(&mut self) -> bool {
        self.interrupts.take_nmi()
    }

    fn stop_requested(&self) -> bool {
        self.stop_requested
    }
}

fn rtc_config(config: &MachineConfig) -> RtcConfig {
    let low_ram_bytes = config.ram_bytes.min(LOW_RAM_MAX);
    RtcConfig {
        start_seconds: config.rtc_start_s,
        low_ram_bytes,
        high_ram_bytes: config.ram_bytes - low_ram_bytes,
    }
}
