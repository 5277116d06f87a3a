//! The event log as bytes: the same on the logging channel and in a file (`docs/formats/event-log.md`).
//!
//! A log is a preamble and then frames: length (u32), CRC-32 of the payload (u32), payload; all
//! little endian. A payload is one `Frame` in `postcard` form. The start state comes first, in
//! chunks; entries follow, several to a frame, each with its icount as a distance from the entry
//! before it.

use base::{Digest, Generation, Icount, LogPos};
use machine::event::{DiskResult, Event};
use serde::{Deserialize, Serialize};

/// The first bytes of a log.
pub const PREAMBLE: [u8; 8] = *b"LSLOG\0\x02\0";
/// The largest payload of a frame, in bytes. A disk read's data has to fit into one entry.
pub const FRAME_BYTES_MAX: usize = 32 << 20;
/// How much start state goes into one frame, in bytes.
const START_CHUNK_BYTES: usize = 1 << 20;
/// A frame is closed once its entries carry this much. One entry is 16 MiB at most (a disk's read), so
/// every frame keeps well below [`FRAME_BYTES_MAX`].
const FRAME_FULL_BYTES: usize = 1 << 20;
/// What an entry, or a frame, takes up beside what it carries, about.
const ENTRY_BYTES_ABOUT: usize = 48;
/// Length and checksum.
const FRAME_HEADER_BYTES: usize = 8;

/// One record of the event log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where in the machine's life it belongs.
    pub icount: Icount,
    /// What it says.
    pub body: Body,
}

impl Entry {
    /// About how much memory it takes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let data = match &self.body {
            Body::Event(Event::FramesReceived { frames, .. }) => {
                frames.iter().map(|frame| frame.bytes.len()).sum()
            }
            Body::Event(Event::DiskDone { result: DiskResult::Data(data), .. }) => data.len(),
            Body::Event(Event::ConsoleInput { bytes, .. } | Event::Entropy { bytes }) => {
                bytes.len()
            }
            _ => 0,
        };
        size_of::<Entry>() + data
    }
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// An input, applied at this position.
    Event(Event),
    /// The machine handed out an output at this position. The digest is over the output.
    OutputMark(Digest),
    /// Every output up to this position of the log has left the primary.
    Released(LogPos),
    /// The rolling digest of the machine at this position.
    StateDigest(Digest),
    /// The commit point of a pairing: from here on going alone needs the generation's claim.
    Armed(Generation),
    /// The pairing ended on purpose; nobody may claim its generation any more.
    Disarmed(Generation),
    /// The log ends here on purpose.
    End(End),
}

/// Why a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The guest is off: it powered itself off, or left through the debug-exit port.
    MachineOff,
    /// Recording was stopped; the guest may have gone on.
    RecordingStopped,
}

/// The payload of a frame.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Frame {
    /// The next bytes of the start state, and whether they are the last.
    Start {
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
        last: bool,
    },
    /// Entries; the first has the index `first`.
    Entries { first: u64, entries: Vec<PackedEntry> },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PackedEntry {
    /// Steps since the entry before.
    steps: u64,
    body: Body,
}

/// Why bytes are not a log, or not one any more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The first bytes are not those of a log of this version.
    #[error("this is no event log of a version that this build reads")]
    NotALog,
    /// A frame's checksum or structure is wrong.
    #[error("the event log is damaged in the frame at byte {offset}: {why}")]
    Damaged {
        /// Where the frame starts, in bytes from the start of the log.
        offset: u64,
        /// What is wrong.
        why: &'static str,
    },
}

/// What a decoder found.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// The whole start state, as `Machine::save` gave it.
    Start(Vec<u8>),
    /// The next entry.
    Entry(Entry),
}

/// Turns a start state and entries into bytes.
#[derive(Debug)]
pub struct Encoder {
    last: Icount,
    /// Index of the next entry that is packed.
    next: u64,
    packed: Vec<PackedEntry>,
    /// What the packed entries carry, about.
    packed_bytes: usize,
    /// Frames that were full.
    full: Vec<u8>,
}

impl Encoder {
    /// An encoder for a log that continues at `pos`, where the machine is at `icount`.
    #[must_use]
    pub fn new(pos: LogPos, icount: Icount) -> Encoder {
        Encoder { last: icount, next: pos.0, packed: Vec::new(), packed_bytes: 0, full: Vec::new() }
    }

    /// The preamble and the frames that carry a start state.
    #[must_use]
    pub fn encode_start(start: &[u8]) -> Vec<u8> {
        let mut bytes = PREAMBLE.to_vec();
        let chunk_count = start.len().div_ceil(START_CHUNK_BYTES).max(1);
        for index in 0..chunk_count {
            let from = index * START_CHUNK_BYTES;
            let chunk = &start[from..start.len().min(from + START_CHUNK_BYTES)];
            let last = index + 1 == chunk_count;
            let frame = Frame::Start { bytes: chunk.to_vec(), last };
            append_frame(&mut bytes, &frame, chunk.len() + ENTRY_BYTES_ABOUT);
        }
        bytes
    }

    /// Adds an entry.
    ///
    /// # Panics
    /// If `entry` lies before the entry added last: the log is in order by construction.
    pub fn push(&mut self, entry: Entry) {
        assert!(entry.icount >= self.last, "log entries out of order");
        self.packed_bytes += carried_bytes(&entry.body);
        self.packed.push(PackedEntry { steps: entry.icount.since(self.last), body: entry.body });
        self.last = entry.icount;
        if self.packed_bytes >= FRAME_FULL_BYTES {
            self.close_frame();
        }
    }

    fn close_frame(&mut self) {
        let end = self.end();
        let entries = std::mem::take(&mut self.packed);
        let len = self.packed_bytes + ENTRY_BYTES_ABOUT * (1 + entries.len());
        append_frame(&mut self.full, &Frame::Entries { first: self.next, entries }, len);
        self.next = end.0;
        self.packed_bytes = 0;
    }

    /// The position behind everything added so far.
    #[must_use]
    pub fn end(&self) -> LogPos {
        LogPos(self.next + self.packed.len() as u64)
    }

    /// True if nothing was added since [`Encoder::take_bytes`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty() && self.full.is_empty()
    }

    /// The frames with everything added since the last call; empty if nothing was.
    #[must_use]
    pub fn take_bytes(&mut self) -> Vec<u8> {
        if !self.packed.is_empty() {
            self.close_frame();
        }
        std::mem::take(&mut self.full)
    }
}

/// How many bytes of payload an entry carries, apart from some words.
fn carried_bytes(body: &Body) -> usize {
    match body {
        Body::Event(Event::FramesReceived { frames, .. }) => {
            frames.iter().map(|frame| frame.bytes.len()).sum()
        }
        Body::Event(Event::DiskDone { result: DiskResult::Data(bytes), .. })
        | Body::Event(Event::ConsoleInput { bytes, .. } | Event::Entropy { bytes }) => bytes.len(),
        _ => 0,
    }
}

/// Appends a frame whose payload is about `len` bytes.
fn append_frame(bytes: &mut Vec<u8>, frame: &Frame, len: usize) {
    bytes.reserve(FRAME_HEADER_BYTES + len);
    let header = bytes.len();
    bytes.extend([0; FRAME_HEADER_BYTES]);
    let written = postcard::to_io(frame, &mut *bytes);
    written.expect("a frame always serializes");
    let payload = &bytes[header + FRAME_HEADER_BYTES..];
    assert!(payload.len() <= FRAME_BYTES_MAX, "a frame of {} bytes", payload.len());
    let (len, crc) = (payload.len() as u32, crc32fast::hash(payload));
    bytes[header..header + 4].copy_from_slice(&len.to_le_bytes());
    bytes[header + 4..header + FRAME_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// Turns bytes back into a start state and entries, however they are cut into pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// How much of `bytes` is used up.
    used: usize,
    /// Offset in the log of `bytes[0]`.
    base: u64,
    preamble_seen: bool,
    start: Vec<u8>,
    start_seen: bool,
    last: Icount,
    /// Index of the next entry.
    next: u64,
    ready: std::collections::VecDeque<Entry>,
}

impl Decoder {
    /// A decoder for a whole log.
    #[must_use]
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// A decoder for a stream of entries that continues at `pos`, where the machine is at `icount`.
    #[must_use]
    pub fn resume(pos: LogPos, icount: Icount) -> Decoder {
        let next = pos.0;
        Decoder { preamble_seen: true, start_seen: true, last: icount, next, ..Decoder::default() }
    }

    /// Takes bytes in.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.base += self.used as u64;
        self.bytes.drain(..self.used);
        self.used = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Tells where in the machine's life the entries start; needed once, after [`Item::Start`], if
    /// the start state is not that of power-on.
    pub fn set_start_icount(&mut self, icount: Icount) {
        self.last = icount;
    }

    /// The position behind the entries that [`Decoder::poll`] has handed out or holds ready.
    #[must_use]
    pub fn end(&self) -> LogPos {
        LogPos(self.next)
    }

    /// Where the first frame starts that is not whole yet, in bytes from the start.
    #[must_use]
    pub fn whole_bytes(&self) -> u64 {
        self.base + self.used as u64
    }

    /// True if bytes of an unfinished frame are waiting: a log that ends here was cut short.
    #[must_use]
    pub fn has_partial_frame(&self) -> bool {
        self.used < self.bytes.len()
    }

    /// The next thing in the log; `None` until more bytes are fed.
    ///
    /// # Errors
    /// [`LogError`] if the bytes are not a log; it repeats with every further call.
    pub fn poll(&mut self) -> Result<Option<Item>, LogError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(Item::Entry(entry)));
            }
            if !self.preamble_seen && !self.take_preamble()? {
                return Ok(None);
            }
            let Some((frame, len)) = self.peek_frame()? else { return Ok(None) };
            let item = self.handle_frame(frame)?;
            self.used += len;
            if item.is_some() {
                return Ok(item);
            }
        }
    }

    fn take_preamble(&mut self) -> Result<bool, LogError> {
        let have = &self.bytes[self.used..];
        let len = have.len().min(PREAMBLE.len());
        if have[..len] != PREAMBLE[..len] {
            return Err(LogError::NotALog);
        }
        if len < PREAMBLE.len() {
            return Ok(false);
        }
        self.used += len;
        self.preamble_seen = true;
        Ok(true)
    }

    /// The next frame, if it is whole, and its length with its header.
    fn peek_frame(&self) -> Result<Option<(Frame, usize)>, LogError> {
        let have = &self.bytes[self.used..];
        let Some((header, rest)) = have.split_at_checked(FRAME_HEADER_BYTES) else {
            return Ok(None);
        };
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let (len, crc) = (word(0) as usize, word(4));
        if len > FRAME_BYTES_MAX {
            return Err(self.damaged("its length is impossible"));
        }
        let Some(payload) = rest.get(..len) else { return Ok(None) };
        if crc32fast::hash(payload) != crc {
            return Err(self.damaged("its checksum does not match"));
        }
        let Ok((frame, [])) = postcard::take_from_bytes(payload) else {
            return Err(self.damaged("its payload does not decode"));
        };
        Ok(Some((frame, FRAME_HEADER_BYTES + len)))
    }

    fn handle_frame(&mut self, frame: Frame) -> Result<Option<Item>, LogError> {
        match frame {
            Frame::Start { .. } if self.start_seen => Err(self.damaged("a second start state")),
            Frame::Start { bytes, last } => {
                self.start.extend(bytes);
                self.start_seen = last;
                Ok(last.then(|| Item::Start(std::mem::take(&mut self.start))))
            }
            Frame::Entries { .. } if !self.start_seen => Err(self.damaged("no start state")),
            Frame::Entries { first, .. } if first != self.next => {
                Err(self.damaged("an entry is missing before it"))
            }
            Frame::Entries { entries, .. } => {
                for entry in entries {
                    let icount = self.last.0.checked_add(entry.steps).map(Icount);
                    self.last = icount.ok_or_else(|| self.damaged("its icount overflows"))?;
                    self.ready.push_back(Entry { icount: self.last, body: entry.body });
                    self.next += 1;
                }
                Ok(None)
            }
        }
    }

    fn damaged(&self, why: &'static str) -> LogError {
        LogError::Damaged { offset: self.whole_bytes(), why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (Vec<u8>, Vec<Entry>) {
        let entries: Vec<Entry> = (0..20u64)
            .map(|index| Entry {
                icount: Icount(index / 3 * 1000),
                body: Body::Event(Event::Entropy { bytes: vec![index as u8; index as usize] }),
            })
            .collect();
        let mut encoder = Encoder::new(LogPos(0), Icount(0));
        let mut bytes = Encoder::encode_start(b"start");
        for entry in &entries {
            encoder.push(entry.clone());
            if entry.icount.0.is_multiple_of(2000) {
                bytes.extend(encoder.take_bytes());
            }
        }
        bytes.extend(encoder.take_bytes());
        assert_eq!(encoder.end(), LogPos(20));
        (bytes, entries)
    }

    fn decode(bytes: &[u8]) -> (Vec<Entry>, Decoder, Option<LogError>) {
        let mut decoder = Decoder::new();
        decoder.feed(bytes);
        let mut entries = Vec::new();
        loop {
            match decoder.poll() {
                Ok(Some(Item::Entry(entry))) => entries.push(entry),
                Ok(Some(Item::Start(start))) => assert_eq!(start, b"start"),
                Ok(None) => return (entries, decoder, None),
                Err(error) => return (entries, decoder, Some(error)),
            }
        }
    }

    #[test]
    fn a_log_fed_byte_by_byte_gives_what_was_written() {
        let (bytes, entries) = log();
        let mut decoder = Decoder::new();
        let mut decoded = Vec::new();
        for byte in &bytes {
            decoder.feed(&[*byte]);
            while let Some(item) = decoder.poll().unwrap() {
                if let Item::Entry(entry) = item {
                    decoded.push(entry);
                }
            }
        }
        assert_eq!(decoded, entries);
        assert!(!decoder.has_partial_frame());
    }

    #[test]
    fn a_cut_log_gives_every_whole_frame_and_says_that_it_was_cut() {
        let (bytes, entries) = log();
        for len in 0..bytes.len() {
            let (decoded, decoder, error) = decode(&bytes[..len]);
            assert_eq!(error, None, "cut to {len} bytes");
            assert!(entries.starts_with(&decoded), "cut to {len} bytes");
            let at_border = decoder.whole_bytes() == len as u64;
            assert_eq!(decoder.has_partial_frame(), !at_border, "cut to {len} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_found_or_leaves_the_log_waiting() {
        let (bytes, entries) = log();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let (decoded, decoder, error) = decode(&damaged);
                assert!(entries.starts_with(&decoded), "bit {bit} of byte {at}");
                assert!(error.is_some() || decoder.has_partial_frame(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_lost_frame_is_found() {
        let mut encoder = Encoder::new(LogPos(7), Icount(5));
        encoder.push(Entry { icount: Icount(5), body: Body::Armed(Generation(1)) });
        let bytes = encoder.take_bytes();
        let mut decoder = Decoder::resume(LogPos(6), Icount(5));
        decoder.feed(&bytes);
        let error = decoder.poll().unwrap_err();
        assert_eq!(error, LogError::Damaged { offset: 0, why: "an entry is missing before it" });
    }

    /// Several of a disk's largest reads may end between two calls of `take_bytes`.
    #[test]
    fn entries_of_any_total_size_come_back() {
        let mut encoder = Encoder::new(LogPos(0), Icount(0));
        let mut log = Encoder::encode_start(b"start");
        let entry = |request| {
            let result = DiskResult::Data(vec![request as u8; 16 << 20]);
            let body = Body::Event(Event::DiskDone { disk: 0, request, result });
            Entry { icount: Icount(request), body }
        };
        (0..3).for_each(|request| encoder.push(entry(request)));
        assert!(!encoder.is_empty());
        log.extend(encoder.take_bytes());
        assert!(encoder.is_empty());
        let (entries, _, error) = decode(&log);
        assert_eq!(error, None);
        assert!(entries == [0, 1, 2].map(entry));
    }

    #[test]
    fn other_files_are_no_log() {
        assert_eq!(decode(b"#!/bin/sh").2, Some(LogError::NotALog));
    }

    #[test]
    fn an_anchor_costs_few_bytes() {
        let mut encoder = Encoder::new(LogPos(1_000_000), Icount(1 << 40));
        let guest_ns = 1 << 41;
        let body = Body::Event(Event::Anchor { guest_ns, ns_per_step_q32: 3 << 32 });
        encoder.push(Entry { icount: Icount((1 << 40) + 100_000), body });
        assert!(encoder.take_bytes().len() <= 32);
    }
}
