//! An established connection to another Lockstep process: bytes both ways, encrypted unless that was
//! switched off by name.
//!
//! Making one blocks (for [`HANDSHAKE_MAX`] at most) and belongs on a thread of its own; using one
//! never does. A peer that speaks something else, or that does not hold the site's key, gets no further
//! than the handshake.

use std::collections::VecDeque;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};

use crate::key::Security;

/// Connecting and agreeing on keys takes no longer than this.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Bytes taken from the socket with one [`Conn::read`], so that one peer cannot keep a thread busy.
const READ_LEN_MAX: usize = 4 << 20;
/// One read from the socket.
const CHUNK_LEN: usize = 256 << 10;
/// Label under which both ends derive the heartbeats' key from the session (RFC 8446 section 7.5).
const HEARTBEAT_LABEL: &[u8] = b"lockstep heartbeat";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    /// The name leads nowhere.
    #[error("cannot resolve {addr}")]
    Resolve {
        /// What was asked for.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody is there.
    #[error("cannot connect to {addr}")]
    Connect {
        /// Who was called.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody is there, but not one of ours, or with another key.
    #[error("cannot agree on keys with {addr}; do both ends use the same key file?")]
    Handshake {
        /// Who it is.
        addr: String,
        /// What went wrong.
        source: io::Error,
    },
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.set_nonblocking(true),
            Socket::Unix(stream) => stream.set_nonblocking(true),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(bytes),
            Socket::Unix(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write_vectored(parts),
            Socket::Unix(stream) => stream.write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    socket: Socket,
    tls: Option<Box<Connection>>,
    /// Without TLS: what the socket did not take yet. (With it, rustls keeps that.)
    unsent: VecDeque<u8>,
    /// Bytes given to [`Conn::write`] and not yet taken by the socket, roughly.
    unsent_len: usize,
    /// Room for one read.
    chunk: Vec<u8>,
    heartbeat_key: [u8; 32],
    peer: Option<SocketAddr>,
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Conn {
    /// Connects to `addr` (`HOST:PORT`).
    ///
    /// # Errors
    /// A [`ConnError`] that names `addr`.
    pub fn connect(addr: &str, security: &Security) -> Result<Conn, ConnError> {
        let stream = open_tcp(addr)?;
        let handshake = |source| ConnError::Handshake { addr: addr.to_owned(), source };
        let tls = match security {
            Security::Plaintext => None,
            Security::Key(key) => {
                // The name takes no part: the peer is known by its key.
                let name = ServerName::try_from("lockstep").expect("a well-formed name");
                let tls = ClientConnection::new(key.client.clone(), name).map_err(io::Error::other);
                Some(Connection::Client(tls.map_err(handshake)?))
            }
        };
        Conn::over_tcp(stream, tls).map_err(handshake)
    }

    /// Takes on a connection that a listener accepted.
    ///
    /// # Errors
    /// [`ConnError::Handshake`].
    pub fn accept(stream: TcpStream, security: &Security) -> Result<Conn, ConnError> {
        let addr = stream.peer_addr().map_or("a peer".to_owned(), |addr| addr.to_string());
        let handshake = |source| ConnError::Handshake { addr: addr.clone(), source };
        let tls = match security {
            Security::Plaintext => None,
            Security::Key(key) => {
                let tls = ServerConnection::new(key.server.clone()).map_err(io::Error::other);
                Some(Connection::Server(tls.map_err(handshake)?))
            }
        };
        Conn::over_tcp(stream, tls).map_err(handshake)
    }

    /// Takes on a Unix socket, which the file system's permissions protect.
    ///
    /// # Errors
    /// If the socket is broken.
    pub fn local(stream: UnixStream) -> io::Result<Conn> {
        let socket = Socket::Unix(stream);
        socket.set_nonblocking()?;
        Ok(Conn {
            socket,
            tls: None,
            unsent: VecDeque::new(),
            unsent_len: 0,
            chunk: vec![0; CHUNK_LEN],
            heartbeat_key: [0; 32],
            peer: None,
        })
    }

    fn over_tcp(mut stream: TcpStream, mut tls: Option<Connection>) -> io::Result<Conn> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(false)?;
        let peer = stream.peer_addr()?;
        let mut heartbeat_key = [0; 32];
        if let Some(tls) = &mut tls {
            shake_hands(&mut stream, tls)?;
            tls.set_buffer_limit(None);
            tls.export_keying_material(&mut heartbeat_key, HEARTBEAT_LABEL, None)
                .map_err(io::Error::other)?;
        }
        let socket = Socket::Tcp(stream);
        socket.set_nonblocking()?;
        Ok(Conn {
            socket,
            tls: tls.map(Box::new),
            unsent: VecDeque::new(),
            unsent_len: 0,
            chunk: vec![0; CHUNK_LEN],
            heartbeat_key,
            peer: Some(peer),
        })
    }

    /// The other end, unless it is a Unix socket.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Breaks the connection, from now on, when the other end's host went away without a word. For
    /// those who watch it in no other way.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn notice_dead_host(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(stream) => host::tcp::notice_dead_host(stream),
            Socket::Unix(_) => Ok(()),
        }
    }

    /// The key that both ends derived for the heartbeats that belong to this connection.
    #[must_use]
    pub fn heartbeat_key(&self) -> [u8; 32] {
        self.heartbeat_key
    }

    /// Appends what has arrived to `bytes`. False if the peer closed the connection; what it sent
    /// before is among the bytes.
    ///
    /// # Errors
    /// If the connection broke, or if somebody tampered with it.
    pub fn read(&mut self, bytes: &mut Vec<u8>) -> io::Result<bool> {
        let len_max = bytes.len() + READ_LEN_MAX;
        // What came with the end of the handshake is there before anything is read.
        if let Some(tls) = &mut self.tls
            && !take_plaintext(tls, bytes)?
        {
            return Ok(false);
        }
        while bytes.len() < len_max {
            let len = match self.socket.read(&mut self.chunk) {
                Ok(0) => return Ok(false),
                Ok(len) => len,
                Err(error) if is_not_now(&error) => return Ok(true),
                Err(error) => return Err(error),
            };
            let mut rest = &self.chunk[..len];
            match &mut self.tls {
                None => bytes.extend_from_slice(rest),
                Some(tls) => {
                    while !rest.is_empty() {
                        tls.read_tls(&mut rest)?;
                        tls.process_new_packets().map_err(io::Error::other)?;
                        if !take_plaintext(tls, bytes)? {
                            return Ok(false);
                        }
                    }
                }
            }
            if len < self.chunk.len() {
                // That was all; whoever waits for the socket is told of more.
                return Ok(true);
            }
        }
        Ok(true)
    }

    /// Queues bytes. [`Conn::flush`] sends them.
    pub fn write(&mut self, bytes: &[u8]) {
        self.unsent_len += bytes.len();
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(bytes).expect("the buffer has no limit"),
            None => self.unsent.extend(bytes),
        }
    }

    /// Sends what the socket takes now.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.wants_write() {
            let sent = match &mut self.tls {
                Some(tls) => tls.write_tls(&mut self.socket),
                None => self.socket.write(self.unsent.as_slices().0),
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => {
                    if self.tls.is_none() {
                        self.unsent.drain(..len);
                    }
                    self.unsent_len = self.unsent_len.saturating_sub(len);
                }
                Err(error) if is_not_now(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.unsent_len = 0;
        Ok(())
    }

    /// Whether bytes wait for the socket.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().map_or(!self.unsent.is_empty(), |tls| tls.wants_write())
    }

    /// How many bytes wait for the socket, roughly.
    #[must_use]
    pub fn unsent_len(&self) -> usize {
        self.unsent_len
    }
}

/// Appends what was decrypted. False if the peer has said that nothing follows.
fn take_plaintext(tls: &mut Connection, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut reader = tls.reader();
    loop {
        match reader.fill_buf() {
            Ok([]) => return Ok(false),
            Ok(part) => {
                bytes.extend_from_slice(part);
                let len = part.len();
                reader.consume(len);
            }
            Err(error) if is_not_now(&error) => return Ok(true),
            // A process that was killed says no goodbye; frames have lengths of their own.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn open_tcp(addr: &str) -> Result<TcpStream, ConnError> {
    let found = addr
        .to_socket_addrs()
        .map_err(|source| ConnError::Resolve { addr: addr.to_owned(), source })?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for found in found {
        match TcpStream::connect_timeout(&found, HANDSHAKE_MAX) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(ConnError::Connect { addr: addr.to_owned(), source: last })
}

fn shake_hands(stream: &mut TcpStream, tls: &mut Connection) -> io::Result<()> {
    let deadline = Instant::now() + HANDSHAKE_MAX;
    while tls.is_handshaking() || tls.wants_write() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        stream.set_write_timeout(Some(left))?;
        if tls.wants_write() {
            tls.write_tls(stream)?;
            continue;
        }
        if tls.read_tls(stream)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Err(error) = tls.process_new_packets() {
            let _ = tls.write_tls(stream); // the alert tells the peer why; it may be gone already
            return Err(io::Error::other(error));
        }
    }
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::key::tests::site_key;

    /// Both ends of a connection between two threads.
    fn pair(
        client: &Security,
        server: &Security,
    ) -> (Result<Conn, ConnError>, Result<Conn, ConnError>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        thread::scope(|scope| {
            let accepted = scope.spawn(|| Conn::accept(listener.accept().unwrap().0, server));
            let connected = Conn::connect(&addr, client);
            // With TLS 1.3 a refused client learns of it with its first read.
            (connected, accepted.join().unwrap())
        })
    }

    fn read_until(conn: &mut Conn, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            assert!(conn.read(&mut bytes).unwrap(), "closed after {} bytes", bytes.len());
        }
        bytes
    }

    #[test]
    fn bytes_cross_in_order_with_and_without_encryption() {
        for security in [site_key(), Security::Plaintext] {
            let (client, server) = pair(&security, &security);
            let (mut client, mut server) = (client.unwrap(), server.unwrap());
            assert_eq!(client.heartbeat_key(), server.heartbeat_key());
            let sent: Vec<u8> = (0..5_000_000u32).map(|n| (n >> 3) as u8).collect();
            thread::scope(|scope| {
                scope.spawn(|| {
                    client.write(&sent);
                    while client.wants_write() {
                        client.flush().unwrap();
                    }
                });
                assert!(read_until(&mut server, sent.len()) == sent);
            });
            drop(client);
            let mut rest = Vec::new();
            while server.read(&mut rest).is_ok_and(|open| open) {}
            assert!(rest.is_empty());
        }
    }

    /// A client's first words often come in one packet with the end of its handshake.
    #[test]
    fn bytes_that_come_with_the_handshake_are_not_lost() {
        let security = site_key();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let mut client = None;
        let mut server = thread::scope(|scope| {
            let accepted = scope.spawn(|| {
                let stream = listener.accept().unwrap().0;
                // By now the client has gone as far as it can alone.
                thread::sleep(Duration::from_millis(50));
                Conn::accept(stream, &security)
            });
            let mut conn = Conn::connect(&addr, &security).unwrap();
            conn.write(b"hello");
            conn.flush().unwrap();
            client = Some(conn);
            accepted.join().unwrap().unwrap()
        });
        assert_eq!(read_until(&mut server, 5), b"hello");
    }

    #[test]
    fn a_peer_with_another_key_gets_no_connection() {
        let (_, accepted) = pair(&site_key(), &site_key());
        assert!(matches!(accepted, Err(ConnError::Handshake { .. })), "{accepted:?}");
    }

    #[test]
    fn a_peer_that_speaks_nonsense_gets_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.write_all(b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n").unwrap();
        let accepted = Conn::accept(listener.accept().unwrap().0, &site_key());
        assert!(matches!(accepted, Err(ConnError::Handshake { .. })));
    }

    #[test]
    fn every_session_has_a_heartbeat_key_of_its_own() {
        let security = site_key();
        let keys = [0; 2].map(|_| pair(&security, &security).0.unwrap().heartbeat_key());
        assert_ne!(keys[0], keys[1]);
    }
}
