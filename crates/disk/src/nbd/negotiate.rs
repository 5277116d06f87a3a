//! The server's half of the negotiation, over any stream.
//!
//! Everything that a client sends is bounded: the length of an option, the number of options, and
//! (by the caller's deadline on the stream) the time.

use std::io::{self, Read, Write};

use super::proto::{
    FIXED_NEWSTYLE, GoRequest, MAGIC, NO_ZEROES, OPTION_MAGIC, StampReply, StampRequest,
    export_flag, export_name, info, option, read_u32, read_u64, read_vec, reply,
    write_option_reply,
};
use crate::export::Refusal;
use crate::stamp::{Access, Badge};

/// Options longer than this end the connection.
const OPTION_LEN_MAX: u32 = 16 << 10;
/// A client that has not decided after this many options never will.
const OPTIONS_MAX: usize = 64;

/// What the negotiation asks of the server.
pub(crate) trait Exports {
    /// The names of all exports.
    fn names(&self) -> Vec<String>;

    /// What a connection with this badge is offered.
    fn offer(&self, name: &str, badge: Option<&Badge>) -> Result<Offer, Refusal>;

    /// Takes a stamp for an export, and says when the host was started.
    fn show(&self, name: &str, badge: &Badge) -> Result<StampReply, Refusal>;
}

/// An export as a client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    /// The full name, also where the client asked for the default export.
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    pub(crate) align: u32,
    pub(crate) request_len_max: u32,
}

/// How a negotiation ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Requests for this export follow.
    Transmission { export: String, badge: Option<Badge> },
    /// An arbiter session follows.
    Arbiter,
    /// The client left.
    Left,
}

/// Why a negotiation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NegotiationError {
    #[error("connection broke during negotiation")]
    Io(#[from] io::Error),
    #[error("peer does not speak NBD: {0}")]
    Nonsense(&'static str),
    #[error("peer asked for an export by the old way, and cannot be told why not")]
    NoExport(#[source] Refusal),
}

/// Negotiates until the client has chosen or left.
pub(crate) fn negotiate(
    stream: &mut (impl Read + Write),
    exports: &dyn Exports,
) -> Result<Outcome, NegotiationError> {
    let mut greeting = Vec::with_capacity(18);
    greeting.extend_from_slice(&MAGIC.to_be_bytes());
    greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    greeting.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&greeting)?;
    let flags = read_u32(stream)?;
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(NegotiationError::Nonsense("unknown handshake flags"));
    }
    let zeroes = flags & u32::from(NO_ZEROES) == 0;

    let mut negotiation = Negotiation { stream, exports, shown: None };
    for _ in 0..OPTIONS_MAX {
        if read_u64(negotiation.stream)? != OPTION_MAGIC {
            return Err(NegotiationError::Nonsense("wrong option magic"));
        }
        let option = read_u32(negotiation.stream)?;
        let len = read_u32(negotiation.stream)?;
        if len > OPTION_LEN_MAX {
            negotiation.reply(option, reply::TOO_BIG, b"option is too long")?;
            return Err(NegotiationError::Nonsense("option is too long"));
        }
        let data = read_vec(negotiation.stream, len as usize)?;
        let outcome = match option {
            option::EXPORT_NAME => Some(negotiation.export_name(&data, zeroes)?),
            option::ABORT => Some(negotiation.abort()),
            option::LIST => negotiation.list(&data)?,
            option::INFO | option::GO => negotiation.go(option, &data)?,
            option::STAMP => negotiation.stamp(&data)?,
            option::ARBITER => negotiation.arbiter(&data)?,
            _ => negotiation.refuse(option, reply::UNSUPPORTED, "option is not supported")?,
        };
        if let Some(outcome) = outcome {
            return Ok(outcome);
        }
    }
    Err(NegotiationError::Nonsense("too many options"))
}

struct Negotiation<'a, S> {
    stream: &'a mut S,
    exports: &'a dyn Exports,
    /// The last stamp that was accepted, and for which export.
    shown: Option<(String, Badge)>,
}

type Step = io::Result<Option<Outcome>>;

impl<S: Read + Write> Negotiation<'_, S> {
    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        write_option_reply(self.stream, option, kind, data)
    }

    fn refuse(&mut self, option: u32, kind: u32, why: &str) -> Step {
        self.reply(option, kind, why.as_bytes())?;
        Ok(None)
    }

    fn badge_for(&self, export: &str) -> Option<&Badge> {
        self.shown.as_ref().filter(|(name, _)| name == export).map(|(_, badge)| badge)
    }

    fn export_name(&mut self, data: &[u8], zeroes: bool) -> Result<Outcome, NegotiationError> {
        let name = export_name(data).ok_or(NegotiationError::Nonsense("malformed export name"))?;
        let badge = self.badge_for(&name).cloned();
        let offer =
            self.exports.offer(&name, badge.as_ref()).map_err(NegotiationError::NoExport)?;
        let mut answer = offer.size.to_be_bytes().to_vec();
        answer.extend_from_slice(&export_flags(&offer, badge.as_ref()).to_be_bytes());
        if zeroes {
            answer.extend_from_slice(&[0; 124]);
        }
        self.stream.write_all(&answer)?;
        Ok(Outcome::Transmission { export: offer.name, badge })
    }

    fn abort(&mut self) -> Outcome {
        let _ = self.reply(option::ABORT, reply::ACK, &[]); // the client may be gone already
        Outcome::Left
    }

    fn list(&mut self, data: &[u8]) -> Step {
        if !data.is_empty() {
            return self.refuse(option::LIST, reply::INVALID, "a list takes no data");
        }
        for name in self.exports.names() {
            let mut data = (name.len() as u32).to_be_bytes().to_vec();
            data.extend_from_slice(name.as_bytes());
            self.reply(option::LIST, reply::SERVER, &data)?;
        }
        self.reply(option::LIST, reply::ACK, &[])?;
        Ok(None)
    }

    fn go(&mut self, option: u32, data: &[u8]) -> Step {
        let Some(request) = GoRequest::decode(data) else {
            return self.refuse(option, reply::INVALID, "malformed request for an export");
        };
        let badge = self.badge_for(&request.name).cloned();
        let offer = match self.exports.offer(&request.name, badge.as_ref()) {
            Ok(offer) => offer,
            Err(refusal) => return self.refuse(option, kind(&refusal), &refusal.to_string()),
        };
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&offer.size.to_be_bytes());
        export.extend_from_slice(&export_flags(&offer, badge.as_ref()).to_be_bytes());
        self.reply(option, reply::INFO, &export)?;
        if request.infos.contains(&info::NAME) {
            let name = [&info::NAME.to_be_bytes(), offer.name.as_bytes()].concat();
            self.reply(option, reply::INFO, &name)?;
        }
        let preferred = offer.align.max(4096);
        let sizes = [offer.align, preferred, offer.request_len_max].map(u32::to_be_bytes);
        let sizes = [&info::BLOCK_SIZE.to_be_bytes()[..], sizes.as_flattened()].concat();
        self.reply(option, reply::INFO, &sizes)?;
        self.reply(option, reply::ACK, &[])?;
        let go = option == option::GO;
        Ok(go.then_some(Outcome::Transmission { export: offer.name, badge }))
    }

    fn stamp(&mut self, data: &[u8]) -> Step {
        let request = match postcard::take_from_bytes::<StampRequest>(data) {
            Ok((request, [])) if request.version == StampRequest::VERSION => request,
            _ => return self.refuse(option::STAMP, reply::INVALID, "malformed stamp"),
        };
        match self.exports.show(&request.export, &request.badge) {
            Ok(answer) => {
                let answer = postcard::to_stdvec(&answer).expect("plain data always serializes");
                self.reply(option::STAMP, reply::ACK, &answer)?;
                self.shown = Some((request.export, request.badge));
                Ok(None)
            }
            Err(refusal) => self.refuse(option::STAMP, kind(&refusal), &chain(&refusal)),
        }
    }

    fn arbiter(&mut self, data: &[u8]) -> Step {
        if !data.is_empty() {
            return self.refuse(option::ARBITER, reply::INVALID, "unknown arbiter protocol");
        }
        self.reply(option::ARBITER, reply::ACK, &[])?;
        Ok(Some(Outcome::Arbiter))
    }
}

fn kind(refusal: &Refusal) -> u32 {
    match refusal {
        Refusal::Unknown(_) => reply::UNKNOWN,
        Refusal::Deposed { .. } | Refusal::Replaced => reply::POLICY,
        Refusal::OtherVm { .. } | Refusal::ReadOnly => reply::INVALID,
        Refusal::State(_) => reply::PLATFORM,
    }
}

/// An error with its causes, for a peer that cannot ask for them.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn export_flags(offer: &Offer, badge: Option<&Badge>) -> u16 {
    let mut flags = export_flag::HAS_FLAGS | export_flag::SEND_FLUSH;
    if offer.read_only {
        flags |= export_flag::READ_ONLY;
    } else {
        flags |= export_flag::SEND_FUA | export_flag::SEND_TRIM | export_flag::SEND_WRITE_ZEROES;
    }
    // A flush makes the whole image durable, so it covers other connections too. But a writer with
    // a stamp has the export alone.
    if badge.is_none_or(|badge| badge.access == Access::Read) {
        flags |= export_flag::CAN_MULTI_CONN;
    }
    flags
}

#[cfg(test)]
mod tests {
    use base::{Generation, SeededRng, VmId};
    use ft::Stamp;

    use super::*;
    use crate::nbd::proto::write_option;

    /// What the client sends is known beforehand, what the server says is kept.
    struct Script {
        input: io::Cursor<Vec<u8>>,
        output: Vec<u8>,
    }
    impl Read for Script {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.input.read(buf)
        }
    }
    impl Write for Script {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            assert!(self.output.len() < 1 << 20, "answers are bounded");
            self.output.write(buf)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct OneDisk;
    impl Exports for OneDisk {
        fn names(&self) -> Vec<String> {
            vec!["disk".to_owned()]
        }
        fn offer(&self, name: &str, _: Option<&Badge>) -> Result<Offer, Refusal> {
            if name != "disk" {
                return Err(Refusal::Unknown(name.to_owned()));
            }
            Ok(Offer {
                name: name.to_owned(),
                size: 4096,
                read_only: false,
                align: 1,
                request_len_max: 1 << 25,
            })
        }
        fn show(&self, _: &str, badge: &Badge) -> Result<StampReply, Refusal> {
            let newest = Stamp { generation: Generation(7), won: true };
            if badge.stamp < newest {
                return Err(Refusal::Deposed { shown: badge.stamp, newest });
            }
            Ok(StampReply { boot: 1 })
        }
    }

    fn run(input: Vec<u8>) -> (Result<Outcome, NegotiationError>, Vec<u8>) {
        let mut script = Script { input: io::Cursor::new(input), output: Vec::new() };
        let outcome = negotiate(&mut script, &OneDisk);
        (outcome, script.output)
    }

    fn hello() -> Vec<u8> {
        u32::from(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec()
    }

    fn go(name: &str) -> Vec<u8> {
        GoRequest { name: name.to_owned(), infos: vec![] }.encode()
    }

    fn stamp(generation: u64) -> (Badge, Vec<u8>) {
        let stamp = Stamp { generation: Generation(generation), won: true };
        let badge = Badge { vm: VmId("vm".to_owned()), stamp, access: Access::Write };
        let request = StampRequest {
            version: StampRequest::VERSION,
            export: "disk".to_owned(),
            badge: badge.clone(),
        };
        (badge, postcard::to_stdvec(&request).unwrap())
    }

    #[test]
    fn a_plain_client_reaches_its_export_after_options_we_do_not_know() {
        let mut input = hello();
        write_option(&mut input, 8, &[]).unwrap();
        write_option(&mut input, option::GO, &go("nowhere")).unwrap();
        write_option(&mut input, option::INFO, &go("disk")).unwrap();
        write_option(&mut input, option::GO, &go("disk")).unwrap();
        let (outcome, output) = run(input);
        let expected = Outcome::Transmission { export: "disk".to_owned(), badge: None };
        assert_eq!(outcome.unwrap(), expected);
        let says = |kind: u32| output.windows(4).any(|bytes| bytes == kind.to_be_bytes());
        assert!(says(reply::UNSUPPORTED) && says(reply::UNKNOWN) && says(reply::INFO));
    }

    #[test]
    fn a_stamp_counts_only_once_it_was_accepted_and_only_for_its_export() {
        let mut input = hello();
        let (badge, high) = stamp(7);
        let (_, low) = stamp(6);
        write_option(&mut input, option::STAMP, &low).unwrap();
        let refused = [&input[..], &{
            let mut go_on = Vec::new();
            write_option(&mut go_on, option::GO, &go("disk")).unwrap();
            go_on
        }]
        .concat();
        let plain = Outcome::Transmission { export: "disk".to_owned(), badge: None };
        assert_eq!(run(refused).0.unwrap(), plain);
        write_option(&mut input, option::STAMP, &high).unwrap();
        write_option(&mut input, option::GO, &go("disk")).unwrap();
        let stamped = Outcome::Transmission { export: "disk".to_owned(), badge: Some(badge) };
        assert_eq!(run(input).0.unwrap(), stamped);
    }

    #[test]
    fn an_arbiter_session_is_asked_for_by_an_option() {
        let mut input = hello();
        write_option(&mut input, option::ARBITER, &[]).unwrap();
        assert_eq!(run(input).0.unwrap(), Outcome::Arbiter);
    }

    #[test]
    fn lengths_and_counts_are_bounded() {
        let mut long = hello();
        long.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        long.extend_from_slice(&option::GO.to_be_bytes());
        long.extend_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(run(long).0, Err(NegotiationError::Nonsense("option is too long"))));
        let mut many = hello();
        for _ in 0..=OPTIONS_MAX {
            write_option(&mut many, option::LIST, &[]).unwrap();
        }
        assert!(matches!(run(many).0, Err(NegotiationError::Nonsense("too many options"))));
    }

    /// Every mutation of a good negotiation, and plain noise, ends with an error or a known
    /// outcome. Repeat with the seed in the message.
    #[test]
    fn hostile_bytes_end_a_negotiation_and_nothing_else() {
        let mut good = hello();
        write_option(&mut good, option::LIST, &[]).unwrap();
        write_option(&mut good, option::STAMP, &stamp(7).1).unwrap();
        write_option(&mut good, option::INFO, &go("disk")).unwrap();
        write_option(&mut good, option::GO, &go("disk")).unwrap();
        for seed in 0..3000 {
            let mut rng = SeededRng::new(seed);
            let mut input = good.clone();
            for _ in 0..=rng.below(4) {
                let at = rng.below(input.len() as u64) as usize;
                match rng.below(4) {
                    0 => input[at] = rng.u64() as u8,
                    1 => input.truncate(at.max(1)),
                    2 => input.insert(at, rng.u64() as u8),
                    _ => input[at] ^= 1 << rng.below(8),
                }
            }
            if rng.one_in(5) {
                let from = input.len().min(4);
                rng.fill(&mut input[from..]);
            }
            let outcome = std::panic::catch_unwind(|| run(input).0.is_ok());
            assert!(outcome.is_ok(), "seed {seed}");
        }
    }
}
