//! The virtio devices in their slots: slot 0 the entropy device, slot 1 the console, then disks, then
//! network devices.

use base::{Frame, RestoreError, Saved};
use devices::layout::{VIRTIO_BASE, VIRTIO_SLOT_COUNT, VIRTIO_WINDOW_BYTES, virtio_slot};
use devices::virtio::blk::{BlkConfig, BlkState};
use devices::virtio::console::{ConsoleConfig, ConsoleState};
use devices::virtio::net::{NetConfig, NetState};
use devices::virtio::rng::RngState;
use devices::virtio::{self, Blk, Net, Rng, VirtioState};
use mem::GuestMem;
use serde::{Deserialize, Serialize};

use crate::config::{DISKS_MAX, DiskConfig, MachineConfig, NICS_MAX, NicConfig};
use crate::event::{Console, DiskResult, Output};

const _: () = assert!(2 + DISKS_MAX + NICS_MAX <= VIRTIO_SLOT_COUNT, "every device has a slot");

/// Largest payload of a frame that a guest sends by itself, in bytes.
const MTU: u16 = 1500;
/// The first interrupt line of the virtio devices, and how many there are.
const FIRST_GSI: u8 = 16;
const GSI_COUNT: usize = 8;

/// Saved state of all virtio devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotsState {
    rng: VirtioState<RngState>,
    console: VirtioState<ConsoleState>,
    disks: Vec<VirtioState<BlkState>>,
    nics: Vec<VirtioState<NetState>>,
}

impl Saved for SlotsState {
    const KIND: &'static str = "virtio-slots";
    const VERSION: u16 = 2;
}

/// All virtio devices.
#[derive(Debug)]
pub(crate) struct Slots {
    rng: Rng,
    console: virtio::Console,
    disks: Vec<Blk>,
    nics: Vec<Net>,
}

/// Does the same with whichever device is in a slot.
macro_rules! with_slot {
    ($slots:expr, $index:expr, $device:ident => $body:expr) => {{
        let disk_count = $slots.disks.len();
        match $index {
            0 => {
                let $device = &mut $slots.rng;
                $body
            }
            1 => {
                let $device = &mut $slots.console;
                $body
            }
            index if index - 2 < disk_count => {
                let $device = &mut $slots.disks[index - 2];
                $body
            }
            index => {
                let $device = &mut $slots.nics[index - 2 - disk_count];
                $body
            }
        }
    }};
}

impl Slots {
    pub(crate) fn new(config: &MachineConfig) -> Slots {
        Slots {
            rng: Rng::new(),
            console: virtio::Console::new(ConsoleConfig::default()),
            disks: config.disks.iter().map(|disk| Blk::new(blk_config(disk))).collect(),
            nics: config.nics.iter().map(|nic| Net::new(net_config(nic))).collect(),
        }
    }

    pub(crate) fn state(&self) -> SlotsState {
        SlotsState {
            rng: self.rng.state(),
            console: self.console.state(),
            disks: self.disks.iter().map(Blk::state).collect(),
            nics: self.nics.iter().map(Net::state).collect(),
        }
    }

    pub(crate) fn restore(
        config: &MachineConfig,
        mem: &GuestMem,
        state: SlotsState,
    ) -> Result<Slots, RestoreError> {
        let counts = (state.disks.len(), state.nics.len());
        if counts != (config.disks.len(), config.nics.len()) {
            return Err(RestoreError::Impossible {
                kind: SlotsState::KIND,
                why: format!("{} disks and {} network devices", counts.0, counts.1),
            });
        }
        let disks = config.disks.iter().zip(state.disks);
        let nics = config.nics.iter().zip(state.nics);
        Ok(Slots {
            rng: Rng::restore(mem, state.rng)?,
            console: virtio::Console::restore(ConsoleConfig::default(), state.console)?,
            disks: disks
                .map(|(disk, state)| Blk::restore(blk_config(disk), mem, state))
                .collect::<Result<_, _>>()?,
            nics: nics
                .map(|(nic, state)| Net::restore(net_config(nic), state))
                .collect::<Result<_, _>>()?,
        })
    }

    /// How many slots are taken.
    pub(crate) fn count(&self) -> usize {
        2 + self.disks.len() + self.nics.len()
    }

    /// Resets every device; a disk's requests in flight stay in flight.
    pub(crate) fn reset(&mut self) {
        for index in 0..self.count() {
            with_slot!(self, index, device => device.reset());
        }
    }

    /// The slot and the offset in its window of an address.
    fn window(&self, gpa: u64) -> Option<(usize, u64)> {
        let at = gpa.checked_sub(VIRTIO_BASE)?;
        let index = usize::try_from(at / VIRTIO_WINDOW_BYTES).ok()?;
        (index < self.count()).then_some((index, at % VIRTIO_WINDOW_BYTES))
    }

    /// `None`: no device is there.
    pub(crate) fn mmio_read(&mut self, gpa: u64, len: u8) -> Option<u64> {
        let (index, offset) = self.window(gpa)?;
        Some(with_slot!(self, index, device => device.mmio_read(offset, len)))
    }

    /// `None`: no device is there.
    pub(crate) fn mmio_write(
        &mut self,
        mem: &mut GuestMem,
        gpa: u64,
        len: u8,
        value: u64,
    ) -> Option<()> {
        let (index, offset) = self.window(gpa)?;
        with_slot!(self, index, device => device.mmio_write(mem, offset, len, value));
        Some(())
    }

    /// The levels of the devices' interrupt lines, each shared by every eighth slot.
    pub(crate) fn lines(&mut self) -> [(u8, bool); GSI_COUNT] {
        let mut lines = [0, 1, 2, 3, 4, 5, 6, 7].map(|line| (FIRST_GSI + line, false));
        for index in 0..self.count() {
            let level = with_slot!(self, index, device => device.irq_level());
            let line = &mut lines[usize::from(virtio_slot(index).gsi - FIRST_GSI)];
            line.1 |= level;
        }
        lines
    }

    /// Appends what the devices hand out, in the order of the slots.
    pub(crate) fn collect_outputs(&mut self, outputs: &mut impl Extend<Output>) {
        while let Some(len) = self.rng.poll_wanted() {
            outputs.extend([Output::EntropyWanted { len }]);
        }
        while let Some(bytes) = self.console.poll_output() {
            outputs.extend([Output::ConsoleOutput { console: Console::Virtio, bytes }]);
        }
        for (index, disk) in self.disks.iter_mut().enumerate() {
            while let Some((request, op)) = disk.poll_request() {
                outputs.extend([Output::DiskRequest { disk: index as u8, request, op }]);
            }
        }
        for (index, nic) in self.nics.iter_mut().enumerate() {
            while let Some(frames) = nic.poll_frames() {
                outputs.extend([Output::FramesSent { nic: index as u8, frames }]);
            }
        }
    }

    /// What was asked of the outside and has no answer yet, in the order of the slots.
    pub(crate) fn unfinished_requests(&self) -> Vec<Output> {
        let wanted = self.rng.reissue().map(|len| Output::EntropyWanted { len });
        let requests = self.disks.iter().enumerate().flat_map(|(index, disk)| {
            let output =
                move |(request, op)| Output::DiskRequest { disk: index as u8, request, op };
            disk.reissue().into_iter().map(output)
        });
        wanted.into_iter().chain(requests).collect()
    }

    /// True if something was asked of the outside, or will be, and has no answer yet.
    pub(crate) fn awaits_answer(&self) -> bool {
        self.rng.reissue().is_some() || self.disks.iter().any(Blk::has_requests)
    }

    pub(crate) fn handle_entropy(&mut self, mem: &mut GuestMem, bytes: &[u8]) {
        // Bytes that nobody asked for: the guest was reset since.
        let _ = self.rng.handle_entropy(mem, bytes);
    }

    pub(crate) fn handle_frames(&mut self, mem: &mut GuestMem, nic: u8, frames: Vec<Frame>) {
        if let Some(nic) = self.nics.get_mut(usize::from(nic)) {
            nic.handle_frames(mem, frames);
        }
    }

    /// True if the guest has frames to send that no network device has taken yet.
    pub(crate) fn waits_to_send(&self) -> bool {
        self.nics.iter().any(Net::waits_to_send)
    }

    pub(crate) fn send_frames(&mut self, mem: &mut GuestMem) {
        self.nics.iter_mut().for_each(|nic| nic.send_waiting(mem));
    }

    pub(crate) fn handle_disk_done(
        &mut self,
        mem: &mut GuestMem,
        disk: u8,
        request: u64,
        result: &DiskResult,
    ) {
        if let Some(disk) = self.disks.get_mut(usize::from(disk)) {
            // A completion of a request that is not in flight changes nothing.
            let _ = disk.handle_done(mem, request, result);
        }
    }

    pub(crate) fn handle_console_input(&mut self, mem: &mut GuestMem, bytes: &[u8]) {
        // The shell asks for room first; what is too much is lost.
        let _ = self.console.handle_input(mem, bytes);
    }

    pub(crate) fn console_room(&self) -> usize {
        self.console.room()
    }

    pub(crate) fn handle_announce(&mut self) {
        self.nics.iter_mut().for_each(Net::handle_announce);
    }
}

fn blk_config(disk: &DiskConfig) -> BlkConfig {
    BlkConfig {
        sector_count: disk.bytes / 512,
        is_read_only: disk.read_only,
        id: disk.serial.clone(),
    }
}

fn net_config(nic: &NicConfig) -> NetConfig {
    NetConfig { mac: nic.mac, mtu: MTU }
}
