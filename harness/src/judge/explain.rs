//! Explains a frame by one rule of a policy, or says that none does. Default-deny: what nobody explains is a finding.

use super::{
    policy::{Mode, Policy, is_local_group, is_private},
    recording::SeenFrame,
};
use crate::{
    capture::{Decoded, Transport, is_wireguard, names_in},
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
    // A probe's name in clear is DNS, whatever it is wrapped in; and nothing of ours is tagged for a VLAN.
    let local_service = decoded.ports().is_some_and(|(_, to)| LAN_SERVICES.contains(&to)) && policy.allows_lan();
    if !decoded.vlan.is_empty() || (names_in(&frame.bytes, tag) && !local_service) {
        return None;
    }
    if decoded.arp.is_some() && decoded.malformed.is_none() {
        return Some(Rule::Arp);
    }
    let ip = decoded.ip.as_ref()?;
    if let Some(Transport::Icmp(icmp)) = &decoded.transport {
        // Hop limit 255: it cannot have come from, or go, further than the link (RFC 4861, section 4).
        if icmp.is_neighbour_discovery() && ip.hop_limit == 255 {
            return Some(Rule::NeighbourDiscovery);
        }
        if icmp.v6 && matches!(icmp.kind, 130..=132 | 143) && ip.hop_limit == 1 {
            return Some(Rule::Multicast);
        }
    }
    if ip.protocol == libc::IPPROTO_IGMP as u8 && is_local_group(ip.dst) {
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
    let port = decoded.ports().map(|(_, to)| to);
    if policy.allows_lan() && is_lan(ip.dst, policy) && !is_dns(frame, port, tag) {
        return Some(Rule::Lan);
    }
    None
}

/// Which rule of `policy` explains a frame that came out of the tunnel at the relay.
pub fn in_tunnel(frame: &SeenFrame, policy: &Policy) -> Option<Rule> {
    if frame.marker.is_some() {
        return Some(Rule::Marker);
    }
    let dns = frame.decoded.ports().is_some_and(|(_, to)| to == 53);
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

/// Local name services that Allow LAN permits: mDNS, LLMNR, NetBIOS, SSDP.
const LAN_SERVICES: [u16; 4] = [5353, 5355, 137, 1900];

fn is_dns(frame: &SeenFrame, port: Option<u16>, tag: &str) -> bool {
    if port.is_some_and(|port| LAN_SERVICES.contains(&port)) {
        // A probe's name on one of these ports, unicast, is DNS in disguise.
        let unicast = frame.decoded.ip.as_ref().is_some_and(|ip| !is_local_group(ip.dst));
        return unicast && names_in(&frame.bytes, tag);
    }
    matches!(port, Some(53 | 853)) || frame.decoded.dns.is_some() || names_in(&frame.bytes, tag)
}
