//! What every connection of a disk has in common: socket options, and words for how it fails.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use rustix::net::sockopt;

/// A peer that acknowledges nothing for this long is gone.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// Small packets leave at once, a peer that vanished is noticed, and nothing takes longer than
/// `timeout` until the caller says otherwise.
pub(crate) fn prepare(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(4))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, DEAD_AFTER.as_millis() as u32)?;
    Ok(())
}

/// What a peer did, in words, where the system's own would be puzzling.
pub(crate) fn in_words(error: io::Error) -> io::Error {
    let words = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it does not answer in time",
        io::ErrorKind::UnexpectedEof => "it closed the connection",
        _ => return error,
    };
    io::Error::new(error.kind(), words)
}
