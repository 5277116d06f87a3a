//! Virtio over MMIO, version 2 (virtio 1.2, section 4.2), and the device status protocol (3.1).
//!
//! Control registers take aligned 32-bit accesses only; others read as zero and write nothing.
//! There are no shared memory regions, no `VIRTIO_F_RING_RESET` and no legacy interface.

use base::RestoreError;
use mem::GuestMem;
use serde::{Deserialize, Serialize};

use super::queue::{Broken, Chain, QUEUE_SIZE_MAX, QueueState, RingFeatures};
use super::{F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, F_VERSION_1};

/// Saved state of the transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Device status.
    pub status: u8,
    /// Which half of the device's features is shown.
    pub device_features_select: u32,
    /// Which half of the driver's features is written.
    pub driver_features_select: u32,
    /// Features that the driver wrote.
    pub driver_features: u64,
    /// Which queue the queue registers are about.
    pub queue_select: u32,
    /// Pending interrupts: bit 0 for used buffers, bit 1 for a change of configuration.
    pub interrupt_status: u32,
    /// Goes up with every change of the configuration.
    pub config_generation: u32,
    /// The queues.
    pub queues: Vec<QueueState>,
}

/// Saved state of a whole device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState<S> {
    /// The transport.
    pub transport: TransportState,
    /// The device behind it.
    pub device: S,
}

/// What makes a virtio device different from another.
pub trait Backend: Sized {
    /// Device number (virtio 1.2, chapter 5).
    const DEVICE_ID: u32;
    /// Number of queues.
    const QUEUE_COUNT: usize;
    /// Names the saved state.
    const KIND: &'static str;
    /// What the guest can observe of the device, beside the transport.
    type State: Clone;

    /// Features of the device's own; those of the rings are the transport's.
    fn features(&self) -> u64;

    /// The configuration space. Reads beyond its end give zero.
    fn config(&self) -> Vec<u8>;

    /// A kick: the driver has put chains into a queue.
    ///
    /// # Errors
    /// [`Broken`] if the driver breaks the rules; the device asks for a reset.
    fn handle_kick(&mut self, io: &mut Io<'_>, queue: usize) -> Result<(), Broken>;

    /// Forgets everything that belongs to the driver. What is on its way outside stays known.
    fn reset(&mut self);

    /// A copy of the state.
    fn state(&self) -> Self::State;
}

/// A device's way to its queues and to RAM, for the time of one call.
pub struct Io<'a> {
    /// Guest RAM.
    pub mem: &'a mut GuestMem,
    /// Features that the driver accepted.
    pub features: u64,
    queues: &'a mut [QueueState],
    interrupt_status: &'a mut u32,
}

impl Io<'_> {
    /// Takes the next chain of a queue.
    ///
    /// # Errors
    /// [`Broken`] if the ring or the chain is malformed.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain>, Broken> {
        let rings = ring_features(self.features);
        let chain = self.queues[queue].pop(self.mem, rings)?;
        if chain.is_none() {
            self.queues[queue].want_kick(self.mem, rings)?;
        }
        Ok(chain)
    }

    /// Puts the `count` chains taken last back.
    pub fn unpop(&mut self, queue: usize, count: u16) {
        self.queues[queue].unpop(count);
    }

    /// Gives a chain back, `len` bytes of it written.
    ///
    /// # Errors
    /// [`Broken`] if the ring is not in RAM.
    pub fn push_used(&mut self, queue: usize, head: u16, len: u32) -> Result<(), Broken> {
        self.queues[queue].push_used(self.mem, head, len)
    }

    /// Notifies the driver of what was given back, if it wants to know. One notification stands for
    /// all chains since the last.
    ///
    /// # Errors
    /// [`Broken`] if the ring is not in RAM.
    pub fn notify(&mut self, queue: usize) -> Result<(), Broken> {
        let rings = ring_features(self.features);
        if self.queues[queue].take_notification(self.mem, rings)? {
            *self.interrupt_status |= INTERRUPT_USED;
        }
        Ok(())
    }

    /// How often to call [`Io::pop`] in one go: for every entry and for the end. Without a bound, a ring
    /// that lies over another would be refilled by the device's own writes for ever.
    #[must_use]
    pub fn drain_max(&self, queue: usize) -> usize {
        usize::from(self.queues[queue].size) + 1
    }
}

/// A virtio device: the transport and what is behind it.
#[derive(Debug)]
pub struct Virtio<B> {
    transport: TransportState,
    device: B,
}

impl<B: Backend> Virtio<B> {
    /// The device after power-on.
    pub fn from_backend(device: B) -> Virtio<B> {
        Virtio { transport: reset_transport(B::QUEUE_COUNT, 0), device }
    }

    /// The device behind the transport.
    pub fn device(&self) -> &B {
        &self.device
    }

    pub(crate) fn device_mut(&mut self) -> &mut B {
        &mut self.device
    }

    /// The device's interrupt line.
    #[must_use]
    pub fn irq_level(&self) -> bool {
        self.transport.interrupt_status != 0
    }

    /// Reads `len` (1, 2, 4 or 8) bytes at `offset` of the window.
    #[must_use]
    pub fn mmio_read(&self, offset: u64, len: u8) -> u64 {
        if offset >= REG_CONFIG {
            return self.read_config(offset - REG_CONFIG, len);
        }
        if len != 4 || !offset.is_multiple_of(4) {
            return 0;
        }
        let t = &self.transport;
        let queue = t.queues.get(t.queue_select as usize);
        let value = match offset {
            0x000 => MAGIC,
            0x004 => 2,
            0x008 => B::DEVICE_ID,
            0x00c => VENDOR,
            0x010 => match t.device_features_select {
                0 => self.offered() as u32,
                1 => (self.offered() >> 32) as u32,
                _ => 0,
            },
            0x034 => queue.map_or(0, |_| u32::from(QUEUE_SIZE_MAX)),
            0x044 => queue.map_or(0, |queue| u32::from(queue.is_ready)),
            0x060 => t.interrupt_status,
            0x070 => u32::from(t.status),
            // A shared memory region that is not there has length and address -1.
            0x0b0..=0x0bc => u32::MAX,
            0x0fc => t.config_generation,
            _ => 0,
        };
        u64::from(value)
    }

    /// Writes `len` (1, 2, 4 or 8) bytes at `offset` of the window.
    pub fn mmio_write(&mut self, mem: &mut GuestMem, offset: u64, len: u8, value: u64) {
        // No device here has a configuration field that the driver may write.
        if offset >= REG_CONFIG || len != 4 || !offset.is_multiple_of(4) {
            return;
        }
        let value = value as u32;
        let t = &mut self.transport;
        match offset {
            0x014 => t.device_features_select = value,
            0x020 => self.write_features(value),
            0x024 => t.driver_features_select = value,
            0x030 => t.queue_select = value,
            0x050 => self.kick(mem, value as usize),
            0x064 => t.interrupt_status &= !value,
            0x070 => self.write_status(mem, value as u8),
            0x044 => self.write_ready(value),
            _ => self.write_queue(offset, value),
        }
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> VirtioState<B::State> {
        VirtioState { transport: self.transport.clone(), device: self.device.state() }
    }

    /// Resets the device, as the driver does by writing 0 to its status. A reset of the machine does
    /// this too, and does not make a new device: requests that are on their way outside stay known.
    pub fn reset(&mut self) {
        // The generation must not seem unchanged to a driver that looks again.
        let generation = self.transport.config_generation;
        self.transport = reset_transport(B::QUEUE_COUNT, generation);
        self.device.reset();
    }

    /// This transport around a device that was restored.
    pub(crate) fn restore_transport(
        transport: TransportState,
        device: B,
    ) -> Result<Virtio<B>, RestoreError> {
        let bad = |why: &str| Err(crate::impossible(B::KIND, why));
        if transport.queues.len() != B::QUEUE_COUNT {
            return bad("it has another number of queues");
        }
        if transport.queues.iter().any(|queue| queue.is_ready && !queue.is_well_formed()) {
            return bad("a queue is malformed");
        }
        if transport.status & !STATUS_ALL != 0 || transport.interrupt_status & !3 != 0 {
            return bad("a reserved bit is set");
        }
        let virtio = Virtio { transport, device };
        let accepted = virtio.transport.status & STATUS_FEATURES_OK != 0;
        if !accepted && virtio.transport.status & STATUS_DRIVER_OK != 0 {
            return bad("the driver runs it without features");
        }
        if accepted && virtio.transport.driver_features & !virtio.offered() != 0 {
            return bad("the driver accepted a feature that is not offered");
        }
        Ok(virtio)
    }

    /// True while the driver runs the device.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.transport.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
    }

    /// Features that the driver accepted.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.transport.driver_features
    }

    /// Has the device work on its queues, if the driver runs it.
    pub(crate) fn with_io<R: Default>(
        &mut self,
        mem: &mut GuestMem,
        work: impl FnOnce(&mut B, &mut Io<'_>) -> Result<R, Broken>,
    ) -> R {
        if !self.is_live() {
            return R::default();
        }
        let mut io = Io {
            mem,
            features: self.transport.driver_features,
            queues: &mut self.transport.queues,
            interrupt_status: &mut self.transport.interrupt_status,
        };
        match work(&mut self.device, &mut io) {
            Ok(result) => result,
            Err(_broken) => {
                self.transport.status |= STATUS_NEEDS_RESET;
                self.transport.interrupt_status |= INTERRUPT_CONFIG;
                R::default()
            }
        }
    }

    /// Tells the driver that the configuration changed.
    pub(crate) fn config_changed(&mut self) {
        self.transport.config_generation = self.transport.config_generation.wrapping_add(1);
        if self.is_live() {
            self.transport.interrupt_status |= INTERRUPT_CONFIG;
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | F_VERSION_1 | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX
    }

    fn read_config(&self, offset: u64, len: u8) -> u64 {
        let config = self.device.config();
        let byte = |at: u64| {
            let byte = usize::try_from(at).ok().and_then(|at| config.get(at));
            u64::from(byte.copied().unwrap_or(0))
        };
        (0..u64::from(len.min(8)))
            .fold(0, |value, index| value | byte(offset + index) << (index * 8))
    }

    fn write_features(&mut self, value: u32) {
        let t = &mut self.transport;
        if t.status & STATUS_FEATURES_OK != 0 {
            return;
        }
        let shift = match t.driver_features_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        t.driver_features = t.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    fn write_status(&mut self, mem: &mut GuestMem, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let old = self.transport.status;
        let mut status = old | value & STATUS_DRIVER;
        let features = self.transport.driver_features;
        let acceptable = features & !self.offered() == 0 && features & F_VERSION_1 != 0;
        if old & STATUS_FEATURES_OK == 0 && !acceptable {
            status &= !STATUS_FEATURES_OK;
        }
        if status & STATUS_FEATURES_OK == 0 {
            status &= !STATUS_DRIVER_OK;
        }
        self.transport.status = status;
        if status & !old & STATUS_DRIVER_OK != 0 {
            // Chains that were offered before count as kicked now.
            for queue in 0..B::QUEUE_COUNT {
                self.kick(mem, queue);
            }
        }
    }

    fn kick(&mut self, mem: &mut GuestMem, queue: usize) {
        if queue < B::QUEUE_COUNT && self.transport.queues[queue].is_ready {
            self.with_io(mem, |device, io| device.handle_kick(io, queue));
        }
    }

    fn write_ready(&mut self, value: u32) {
        let Some(queue) = self.transport.queues.get_mut(self.transport.queue_select as usize)
        else {
            return;
        };
        let is_ready = value & 1 != 0;
        if is_ready == queue.is_ready || is_ready && !queue.is_well_formed() {
            return;
        }
        *queue = QueueState {
            size: queue.size,
            desc: queue.desc,
            avail: queue.avail,
            used: queue.used,
            is_ready,
            ..QueueState::default()
        };
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.transport.queues.get_mut(self.transport.queue_select as usize)
        else {
            return;
        };
        if queue.is_ready {
            return;
        }
        let low = |address: u64| address & !0xffff_ffff | u64::from(value);
        let high = |address: u64| address & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            // A size that no queue has keeps it from becoming ready.
            0x038 => queue.size = u16::try_from(value).unwrap_or(0),
            0x080 => queue.desc = low(queue.desc),
            0x084 => queue.desc = high(queue.desc),
            0x090 => queue.avail = low(queue.avail),
            0x094 => queue.avail = high(queue.avail),
            0x0a0 => queue.used = low(queue.used),
            0x0a4 => queue.used = high(queue.used),
            _ => {}
        }
    }
}

fn ring_features(features: u64) -> RingFeatures {
    RingFeatures {
        indirect: features & F_RING_INDIRECT_DESC != 0,
        event_idx: features & F_RING_EVENT_IDX != 0,
    }
}

fn reset_transport(queue_count: usize, config_generation: u32) -> TransportState {
    TransportState {
        status: 0,
        device_features_select: 0,
        driver_features_select: 0,
        driver_features: 0,
        queue_select: 0,
        interrupt_status: 0,
        config_generation,
        queues: vec![QueueState::default(); queue_count],
    }
}

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"LKSP");
const REG_CONFIG: u64 = 0x100;
const INTERRUPT_USED: u32 = 1 << 0;
const INTERRUPT_CONFIG: u32 = 1 << 1;
const STATUS_DRIVER_OK: u8 = 1 << 2;
const STATUS_FEATURES_OK: u8 = 1 << 3;
const STATUS_NEEDS_RESET: u8 = 1 << 6;
/// The bits that the driver sets: acknowledge, driver, driver ok, features ok, failed.
const STATUS_DRIVER: u8 = 0x8f;
const STATUS_ALL: u8 = STATUS_DRIVER | STATUS_NEEDS_RESET;

#[cfg(test)]
mod tests;
