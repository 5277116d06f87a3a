//! Virtio block device (virtio 1.2, section 5.2).
//!
//! A request begins when the guest submits it: write data is copied out of RAM then. It is handed out
//! ([`Blk::poll_request`]) when no earlier unfinished request conflicts with it, and read data enters
//! RAM when the completion is handled. So what two requests do to the same blocks, or to the same
//! memory, depends on the order of submissions and completions alone, which the log has.
//!
//! A FLUSH conflicts with nothing: it covers the writes that the guest saw completed, and those are
//! done. After a reset, requests that were handed out stay known until they finish, so that a new
//! request cannot overtake them; their completions touch no memory.

use base::{RestoreError, Saved};
use mem::GuestMem;
use serde::{Deserialize, Serialize};

use super::queue::{Broken, Chain, QUEUE_SIZE_MAX};
use super::transport::{Backend, Io, Virtio, VirtioState};
use crate::io::{DiskOp, DiskResult};

/// Requests that may be unfinished at once. A driver that plays by the rules cannot have more.
pub const IN_FLIGHT_MAX: usize = QUEUE_SIZE_MAX as usize;
/// Data of unfinished reads and writes, in bytes. At the bound the rest of the queue waits.
pub const HELD_BYTES_MAX: u64 = 256 << 20;
/// Data bytes of one request: what the segments allow that the device announces. A longer one fails.
pub const REQUEST_BYTES_MAX: u64 = 16 << 20;
/// Bytes in a sector.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of the identification string.
pub const ID_LEN: usize = 20;

/// The disk as the board configures it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkConfig {
    /// Size in sectors of 512 bytes.
    pub sector_count: u64,
    /// The guest must not write.
    pub is_read_only: bool,
    /// What VIRTIO_BLK_T_GET_ID gives: at most [`ID_LEN`] bytes are used.
    pub id: String,
}

/// A request that is not finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkRequest {
    /// Its number.
    pub number: u64,
    /// What to do.
    pub op: DiskOp,
    /// Where the answer goes. `None` after a reset: nobody waits for it.
    pub chain: Option<Chain>,
    /// It was handed out.
    pub is_handed_out: bool,
}

/// Saved state of the block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// Number of the next request.
    pub next_number: u64,
    /// Unfinished requests in the order of submission. At most [`IN_FLIGHT_MAX`].
    pub requests: Vec<BlkRequest>,
}

impl Saved for VirtioState<BlkState> {
    const KIND: &'static str = BlkDevice::KIND;
    const VERSION: u16 = 1;
}

/// Why a completion was not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlkError {
    /// No request of that number was handed out and is unfinished.
    #[error("disk request {number} is not in flight")]
    NotInFlight {
        /// The number.
        number: u64,
    },
    /// A read gets exactly its bytes; others get none.
    #[error("the result of disk request {number} does not fit it")]
    WrongResult {
        /// The number.
        number: u64,
    },
}

/// A virtio block device with its transport.
pub type Blk = Virtio<BlkDevice>;

/// The device behind the transport.
#[derive(Debug)]
pub struct BlkDevice {
    config: BlkConfig,
    state: BlkState,
    /// True if a request was submitted or finished since nothing was found to hand out.
    may_hand_out: bool,
}

impl Blk {
    /// The device after power-on.
    #[must_use]
    pub fn new(config: BlkConfig) -> Blk {
        Virtio::from_backend(BlkDevice { config, state: BlkState::default(), may_hand_out: false })
    }

    /// The next request to perform, with its number: the oldest that no earlier one holds back.
    pub fn poll_request(&mut self) -> Option<(u64, DiskOp)> {
        self.device_mut().poll_request()
    }

    /// Handles the completion of a request that was handed out.
    ///
    /// # Errors
    /// If there is no such request or the result does not fit; then nothing has changed.
    pub fn handle_done(
        &mut self,
        mem: &mut GuestMem,
        number: u64,
        result: &DiskResult,
    ) -> Result<(), BlkError> {
        let request = self.device_mut().take_request(number, result)?;
        self.with_io(mem, |device, io| {
            if let Some(chain) = &request.chain {
                let (status, data) = match result {
                    DiskResult::Done => (STATUS_OK, &[][..]),
                    DiskResult::Data(data) => (STATUS_OK, &data[..]),
                    DiskResult::Failed => (STATUS_IO_ERROR, &[][..]),
                };
                finish(io, chain, status, data)?;
                io.notify(QUEUE)?;
            }
            // There is room for what waited in the queue.
            device.drain(io)
        });
        Ok(())
    }

    /// True if a request is not finished, whether it was handed out or not.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        !self.device().state.requests.is_empty()
    }

    /// Everything that was handed out and is not finished, in order: what to perform again when
    /// this copy of the machine goes live.
    #[must_use]
    pub fn reissue(&self) -> Vec<(u64, DiskOp)> {
        let handed_out = self.device().state.requests.iter().filter(|r| r.is_handed_out);
        handed_out.map(|request| (request.number, request.op.clone())).collect()
    }

    /// A device in a saved state.
    ///
    /// # Errors
    /// If this disk cannot be in that state.
    pub fn restore(
        config: BlkConfig,
        mem: &GuestMem,
        state: VirtioState<BlkState>,
    ) -> Result<Blk, RestoreError> {
        let device = BlkDevice { config, state: state.device, may_hand_out: true };
        device.check(mem)?;
        Virtio::restore_transport(state.transport, device)
    }
}

impl Backend for BlkDevice {
    const DEVICE_ID: u32 = 2;
    const QUEUE_COUNT: usize = 1;
    const KIND: &'static str = "virtio-blk";
    type State = BlkState;

    fn features(&self) -> u64 {
        let read_only = if self.config.is_read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | read_only
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.config.sector_count.to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR_BYTES as u32).to_le_bytes());
        put(34, &1u16.to_le_bytes());
        if !self.config.is_read_only {
            put(36, &RANGE_SECTORS_MAX.to_le_bytes());
            put(40, &1u32.to_le_bytes());
            put(44, &1u32.to_le_bytes());
            put(48, &RANGE_SECTORS_MAX.to_le_bytes());
            put(52, &1u32.to_le_bytes());
            // Write zeroes may unmap.
            put(56, &[1]);
        }
        config
    }

    fn handle_kick(&mut self, io: &mut Io<'_>, _queue: usize) -> Result<(), Broken> {
        self.drain(io)
    }

    fn reset(&mut self) {
        self.state.requests.retain_mut(|request| {
            request.chain = None;
            request.is_handed_out
        });
    }

    fn state(&self) -> BlkState {
        self.state.clone()
    }
}

impl BlkDevice {
    fn poll_request(&mut self) -> Option<(u64, DiskOp)> {
        if !self.may_hand_out {
            return None;
        }
        let requests = &mut self.state.requests;
        let next = (0..requests.len()).find(|index| {
            let (earlier, rest) = requests.split_at(*index);
            !rest[0].is_handed_out && !earlier.iter().any(|e| e.op.conflicts_with(&rest[0].op))
        });
        self.may_hand_out = next.is_some();
        let request = &mut requests[next?];
        request.is_handed_out = true;
        Some((request.number, request.op.clone()))
    }

    fn take_request(&mut self, number: u64, result: &DiskResult) -> Result<BlkRequest, BlkError> {
        let position = self
            .state
            .requests
            .iter()
            .position(|request| request.number == number && request.is_handed_out)
            .ok_or(BlkError::NotInFlight { number })?;
        let fits = match (&self.state.requests[position].op, result) {
            (_, DiskResult::Failed) => true,
            (DiskOp::Read { len, .. }, DiskResult::Data(data)) => data.len() == *len as usize,
            (DiskOp::Read { .. }, DiskResult::Done) | (_, DiskResult::Data(_)) => false,
            (_, DiskResult::Done) => true,
        };
        if !fits {
            return Err(BlkError::WrongResult { number });
        }
        self.may_hand_out = true;
        Ok(self.state.requests.remove(position))
    }

    /// Takes every request that the driver offers and there is room for.
    fn drain(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        for _ in 0..io.drain_max(QUEUE) {
            if !self.has_room() {
                break;
            }
            let Some(chain) = io.pop(QUEUE)? else { break };
            self.submit(io, chain)?;
        }
        io.notify(QUEUE)
    }

    fn has_room(&self) -> bool {
        let held = |request: &BlkRequest| match &request.op {
            DiskOp::Read { .. } | DiskOp::Write { .. } => request.op.range().1,
            _ => 0,
        };
        self.state.requests.len() < IN_FLIGHT_MAX
            && self.state.requests.iter().map(held).sum::<u64>() < HELD_BYTES_MAX
    }

    fn submit(&mut self, io: &mut Io<'_>, chain: Chain) -> Result<(), Broken> {
        if chain.readable_len() < HEADER_LEN || chain.writable_len() == 0 {
            return Err(Broken::Request);
        }
        let header = chain.read(io.mem, 0, HEADER_LEN)?;
        let (kind, _) = header.split_first_chunk().expect("the header has 16 bytes");
        let kind = u32::from_le_bytes(*kind);
        let (_, sector) = header.split_last_chunk().expect("the header has 16 bytes");
        let sector = u64::from_le_bytes(*sector);
        let op = match kind {
            T_IN => self.read_op(&chain, sector),
            T_OUT => self.write_op(io, &chain, sector)?,
            T_FLUSH => Ok(DiskOp::Flush),
            T_DISCARD | T_WRITE_ZEROES => self.range_op(io, &chain, kind)?,
            T_GET_ID => {
                let mut id = self.config.id.clone().into_bytes();
                id.resize(ID_LEN, 0);
                return finish(io, &chain, STATUS_OK, &id);
            }
            _ => Err(STATUS_UNSUPPORTED),
        };
        match op {
            Err(status) => finish(io, &chain, status, &[]),
            // Nothing to do for a request of no bytes.
            Ok(op) if op != DiskOp::Flush && op.range().1 == 0 => {
                finish(io, &chain, STATUS_OK, &[])
            }
            Ok(op) => {
                let number = self.state.next_number;
                self.state.next_number += 1;
                let chain = Some(Chain { readable: Vec::new(), ..chain });
                self.state.requests.push(BlkRequest { number, op, chain, is_handed_out: false });
                self.may_hand_out = true;
                Ok(())
            }
        }
    }

    /// The first byte of a range of the disk, or the status that refuses it.
    fn offset_of(&self, sector: u64, bytes: u64) -> Result<u64, u8> {
        let end = sector.checked_add(bytes / SECTOR_BYTES);
        let is_inside = end.is_some_and(|end| end <= self.config.sector_count);
        if !bytes.is_multiple_of(SECTOR_BYTES) || !is_inside {
            return Err(STATUS_IO_ERROR);
        }
        Ok(sector * SECTOR_BYTES)
    }

    fn read_op(&self, chain: &Chain, sector: u64) -> Result<DiskOp, u8> {
        // The last writable byte is the status.
        let len = chain.writable_len() - 1;
        if len > REQUEST_BYTES_MAX {
            return Err(STATUS_IO_ERROR);
        }
        Ok(DiskOp::Read { offset: self.offset_of(sector, len)?, len: len as u32 })
    }

    fn write_op(
        &self,
        io: &Io<'_>,
        chain: &Chain,
        sector: u64,
    ) -> Result<Result<DiskOp, u8>, Broken> {
        let len = chain.readable_len() - HEADER_LEN;
        if self.config.is_read_only || len > REQUEST_BYTES_MAX {
            return Ok(Err(STATUS_IO_ERROR));
        }
        let offset = match self.offset_of(sector, len) {
            Ok(offset) => offset,
            Err(status) => return Ok(Err(status)),
        };
        Ok(Ok(DiskOp::Write { offset, data: chain.read(io.mem, HEADER_LEN, len)? }))
    }

    fn range_op(
        &self,
        io: &Io<'_>,
        chain: &Chain,
        kind: u32,
    ) -> Result<Result<DiskOp, u8>, Broken> {
        if self.config.is_read_only {
            return Ok(Err(STATUS_IO_ERROR));
        }
        // The configuration allows one range in a request.
        let range = chain.read(io.mem, HEADER_LEN, RANGE_LEN + 1)?;
        let Ok(range) = <[u8; RANGE_LEN as usize]>::try_from(range) else {
            return Ok(Err(STATUS_UNSUPPORTED));
        };
        let range = u128::from_le_bytes(range);
        let (sector, sectors, flags) = (range as u64, (range >> 64) as u32, (range >> 96) as u32);
        let allowed = if kind == T_WRITE_ZEROES { RANGE_UNMAP } else { 0 };
        if flags & !allowed != 0 {
            return Ok(Err(STATUS_UNSUPPORTED));
        }
        if sectors > RANGE_SECTORS_MAX {
            return Ok(Err(STATUS_IO_ERROR));
        }
        let len = u64::from(sectors) * SECTOR_BYTES;
        Ok(self.offset_of(sector, len).map(|offset| match kind {
            T_WRITE_ZEROES => DiskOp::WriteZeroes { offset, len },
            _ => DiskOp::Discard { offset, len },
        }))
    }

    fn check(&self, mem: &GuestMem) -> Result<(), RestoreError> {
        let bad = |why: &str| Err(crate::impossible(Self::KIND, why));
        let s = &self.state;
        if s.requests.len() > IN_FLIGHT_MAX {
            return bad("too many requests are in flight");
        }
        if !s.requests.is_sorted_by(|a, b| a.number < b.number)
            || s.requests.last().is_some_and(|request| request.number >= s.next_number)
            || s.next_number > u64::MAX / 2
        {
            return bad("request numbers are out of order");
        }
        let disk_bytes = self.config.sector_count.saturating_mul(SECTOR_BYTES);
        for request in &s.requests {
            let (offset, len) = request.op.range();
            if offset.checked_add(len).is_none_or(|end| end > disk_bytes) {
                return bad("a request lies outside the disk");
            }
            let is_data = matches!(request.op, DiskOp::Read { .. } | DiskOp::Write { .. });
            if !offset.is_multiple_of(SECTOR_BYTES)
                || !len.is_multiple_of(SECTOR_BYTES)
                || (len == 0) != (request.op == DiskOp::Flush)
                || is_data && len > REQUEST_BYTES_MAX
            {
                return bad("a request has an impossible length");
            }
            let is_write = !matches!(request.op, DiskOp::Read { .. } | DiskOp::Flush);
            if is_write && self.config.is_read_only {
                return bad("a write to a read-only disk");
            }
            let Some(chain) = &request.chain else { continue };
            let needed = if let DiskOp::Read { len, .. } = request.op { u64::from(len) } else { 0 };
            if !chain.is_plausible(mem) || chain.writable_len() <= needed {
                return bad("a request's memory is not there");
            }
        }
        Ok(())
    }
}

/// Writes data and status and gives the chain back. The status is the last writable byte.
fn finish(io: &mut Io<'_>, chain: &Chain, status: u8, data: &[u8]) -> Result<(), Broken> {
    let status_at = chain.writable_len() - 1;
    let data = &data[..data.len().min(usize::try_from(status_at).unwrap_or(usize::MAX))];
    chain.write(io.mem, 0, data)?;
    chain.write(io.mem, status_at, &[status])?;
    io.push_used(QUEUE, chain.head, data.len() as u32 + 1)
}

const QUEUE: usize = 0;
const HEADER_LEN: u64 = 16;
const RANGE_LEN: u64 = 16;
/// Bytes of one segment.
const SIZE_MAX: u32 = 64 << 10;
const SEG_MAX: u32 = QUEUE_SIZE_MAX as u32 - 2;
/// Sectors of one discard or write zeroes request: 2 GiB.
const RANGE_SECTORS_MAX: u32 = 1 << 22;
const _: () = assert!(SEG_MAX as u64 * SIZE_MAX as u64 <= REQUEST_BYTES_MAX);
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;
const RANGE_UNMAP: u32 = 1;
const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

#[cfg(test)]
mod tests;
