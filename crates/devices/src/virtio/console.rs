//! Virtio console (virtio 1.2, section 5.3) with one port.
//!
//! Typed bytes go into the driver's buffers at once; those that find none wait, up to a bound.

use std::collections::VecDeque;

use base::{RestoreError, Saved};
use mem::GuestMem;
use serde::{Deserialize, Serialize};

use super::queue::Broken;
use super::transport::{Backend, Io, Virtio, VirtioState};

/// Typed bytes that may wait for a buffer.
pub const RX_HELD_LEN_MAX: usize = 4096;
/// Bytes of one chain that are sent. What is beyond is dropped: no driver writes that much at once.
pub const TX_CHAIN_LEN_MAX: u64 = 1 << 16;

/// The console as the board configures it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Columns and rows, if they are known.
    pub size: Option<(u16, u16)>,
}

/// Saved state of the console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Typed bytes that wait for a buffer, oldest first. At most [`RX_HELD_LEN_MAX`].
    pub rx_held: VecDeque<u8>,
    /// Written bytes that the board has not taken, oldest first.
    pub tx: Vec<u8>,
}

impl Saved for VirtioState<ConsoleState> {
    const KIND: &'static str = ConsoleDevice::KIND;
    const VERSION: u16 = 1;
}

/// A virtio console with its transport.
pub type Console = Virtio<ConsoleDevice>;

/// The device behind the transport.
#[derive(Debug, Default)]
pub struct ConsoleDevice {
    config: ConsoleConfig,
    state: ConsoleState,
}

impl Console {
    /// The device after power-on.
    #[must_use]
    pub fn new(config: ConsoleConfig) -> Console {
        Virtio::from_backend(ConsoleDevice { config, state: ConsoleState::default() })
    }

    /// How many more bytes [`Console::handle_input`] takes for certain.
    #[must_use]
    pub fn room(&self) -> usize {
        RX_HELD_LEN_MAX - self.device().state.rx_held.len()
    }

    /// Takes typed bytes. What is beyond [`Console::room`], and everything while no driver runs the
    /// device, is lost and counted in the answer.
    pub fn handle_input(&mut self, mem: &mut GuestMem, bytes: &[u8]) -> usize {
        if !self.is_live() {
            return bytes.len();
        }
        let taken = bytes.len().min(self.room());
        self.device_mut().state.rx_held.extend(&bytes[..taken]);
        self.with_io(mem, |device, io| device.fill(io));
        bytes.len() - taken
    }

    /// The bytes written since the last call.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        let bytes = std::mem::take(&mut self.device_mut().state.tx);
        (!bytes.is_empty()).then_some(bytes)
    }

    /// A device in a saved state.
    ///
    /// # Errors
    /// If the device cannot be in that state.
    pub fn restore(
        config: ConsoleConfig,
        state: VirtioState<ConsoleState>,
    ) -> Result<Console, RestoreError> {
        if state.device.rx_held.len() > RX_HELD_LEN_MAX {
            return Err(crate::impossible(ConsoleDevice::KIND, "too much input waits"));
        }
        Virtio::restore_transport(state.transport, ConsoleDevice { config, state: state.device })
    }
}

impl Backend for ConsoleDevice {
    const DEVICE_ID: u32 = 3;
    const QUEUE_COUNT: usize = 2;
    const KIND: &'static str = "virtio-console";
    type State = ConsoleState;

    fn features(&self) -> u64 {
        if self.config.size.is_some() { F_SIZE } else { 0 }
    }

    fn config(&self) -> Vec<u8> {
        let (columns, rows) = self.config.size.unwrap_or((0, 0));
        let mut config = columns.to_le_bytes().to_vec();
        config.extend(rows.to_le_bytes());
        config.extend(1u32.to_le_bytes());
        config
    }

    fn handle_kick(&mut self, io: &mut Io<'_>, queue: usize) -> Result<(), Broken> {
        if queue == RX { self.fill(io) } else { self.send(io) }
    }

    fn reset(&mut self) {
        self.state.rx_held.clear();
    }

    fn state(&self) -> ConsoleState {
        self.state.clone()
    }
}

impl ConsoleDevice {
    fn fill(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        for _ in 0..io.drain_max(RX) {
            if self.state.rx_held.is_empty() {
                break;
            }
            let Some(chain) = io.pop(RX)? else { break };
            let len = chain.writable_len().min(self.state.rx_held.len() as u64) as usize;
            let bytes: Vec<u8> = self.state.rx_held.drain(..len).collect();
            chain.write(io.mem, 0, &bytes)?;
            io.push_used(RX, chain.head, len as u32)?;
        }
        io.notify(RX)
    }

    fn send(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        for _ in 0..io.drain_max(TX) {
            let Some(chain) = io.pop(TX)? else { break };
            self.state.tx.extend(chain.read(io.mem, 0, TX_CHAIN_LEN_MAX)?);
            io.push_used(TX, chain.head, 0)?;
        }
        io.notify(TX)
    }
}

const RX: usize = 0;
const TX: usize = 1;
const F_SIZE: u64 = 1 << 0;

#[cfg(test)]
mod tests;
