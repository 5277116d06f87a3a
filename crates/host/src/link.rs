//! Links: where a guest's Ethernet frames come from and go to.
//!
//! Three kinds: a TAP device, a packet socket on any interface (for user namespaces with veth, where
//! `/dev/net/tun` is closed), and frames over a stream socket ([`crate::stream`]). The first two carry
//! unfinished frames too: what is left to do stands in a header of the kernel's before each.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use base::{Frame, Offload};
use nix::libc;
use nix::net::if_::if_nametoindex;

use crate::offload;
use crate::stream::StreamLink;
use crate::wake::{Wake, wait_readable};

/// Most frames that one [`Link::receive`] hands over: they reach the guest with one interrupt.
pub const FRAMES_PER_READ_MAX: usize = 64;
/// Longest frame that a link carries: 64 KiB of payload and an Ethernet header with VLAN tags.
pub const FRAME_LEN_MAX: usize = 65_536 + 22;
/// Longest name of a network interface, in bytes.
pub const INTERFACE_NAME_LEN_MAX: usize = libc::IFNAMSIZ - 1;

/// Where a link leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkAddr {
    /// A TAP device, by name.
    Tap(String),
    /// A network interface, by name.
    Packet(String),
    /// Frames over TCP, to a peer that listens.
    Connect(String),
    /// Frames over TCP, from whoever connects.
    Listen(SocketAddr),
    /// Frames over a Unix socket, to a peer that listens.
    Unix(PathBuf),
}

/// Why a link cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The TAP driver cannot be reached.
    #[error("cannot open /dev/net/tun for {name}")]
    NoTun {
        /// The TAP device that was wanted.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is no such TAP device, or it belongs to somebody else.
    #[error("cannot attach to TAP device {name}")]
    Tap {
        /// The TAP device that was wanted.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The interface cannot be bound.
    #[error("cannot open a packet socket on interface {name}")]
    Packet {
        /// The interface that was wanted.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen for frames on {addr}")]
    Listen {
        /// The address that was wanted.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// An open link. One thread receives; any thread sends.
#[derive(Debug)]
pub enum Link {
    /// A TAP device.
    Tap(Tap),
    /// A packet socket.
    Packet(PacketSocket),
    /// Frames over a stream socket.
    Stream(StreamLink),
}

impl Link {
    /// Opens the link. A stream to a peer is not waited for: it comes up when the peer is there.
    ///
    /// # Errors
    /// [`LinkError`], which names the link.
    pub fn open(addr: &LinkAddr) -> Result<Link, LinkError> {
        match addr {
            LinkAddr::Tap(name) => Tap::open(name).map(Link::Tap),
            LinkAddr::Packet(name) => PacketSocket::open(name)
                .map(Link::Packet)
                .map_err(|source| LinkError::Packet { name: name.clone(), source }),
            LinkAddr::Connect(peer) => Ok(Link::Stream(StreamLink::connect(peer.clone()))),
            LinkAddr::Unix(path) => Ok(Link::Stream(StreamLink::unix(path.clone()))),
            LinkAddr::Listen(addr) => StreamLink::listen(*addr)
                .map(Link::Stream)
                .map_err(|source| LinkError::Listen { addr: *addr, source }),
        }
    }

    /// Waits for frames, or for `wake`, and appends what is there, up to [`FRAMES_PER_READ_MAX`].
    ///
    /// # Errors
    /// If the link is gone for good. A stream whose peer went away is not: it comes back.
    pub fn receive(&self, wake: &Wake, frames: &mut Vec<Frame>) -> io::Result<()> {
        match self {
            Link::Tap(tap) => tap.port.receive(wake, frames),
            Link::Packet(socket) => socket.port.receive(wake, frames),
            Link::Stream(stream) => {
                let mut whole = Vec::new();
                stream.receive(wake, &mut whole)?;
                frames.extend(whole.into_iter().map(Frame::from));
                Ok(())
            }
        }
    }

    /// Sends a frame, as a wire does: one that cannot go out now is lost.
    ///
    /// # Errors
    /// If the link is gone for good.
    pub fn send(&self, frame: &Frame) -> io::Result<()> {
        let sent = match self {
            Link::Tap(tap) => tap.port.send(frame),
            Link::Packet(socket) => socket.port.send(frame),
            Link::Stream(stream) => {
                let mut whole = Vec::new();
                offload::finish(&frame.offload.unwrap_or_default(), &frame.bytes, &mut whole);
                whole.iter().for_each(|frame| stream.send(frame));
                Ok(())
            }
        };
        match sent {
            Err(error) if is_lost_frame(&error) => Ok(()),
            other => other,
        }
    }
}

/// A full queue, an interface that is down, a frame longer than its MTU: the frame is lost, the link
/// is not.
fn is_lost_frame(error: &io::Error) -> bool {
    let passing = [
        libc::EAGAIN,
        libc::ENOBUFS,
        libc::EIO,
        libc::ENETDOWN,
        libc::EMSGSIZE,
        libc::EINTR,
        libc::EINVAL,
    ];
    error.raw_os_error().is_some_and(|code| passing.contains(&code))
}

/// A descriptor that takes and gives one frame at a time, each behind its header.
#[derive(Debug)]
struct Port {
    file: File,
    /// Room for the longest frame, for whoever receives.
    buffer: Mutex<Vec<u8>>,
}

impl Port {
    fn new(file: File) -> Port {
        Port { file, buffer: Mutex::new(vec![0; Offload::HEADER_LEN + FRAME_LEN_MAX]) }
    }

    /// Waits, then reads until nothing is left or the batch is full.
    fn receive(&self, wake: &Wake, frames: &mut Vec<Frame>) -> io::Result<()> {
        if !wait_readable(Some(self.file.as_fd()), wake, None)?.readable {
            return Ok(());
        }
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        while frames.len() < FRAMES_PER_READ_MAX {
            match (&self.file).read(&mut buffer) {
                Ok(len) => {
                    if let Some((header, bytes)) = buffer[..len].split_first_chunk() {
                        offload::take(header, bytes, frames);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_lost_frame(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(&self, frame: &Frame) -> io::Result<()> {
        let header = frame.offload.unwrap_or_default().header(u16::to_ne_bytes);
        let parts = [IoSlice::new(&header), IoSlice::new(&frame.bytes)];
        (&self.file).write_vectored(&parts).map(|_| ())
    }
}

/// A TAP device that exists already, or that we may make.
#[derive(Debug)]
pub struct Tap {
    port: Port,
}

impl Tap {
    /// Attaches to the TAP device `name`, with a header before each frame.
    fn open(name: &str) -> Result<Tap, LinkError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|source| LinkError::NoTun { name: name.to_owned(), source })?;
        let failed = |source| LinkError::Tap { name: name.to_owned(), source };

        // SAFETY: `ifreq` is plain data; all zeros is one of its values.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.is_empty() || name.len() > INTERFACE_NAME_LEN_MAX {
            return Err(failed(io::Error::from_raw_os_error(libc::ENODEV)));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, with a name that ends
        // in a zero because it is shorter than the array.
        let status = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) };
        if status < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        let header_len = Offload::HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which `header_len` is.
        let status = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &header_len) };
        if status < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        let unfinished =
            libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        // SAFETY: TUNSETOFFLOAD takes a number.
        let status = unsafe {
            libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(unfinished))
        };
        if status < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        Ok(Tap { port: Port::new(file) })
    }
}

/// A packet socket, bound to one interface: it receives all frames that arrive there, and sends from
/// there. The frames that it sent itself do not come back.
#[derive(Debug)]
pub struct PacketSocket {
    port: Port,
}

impl PacketSocket {
    fn open(interface: &str) -> io::Result<PacketSocket> {
        let index = if_nametoindex(interface)?;
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0: nothing arrives before the socket is bound, so no frame of another interface.
        // SAFETY: no pointer is passed; the result is checked before it is used.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `socket` has just made this descriptor, and nobody else knows it.
        let file = unsafe { File::from_raw_fd(fd) };
        let socket = PacketSocket { port: Port::new(file) };

        let on: libc::c_int = 1;
        socket.set_option(libc::PACKET_VNET_HDR, &on)?;
        socket.set_option(libc::PACKET_IGNORE_OUTGOING, &on)?;
        // The guest's MAC is not the interface's.
        let membership = libc::packet_mreq {
            mr_ifindex: index as libc::c_int,
            mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        socket.set_option(libc::PACKET_ADD_MEMBERSHIP, &membership)?;

        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: index as libc::c_int,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let status = unsafe {
            libc::bind(
                socket.port.file.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
    }

    fn set_option<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `value`, which outlives the call; the kernel
        // only reads it.
        let status = unsafe {
            libc::setsockopt(
                self.port.file.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const *value).cast::<c_void>(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
