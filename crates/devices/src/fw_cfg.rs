//! QEMU's firmware configuration device (`docs/specs/fw_cfg` of QEMU), at ports 0x510 and 0x511.
//!
//! The items belong to the configuration of the board; only the selector and the read position are
//! state. There is no DMA interface, and items cannot be written.

use std::collections::BTreeMap;

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

/// Items, by QEMU's numbers.
pub mod item {
    /// Size of RAM in bytes, 8 bytes.
    pub const RAM_SIZE: u16 = 0x03;
    /// Number of CPUs, 2 bytes.
    pub const NB_CPUS: u16 = 0x05;
    /// Address of the kernel, 4 bytes.
    pub const KERNEL_ADDR: u16 = 0x07;
    /// Size of the kernel, 4 bytes.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Address of the initrd, 4 bytes.
    pub const INITRD_ADDR: u16 = 0x0a;
    /// Size of the initrd, 4 bytes.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// Largest number of CPUs, 2 bytes.
    pub const MAX_CPUS: u16 = 0x0f;
    /// Entry point of the kernel, 4 bytes.
    pub const KERNEL_ENTRY: u16 = 0x10;
    /// Address of the command line, 4 bytes.
    pub const CMDLINE_ADDR: u16 = 0x13;
    /// Size of the command line with its zero, 4 bytes.
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// The command line with its zero.
    pub const CMDLINE_DATA: u16 = 0x15;
    /// The directory of named files.
    pub const FILE_DIR: u16 = 0x19;
    /// The first named file.
    pub const FILE_FIRST: u16 = 0x20;
}

/// Named files that the device can have.
pub const FILE_COUNT_MAX: usize = 32;
/// Bytes of a file's name, with its zero.
pub const FILE_NAME_LEN_MAX: usize = 56;

/// Saved state of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgState {
    /// Selected item.
    pub selector: u16,
    /// Bytes of it that were read.
    pub offset: u64,
}

impl Saved for FwCfgState {
    const KIND: &'static str = "fw-cfg";
    const VERSION: u16 = 1;
}

/// The firmware configuration device.
#[derive(Clone, Debug)]
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    files: Vec<String>,
    state: FwCfgState,
}

impl FwCfg {
    /// A device for a machine of `ram_bytes` and one CPU.
    #[must_use]
    pub fn new(ram_bytes: u64) -> FwCfg {
        let mut items = BTreeMap::new();
        items.insert(ITEM_SIGNATURE, b"QEMU".to_vec());
        // The traditional interface only.
        items.insert(ITEM_ID, 1u32.to_le_bytes().to_vec());
        items.insert(ITEM_UUID, vec![0; 16]);
        items.insert(item::RAM_SIZE, ram_bytes.to_le_bytes().to_vec());
        items.insert(ITEM_NO_GRAPHIC, 1u16.to_le_bytes().to_vec());
        items.insert(item::NB_CPUS, 1u16.to_le_bytes().to_vec());
        items.insert(item::MAX_CPUS, 1u16.to_le_bytes().to_vec());
        // No NUMA nodes and no boot menu.
        items.insert(ITEM_NUMA, vec![0; 8]);
        items.insert(ITEM_BOOT_MENU, vec![0; 2]);
        let mut device = FwCfg { items, files: Vec::new(), state: FwCfgState::default() };
        device.write_directory();
        device
    }

    /// Adds or replaces an item; [`item`] has the numbers.
    pub fn add(&mut self, item: u16, bytes: Vec<u8>) {
        self.items.insert(item, bytes);
    }

    /// Adds a named file.
    ///
    /// # Panics
    /// If the name is longer than [`FILE_NAME_LEN_MAX`] allows or there are too many files: the board
    /// decides both.
    pub fn add_file(&mut self, name: &str, bytes: Vec<u8>) {
        assert!(name.len() < FILE_NAME_LEN_MAX && self.files.len() < FILE_COUNT_MAX);
        self.items.insert(item::FILE_FIRST + self.files.len() as u16, bytes);
        self.files.push(name.to_owned());
        self.write_directory();
    }

    /// Reads a byte or word. `None`: the port is not one of ours. Port 0x511 gives the bytes of the item
    /// one by one, and zeroes behind its end.
    pub fn port_read(&mut self, port: u16, len: u8) -> Option<u32> {
        match port {
            0x510 => Some(0),
            0x511 => Some((0..len.min(4)).fold(0, |value, index| {
                value | u32::from(self.next_byte()) << (u32::from(index) * 8)
            })),
            _ => None,
        }
    }

    /// Writes a word. `None`: the port is not one of ours. Port 0x510 selects an item.
    pub fn port_write(&mut self, port: u16, value: u32) -> Option<()> {
        match port {
            0x510 => self.state = FwCfgState { selector: value as u16, offset: 0 },
            0x511 => {}
            _ => return None,
        }
        Some(())
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> FwCfgState {
        self.state
    }

    /// This device, with its items, in a saved state.
    ///
    /// # Errors
    /// If it cannot be in that state.
    pub fn restore(self, state: FwCfgState) -> Result<FwCfg, RestoreError> {
        let len = self.items.get(&(state.selector & SELECTOR_MASK)).map_or(0, Vec::len) as u64;
        if state.offset > len {
            return Err(crate::impossible(FwCfgState::KIND, "the position is behind the item"));
        }
        Ok(FwCfg { state, ..self })
    }

    fn next_byte(&mut self) -> u8 {
        let item = self.items.get(&(self.state.selector & SELECTOR_MASK));
        let byte = item.and_then(|bytes| bytes.get(self.state.offset as usize)).copied();
        self.state.offset += u64::from(byte.is_some());
        byte.unwrap_or(0)
    }

    /// The directory is big endian, unlike the items.
    fn write_directory(&mut self) {
        let mut bytes = (self.files.len() as u32).to_be_bytes().to_vec();
        for (index, name) in self.files.iter().enumerate() {
            let select = item::FILE_FIRST + index as u16;
            bytes.extend((self.items[&select].len() as u32).to_be_bytes());
            bytes.extend(select.to_be_bytes());
            bytes.extend([0; 2]);
            bytes.extend(name.as_bytes());
            bytes.resize(4 + (index + 1) * 64, 0);
        }
        self.items.insert(item::FILE_DIR, bytes);
    }
}

const ITEM_SIGNATURE: u16 = 0x00;
const ITEM_ID: u16 = 0x01;
const ITEM_UUID: u16 = 0x02;
const ITEM_NO_GRAPHIC: u16 = 0x04;
const ITEM_NUMA: u16 = 0x0d;
const ITEM_BOOT_MENU: u16 = 0x0e;
/// Bit 14 asks to write, which no item allows. Bit 15 names the items of the architecture.
const SELECTOR_MASK: u16 = 0xbfff;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(device: &mut FwCfg, item: u16, len: usize) -> Vec<u8> {
        device.port_write(0x510, u32::from(item)).unwrap();
        (0..len).map(|_| device.port_read(0x511, 1).unwrap() as u8).collect()
    }

    #[test]
    fn a_test_kernel_finds_the_signature_ram_size_and_cpu_count() {
        let mut device = FwCfg::new(512 << 20);
        assert_eq!(read(&mut device, 0, 6), b"QEMU\0\0");
        assert_eq!(read(&mut device, item::RAM_SIZE, 8), (512u64 << 20).to_le_bytes());
        assert_eq!(read(&mut device, item::NB_CPUS, 2), [1, 0]);
        assert_eq!(read(&mut device, item::MAX_CPUS, 2), [1, 0]);
        assert_eq!(read(&mut device, 0x7777, 2), [0, 0]);
    }

    #[test]
    fn files_are_found_through_the_directory() {
        let mut device = FwCfg::new(1 << 20);
        device.add_file("opt/first", vec![1, 2, 3]);
        device.add_file("opt/second", vec![4]);
        let directory = read(&mut device, item::FILE_DIR, 4 + 128);
        assert_eq!(directory[..12], [0, 0, 0, 2, 0, 0, 0, 3, 0, 0x20, 0, 0]);
        assert_eq!(directory[12..22], *b"opt/first\0");
        assert_eq!(read(&mut device, 0x21, 2), [4, 0]);
    }

    #[test]
    fn a_saved_position_goes_on_and_one_behind_the_end_is_refused() {
        let mut device = FwCfg::new(1 << 20);
        read(&mut device, 0, 2);
        let state = device.state();
        let mut restored = FwCfg::new(1 << 20).restore(state).unwrap();
        assert_eq!(restored.port_read(0x511, 1), Some(u32::from(b'M')));
        assert_eq!(restored.port_read(0x511, 4), Some(u32::from(b'U')));
        assert!(FwCfg::new(1 << 20).restore(restored.state()).is_ok(), "it stops at the end");
        assert!(FwCfg::new(1 << 20).restore(FwCfgState { offset: 5, ..state }).is_err());
    }
}
