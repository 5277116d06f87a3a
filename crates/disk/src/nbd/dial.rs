//! The client's half of the negotiation.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use super::proto::{
    FIXED_NEWSTYLE, GoRequest, MAGIC, NO_ZEROES, OPTION_MAGIC, OPTION_REPLY_MAGIC, STRING_LEN_MAX,
    StampReply, StampRequest, export_flag, info, option, read_u16, read_u32, read_u64, read_vec,
    reply, write_option,
};
use crate::backend::{DiskInfo, REQUEST_LEN_MAX, SECTOR_SIZE};
use crate::net;
use crate::stamp::Badge;

/// The port that IANA gave to NBD.
pub const NBD_PORT: u16 = 10809;
/// A fence may have to wait for a slow disk to finish what it had begun.
const STAMP_TIMEOUT: Duration = Duration::from_secs(60);
/// A server that answers an option with more than this many replies is not worth listening to.
const REPLIES_MAX: usize = 1024;

/// Where an export is: `nbd://HOST[:PORT]/EXPORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdAddress {
    /// `HOST:PORT`, an IPv6 host in brackets.
    pub server: String,
    /// The export's name; empty for the server's default one.
    pub export: String,
}

impl FromStr for NbdAddress {
    type Err = String;

    fn from_str(url: &str) -> Result<NbdAddress, String> {
        let bad =
            |why: &str| format!("{url:?} is no NBD address (nbd://HOST[:PORT]/EXPORT): {why}");
        let rest = url.strip_prefix("nbd://").ok_or_else(|| bad("it begins otherwise"))?;
        let (server, export) = rest.split_once('/').unwrap_or((rest, ""));
        let has_port = server.rfind(':') > server.rfind(']');
        let host =
            if has_port { server.rsplit_once(':').map_or("", |(host, _)| host) } else { server };
        if host.is_empty() {
            return Err(bad("the host is missing"));
        }
        let port = if has_port { &server[host.len() + 1..] } else { "" };
        if has_port && port.parse::<u16>().is_err() {
            return Err(bad("the port is not a number"));
        }
        let server = if has_port { server.to_owned() } else { format!("{server}:{NBD_PORT}") };
        let export = percent_decoded(export).ok_or_else(|| bad("a % needs two hex digits"))?;
        if export.len() > STRING_LEN_MAX {
            return Err(bad("the export's name is too long"));
        }
        Ok(NbdAddress { server, export })
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nbd://{}/{}", self.server, self.export)
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_first_chunk::<2>()?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// Why a server could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No connection, or it broke.
    #[error("cannot reach {server}")]
    Io {
        /// Whom.
        server: String,
        /// What the host said.
        source: io::Error,
    },
    /// Something else listens there.
    #[error("{server} does not speak NBD: {what}")]
    Nonsense {
        /// Whom.
        server: String,
        /// What was odd.
        what: &'static str,
    },
    /// The server cannot fence: it does not know stamps.
    #[error(
        "{server} does not know stamps, so it cannot keep a deposed side from writing; \
         put `lockstep disk` in front of it, or say fencing = \"none\""
    )]
    NoFencing {
        /// Whom.
        server: String,
    },
    /// The server is no arbiter.
    #[error("{server} is an NBD server but no arbiter; `lockstep disk` is one")]
    NoArbiter {
        /// Whom.
        server: String,
    },
    /// A higher stamp was seen: this side has been deposed.
    #[error("{server} refuses this side: {why}")]
    Deposed {
        /// Whom.
        server: String,
        /// What it said.
        why: String,
    },
    /// The server refused for another reason.
    #[error("{server} refuses: {why}")]
    Refused {
        /// Whom.
        server: String,
        /// What it said.
        why: String,
    },
}

/// A connection in negotiation.
pub(crate) struct Dialled {
    pub(crate) stream: TcpStream,
    server: String,
}

/// An export, ready for requests.
pub(crate) struct Attached {
    pub(crate) stream: TcpStream,
    pub(crate) info: DiskInfo,
    /// What the server's host said of its start, if it fences.
    pub(crate) boot: Option<u128>,
}

/// Connects to `server` and shakes hands.
pub(crate) fn dial(server: &str, timeout: Duration) -> Result<Dialled, DialError> {
    let failed = |source| DialError::Io { server: server.to_owned(), source };
    let stream = connect(server, timeout).map_err(net::in_words).map_err(failed)?;
    net::prepare(&stream, timeout).map_err(failed)?;
    let mut dialled = Dialled { stream, server: server.to_owned() };
    dialled.greet()?;
    Ok(dialled)
}

fn connect(server: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in server.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Dialled {
    fn io(&self, source: io::Error) -> DialError {
        DialError::Io { server: self.server.clone(), source: net::in_words(source) }
    }

    fn nonsense(&self, what: &'static str) -> DialError {
        DialError::Nonsense { server: self.server.clone(), what }
    }

    fn greet(&mut self) -> Result<(), DialError> {
        let stream = &mut self.stream;
        let greeting = (|| Ok((read_u64(stream)?, read_u64(stream)?, read_u16(stream)?)))();
        let (magic, style, flags) = greeting.map_err(|error| self.io(error))?;
        if magic != MAGIC {
            return Err(self.nonsense("wrong magic"));
        }
        if style != OPTION_MAGIC || flags & FIXED_NEWSTYLE == 0 {
            return Err(
                self.nonsense("the server is too old, it has no fixed newstyle negotiation")
            );
        }
        let answer = u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES));
        self.stream.write_all(&answer.to_be_bytes()).map_err(|error| self.io(error))
    }

    fn send(&mut self, option: u32, data: &[u8]) -> Result<(), DialError> {
        write_option(&mut self.stream, option, data).map_err(|error| self.io(error))
    }

    /// The next reply to `option`.
    fn receive(&mut self, expected: u32) -> Result<(u32, Vec<u8>), DialError> {
        let head = (|| {
            let stream = &mut self.stream;
            Ok((read_u64(stream)?, read_u32(stream)?, read_u32(stream)?, read_u32(stream)?))
        })();
        let (magic, option, kind, len) = head.map_err(|error| self.io(error))?;
        if magic != OPTION_REPLY_MAGIC || option != expected {
            return Err(self.nonsense("reply to another option"));
        }
        if len as usize > 4 * STRING_LEN_MAX {
            return Err(self.nonsense("reply is too long"));
        }
        let data = read_vec(&mut self.stream, len as usize).map_err(|error| self.io(error))?;
        Ok((kind, data))
    }

    fn refusal(&self, kind: u32, data: &[u8]) -> DialError {
        let mut why = String::from_utf8_lossy(data).trim().to_owned();
        if why.is_empty() {
            why = match kind {
                reply::UNKNOWN => "it has no such export".to_owned(),
                _ => format!("NBD error {}", kind & !reply::ERROR),
            };
        }
        DialError::Refused { server: self.server.clone(), why }
    }

    /// Shows a stamp; afterwards nobody below it can change the export.
    fn show(&mut self, export: &str, badge: &Badge) -> Result<StampReply, DialError> {
        let request = StampRequest {
            version: StampRequest::VERSION,
            export: export.to_owned(),
            badge: badge.clone(),
        };
        let data = postcard::to_stdvec(&request).expect("plain data always serializes");
        let timeout = self.stream.read_timeout().map_err(|error| self.io(error))?;
        self.stream.set_read_timeout(Some(STAMP_TIMEOUT)).map_err(|error| self.io(error))?;
        self.send(option::STAMP, &data)?;
        let (kind, data) = self.receive(option::STAMP)?;
        self.stream.set_read_timeout(timeout).map_err(|error| self.io(error))?;
        let server = self.server.clone();
        match kind {
            reply::ACK => postcard::from_bytes(&data)
                .map_err(|_| self.nonsense("unknown acknowledgement of a stamp")),
            reply::UNSUPPORTED => Err(DialError::NoFencing { server }),
            reply::POLICY => {
                Err(DialError::Deposed { server, why: String::from_utf8_lossy(&data).into() })
            }
            kind => Err(self.refusal(kind, &data)),
        }
    }

    /// Chooses an export, after showing a stamp for it.
    pub(crate) fn attach(
        mut self,
        export: &str,
        badge: Option<&Badge>,
    ) -> Result<Attached, DialError> {
        let boot = match badge {
            Some(badge) => Some(self.show(export, badge)?.boot),
            None => None,
        };
        let go = GoRequest { name: export.to_owned(), infos: vec![info::BLOCK_SIZE] };
        self.send(option::GO, &go.encode())?;
        let mut sized = None;
        let mut blocks = (1, REQUEST_LEN_MAX);
        for _ in 0..REPLIES_MAX {
            let (kind, data) = self.receive(option::GO)?;
            match kind {
                reply::INFO => match parse_info(&data) {
                    Info::Export { size, flags } => sized = Some((size, flags)),
                    Info::BlockSize { min, max } => blocks = (min, max),
                    Info::Other => {}
                    Info::Malformed => return Err(self.nonsense("malformed information")),
                },
                reply::ACK => {
                    let (size, flags) = sized.ok_or_else(|| self.nonsense("no size"))?;
                    let info = self.disk_info(size, flags, blocks)?;
                    self.stream.set_read_timeout(None).map_err(|error| self.io(error))?;
                    self.stream.set_write_timeout(None).map_err(|error| self.io(error))?;
                    return Ok(Attached { stream: self.stream, info, boot });
                }
                kind if kind & reply::ERROR != 0 => return Err(self.refusal(kind, &data)),
                _ => return Err(self.nonsense("unknown reply")),
            }
        }
        Err(self.nonsense("endless information"))
    }

    fn disk_info(
        &self,
        size: u64,
        flags: u16,
        (min, max): (u32, u32),
    ) -> Result<DiskInfo, DialError> {
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(self.nonsense("the size is not a whole number of sectors"));
        }
        if !min.is_power_of_two() || min > 64 << 10 || max < min {
            return Err(self.nonsense("block sizes that cannot be"));
        }
        let zeroes_and_trim = export_flag::SEND_WRITE_ZEROES | export_flag::SEND_TRIM;
        Ok(DiskInfo {
            size,
            read_only: flags & export_flag::READ_ONLY != 0,
            align: min,
            request_len_max: max.min(REQUEST_LEN_MAX) / min * min,
            zeroes_and_trim: flags & zeroes_and_trim == zeroes_and_trim,
            flush: flags & export_flag::SEND_FLUSH != 0,
        })
    }

    /// Turns the connection into an arbiter session.
    pub(crate) fn into_arbiter(mut self) -> Result<TcpStream, DialError> {
        self.send(option::ARBITER, &[])?;
        match self.receive(option::ARBITER)? {
            (reply::ACK, _) => Ok(self.stream),
            (reply::UNSUPPORTED, _) => Err(DialError::NoArbiter { server: self.server }),
            (kind, data) => Err(self.refusal(kind, &data)),
        }
    }
}

enum Info {
    Export { size: u64, flags: u16 },
    BlockSize { min: u32, max: u32 },
    Other,
    Malformed,
}

fn parse_info(data: &[u8]) -> Info {
    let mut rest = data;
    let Ok(kind) = read_u16(&mut rest) else { return Info::Malformed };
    let parsed = (|| match kind {
        info::EXPORT => {
            Ok(Info::Export { size: read_u64(&mut rest)?, flags: read_u16(&mut rest)? })
        }
        info::BLOCK_SIZE => {
            let [min, _preferred, max] =
                [read_u32(&mut rest)?, read_u32(&mut rest)?, read_u32(&mut rest)?];
            Ok(Info::BlockSize { min, max })
        }
        _ => {
            rest.read_to_end(&mut Vec::new())?;
            Ok(Info::Other)
        }
    })();
    let parsed: io::Result<Info> = parsed;
    parsed.ok().filter(|_| rest.is_empty()).unwrap_or(Info::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood_or_refused() {
        let parse = |url: &str| url.parse::<NbdAddress>().map(|nbd| (nbd.server, nbd.export));
        let good = |server: &str, export: &str| Ok((server.to_owned(), export.to_owned()));
        assert_eq!(parse("nbd://host:1/disk"), good("host:1", "disk"));
        assert_eq!(parse("nbd://host/a%20b/c"), good("host:10809", "a b/c"));
        assert_eq!(parse("nbd://[::1]:7"), good("[::1]:7", ""));
        assert_eq!(parse("nbd://[::1]/"), good("[::1]:10809", ""));
        for bad in ["host:1", "nbd://", "nbd://:1/x", "nbd://h:x/y", "nbd://h:70000/", "nbd://h/%2"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
