//! Virtio network device (virtio 1.2, section 5.1), with one queue pair.
//!
//! After a transmit kick the ring waits until [`Net::send_waiting`] is called, without another kick. Then it is
//! drained at once: the chains go back to the driver and all frames leave as one batch
//! ([`Net::poll_frames`]). Received frames enter RAM, announced by one interrupt, when
//! [`Net::handle_frames`] is called; those that find no buffer wait, up to a bound, and are dropped
//! beyond it, newest first. The link is always up, and every frame is passed on whatever its address.
//!
//! Unfinished frames, without a checksum or with many TCP segments in one, pass as they are in both
//! directions, with what is left to do. Received ones are completed here for a driver that does not take them.

mod offload;

use std::collections::VecDeque;

use base::{Frame, Offload, RestoreError, Saved};
use mem::GuestMem;
use serde::{Deserialize, Serialize};

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
    pub rx_held: VecDeque<Frame>,
    /// Received frames that were dropped.
    pub rx_dropped: u64,
    /// Frames that the driver sent and that were too short, too long or contradict their header.
    pub tx_dropped: u64,
    /// The driver has kicked its transmit ring, which is not drained yet.
    pub tx_waits: bool,
    /// Sent frames that the board has not taken, oldest first.
    pub tx: Vec<Frame>,
}

impl Saved for VirtioState<NetState> {
    const KIND: &'static str = NetDevice::KIND;
    const VERSION: u16 = 2;
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

    /// Puts received frames into the driver's buffers. While no driver runs the device they are dropped.
    pub fn handle_frames(&mut self, mem: &mut GuestMem, frames: Vec<Frame>) {
        let (is_live, features) = (self.is_live(), self.features());
        let device = self.device_mut();
        for frame in frames {
            if is_live { device.hold(frame, features) } else { device.state.rx_dropped += 1 }
        }
        self.with_io(mem, |device, io| device.fill(io));
    }

    /// True if the driver has kicked its transmit ring since [`Net::send_waiting`].
    #[must_use]
    pub fn waits_to_send(&self) -> bool {
        self.device().state.tx_waits
    }

    /// Sends what is in the transmit ring.
    pub fn send_waiting(&mut self, mem: &mut GuestMem) {
        if std::mem::take(&mut self.device_mut().state.tx_waits) {
            self.with_io(mem, |device, io| device.send(io));
        }
    }

    /// The frames sent since the last call, oldest first: called after each [`Net::send_waiting`], those of
    /// that call.
    pub fn poll_frames(&mut self) -> Option<Vec<Frame>> {
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
        let is_bad = |frame: &Frame| !is_frame_len(frame.bytes.len());
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
            TX => {
                self.state.tx_waits = true;
                Ok(())
            }
            _ => self.control(io),
        }
    }

    fn reset(&mut self) {
        self.state.announce = false;
        self.state.tx_waits = false;
        self.state.rx_held.clear();
    }

    fn state(&self) -> NetState {
        self.state.clone()
    }
}

impl NetDevice {
    /// Keeps a received frame until there are buffers for it, as something that the driver takes.
    fn hold(&mut self, frame: Frame, features: u64) {
        let Frame { offload, bytes } = frame;
        let frames = match offload {
            Some(offload) if !takes(features, &offload) => {
                let frames = offload::complete(&offload, bytes).unwrap_or_default();
                // One that cannot be completed is a lost frame, too.
                self.state.rx_dropped += u64::from(frames.is_empty());
                frames.into_iter().map(Frame::from).collect()
            }
            offload => vec![Frame { offload, bytes }],
        };
        for frame in frames {
            if is_frame_len(frame.bytes.len()) && self.state.rx_held.len() < RX_HELD_MAX {
                self.state.rx_held.push_back(frame);
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
            match frame_of(io, &chain)? {
                Some(frame) => self.state.tx.push(frame),
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

/// The frame that a chain of the driver's holds. `None` if it is none that can be sent.
fn frame_of(io: &Io<'_>, chain: &Chain) -> Result<Option<Frame>, Broken> {
    let len = chain.readable_len().saturating_sub(HEADER_LEN as u64);
    // The length is checked before the copy, so a huge chain costs nothing.
    if !usize::try_from(len).is_ok_and(is_frame_len) {
        return Ok(None);
    }
    let header = chain.read(io.mem, 0, Offload::HEADER_LEN as u64)?;
    let header = header.first_chunk().expect("the chain is longer than the header");
    let offload = match Offload::of(header, u16::from_le_bytes) {
        // A driver that did not accept the feature means nothing by the header's fields.
        Some(_) if io.features & F_CSUM == 0 => None,
        offload => offload,
    };
    let bytes = chain.read(io.mem, HEADER_LEN as u64, len)?;
    let is_sound = offload.is_none_or(|offload| {
        segments_allowed(io.features, &offload, F_HOST_TSO) && offload::is_sound(&offload, &bytes)
    });
    Ok(is_sound.then_some(Frame { offload, bytes }))
}

/// True if the driver takes a frame with this left to do.
fn takes(features: u64, offload: &Offload) -> bool {
    features & F_GUEST_CSUM != 0 && segments_allowed(features, offload, F_GUEST_TSO)
}

/// True if the driver accepted the feature that the frame's segments need. `tso` are the features for TCP
/// over IPv4, over IPv6 and with ECN.
fn segments_allowed(features: u64, offload: &Offload, tso: [u64; 3]) -> bool {
    let [tso4, tso6, ecn] = tso;
    let needed = match offload.segments() {
        Offload::GSO_NONE => Some(0),
        Offload::GSO_TCP4 => Some(tso4),
        Offload::GSO_TCP6 => Some(tso6),
        _ => None,
    };
    let needed_for_ecn = if offload.gso_type & Offload::GSO_ECN != 0 { ecn } else { 0 };
    needed.is_some_and(|needed| features & (needed | needed_for_ecn) == needed | needed_for_ecn)
}

enum Delivery {
    Done,
    NoBuffer,
    /// The frame is longer than the one buffer that may hold it.
    TooLong,
}

/// Writes one frame into as many buffers as it needs and the driver allows.
fn deliver(io: &mut Io<'_>, frame: &Frame) -> Result<Delivery, Broken> {
    let may_merge = io.features & F_MRG_RXBUF != 0;
    let needed = (HEADER_LEN + frame.bytes.len()) as u64;
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
    let header = rx_header(io.features, frame, chains.len() as u16);
    let mut rest = &frame.bytes[..];
    for (index, chain) in chains.iter().enumerate() {
        let mut len = 0;
        if index == 0 {
            chain.write(io.mem, 0, &header)?;
            len = header.len();
        }
        let room = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX) - len;
        let (part, left) = rest.split_at(rest.len().min(room));
        chain.write(io.mem, len as u64, part)?;
        rest = left;
        len += part.len();
        io.push_used(RX, chain.head, len as u32)?;
    }
    Ok(Delivery::Done)
}

/// What stands before a received frame that fills `buffer_count` buffers.
fn rx_header(features: u64, frame: &Frame, buffer_count: u16) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    match &frame.offload {
        Some(offload) => header[..10].copy_from_slice(&offload.header(u16::to_le_bytes)),
        None if features & F_GUEST_CSUM != 0 && offload::is_checksum_right(&frame.bytes) => {
            header[0] = offload::DATA_VALID;
        }
        None => {}
    }
    header[10..].copy_from_slice(&buffer_count.to_le_bytes());
    header
}

const fn all(features: [u64; 3]) -> u64 {
    features[0] | features[1] | features[2]
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
/// `VIRTIO_NET_F_GUEST_TSO4`, `GUEST_TSO6` and `GUEST_ECN`, which need `F_GUEST_CSUM`.
const F_GUEST_TSO: [u64; 3] = [1 << 7, 1 << 8, 1 << 9];
/// `VIRTIO_NET_F_HOST_TSO4`, `HOST_TSO6` and `HOST_ECN`, which need `F_CSUM`.
const F_HOST_TSO: [u64; 3] = [1 << 11, 1 << 12, 1 << 13];
const F_OFFLOADS: u64 = F_CSUM | F_GUEST_CSUM | all(F_GUEST_TSO) | all(F_HOST_TSO);
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
