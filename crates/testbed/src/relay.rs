//! A stretch of the path between two hosts, which can keep bytes on their way or lose them.
//!
//! Bytes that a relay holds have left their sender, and TCP has acknowledged them: they are in flight.
//! They arrive when the test says so, or never.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::lab::RELAY_ADDR;

/// Bytes that one direction of a connection holds at most; after that no more are taken.
const HELD_LEN_MAX: usize = 64 << 20;
const CHUNK_LEN: usize = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// Passes TCP connections on to one server.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddrV4,
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// For each [`Way`], the bytes from whose first sight on a connection is held.
    rules: Mutex<[Option<Vec<u8>>; 2]>,
    lanes: Mutex<Vec<Arc<Lane>>>,
}

/// One direction of a connection.
#[derive(Debug)]
struct Lane {
    way: Way,
    from: TcpStream,
    to: TcpStream,
    state: Mutex<LaneState>,
}

#[derive(Debug, Default)]
struct LaneState {
    holds: bool,
    /// What was taken and not passed on.
    held: Vec<u8>,
    /// The sender has ended the connection behind that.
    ended: bool,
}

impl Relay {
    /// A relay on the service network that leads to `target` and passes everything on.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn start(target: SocketAddrV4) -> io::Result<Relay> {
        let listener = Arc::new(TcpListener::bind(SocketAddrV4::new(RELAY_ADDR, 0))?);
        let addr = SocketAddrV4::new(RELAY_ADDR, listener.local_addr()?.port());
        let shared = Arc::<Shared>::default();
        let (accepts, for_lanes) = (Arc::clone(&listener), Arc::clone(&shared));
        let accepting = thread::spawn(move || {
            while let Ok((client, _)) = accepts.accept() {
                // A server that cannot be reached looks like one that hangs up.
                let _ = connect(client, target, &for_lanes);
            }
        });
        Ok(Relay { addr, shared, listener, accepting: Some(accepting) })
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddrV4 {
        self.addr
    }

    /// Holds what goes this way on every connection, from the first chunk on that has `from` in it; an
    /// empty `from` is in every chunk. Ends of connections are held likewise.
    pub fn hold(&self, way: Way, from: &[u8]) {
        self.shared.rules()[way as usize] = Some(from.to_vec());
    }

    /// What is held this way, by connection.
    #[must_use]
    pub fn held(&self, way: Way) -> Vec<Vec<u8>> {
        let lanes = self.shared.lanes();
        let held =
            lanes.iter().filter(|lane| lane.way == way).map(|lane| lane.state().held.clone());
        held.filter(|bytes| !bytes.is_empty()).collect()
    }

    /// Holds nothing any more. What was held arrives.
    pub fn release(&self) {
        *self.shared.rules() = [None, None];
        for lane in &*self.shared.lanes() {
            lane.release();
        }
    }

    /// Holds nothing any more. What was held is lost, and every connection with it.
    pub fn cut(&self) {
        *self.shared.rules() = [None, None];
        for lane in self.shared.lanes().drain(..) {
            lane.state().held.clear();
            lane.hang_up();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Wakes `accept`, which then fails.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join(); // a panic has already been reported on its thread
        }
        self.cut();
    }
}

fn connect(client: TcpStream, target: SocketAddrV4, shared: &Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&SocketAddr::V4(target), CONNECT_TIMEOUT)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let up = Lane::new(Way::Up, client.try_clone()?, server.try_clone()?);
    let down = Lane::new(Way::Down, server, client);
    let mut lanes = shared.lanes();
    // A lane that nobody pumps and that holds nothing is over.
    lanes.retain(|lane| Arc::strong_count(lane) > 1 || lane.state().holds);
    for lane in [up, down] {
        lanes.push(Arc::clone(&lane));
        let shared = Arc::clone(shared);
        thread::spawn(move || lane.pump(&shared));
    }
    Ok(())
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, [Option<Vec<u8>>; 2]> {
        self.rules.lock().expect("nobody panics while holding the rules")
    }

    fn lanes(&self) -> MutexGuard<'_, Vec<Arc<Lane>>> {
        self.lanes.lock().expect("nobody panics while holding the lanes")
    }
}

impl Lane {
    fn new(way: Way, from: TcpStream, to: TcpStream) -> Arc<Lane> {
        Arc::new(Lane { way, from, to, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().expect("nobody panics while holding a lane's state")
    }

    fn pump(&self, shared: &Shared) {
        let mut chunk = vec![0; CHUNK_LEN];
        loop {
            let len = (&self.from).read(&mut chunk).unwrap_or(0); // a reset is an end
            if !self.take(&chunk[..len], shared) || len == 0 {
                return;
            }
        }
    }

    /// Takes a chunk, or with an empty one the sender's end. `false` if nothing more can be taken.
    fn take(&self, chunk: &[u8], shared: &Shared) -> bool {
        let mut state = self.state();
        // Looked at only here, so that nothing is held after a release.
        let rule = &shared.rules()[self.way as usize];
        state.holds |= rule.as_ref().is_some_and(|from| contains(chunk, from));
        state.held.extend_from_slice(chunk);
        state.ended = chunk.is_empty();
        if state.holds { state.held.len() <= HELD_LEN_MAX } else { self.pass_on(&mut state) }
    }

    fn release(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.holds) {
            self.pass_on(&mut state);
        }
    }

    /// `false` if the receiver is gone.
    fn pass_on(&self, state: &mut LaneState) -> bool {
        let sent = (&self.to).write_all(&std::mem::take(&mut state.held)).is_ok();
        if !sent {
            self.hang_up();
        } else if state.ended {
            let _ = self.to.shutdown(Shutdown::Write); // the receiver may be gone
        }
        sent
    }

    fn hang_up(&self) {
        for stream in [&self.from, &self.to] {
            let _ = stream.shutdown(Shutdown::Both); // it may be broken already
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}
