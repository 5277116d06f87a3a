//! Finishing what a sender left to "hardware".
//!
//! Frames from a guest, a veth or a bridge may carry an unfinished checksum, and may be many segments in
//! one. TAP devices and packet sockets speak of that in a header before each frame, and guests know it; a
//! stream of frames does not, so there frames are finished first. UDP segments are finished on the way in
//! too, because the guest's network device does not offer them. Tunnelled segments are left out; they are
//! dropped, as a wire would.

use base::{Frame, Offload};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// Takes a frame in as the kernel gives it, behind its header, and appends what a guest's network device
/// takes of it to `frames`.
pub fn take(header: &[u8; Offload::HEADER_LEN], bytes: &[u8], frames: &mut Vec<Frame>) {
    let offload = Offload::of(header, u16::from_ne_bytes);
    match offload.map(|offload| (offload, offload.segments())) {
        None | Some((_, Offload::GSO_NONE | Offload::GSO_TCP4 | Offload::GSO_TCP6)) => {
            frames.push(Frame { offload, bytes: bytes.to_vec() });
        }
        Some((offload, _)) => {
            let mut finished = Vec::new();
            finish(&offload, bytes, &mut finished);
            frames.extend(finished.into_iter().map(Frame::from));
        }
    }
}

/// Turns an unfinished frame into plain frames and appends them to `frames`. A frame that does not fit its
/// offload is dropped.
pub fn finish(offload: &Offload, frame: &[u8], frames: &mut Vec<Vec<u8>>) {
    let (csum_start, gso_type) = (usize::from(offload.csum_start), offload.segments());
    if gso_type != Offload::GSO_NONE {
        let segment_len_max = usize::from(offload.gso_size);
        let _ = segment(frame, csum_start, gso_type, segment_len_max, frames); // else it is dropped
        return;
    }
    let mut frame = frame.to_vec();
    if offload.needs_csum {
        let field = csum_start + usize::from(offload.csum_offset);
        if field + 2 > frame.len() {
            return;
        }
        // The field holds the sum of the pseudo header, so it takes part.
        let sum = fold(sum_of(&frame[csum_start..]));
        put_checksum(&mut frame, field, sum);
    }
    frames.push(frame);
}

/// Splits one big TCP or UDP frame into segments of at most `segment_len_max` bytes of payload.
fn segment(
    frame: &[u8],
    l4: usize,
    gso_type: u8,
    segment_len_max: usize,
    frames: &mut Vec<Vec<u8>>,
) -> Option<()> {
    let (ethertype, l3) = network_layer(frame)?;
    let is_ipv4 = match ethertype {
        ETHERTYPE_IPV4 => true,
        ETHERTYPE_IPV6 => false,
        _ => return None,
    };
    let is_tcp = match gso_type {
        Offload::GSO_TCP4 | Offload::GSO_TCP6 => true,
        Offload::GSO_UDP_L4 => false,
        _ => return None,
    };
    let l3_header_len_min = if is_ipv4 { 20 } else { 40 };
    if l4 < l3 + l3_header_len_min || segment_len_max == 0 {
        return None;
    }
    let l4_header_len =
        if is_tcp { usize::from(*frame.get(l4 + 12)? >> 4) * 4 } else { UDP_CHECKSUM + 2 };
    let (headers, payload) = frame.split_at_checked(l4 + l4_header_len)?;
    if is_tcp && l4_header_len < 20 {
        return None;
    }

    let segment_count = payload.chunks(segment_len_max).count();
    for (index, part) in payload.chunks(segment_len_max).enumerate() {
        let mut out = [headers, part].concat();
        let l3_len = out.len() - l3;
        if is_ipv4 {
            put_u16(&mut out, l3 + 2, l3_len);
            let id = u16::from_be_bytes([headers[l3 + 4], headers[l3 + 5]]);
            put_u16(&mut out, l3 + 4, usize::from(id.wrapping_add(index as u16)));
            put_u16(&mut out, l3 + 10, 0);
            let sum = fold(sum_of(&out[l3..l4]));
            out[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
        } else {
            put_u16(&mut out, l3 + 4, l3_len - 40);
        }
        let checksum = if is_tcp {
            let first = u32::from_be_bytes(headers[l4 + 4..l4 + 8].try_into().ok()?);
            let sequence = first.wrapping_add((index * segment_len_max) as u32);
            out[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
            if index > 0 {
                out[l4 + 13] &= !TCP_CWR;
            }
            if index + 1 < segment_count {
                out[l4 + 13] &= !TCP_FIN_PSH;
            }
            l4 + TCP_CHECKSUM
        } else {
            let l4_len = out.len() - l4;
            put_u16(&mut out, l4 + 4, l4_len);
            l4 + UDP_CHECKSUM
        };
        put_u16(&mut out, checksum, 0);
        let protocol = if is_tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        let addresses = if is_ipv4 { l3 + 12..l3 + 20 } else { l3 + 8..l3 + 40 };
        let l4_len = (out.len() - l4) as u64;
        let pseudo = sum_of(&out[addresses]) + u64::from(protocol) + l4_len;
        let sum = fold(pseudo + sum_of(&out[l4..]));
        put_checksum(&mut out, checksum, sum);
        frames.push(out);
    }
    Some(())
}

/// The EtherType behind any VLAN tags, and where its header starts.
fn network_layer(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    loop {
        let ethertype = u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]);
        if !ETHERTYPES_VLAN.contains(&ethertype) {
            return Some((ethertype, at + 2));
        }
        at += 4;
    }
}

fn put_u16(frame: &mut [u8], at: usize, value: usize) {
    frame[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// A transport checksum of 0 is sent as all ones; for UDP, 0 would mean "none".
fn put_checksum(frame: &mut [u8], at: usize, sum: u16) {
    let sum = if sum == 0 { 0xffff } else { sum };
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Sum of the big-endian 16-bit words of `bytes` (RFC 1071), an odd byte padded with zero.
fn sum_of(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2);
    words.map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const L3: usize = 14;
    const L4: usize = L3 + 20;

    /// An IPv4 frame from 10.0.0.1 to 10.0.0.2 with the given transport header and payload.
    fn ipv4_frame(protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x08, 0x00]);
        let len = (20 + transport.len()) as u16;
        frame.extend([0x45, 0, (len >> 8) as u8, len as u8, 0x12, 0x34, 0x40, 0, 64, protocol]);
        frame.extend([0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(transport);
        frame
    }

    fn tcp_header(flags: u8) -> Vec<u8> {
        let mut header = vec![0, 80, 1, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0x50, flags, 1, 0];
        header.extend([0; 4]);
        header
    }

    fn offload(gso_type: u8, gso_size: u16, csum: (usize, u16)) -> Offload {
        let (csum_start, csum_offset) = (csum.0 as u16, csum.1);
        Offload { needs_csum: true, gso_type, header_len: 0, gso_size, csum_start, csum_offset }
    }

    /// The receiver's check (RFC 1071): pseudo header and segment sum up to all ones.
    fn transport_is_sound(frame: &[u8], protocol: u8) -> bool {
        let len = (frame.len() - L4) as u64;
        let pseudo = sum_of(&frame[L3 + 12..L3 + 20]) + u64::from(protocol) + len;
        fold(pseudo + sum_of(&frame[L4..])) == 0
    }

    #[test]
    fn a_guest_is_given_what_its_network_device_takes() {
        let frame = ipv4_frame(PROTOCOL_UDP, &[&[0, 53, 0, 53, 0, 0, 0, 0][..], &[7; 30]].concat());
        let taken = |offload: Offload| {
            let mut frames = Vec::new();
            take(&offload.header(u16::to_ne_bytes), &frame, &mut frames);
            frames
        };
        assert_eq!(taken(Offload::default()), [Frame::from(frame.clone())]);
        for gso_type in [Offload::GSO_NONE, Offload::GSO_TCP4 | Offload::GSO_ECN, Offload::GSO_TCP6]
        {
            let offload = offload(gso_type, 20, (L4, 6));
            assert_eq!(taken(offload), [Frame { offload: Some(offload), bytes: frame.clone() }]);
        }
        let datagrams = taken(offload(Offload::GSO_UDP_L4, 20, (L4, 6)));
        assert_eq!(datagrams.len(), 2);
        assert!(datagrams.iter().all(|datagram| datagram.offload.is_none()));
        assert_eq!(taken(offload(3, 20, (L4, 6))), []);
    }

    #[test]
    fn an_unfinished_checksum_is_finished() {
        let mut frame = ipv4_frame(PROTOCOL_TCP, &[tcp_header(0x18), b"hello".to_vec()].concat());
        // The sender's stack leaves the sum of the pseudo header in the field, not inverted.
        let len = (frame.len() - L4) as u64;
        let pseudo = !fold(sum_of(&frame[L3 + 12..L3 + 20]) + u64::from(PROTOCOL_TCP) + len);
        frame[L4 + 16..L4 + 18].copy_from_slice(&pseudo.to_be_bytes());
        assert!(!transport_is_sound(&frame, PROTOCOL_TCP));
        let mut frames = Vec::new();
        finish(&offload(Offload::GSO_NONE, 0, (L4, 16)), &frame, &mut frames);
        assert!(transport_is_sound(&frames[0], PROTOCOL_TCP));
    }

    #[test]
    fn a_big_tcp_frame_becomes_segments_that_a_receiver_accepts() {
        let payload: Vec<u8> = (0..2500u32).map(|byte| byte as u8).collect();
        let fin_psh_ack = 0x19;
        let frame = ipv4_frame(PROTOCOL_TCP, &[tcp_header(fin_psh_ack), payload.clone()].concat());
        let mut frames = Vec::new();
        let offload = offload(Offload::GSO_TCP4, 1000, (L4, 16));
        finish(&offload, &frame, &mut frames);

        let parts: Vec<&[u8]> = frames.iter().map(|frame| &frame[L4 + 20..]).collect();
        assert_eq!(parts.concat(), payload);
        let sequences: Vec<u8> = frames.iter().map(|frame| frame[L4 + 7]).collect();
        assert_eq!(sequences, [100, (100u32 + 1000) as u8, (100u32 + 2000) as u8]);
        let flags: Vec<u8> = frames.iter().map(|frame| frame[L4 + 13]).collect();
        assert_eq!(flags, [0x10, 0x10, fin_psh_ack]);
        for frame in &frames {
            assert!(transport_is_sound(frame, PROTOCOL_TCP));
            assert_eq!(fold(sum_of(&frame[L3..L4])), 0, "the IPv4 header's checksum");
        }
    }

    #[test]
    fn udp_segments_carry_their_own_length() {
        let udp = [&[0, 53, 0, 53, 0, 0, 0, 0][..], &[7; 300]].concat();
        let mut frames = Vec::new();
        let offload = offload(Offload::GSO_UDP_L4, 200, (L4, 6));
        finish(&offload, &ipv4_frame(PROTOCOL_UDP, &udp), &mut frames);
        let lens: Vec<u8> = frames.iter().map(|frame| frame[L4 + 5]).collect();
        assert_eq!(lens, [208, 108]);
        assert!(frames.iter().all(|frame| transport_is_sound(frame, PROTOCOL_UDP)));
    }

    #[test]
    fn nonsense_is_dropped_and_never_panics() {
        let mut rng = base::SeededRng::new(1);
        for _ in 0..20_000 {
            let mut bytes = [0; 10];
            rng.fill(&mut bytes);
            bytes[1] = [0, 1, 4, 5, 3][rng.below(5) as usize];
            bytes[7] = 0;
            let mut frame = vec![0; rng.below(120) as usize];
            rng.fill(&mut frame);
            if let Some(ethertype) = frame.get_mut(12..14) {
                ethertype.copy_from_slice(&[0x08, 0x00]);
            }
            take(&bytes, &frame, &mut Vec::new());
            if let Some(offload) = Offload::of(&bytes, u16::from_ne_bytes) {
                finish(&offload, &frame, &mut Vec::new());
            }
        }
    }
}
