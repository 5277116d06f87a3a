//! Options of TCP connections.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{
    KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval, TcpUserTimeout,
};

/// Probes without an answer after which the peer is gone.
const PROBES: u32 = 3;
/// Between two probes, and before the first.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Lets a connection break some seconds after its peer's host went away without a word, also when there
/// is nothing to send.
///
/// # Errors
/// If the system refuses.
pub fn notice_dead_host(stream: &TcpStream) -> io::Result<()> {
    let interval_s = PROBE_INTERVAL.as_secs() as u32;
    let unacknowledged_ms = (PROBE_INTERVAL * (PROBES + 1)).as_millis() as u32;
    setsockopt(stream, KeepAlive, &true)?;
    setsockopt(stream, TcpKeepIdle, &interval_s)?;
    setsockopt(stream, TcpKeepInterval, &interval_s)?;
    setsockopt(stream, TcpKeepCount, &PROBES)?;
    setsockopt(stream, TcpUserTimeout, &unacknowledged_ms)?;
    Ok(())
}
