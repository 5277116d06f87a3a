//! What a machine is made of. Part of the start state: both sides of a pair have the same.

use serde::{Deserialize, Serialize};
use x86::CpuModel;

use crate::clock::ClockMode;

/// The most disks a machine has.
pub const DISKS_MAX: usize = 16;
/// The most network devices a machine has.
pub const NICS_MAX: usize = 8;

/// The parts and settings of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// What CPU it has.
    pub cpu: CpuModel,
    /// Bytes of RAM: a multiple of 4096 from 1 MiB to 16 GiB.
    pub ram_bytes: u64,
    /// virtio disks, in order.
    pub disks: Vec<DiskConfig>,
    /// virtio network devices, in order.
    pub nics: Vec<NicConfig>,
    /// Whether the isa-debug-exit port 0xf4 is there.
    pub debug_exit: bool,
    /// Whether a reset boots the guest again; else it turns the machine off.
    pub reboots: bool,
    /// Where guest time comes from.
    pub clock: ClockMode,
    /// What the RTC shows at power-on, in seconds since 1970 (UTC).
    pub rtc_start_s: u64,
    /// Key of the stream from which every boot's random seed is taken. From the host's generator;
    /// fixed only in tests.
    pub seed_key: [u8; 32],
}

/// A virtio disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Size in bytes, a multiple of 512.
    pub bytes: u64,
    /// Refuses writes.
    pub read_only: bool,
    /// What the guest reads as the serial number; at most 20 bytes.
    pub serial: String,
}

/// A virtio network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicConfig {
    /// MAC address.
    pub mac: [u8; 6],
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// More of a kind than the board has room for.
    #[error("{count} {what}: a machine has at most {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were asked for.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A disk whose size is not a whole number of sectors, or zero.
    #[error("disk {index} has {bytes} bytes: a disk is a multiple of 512 bytes and not empty")]
    DiskSize {
        /// Which disk.
        index: usize,
        /// Its size.
        bytes: u64,
    },
    /// A MAC address that cannot be a station's.
    #[error("network device {index} has a multicast or zero MAC address")]
    Mac {
        /// Which device.
        index: usize,
    },
}

impl MachineConfig {
    /// A machine with a CPU of the base model, RAM and a serial port, for tests: virtual clock, no reboot and a fixed seed.
    #[must_use]
    pub fn for_test(ram_bytes: u64) -> MachineConfig {
        MachineConfig {
            cpu: CpuModel::V2,
            ram_bytes,
            disks: Vec::new(),
            nics: Vec::new(),
            debug_exit: true,
            reboots: false,
            clock: ClockMode::Virtual,
            rtc_start_s: 1_700_000_000,
            seed_key: [0x5a; 32],
        }
    }

    /// # Errors
    /// [`ConfigError`] for the first thing that cannot be built.
    pub fn check(&self) -> Result<(), ConfigError> {
        let at_most = |what, count, max| {
            if count > max { Err(ConfigError::TooMany { what, count, max }) } else { Ok(()) }
        };
        at_most("disks", self.disks.len(), DISKS_MAX)?;
        at_most("network devices", self.nics.len(), NICS_MAX)?;
        for (index, disk) in self.disks.iter().enumerate() {
            if disk.bytes == 0 || !disk.bytes.is_multiple_of(512) {
                return Err(ConfigError::DiskSize { index, bytes: disk.bytes });
            }
        }
        for (index, nic) in self.nics.iter().enumerate() {
            if nic.mac[0] & 1 != 0 || nic.mac == [0; 6] {
                return Err(ConfigError::Mac { index });
            }
        }
        Ok(())
    }
}
