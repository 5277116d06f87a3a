//! Where the board's devices are. `docs/board.md` has the same list in words.

/// First port of COM1.
pub const PORT_COM1: u16 = 0x3f8;
/// Interrupt line of COM1.
pub const IRQ_COM1: u8 = 4;
/// Interrupt line of the real-time clock.
pub const IRQ_RTC: u8 = 8;
/// Interrupt line of the ACPI fixed hardware (SCI), level triggered, active high.
pub const IRQ_SCI: u8 = 9;
/// Interrupt line of counter 0 of the 8254.
pub const IRQ_TIMER: u8 = 0;
/// First address of the virtio-mmio windows.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// Bytes from one virtio-mmio window to the next, and of each.
pub const VIRTIO_WINDOW_BYTES: u64 = 0x1000;
/// How many virtio devices the board has room for.
pub const VIRTIO_SLOT_COUNT: usize = 32;

/// The place of a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// First address of its window of [`VIRTIO_WINDOW_BYTES`].
    pub base: u64,
    /// Its interrupt: level triggered, active high, shared with the device eight slots further.
    pub gsi: u8,
}

/// The place of the virtio device in slot `index`.
///
/// # Panics
/// If there is no such slot: the configuration is checked before.
#[must_use]
pub fn virtio_slot(index: usize) -> VirtioSlot {
    assert!(index < VIRTIO_SLOT_COUNT, "the board has {VIRTIO_SLOT_COUNT} virtio slots");
    VirtioSlot {
        base: VIRTIO_BASE + index as u64 * VIRTIO_WINDOW_BYTES,
        gsi: 16 + (index % 8) as u8,
    }
}
