//! Canary and barrier frames: what they look like on the wire. Sending them is in `sender`, waiting for them in
//! `watch`.
//!
//! The payload is 22 bytes: `WTGT`, version 1, kind, the case's nonce, the marker's id; numbers big-endian. On Ethernet
//! it follows ethertype 0x88b5 (IEEE 802 local experimental), on a raw link an IP header with protocol 253 (RFC 3692).
//! The frame is filled up with zeros to 60 bytes, the shortest Ethernet frame.

use std::{fmt, net::IpAddr};

use pnet::{
    packet::{
        Packet,
        ethernet::{EtherType, EthernetPacket, MutableEthernetPacket},
        ip::IpNextHeaderProtocol,
        ipv4::{MutableIpv4Packet, checksum},
        ipv6::MutableIpv6Packet,
    },
    util::MacAddr,
};
use serde::{Deserialize, Serialize};

use super::{decode::decode, error::Error, frame::LinkType};

/// Ethertype of markers: IEEE 802 local experimental ethertype 1.
pub const MARKER_ETHERTYPE: u16 = 0x88b5;
/// IP protocol of markers on raw links: for experimentation and testing (RFC 3692).
pub const MARKER_PROTOCOL: u8 = 253;

const MAGIC: [u8; 4] = *b"WTGT";
const VERSION: u8 = 1;
const PAYLOAD: usize = 22;
const SHORTEST_FRAME: usize = 60;
const ETHERNET_HEADER: usize = 14;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// What a marker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkerKind {
    /// The link and its capture are alive.
    Canary,
    /// What comes before and what comes after belong to different windows.
    Barrier,
}

impl fmt::Display for MarkerKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Canary => "canary",
            Self::Barrier => "barrier",
        })
    }
}

/// A marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Marker {
    /// Canary or barrier.
    pub kind: MarkerKind,
    /// Random number of the case, which nobody else knows.
    pub nonce: u64,
    /// Number of the marker in the case.
    pub id: u64,
}

/// What a marker is wrapped in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    /// An Ethernet header.
    Ethernet {
        /// Source address.
        source: MacAddr,
        /// Destination address; broadcast crosses bridges too.
        destination: MacAddr,
    },
    /// An IP header, for a raw link.
    Ip {
        /// Source address.
        source: IpAddr,
        /// Destination address, of the same family.
        destination: IpAddr,
    },
}

impl Marker {
    /// The frame to send. Fails if the addresses are of two families.
    pub fn encode(&self, envelope: &Envelope) -> Result<Vec<u8>, Error> {
        let header = match envelope {
            Envelope::Ethernet { .. } => ETHERNET_HEADER,
            Envelope::Ip { source: IpAddr::V4(_), destination: IpAddr::V4(_) } => IPV4_HEADER,
            Envelope::Ip { source: IpAddr::V6(_), destination: IpAddr::V6(_) } => IPV6_HEADER,
            Envelope::Ip { source, destination } => {
                return Err(Error::AddressFamilies { source_address: *source, destination: *destination });
            }
        };
        let mut frame = vec![0; SHORTEST_FRAME.max(header + PAYLOAD)];
        fill_header(&mut frame, envelope);
        let payload = &mut frame[header..header + PAYLOAD];
        payload[..4].copy_from_slice(&MAGIC);
        payload[4] = VERSION;
        payload[5] = match self.kind {
            MarkerKind::Canary => 1,
            MarkerKind::Barrier => 2,
        };
        payload[6..14].copy_from_slice(&self.nonce.to_be_bytes());
        payload[14..22].copy_from_slice(&self.id.to_be_bytes());
        Ok(frame)
    }

    /// The marker in a frame, if it is one of the case with this nonce; else `None`. A frame with anything but zeros
    /// behind the payload is none, so nothing can hide in a marker.
    pub fn decode(bytes: &[u8], link_type: LinkType, nonce: u64) -> Option<Self> {
        let body = match link_type {
            LinkType::Ethernet => {
                let header = EthernetPacket::new(bytes)?;
                (header.get_ethertype() == EtherType(MARKER_ETHERTYPE)).then(|| &bytes[ETHERNET_HEADER..])?
            }
            LinkType::Raw => {
                let decoded = decode(bytes, link_type);
                let ip = decoded.ip.filter(|ip| {
                    ip.protocol == MARKER_PROTOCOL
                        && ip.fragment.is_none()
                        && ip.ext_headers.is_empty()
                        && ip.payload.end == bytes.len()
                })?;
                bytes.get(ip.payload)?
            }
        };
        let (payload, filling) = body.split_at_checked(PAYLOAD)?;
        let number = |at: usize| payload[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        let kind = match payload[5] {
            1 => MarkerKind::Canary,
            2 => MarkerKind::Barrier,
            _ => return None,
        };
        let ours = payload[..4] == MAGIC
            && payload[4] == VERSION
            && number(6)? == nonce
            && filling.iter().all(|byte| *byte == 0)
            && bytes.len() <= SHORTEST_FRAME.max(IPV6_HEADER + PAYLOAD);
        ours.then_some(Self { kind, nonce, id: number(14)? })
    }
}

/// Writes the header of the envelope at the start of `frame`, which is long enough for it.
fn fill_header(frame: &mut [u8], envelope: &Envelope) {
    let length = frame.len();
    match *envelope {
        Envelope::Ethernet { source, destination } => {
            if let Some(mut header) = MutableEthernetPacket::new(frame) {
                header.set_source(source);
                header.set_destination(destination);
                header.set_ethertype(EtherType(MARKER_ETHERTYPE));
            }
        }
        Envelope::Ip { source: IpAddr::V4(source), destination: IpAddr::V4(destination) } => {
            if let Some(mut header) = MutableIpv4Packet::new(frame) {
                header.set_version(4);
                header.set_header_length((IPV4_HEADER / 4) as u8);
                header.set_total_length(length as u16);
                header.set_ttl(64);
                header.set_next_level_protocol(IpNextHeaderProtocol(MARKER_PROTOCOL));
                header.set_source(source);
                header.set_destination(destination);
                let sum = checksum(&header.to_immutable());
                header.set_checksum(sum);
                debug_assert_eq!(header.packet().len(), length);
            }
        }
        Envelope::Ip { source: IpAddr::V6(source), destination: IpAddr::V6(destination) } => {
            if let Some(mut header) = MutableIpv6Packet::new(frame) {
                header.set_version(6);
                header.set_payload_length((length - IPV6_HEADER) as u16);
                header.set_next_header(IpNextHeaderProtocol(MARKER_PROTOCOL));
                header.set_hop_limit(64);
                header.set_source(source);
                header.set_destination(destination);
            }
        }
        // `encode` has refused it.
        Envelope::Ip { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETHERNET: Envelope =
        Envelope::Ethernet { source: MacAddr(2, 0, 0, 0, 0, 1), destination: MacAddr(255, 255, 255, 255, 255, 255) };

    fn ip(source: &str, destination: &str) -> Envelope {
        Envelope::Ip { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn markers_come_back_as_they_were_sent() {
        for (envelope, link_type) in [
            (ETHERNET, LinkType::Ethernet),
            (ip("10.64.0.2", "10.64.0.1"), LinkType::Raw),
            (ip("fd64::2", "fd64::1"), LinkType::Raw),
        ] {
            for kind in [MarkerKind::Canary, MarkerKind::Barrier] {
                let marker = Marker { kind, nonce: 0x0123_4567_89ab_cdef, id: u64::MAX - 1 };
                let frame = marker.encode(&envelope).unwrap();
                assert!(frame.len() >= 60, "{} bytes", frame.len());
                assert_eq!(Marker::decode(&frame, link_type, marker.nonce), Some(marker));
                assert_eq!(Marker::decode(&frame, link_type, marker.nonce + 1), None, "another case's nonce");
                assert_eq!(decode(&frame, link_type).malformed, None);
            }
        }
    }

    #[test]
    fn a_frame_with_more_in_it_is_no_marker() {
        let marker = Marker { kind: MarkerKind::Barrier, nonce: 7, id: 1 };
        let frame = marker.encode(&ETHERNET).unwrap();
        for position in [12, ETHERNET_HEADER, ETHERNET_HEADER + 4, ETHERNET_HEADER + 5, frame.len() - 1] {
            let mut altered = frame.clone();
            altered[position] ^= 0x40;
            assert_eq!(Marker::decode(&altered, LinkType::Ethernet, 7), None, "byte {position}");
        }
        let longer = [frame.clone(), vec![0; 1400]].concat();
        assert_eq!(Marker::decode(&longer, LinkType::Ethernet, 7), None);
        for length in 0..ETHERNET_HEADER + PAYLOAD {
            assert_eq!(Marker::decode(&frame[..length], LinkType::Ethernet, 7), None);
        }
    }

    #[test]
    fn addresses_of_two_families_are_refused() {
        let marker = Marker { kind: MarkerKind::Canary, nonce: 7, id: 1 };
        let error = marker.encode(&ip("10.64.0.2", "fd64::1")).unwrap_err();
        assert!(matches!(error, Error::AddressFamilies { .. }), "{error}");
    }
}
