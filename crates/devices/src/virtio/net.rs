//! Virtio network device (virtio 1.2, section 5.1), with one queue pair.
//!
//! A transmit kick drains its ring at once: the chains go back to the driver and all frames leave as one
//! batch ([`Net::poll_frames`]). Received frames enter RAM, announced by one interrupt, when
//! [`Net::handle_frames`] is called; those that find no buffer wait, up to a bound, and are dropped
//! beyond it, newest first. The link is always up, and every frame is passed on whatever its address.
//!
//! The device fills in checksums and cuts long TCP packets into segments for the driver, and tells it
//! which received checksums are right: frames are complete on the wire, on both ways.

mod offload;

use std::collections::VecDeque;

use base::{RestoreError, Saved};
use mem::GuestMem;
use serde::{Deserialize, Serialize};

use self::offload::TxHeader;
use super::queue::{Broken, Chain};
use super::transport::{Backend, Io, Virtio, VirtioState};

/// Received frames that may wait for a buffer.
pub const RX_HELD_MAX: usize = 256;
/// The longest frame, without FCS: what an MTU of 65535 allows with one VLAN tag.
pub const FRAME_LEN_MAX: usize = 65_553;
/// The shortest frame: an Ethernet header.
pub const FRAME_LEN_MIN: usize = 14;

/// The network card as the board configures it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The card's address.
    pub mac: [u8; 6],
    /// Largest payload of a frame that the driver should send, in bytes. From 68 on.
    pub mtu: u16,
}

/// Saved state of the network device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The driver is asked to announce itself.
    pub announce: bool,
    /// Received frames that wait for a buffer, oldest first. At most [`RX_HELD_MAX`].
    pub rx_held: VecDeque<Vec<u8>>,
    /// Received frames that were dropped.
    pub rx_dropped: u64,
    /// Frames that the driver sent and that were too short, too long or contradict their header.
    pub tx_dropped: u64,
    /// Sent frames that the board has not taken, oldest first.
    pub tx: Vec<Vec<u8>>,
}

impl Saved for VirtioState<NetState> {
    const KIND: &'static str = NetDevice::KIND;
    const VERSION: u16 = 1;
}

/// A virtio network device with its transport.
pub type Net = Virtio<NetDevice>;

/// The device behind the transport.
#[derive(Debug)]
pub struct NetDevice {
    config: NetConfig,
    state: NetState,
}

impl Net {
    /// The device after power-on.
    #[must_use]
    pub fn new(config: NetConfig) -> Net {
        Virtio::from_backend(NetDevice { config, state: NetState::default() })
    }

    /// Puts received frames, without FCS, into the driver's buffers. While no driver runs the device
    /// they are dropped.
    pub fn handle_frames(&mut self, mem: &mut GuestMem, frames: &[Vec<u8>]) {
        let is_live = self.is_live();
        self.device_mut().hold(frames, is_live);
        self.with_io(mem, |device, io| device.fill(io));
    }

    /// The frames sent since the last call, oldest first: called after each kick, those of that kick.
    pub fn poll_frames(&mut self) -> Option<Vec<Vec<u8>>> {
        let frames = std::mem::take(&mut self.device_mut().state.tx);
        (!frames.is_empty()).then_some(frames)
    }

    /// Asks the driver to announce itself to the network, if it knows how.
    pub fn handle_announce(&mut self) {
        if self.is_live() && self.features() & F_GUEST_ANNOUNCE != 0 {
            self.device_mut().state.announce = true;
            self.config_changed();
        }
    }

    /// Received frames that were dropped for want of buffers.
    #[must_use]
    pub fn rx_dropped(&self) -> u64 {
        self.device().state.rx_dropped
    }

    /// A device in a saved state.
    ///
    /// # Errors
    /// If this card cannot be in that state.
    pub fn restore(config: NetConfig, state: VirtioState<NetState>) -> Result<Net, RestoreError> {
        let device = NetDevice { config, state: state.device };
        let s = &device.state;
        let is_bad = |frame: &Vec<u8>| !is_frame_len(frame.len());
        if s.rx_held.len() > RX_HELD_MAX || s.rx_held.iter().chain(&s.tx).any(is_bad) {
            return Err(crate::impossible(NetDevice::KIND, "a frame or queue is too long"));
        }
        Virtio::restore_transport(state.transport, device)
    }
}

impl Backend for NetDevice {
    const DEVICE_ID: u32 = 1;
    const QUEUE_COUNT: usize = 3;
    const KIND: &'static str = "virtio-net";
    type State = NetState;

    fn features(&self) -> u64 {
        F_OFFLOADS | F_MTU | F_MAC | F_MRG_RXBUF | F_STATUS | F_CTRL_VQ | F_GUEST_ANNOUNCE
    }

    fn config(&self) -> Vec<u8> {
        let status = STATUS_LINK_UP | if self.state.announce { STATUS_ANNOUNCE } else { 0 };
        let mut config = self.config.mac.to_vec();
        config.extend(status.to_le_bytes());
        config.extend(1u16.to_le_bytes());
        config.extend(self.config.mtu.to_le_bytes());
        config
    }

    fn handle_kick(&mut self, io: &mut Io<'_>, queue: usize) -> Result<(), Broken> {
        match queue {
            RX => self.fill(io),
            TX => self.send(io),
            _ => self.control(io),
        }
    }

    fn reset(&mut self) {
        self.state.announce = false;
        self.state.rx_held.clear();
    }

    fn state(&self) -> NetState {
        self.state.clone()
    }
}

impl NetDevice {
    fn hold(&mut self, frames: &[Vec<u8>], is_live: bool) {
        for frame in frames {
            if is_live && is_frame_len(frame.len()) && self.state.rx_held.len() < RX_HELD_MAX {
                self.state.rx_held.push_back(frame.clone());
            } else {
                self.state.rx_dropped += 1;
            }
        }
    }

    /// Moves held frames into the driver's buffers, as many as there are.
    fn fill(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        while let Some(frame) = self.state.rx_held.front() {
            match deliver(io, frame)? {
                Delivery::Done => {}
                Delivery::NoBuffer => break,
                Delivery::TooLong => self.state.rx_dropped += 1,
            }
            self.state.rx_held.pop_front();
        }
        io.notify(RX)
    }

    fn send(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        for _ in 0..io.drain_max(TX) {
            let Some(chain) = io.pop(TX)? else { break };
            match frames_of(io, &chain)? {
                Some(frames) => self.state.tx.extend(frames),
                None => self.state.tx_dropped += 1,
            }
            io.push_used(TX, chain.head, 0)?;
        }
        io.notify(TX)
    }

    fn control(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        for _ in 0..io.drain_max(CONTROL) {
            let Some(chain) = io.pop(CONTROL)? else { break };
            if chain.readable_len() < 2 || chain.writable_len() == 0 {
                return Err(Broken::Request);
            }
            let command = chain.read(io.mem, 0, 2)?;
            let answer = if command == [CLASS_ANNOUNCE, ANNOUNCE_ACK] {
                self.state.announce = false;
                ACK_OK
            } else {
                ACK_ERROR
            };
            chain.write(io.mem, 0, &[answer])?;
            io.push_used(CONTROL, chain.head, 1)?;
        }
        io.notify(CONTROL)
    }
}

/// The frames that a chain of the driver's stands for. `None` if it is none that can be sent.
fn frames_of(io: &Io<'_>, chain: &Chain) -> Result<Option<Vec<Vec<u8>>>, Broken> {
    let len = chain.readable_len().saturating_sub(HEADER_LEN as u64);
    // The length is checked before the copy, so a huge chain costs nothing.
    if !usize::try_from(len).is_ok_and(is_frame_len) {
        return Ok(None);
    }
    let mut header = TxHeader::of(&chain.read(io.mem, 0, HEADER_LEN as u64)?);
    if io.features & F_CSUM == 0 {
        header.flags = 0;
    }
    let frame = chain.read(io.mem, HEADER_LEN as u64, len)?;
    Ok(offload::complete(header, frame))
}

enum Delivery {
    Done,
    NoBuffer,
    /// The frame is longer than the one buffer that may hold it.
    TooLong,
}

/// Writes one frame into as many buffers as it needs and the driver allows.
fn deliver(io: &mut Io<'_>, frame: &[u8]) -> Result<Delivery, Broken> {
    let may_merge = io.features & F_MRG_RXBUF != 0;
    let needed = (HEADER_LEN + frame.len()) as u64;
    let mut chains = Vec::new();
    let mut room = 0;
    while room < needed {
        if !may_merge && !chains.is_empty() {
            io.unpop(RX, 1);
            return Ok(Delivery::TooLong);
        }
        let Some(chain) = io.pop(RX)? else {
            io.unpop(RX, chains.len() as u16);
            return Ok(Delivery::NoBuffer);
        };
        if chain.writable_len() == 0
            || chains.is_empty() && chain.writable_len() < HEADER_LEN as u64
        {
            return Err(Broken::Request);
        }
        room += chain.writable_len();
        chains.push(chain);
    }
    let mut bytes = vec![0; HEADER_LEN];
    if io.features & F_GUEST_CSUM != 0 && offload::is_checksum_right(frame) {
        bytes[0] = offload::DATA_VALID;
    }
    bytes[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
    bytes.extend_from_slice(frame);
    let mut rest = &bytes[..];
    for chain in &chains {
        let len = rest.len().min(usize::try_from(chain.writable_len()).unwrap_or(usize::MAX));
        chain.write(io.mem, 0, &rest[..len])?;
        io.push_used(RX, chain.head, len as u32)?;
        rest = &rest[len..];
    }
    Ok(Delivery::Done)
}

fn is_frame_len(len: usize) -> bool {
    (FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&len)
}

const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
/// `virtio_net_hdr` of virtio 1: always with the number of buffers.
const HEADER_LEN: usize = 12;
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
/// With them `VIRTIO_NET_F_HOST_TSO4`, `HOST_TSO6` and `HOST_ECN`, which all need `F_CSUM`.
const F_OFFLOADS: u64 = F_CSUM | F_GUEST_CSUM | 1 << 11 | 1 << 12 | 1 << 13;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_GUEST_ANNOUNCE: u64 = 1 << 21;
const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;
const CLASS_ANNOUNCE: u8 = 3;
const ANNOUNCE_ACK: u8 = 0;
const ACK_OK: u8 = 0;
const ACK_ERROR: u8 = 1;

#[cfg(test)]
mod tests;
