//! Telling switches where a guest lives now: a RARP request with the guest's MAC as source, which every
//! switch learns from and no host answers (RFC 903). The guest's own announcements, by
//! `VIRTIO_NET_F_GUEST_ANNOUNCE`, follow from inside.

/// An Ethernet address.
pub type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
/// Hardware type Ethernet, protocol IPv4, their address lengths.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REVERSE_REQUEST: [u8; 2] = [0, 3];
const NO_IPV4: [u8; 4] = [0; 4];
/// Shortest Ethernet frame without FCS.
const FRAME_LEN_MIN: usize = 60;

/// The frame that announces `mac`.
#[must_use]
pub fn rarp(mac: Mac) -> Vec<u8> {
    let mut frame = [
        &BROADCAST[..],
        &mac,
        &ETHERTYPE_RARP,
        &ETHERNET_IPV4,
        &REVERSE_REQUEST,
        &mac,
        &NO_IPV4,
        &mac,
        &NO_IPV4,
    ]
    .concat();
    frame.resize(FRAME_LEN_MIN, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour 51
    #[test]
    fn announcement_is_a_broadcast_from_the_guests_mac() {
        let frame = rarp([2, 0, 0, 0, 0, 7]);
        assert_eq!(frame.len(), FRAME_LEN_MIN);
        assert_eq!(frame[..6], BROADCAST);
        assert_eq!(frame[6..12], [2, 0, 0, 0, 0, 7]);
        // Layout of RFC 903: sender and target hardware address are the guest's.
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame[22..28], frame[32..38]);
    }
}
