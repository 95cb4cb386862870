//! Frames that every state permits because a link does not work without them: address resolution, neighbour
//! discovery, group membership. Each is read to its last byte, so that nothing else travels in its shape.

use super::policy::is_local_group;
use crate::capture::{Decoded, Transport};

/// Ethernet header and ARP for IPv4 (RFC 826), in bytes.
const ARP_FRAME: usize = 14 + 28;
/// Source and target link-layer address (RFC 4861, section 4.6.1) and nonce (RFC 3971, section 5.3.2): one unit each.
const DISCOVERY_OPTIONS: [u8; 3] = [1, 2, 14];
/// Bytes of an IPv6 address.
const ADDRESS: usize = 16;

/// A request or an answer about addresses of the link; what pads the frame is zero.
pub(super) fn is_arp(decoded: &Decoded, frame: &[u8]) -> bool {
    decoded.arp.as_ref().is_some_and(|arp| matches!(arp.operation, 1 | 2))
        && decoded.malformed.is_none()
        && frame.get(ARP_FRAME..).is_some_and(|padding| padding.iter().all(|byte| *byte == 0))
}

/// What a host sends for router and neighbour discovery: solicitations and neighbour advertisements. Hop limit 255: it
/// cannot have come from, or go, further than the link (RFC 4861, section 4).
pub(super) fn is_neighbour_discovery(decoded: &Decoded, frame: &[u8]) -> bool {
    let (Some(ip), Some(Transport::Icmp(icmp))) = (&decoded.ip, &decoded.transport) else { return false };
    // Reserved bits or flags come first, then the target.
    let fixed = match (icmp.v6, icmp.kind) {
        (true, 133) => 4,
        (true, 135 | 136) => 4 + ADDRESS,
        _ => return false,
    };
    let options = decoded.payload(frame).get(fixed..);
    ip.hop_limit == 255 && icmp.code == 0 && options.is_some_and(are_discovery_options)
}

/// Reports of group membership, which do not leave the link: MLD (RFC 2710, RFC 9777) and IGMP (RFC 2236, RFC 9776).
pub(super) fn is_membership(decoded: &Decoded, frame: &[u8]) -> bool {
    let Some(ip) = &decoded.ip else { return false };
    if ip.fragment.is_some() || ip.hop_limit != 1 || !is_local_group(ip.dst) {
        return false;
    }
    let payload = decoded.payload(frame);
    match &decoded.transport {
        Some(Transport::Icmp(icmp)) if icmp.v6 => match icmp.kind {
            131 | 132 => payload.len() == 4 + ADDRESS,
            143 => payload.split_at_checked(4).is_some_and(|(head, records)| are_records(records, head[3], ADDRESS)),
            _ => false,
        },
        Some(Transport::Other) if ip.protocol == libc::IPPROTO_IGMP as u8 => match payload.first() {
            Some(0x12 | 0x16 | 0x17) => payload.len() == 8,
            Some(0x22) => payload.split_at_checked(8).is_some_and(|(head, records)| are_records(records, head[7], 4)),
            _ => false,
        },
        _ => false,
    }
}

fn are_discovery_options(mut options: &[u8]) -> bool {
    while let Some((option, rest)) = options.split_at_checked(8) {
        if !DISCOVERY_OPTIONS.contains(&option[0]) || option[1] != 1 {
            return false;
        }
        options = rest;
    }
    options.is_empty()
}

/// `count` group records without auxiliary data, and nothing after them. Type, auxiliary length in words, sources,
/// group, sources' addresses (RFC 9777, section 5.2.4 and RFC 9776, section 4.2.4).
fn are_records(mut records: &[u8], count: u8, address: usize) -> bool {
    for _ in 0..count {
        let Some((head, rest)) = records.split_at_checked(4 + address) else { return false };
        let sources = usize::from(u16::from_be_bytes([head[2], head[3]])) * address;
        let (0, Some(rest)) = (head[1], rest.get(sources..)) else { return false };
        records = rest;
    }
    records.is_empty()
}
