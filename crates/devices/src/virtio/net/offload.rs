//! Checksums and segmentation for the network device.
//!
//! A driver may leave both to whoever takes its frames, and may take frames that are unfinished itself.
//! [`complete`] does the work for a driver that takes none such: what leaves it has its checksums and fits
//! the segment size.

use base::Offload;

/// Device to driver: the checksum was found to be right.
pub(super) const DATA_VALID: u8 = 2;

/// True if frame and offload fit together, so that whoever takes the frame can complete it.
pub(super) fn is_sound(offload: &Offload, frame: &[u8]) -> bool {
    let csum_end = usize::from(offload.csum_start) + usize::from(offload.csum_offset) + 2;
    let has_checksum = !offload.needs_csum || csum_end <= frame.len();
    let is_whole = offload.segments() == Offload::GSO_NONE;
    has_checksum && (is_whole || Cut::of(offload, frame).is_some())
}

/// The complete frames that an unfinished one stands for. `None` if frame and offload contradict.
pub(super) fn complete(offload: &Offload, mut frame: Vec<u8>) -> Option<Vec<Vec<u8>>> {
    if offload.segments() != Offload::GSO_NONE {
        return segment(offload, &frame);
    }
    if offload.needs_csum {
        fill_checksum(&mut frame, offload.csum_start.into(), offload.csum_offset.into())?;
    }
    Some(vec![frame])
}

/// Completes the checksum over `frame[start..]`, whose place holds the sum of the pseudo-header.
fn fill_checksum(frame: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let sum = fold(sum(frame.get(start..)?));
    let place = frame.get_mut(start + offset..start + offset + 2)?;
    place.copy_from_slice(&written(sum));
    Some(())
}

/// A finished checksum as it is written: 0 means "none" to UDP, so the other zero is used.
fn written(sum: u16) -> [u8; 2] {
    (if sum == u16::MAX { u16::MAX } else { !sum }).to_be_bytes()
}

/// How a TCP frame is cut into segments.
struct Cut {
    packet: Packet,
    /// Where the payload starts.
    head_len: usize,
    segment_count: usize,
}

impl Cut {
    fn of(offload: &Offload, frame: &[u8]) -> Option<Cut> {
        let packet = Packet::of(frame)?;
        let is_expected = match offload.segments() {
            Offload::GSO_TCP4 => packet.is_ip4,
            Offload::GSO_TCP6 => !packet.is_ip4,
            _ => false,
        };
        if packet.protocol != TCP || !is_expected || offload.gso_size == 0 {
            return None;
        }
        let tcp_len = usize::from(*frame.get(packet.l4 + 12)? >> 4) * 4;
        let head_len = packet.l4 + tcp_len;
        if tcp_len < TCP_LEN_MIN || head_len > frame.len() {
            return None;
        }
        let payload_len = frame.len() - head_len;
        let segment_count = payload_len.div_ceil(offload.gso_size.into()).max(1);
        (segment_count <= SEGMENTS_MAX).then_some(Cut { packet, head_len, segment_count })
    }
}

/// Cuts a TCP frame into segments of `gso_size` payload bytes.
fn segment(offload: &Offload, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let Cut { packet, head_len, segment_count: count } = Cut::of(offload, frame)?;
    let (head, payload) = frame.split_at(head_len);
    let chunk_len = usize::from(offload.gso_size);
    let segments = (0..count).map(|index| {
        let from = index * chunk_len;
        let to = payload.len().min(from + chunk_len);
        let mut segment = head.to_vec();
        segment.extend_from_slice(&payload[from..to]);
        let flags = &mut segment[packet.l4 + 13];
        if index + 1 < count {
            *flags &= !(TCP_FIN | TCP_PSH);
        }
        if index > 0 {
            *flags &= !TCP_CWR;
        }
        let sequence = u32::from_be_bytes(array(&segment, packet.l4 + 4));
        let sequence = sequence.wrapping_add(from as u32);
        segment[packet.l4 + 4..packet.l4 + 8].copy_from_slice(&sequence.to_be_bytes());
        packet.rewrite(&mut segment, index as u16);
        segment
    });
    Some(segments.collect())
}

/// True if the frame is an unfragmented TCP or UDP packet with a right checksum.
pub(super) fn is_checksum_right(frame: &[u8]) -> bool {
    let Some(packet) = Packet::of(frame) else { return false };
    let Some(l4) = frame.get(packet.l4..packet.end) else { return false };
    let (len_min, csum_at) = match packet.protocol {
        TCP => (TCP_LEN_MIN, 16),
        UDP => (UDP_LEN, 6),
        _ => return false,
    };
    if l4.len() < len_min || packet.protocol == UDP && array::<2>(l4, csum_at) == [0, 0] {
        return false;
    }
    if packet.protocol == UDP && usize::from(u16::from_be_bytes(array(l4, 4))) != l4.len() {
        return false;
    }
    fold(packet.pseudo_sum(frame, l4.len()) + sum(l4)) == u16::MAX
}

/// Where the parts of an IP packet are in its frame.
struct Packet {
    is_ip4: bool,
    /// First byte of the IP header.
    l3: usize,
    /// First byte of the transport header.
    l4: usize,
    /// First byte behind the packet: a short frame is padded.
    end: usize,
    protocol: u8,
}

impl Packet {
    /// The packet in a frame, if it is IP with nothing between its header and the transport's, is
    /// not a fragment and lies in the frame as a whole.
    fn of(frame: &[u8]) -> Option<Packet> {
        let ethertype = |at: usize| frame.get(at..at + 2).map(|bytes| [bytes[0], bytes[1]]);
        let l3 = if ethertype(12)? == ETHERTYPE_VLAN { 18 } else { 14 };
        let ip = frame.get(l3..)?;
        let packet = match ethertype(l3 - 2)? {
            ETHERTYPE_IP4 if ip.len() >= 20 && ip[0] >> 4 == 4 => {
                let len = usize::from(u16::from_be_bytes(array(ip, 2)));
                let is_fragment = u16::from_be_bytes(array(ip, 6)) & 0x3fff != 0;
                let l4 = l3 + usize::from(ip[0] & 0xf) * 4;
                if is_fragment || l4 < l3 + 20 {
                    return None;
                }
                Packet { is_ip4: true, l3, l4, end: l3 + len, protocol: ip[9] }
            }
            ETHERTYPE_IP6 if ip.len() >= 40 && ip[0] >> 4 == 6 => {
                let len = usize::from(u16::from_be_bytes(array(ip, 4)));
                let l4 = l3 + 40;
                Packet { is_ip4: false, l3, l4, end: l4 + len, protocol: ip[6] }
            }
            _ => return None,
        };
        (packet.l4 <= packet.end && packet.end <= frame.len()).then_some(packet)
    }

    /// Sets lengths, identification and checksums of the segment number `index`.
    fn rewrite(&self, segment: &mut [u8], index: u16) {
        let put = |segment: &mut [u8], at: usize, value: u16| {
            segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
        };
        if self.is_ip4 {
            let len = (segment.len() - self.l3) as u16;
            let id = u16::from_be_bytes(array(segment, self.l3 + 4)).wrapping_add(index);
            put(segment, self.l3 + 2, len);
            put(segment, self.l3 + 4, id);
            put(segment, self.l3 + 10, 0);
            let checksum = !fold(sum(&segment[self.l3..self.l4]));
            put(segment, self.l3 + 10, checksum);
        } else {
            put(segment, self.l3 + 4, (segment.len() - self.l4) as u16);
        }
        put(segment, self.l4 + 16, 0);
        let l4_len = segment.len() - self.l4;
        let sum = fold(self.pseudo_sum(segment, l4_len) + sum(&segment[self.l4..]));
        segment[self.l4 + 16..self.l4 + 18].copy_from_slice(&written(sum));
    }

    /// Sum of the pseudo-header: addresses, protocol and length.
    fn pseudo_sum(&self, frame: &[u8], l4_len: usize) -> u64 {
        let addresses = if self.is_ip4 { 12..20 } else { 8..40 };
        let addresses = &frame[self.l3 + addresses.start..self.l3 + addresses.end];
        sum(addresses) + u64::from(self.protocol) + l4_len as u64
    }
}

/// The ones' complement sum of big-endian words, not folded. An odd last byte is a high one.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    sum + rest.first().map_or(0, |byte| u64::from(*byte) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// `N` bytes that are known to be there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range has N bytes")
}

/// Segments of one packet: enough for 64 KiB at the smallest segment size that TCP may use.
const SEGMENTS_MAX: usize = 1024;
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const ETHERTYPE_IP4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IP6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_LEN_MIN: usize = 20;
const UDP_LEN: usize = 8;
const TCP_FIN: u8 = 1 << 0;
const TCP_PSH: u8 = 1 << 3;
const TCP_CWR: u8 = 1 << 7;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Headers up to TCP's end. `payload_len` goes into the lengths; checksums are left zero.
    pub(in super::super) fn tcp_head(is_ip4: bool, payload_len: usize) -> Vec<u8> {
        let mut frame = vec![0x52, 0x54, 0, 1, 2, 3, 0x52, 0x54, 0, 4, 5, 6];
        let tcp_len = 32 + payload_len as u16;
        if is_ip4 {
            frame.extend([0x08, 0x00, 0x45, 0x00]);
            frame.extend((20 + tcp_len).to_be_bytes());
            frame.extend([0xff, 0xff, 0x40, 0x00, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(tcp_len.to_be_bytes());
            frame.extend([TCP, 64]);
            frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        }
        // Ports, sequence, acknowledgement, 32 bytes of header, CWR ACK PSH FIN, window.
        frame.extend([0x1f, 0x90, 0xc0, 0x00, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 7]);
        frame.extend([0x80, 0x99, 0x01, 0xf5, 0, 0, 0, 0]);
        frame.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        frame
    }

    /// A whole UDP frame over IPv4 with a right checksum.
    pub(in super::super) fn udp_frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        let len = 8 + payload.len() as u16;
        frame.extend([0x08, 0x00, 0x45, 0x00]);
        frame.extend((20 + len).to_be_bytes());
        frame.extend([0, 1, 0, 0, 64, UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x00, 0x35, 0xc0, 0x00]);
        frame.extend(len.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(payload);
        let packet = Packet::of(&frame).unwrap();
        let checksum = fold(packet.pseudo_sum(&frame, len.into()) + sum(&frame[34..]));
        frame[40..42].copy_from_slice(&written(checksum));
        frame
    }

    fn gso(gso_type: u8) -> Offload {
        Offload {
            needs_csum: true,
            gso_type,
            header_len: 0,
            gso_size: 1000,
            csum_start: 0,
            csum_offset: 16,
        }
    }

    /// What is left undone can be done, or is refused from the start.
    fn complete(offload: Offload, frame: Vec<u8>) -> Option<Vec<Vec<u8>>> {
        let is_sound = is_sound(&offload, &frame);
        let frames = super::complete(&offload, frame);
        assert!(!is_sound || frames.is_some(), "{offload:?}");
        frames
    }

    #[test]
    fn a_known_packet_has_a_right_checksum() {
        let mut frame = udp_frame(b"\x12\x34\x01\x00");
        // Addresses, protocol, length; ports, length; payload.
        let by_hand = 0x0a00u32 + 1 + 0x0a00 + 2 + 0x11 + 12 + 0x35 + 0xc000 + 12 + 0x1234 + 0x100;
        assert!(by_hand < 0x1_0000);
        assert_eq!(frame[40..42], (!(by_hand as u16)).to_be_bytes());
        assert!(is_checksum_right(&frame));
        frame[42] ^= 1;
        assert!(!is_checksum_right(&frame));
    }

    #[test]
    fn padding_behind_a_packet_does_not_count() {
        let mut frame = udp_frame(b"x");
        frame.resize(60, 0xee);
        assert!(is_checksum_right(&frame));
    }

    #[test]
    fn what_is_not_a_whole_tcp_or_udp_packet_is_left_to_the_driver() {
        let good = udp_frame(b"payload");
        let with = |at: usize, value: u8| {
            let mut frame = good.clone();
            frame[at] = value;
            is_checksum_right(&frame)
        };
        assert!(with(0, 0) && !with(12, 0x88), "another protocol");
        assert!(!with(20, 0x20), "a fragment");
        assert!(!with(14, 0x44), "an impossible header length");
        assert!(!with(17, 0xff), "longer than the frame");
        assert!(!with(23, 1), "ICMP");
        let mut none = good.clone();
        none[40..42].fill(0);
        assert!(!is_checksum_right(&none), "no checksum");
        for len in 0..good.len() {
            assert!(!is_checksum_right(&good[..len]));
        }
    }

    #[test]
    fn a_partial_checksum_is_filled_in() {
        let whole = udp_frame(b"some payload");
        let mut partial = whole.clone();
        let packet = Packet::of(&whole).unwrap();
        let pseudo = fold(packet.pseudo_sum(&whole, whole.len() - 34));
        partial[40..42].copy_from_slice(&pseudo.to_be_bytes());
        let header = Offload { csum_start: 34, csum_offset: 6, ..gso(0) };
        assert_eq!(complete(header, partial.clone()), Some(vec![whole]));
        for (start, offset) in [(34, 1000), (1000, 0), (u16::MAX, u16::MAX)] {
            let header = Offload { csum_start: start, csum_offset: offset, ..header };
            assert_eq!(complete(header, partial.clone()), None);
        }
    }

    #[test]
    fn a_long_tcp_packet_becomes_segments_that_a_receiver_puts_together() {
        for (gso_type, is_ip4) in
            [(Offload::GSO_TCP4 | Offload::GSO_ECN, true), (Offload::GSO_TCP6, false)]
        {
            let payload: Vec<u8> = (0..3500u32).map(|index| (index * 7 / 3) as u8).collect();
            let mut frame = tcp_head(is_ip4, payload.len());
            let head_len = frame.len();
            frame.extend(&payload);
            let segments = complete(gso(gso_type), frame).unwrap();
            let lens: Vec<usize> =
                segments.iter().map(|segment| segment.len() - head_len).collect();
            assert_eq!(lens, [1000, 1000, 1000, 500]);
            let l4 = head_len - 32;
            for (index, segment) in segments.iter().enumerate() {
                assert!(is_checksum_right(segment), "TCP checksum and lengths");
                let sequence = u32::from_be_bytes(array(segment, l4 + 4));
                assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(index as u32 * 1000));
                if is_ip4 {
                    assert_eq!(fold(sum(&segment[14..34])), u16::MAX, "header checksum");
                    let id = u16::from_be_bytes(array(segment, 18));
                    assert_eq!(id, 0xffffu16.wrapping_add(index as u16));
                }
            }
            let flags: Vec<u8> = segments.iter().map(|segment| segment[l4 + 13]).collect();
            assert_eq!(flags, [0x90, 0x10, 0x10, 0x19], "CWR first, PSH and FIN last");
            let joined: Vec<u8> =
                segments.iter().flat_map(|segment| segment[head_len..].to_vec()).collect();
            assert_eq!(joined, payload);
        }
    }

    #[test]
    fn segmentation_of_what_is_not_tcp_is_refused() {
        let frame = || {
            let mut frame = tcp_head(true, 10);
            frame.extend([0; 10]);
            frame
        };
        assert!(complete(gso(Offload::GSO_TCP4), frame()).is_some());
        assert_eq!(complete(gso(Offload::GSO_TCP6), frame()), None);
        assert_eq!(complete(gso(3), frame()), None, "UDP fragmentation was not offered");
        assert_eq!(complete(Offload { gso_size: 0, ..gso(Offload::GSO_TCP4) }, frame()), None);
        let mut long = tcp_head(true, 2000);
        long.extend([0; 2000]);
        assert_eq!(
            complete(Offload { gso_size: 1, ..gso(Offload::GSO_TCP4) }, long),
            None,
            "too many"
        );
        assert_eq!(complete(gso(Offload::GSO_TCP4), udp_frame(b"datagram")), None);
        let mut short = frame();
        short[46] = 0x40;
        assert_eq!(complete(gso(Offload::GSO_TCP4), short), None, "an impossible header length");
    }

    #[test]
    fn no_header_and_no_frame_panics() {
        let mut rng = base::SeededRng::new(17);
        for _ in 0..50_000 {
            let is_ip4 = rng.one_in(2);
            let payload_len = rng.below(200) as usize;
            let mut frame = tcp_head(is_ip4, payload_len);
            frame.resize(frame.len() + payload_len, 1);
            for _ in 0..rng.below(4) {
                let at = rng.below(frame.len() as u64) as usize;
                frame[at] = rng.u64() as u8;
            }
            frame.truncate(14 + rng.below(frame.len() as u64) as usize);
            let mut header = [0; Offload::HEADER_LEN];
            rng.fill(&mut header);
            header[1] = [0, 1, 4, 0x81, header[1]][rng.below(5) as usize];
            is_checksum_right(&frame);
            let offload = Offload::of(&header, u16::from_le_bytes).unwrap_or_default();
            let frames = complete(offload, frame).unwrap_or_default();
            assert!(frames.len() <= 300);
        }
    }
}
