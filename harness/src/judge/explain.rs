//! Explains a frame by one rule of a policy, or says that none does. Default-deny: what nobody explains is a finding.

use super::{
    link_control::{is_arp, is_membership, is_neighbour_discovery},
    policy::{Mode, Policy, is_local_group, is_private},
    recording::SeenFrame,
};
use crate::{
    capture::{Decoded, Transport, is_wireguard, names_in, query_in},
    testbed::plan::UPLINK,
};
use std::net::{IpAddr, SocketAddr};
use watertight_protocol::IpProtocol;

/// Why a frame may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Nothing is restricted.
    Open,
    /// The harness's own.
    Marker,
    /// ARP, in every state.
    Arp,
    /// Router and neighbour discovery, in every state.
    NeighbourDiscovery,
    /// DHCP, in every state.
    Dhcp,
    /// IGMP and MLD, permitted and listed.
    Multicast,
    /// A tunnel packet to the relay.
    Relay,
    /// The API endpoint.
    Api,
    /// An approved server on the local network.
    LanDns,
    /// The local network, where it is permitted.
    Lan,
    /// Inside the tunnel: an approved server, or no DNS at all.
    Tunnel,
}

/// Which rule of `policy` explains a frame that left on the uplink.
pub fn on_uplink(frame: &SeenFrame, policy: &Policy, tag: &str) -> Option<Rule> {
    if frame.marker.is_some() {
        return Some(Rule::Marker);
    }
    if !policy.protects() {
        return Some(Rule::Open);
    }
    let decoded = &frame.decoded;
    if is_lan_dns(decoded, policy) {
        return Some(Rule::LanDns);
    }
    // Nothing of ours is tagged for a VLAN.
    if !decoded.vlan.is_empty() {
        return None;
    }
    let lan = policy.allows_lan() && decoded.ip.as_ref().is_some_and(|ip| is_lan(ip.dst, policy));
    // Port 53 and nothing else is forbidden on a permitted local network (FWL-10); where no port says what a frame is, its
    // content does. Elsewhere a probe's name or somebody's query in clear is DNS, whatever it is wrapped in.
    let forbidden = match decoded.ports() {
        Some((_, to)) if lan => to == 53,
        None if lan && is_icmp_error(decoded) => false,
        _ => carries_dns(frame, tag),
    };
    if forbidden {
        return None;
    }
    if is_arp(decoded, &frame.bytes) {
        return Some(Rule::Arp);
    }
    let ip = decoded.ip.as_ref()?;
    if is_neighbour_discovery(decoded, &frame.bytes) {
        return Some(Rule::NeighbourDiscovery);
    }
    if is_membership(decoded, &frame.bytes) {
        return Some(Rule::Multicast);
    }
    if is_dhcp(decoded, payload_of(frame)) {
        return Some(Rule::Dhcp);
    }
    let payload = decoded.payload(&frame.bytes);
    let to = |endpoint: (SocketAddr, IpProtocol)| goes_to(decoded, endpoint);
    if let Some(relay) = policy.relay()
        && to(relay)
        && decoded.dns.is_none()
        && ip.fragment.is_none()
        && (relay.1 == IpProtocol::Tcp || is_wireguard(payload))
    {
        return Some(Rule::Relay);
    }
    if let Some(api) = policy.api()
        && to(api)
        && decoded.dns.is_none()
        && ip.fragment.is_none()
    {
        return Some(Rule::Api);
    }
    lan.then_some(Rule::Lan)
}

/// Which rule of `policy` explains a frame that came out of the tunnel at the relay.
pub fn in_tunnel(frame: &SeenFrame, policy: &Policy) -> Option<Rule> {
    if frame.marker.is_some() {
        return Some(Rule::Marker);
    }
    let dns = match frame.decoded.ports() {
        Some((_, to)) => to == 53,
        // An error quotes what was refused (RFC 792, RFC 4443).
        None if is_icmp_error(&frame.decoded) => false,
        // The rest of a fragmented datagram, a packet in a packet: no port says what it is.
        None => query_in(&frame.bytes).is_some(),
    };
    if !dns {
        return Some(Rule::Tunnel);
    }
    let destination = frame.decoded.ip.as_ref()?.dst;
    (policy.mode == Mode::Connected && policy.approved().tunnel.contains(&destination)).then_some(Rule::Tunnel)
}

/// An approved server on the local network, by port 53.
fn is_lan_dns(decoded: &Decoded, policy: &Policy) -> bool {
    let (Some(ip), Some((_, 53))) = (&decoded.ip, decoded.ports()) else { return false };
    policy
        .approved()
        .lan
        .iter()
        .any(|server| server.address == ip.dst && server.scope.as_deref().is_none_or(|scope| scope == UPLINK))
}

fn payload_of(frame: &SeenFrame) -> &[u8] {
    frame.decoded.payload(&frame.bytes)
}

/// The ports, and a message that is what it says: a request with the magic cookie (RFC 2131, section 3), or one of the
/// message types of a DHCPv6 client (RFC 8415, section 7.3).
fn is_dhcp(decoded: &Decoded, payload: &[u8]) -> bool {
    let Some(Transport::Udp(udp)) = &decoded.transport else { return false };
    if decoded.dns.is_some() || decoded.ip.as_ref().is_some_and(|ip| ip.fragment.is_some()) {
        return false;
    }
    let v4 = decoded.ip.as_ref().is_some_and(|ip| ip.dst.is_ipv4());
    match (v4, udp.sport, udp.dport) {
        (true, 68, 67) => payload.first() == Some(&1) && payload.get(236..240) == Some(&[0x63, 0x82, 0x53, 0x63]),
        (false, 546, 547) => payload.first().is_some_and(|kind| (1..=11).contains(kind)),
        _ => false,
    }
}

fn goes_to(decoded: &Decoded, (endpoint, protocol): (SocketAddr, IpProtocol)) -> bool {
    let Some(ip) = &decoded.ip else { return false };
    let transport = match &decoded.transport {
        Some(Transport::Udp(_)) => IpProtocol::Udp,
        Some(Transport::Tcp(_)) => IpProtocol::Tcp,
        _ => return false,
    };
    ip.dst == endpoint.ip() && transport == protocol && decoded.ports().is_some_and(|(_, to)| to == endpoint.port())
}

/// The local network; the tunnel's own addresses are not on it.
fn is_lan(address: IpAddr, policy: &Policy) -> bool {
    let tunnel = policy.settings.as_ref().map(|settings| &settings.tunnel);
    let is_tunnel = tunnel.is_some_and(|tunnel| {
        tunnel.gateways.contains(&address) || tunnel.addresses.iter().any(|network| network.contains(&address))
    });
    (is_private(address) || is_local_group(address)) && !is_tunnel
}

fn is_icmp_error(decoded: &Decoded) -> bool {
    let Some(Transport::Icmp(icmp)) = &decoded.transport else { return false };
    if icmp.v6 { icmp.kind < 128 } else { matches!(icmp.kind, 3 | 4 | 5 | 11 | 12) }
}

/// A probe's name, or a whole query, anywhere in the frame.
fn carries_dns(frame: &SeenFrame, tag: &str) -> bool {
    names_in(&frame.bytes, tag) || query_in(&frame.bytes).is_some()
}
