//! Ethernet frames over a stream socket, each after its length in 4 bytes, big endian: what QEMU's
//! `-netdev stream` and `-netdev socket` speak, and passt too.
//!
//! The stream comes and goes without the guest's knowing: a frame that finds no peer is lost.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::link::{FRAME_LEN_MAX, FRAMES_PER_READ_MAX};
use crate::wake::{Wake, wait_readable};

/// Bytes that wait for a slow peer; a frame beyond them is lost.
const UNSENT_LEN_MAX: usize = 1 << 20;
/// Between two attempts to reach a peer that is not there.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(200);
/// For one attempt to reach a peer.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two looks at whether a slow peer takes bytes again.
const UNSENT_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Between two looks at whether there are bytes left to send.
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    /// Bytes of a frame that is not whole yet. At most one frame and one read.
    bytes: Vec<u8>,
}

/// The peer sent a length that no frame has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer announced a frame of {len} bytes, the longest is {FRAME_LEN_MAX}")]
pub struct BadFrameLen {
    /// What the peer announced.
    pub len: u32,
}

impl FrameDecoder {
    /// Takes in what was read and appends the frames that are whole now.
    ///
    /// # Errors
    /// [`BadFrameLen`]; the stream is worthless from here on.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        frames: &mut Vec<Vec<u8>>,
    ) -> Result<(), BadFrameLen> {
        self.bytes.extend_from_slice(bytes);
        let mut rest = &self.bytes[..];
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let len = u32::from_be_bytes(*len);
            if len as usize > FRAME_LEN_MAX {
                return Err(BadFrameLen { len });
            }
            let Some((frame, after)) = after.split_at_checked(len as usize) else { break };
            frames.push(frame.to_vec());
            rest = after;
        }
        let taken = self.bytes.len() - rest.len();
        self.bytes.drain(..taken);
        Ok(())
    }
}

#[derive(Debug)]
enum Peer {
    Connect(String),
    Listen(TcpListener),
    Unix(PathBuf),
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).read(buffer),
            Socket::Unix(stream) => (&*stream).read(buffer),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).write(bytes),
            Socket::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn try_clone(&self) -> io::Result<Socket> {
        Ok(match self {
            Socket::Tcp(stream) => Socket::Tcp(stream.try_clone()?),
            Socket::Unix(stream) => Socket::Unix(stream.try_clone()?),
        })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

/// The sending half.
#[derive(Debug, Default)]
struct Sender {
    socket: Option<Socket>,
    /// Bytes that the socket did not take. At most [`UNSENT_LEN_MAX`] and one frame.
    unsent: VecDeque<u8>,
}

impl Sender {
    /// Gives the socket what it takes. A broken socket is left to the receiver to find.
    fn flush(&mut self) {
        let Some(socket) = &self.socket else { return };
        while !self.unsent.is_empty() {
            match socket.write(self.unsent.as_slices().0) {
                Ok(0) => return,
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// The receiving half.
#[derive(Debug, Default)]
struct Receiver {
    socket: Option<Socket>,
    decoder: FrameDecoder,
    /// Frames that were read and did not fit into the last batch.
    ready: VecDeque<Vec<u8>>,
}

/// A link to one peer at a time.
#[derive(Debug)]
pub struct StreamLink {
    peer: Peer,
    sender: Mutex<Sender>,
    receiver: Mutex<Receiver>,
}

impl StreamLink {
    /// A link to a peer that listens on `peer` (`HOST:PORT`), now or later.
    #[must_use]
    pub fn connect(peer: String) -> StreamLink {
        StreamLink::new(Peer::Connect(peer))
    }

    /// A link to a peer that listens on a Unix socket, now or later.
    #[must_use]
    pub fn unix(path: PathBuf) -> StreamLink {
        StreamLink::new(Peer::Unix(path))
    }

    /// A link to whoever connects to `addr`.
    ///
    /// # Errors
    /// If `addr` is taken or not ours.
    pub fn listen(addr: SocketAddr) -> io::Result<StreamLink> {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        Ok(StreamLink::new(Peer::Listen(listener)))
    }

    fn new(peer: Peer) -> StreamLink {
        StreamLink { peer, sender: Mutex::default(), receiver: Mutex::default() }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let mut sender = lock(&self.sender);
        if sender.socket.is_none() || sender.unsent.len() > UNSENT_LEN_MAX {
            return;
        }
        sender.unsent.extend((frame.len() as u32).to_be_bytes());
        sender.unsent.extend(frame);
        sender.flush();
    }

    pub(crate) fn receive(&self, wake: &Wake, frames: &mut Vec<Vec<u8>>) -> io::Result<()> {
        let mut receiver = lock(&self.receiver);
        if receiver.ready.is_empty() && !self.wait_for_frames(&mut receiver, wake)? {
            return Ok(());
        }
        let count = receiver.ready.len().min(FRAMES_PER_READ_MAX);
        frames.extend(receiver.ready.drain(..count));
        Ok(())
    }

    /// Waits until frames are ready; false if something else came first.
    fn wait_for_frames(&self, receiver: &mut Receiver, wake: &Wake) -> io::Result<bool> {
        let Some(socket) = &receiver.socket else {
            self.wait_for_peer(receiver, wake)?;
            return Ok(false);
        };
        let timeout = {
            let mut sender = lock(&self.sender);
            sender.flush();
            if sender.unsent.is_empty() { IDLE_POLL_INTERVAL } else { UNSENT_POLL_INTERVAL }
        };
        let ready = wait_readable(Some(socket.as_fd()), wake, Some(timeout))?;
        if !ready.readable {
            return Ok(false);
        }
        let mut buffer = [0; 65_536];
        let alive = match socket.read(&mut buffer) {
            Ok(0) => false,
            Ok(len) => {
                let mut frames = Vec::new();
                let sound = receiver.decoder.handle_bytes(&buffer[..len], &mut frames).is_ok();
                receiver.ready.extend(frames);
                sound
            }
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
            }
        };
        if !alive {
            receiver.socket = None;
            *lock(&self.sender) = Sender::default();
        }
        Ok(!receiver.ready.is_empty())
    }

    /// Waits for a peer for a while, or until `wake` rings.
    fn wait_for_peer(&self, receiver: &mut Receiver, wake: &Wake) -> io::Result<()> {
        let found = match &self.peer {
            Peer::Connect(peer) => connect_tcp(peer).map(Socket::Tcp),
            Peer::Unix(path) => UnixStream::connect(path).map(Socket::Unix),
            Peer::Listen(listener) => {
                wait_readable(Some(listener.as_fd()), wake, None)?;
                listener.accept().map(|(stream, _)| Socket::Tcp(stream))
            }
        };
        let Ok((socket, copy)) = found.and_then(prepare) else {
            wait_readable(None, wake, Some(RECONNECT_INTERVAL))?;
            return Ok(());
        };
        *receiver = Receiver { socket: Some(socket), ..Receiver::default() };
        *lock(&self.sender) = Sender { socket: Some(copy), unsent: VecDeque::new() };
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect_tcp(peer: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for addr in peer.to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn prepare(socket: Socket) -> io::Result<(Socket, Socket)> {
    match &socket {
        Socket::Tcp(stream) => {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
        }
        Socket::Unix(stream) => stream.set_nonblocking(true)?,
    }
    let copy = socket.try_clone()?;
    Ok((socket, copy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let sent: Vec<Vec<u8>> = vec![vec![1; 60], vec![], vec![2; 1514]];
        let mut bytes = Vec::new();
        for frame in &sent {
            bytes.extend((frame.len() as u32).to_be_bytes());
            bytes.extend(frame);
        }
        for cut in [1, 3, 61, 700, bytes.len()] {
            let (mut decoder, mut frames) = (FrameDecoder::default(), Vec::new());
            bytes.chunks(cut).for_each(|part| decoder.handle_bytes(part, &mut frames).unwrap());
            assert_eq!(frames, sent, "cut every {cut} bytes");
        }
    }

    #[test]
    fn a_length_that_no_frame_has_is_refused() {
        let mut decoder = FrameDecoder::default();
        let error = decoder.handle_bytes(b"GET / HTTP/1.1\r\n", &mut Vec::new());
        assert_eq!(error, Err(BadFrameLen { len: u32::from_be_bytes(*b"GET ") }));
    }

    fn receive_one(link: &StreamLink, wake: &Wake) -> Vec<u8> {
        let mut frames = Vec::new();
        while frames.is_empty() {
            link.receive(wake, &mut frames).unwrap();
        }
        frames.remove(0)
    }

    #[test]
    fn frames_cross_in_both_directions_and_a_peer_that_talks_nonsense_is_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (link, wake) =
            (StreamLink::connect(listener.local_addr().unwrap().to_string()), Wake::new().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut nonsense, _) = listener.accept().unwrap();
                nonsense.write_all(b"nonsense nonsense").unwrap();
                let (mut peer, _) = listener.accept().unwrap();
                peer.write_all(b"\0\0\0\x05hello").unwrap();
                let mut answer = [0; 9];
                peer.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"\0\0\0\x05world");
            });
            assert_eq!(receive_one(&link, &wake), b"hello");
            link.send(b"world");
        });
    }
}
