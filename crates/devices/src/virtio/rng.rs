//! Virtio entropy device (virtio 1.2, section 5.4).
//!
//! The device asks for random bytes ([`Rng::poll_wanted`]), one request at a time, and fills the oldest
//! buffer when they come ([`Rng::handle_entropy`]).

use std::collections::VecDeque;

use base::{RestoreError, Saved};
use mem::GuestMem;
use serde::{Deserialize, Serialize};

use super::queue::{Broken, Chain, QUEUE_SIZE_MAX};
use super::transport::{Backend, Io, Virtio, VirtioState};

/// The most bytes that one request asks for.
pub const ENTROPY_LEN_MAX: u32 = 4096;

/// Saved state of the entropy device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// Buffers to fill, oldest first. At most [`QUEUE_SIZE_MAX`].
    pub waiting: VecDeque<Chain>,
    /// Bytes that were asked for and have not come.
    pub asked_len: Option<u32>,
    /// The device was reset after it asked: the answer is for nobody.
    pub is_orphaned: bool,
}

impl Saved for VirtioState<RngState> {
    const KIND: &'static str = RngDevice::KIND;
    const VERSION: u16 = 1;
}

/// Why random bytes were not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} random bytes came where {wanted} were wanted")]
pub struct RngError {
    /// How many came.
    pub len: usize,
    /// How many were asked for.
    pub wanted: u32,
}

/// A virtio entropy device with its transport.
pub type Rng = Virtio<RngDevice>;

/// The device behind the transport.
#[derive(Debug, Default)]
pub struct RngDevice {
    state: RngState,
}

impl Rng {
    /// The device after power-on.
    #[must_use]
    pub fn new() -> Rng {
        Virtio::from_backend(RngDevice::default())
    }

    /// How many random bytes the driver wants, once for each request.
    pub fn poll_wanted(&mut self) -> Option<u32> {
        let state = &mut self.device_mut().state;
        if state.asked_len.is_some() {
            return None;
        }
        let len = state.waiting.front()?.writable_len().min(u64::from(ENTROPY_LEN_MAX)) as u32;
        state.asked_len = Some(len);
        state.asked_len
    }

    /// What was asked for and has not come: what to ask again when this copy of the machine goes live.
    #[must_use]
    pub fn reissue(&self) -> Option<u32> {
        self.device().state.asked_len
    }

    /// Takes the bytes that were asked for, or some of them.
    ///
    /// # Errors
    /// If none were asked for, or none or too many came; then nothing has changed.
    pub fn handle_entropy(&mut self, mem: &mut GuestMem, bytes: &[u8]) -> Result<(), RngError> {
        let state = &mut self.device_mut().state;
        let wanted = state.asked_len.unwrap_or(0);
        if bytes.is_empty() || bytes.len() > wanted as usize {
            return Err(RngError { len: bytes.len(), wanted });
        }
        state.asked_len = None;
        if std::mem::take(&mut state.is_orphaned) {
            return Ok(());
        }
        let chain = state.waiting.pop_front();
        self.with_io(mem, |device, io| {
            if let Some(chain) = chain {
                chain.write(io.mem, 0, bytes)?;
                io.push_used(QUEUE, chain.head, bytes.len() as u32)?;
            }
            device.drain(io)
        });
        Ok(())
    }

    /// A device in a saved state.
    ///
    /// # Errors
    /// If the device cannot be in that state.
    pub fn restore(mem: &GuestMem, state: VirtioState<RngState>) -> Result<Rng, RestoreError> {
        let s = &state.device;
        let is_bad = |chain: &Chain| !chain.is_plausible(mem) || chain.writable_len() == 0;
        if s.waiting.len() > usize::from(QUEUE_SIZE_MAX)
            || s.waiting.iter().any(is_bad)
            || s.asked_len.is_some_and(|len| len == 0 || len > ENTROPY_LEN_MAX)
            || s.asked_len.is_none() && s.is_orphaned
            || s.asked_len.is_some() && !s.is_orphaned && s.waiting.is_empty()
        {
            return Err(crate::impossible(RngDevice::KIND, "its requests contradict each other"));
        }
        Virtio::restore_transport(state.transport, RngDevice { state: state.device })
    }
}

impl Default for Rng {
    fn default() -> Rng {
        Rng::new()
    }
}

impl Backend for RngDevice {
    const DEVICE_ID: u32 = 4;
    const QUEUE_COUNT: usize = 1;
    const KIND: &'static str = "virtio-rng";
    type State = RngState;

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handle_kick(&mut self, io: &mut Io<'_>, _queue: usize) -> Result<(), Broken> {
        self.drain(io)
    }

    fn reset(&mut self) {
        self.state.waiting.clear();
        self.state.is_orphaned = self.state.asked_len.is_some();
    }

    fn state(&self) -> RngState {
        self.state.clone()
    }
}

impl RngDevice {
    fn drain(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        for _ in 0..io.drain_max(QUEUE) {
            if self.state.waiting.len() >= usize::from(QUEUE_SIZE_MAX) {
                break;
            }
            let Some(chain) = io.pop(QUEUE)? else { break };
            if chain.writable_len() == 0 {
                // Nothing to fill.
                io.push_used(QUEUE, chain.head, 0)?;
            } else {
                self.state.waiting.push_back(Chain { readable: Vec::new(), ..chain });
            }
        }
        io.notify(QUEUE)
    }
}

const QUEUE: usize = 0;

#[cfg(test)]
mod tests;
