//! What no rule may explain: somebody's query in the shape of what every state permits. And what a rule must explain.

use super::{
    explain::{Rule, in_tunnel, on_uplink},
    policy::Policy,
    recording::SeenFrame,
};
use crate::{
    capture::{LinkType, decode},
    case::settings,
    scenario::SettingsPatch,
};
use std::net::{Ipv4Addr, Ipv6Addr};
use watertight_protocol::State;

const TAG: &str = "wt00000000";
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 50);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const RELAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const API: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
const EVERYBODY: Ipv4Addr = Ipv4Addr::BROADCAST;
const IGMP_REPORTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x50);
const MLD_REPORTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// `www.example.com A`, with nothing of a probe in it.
fn query() -> Vec<u8> {
    let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    [&header[..], b"\x03www\x07example\x03com\0", &[0, 1, 0, 1]].concat()
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length, &[0, 0], payload].concat()
}

fn tcp(to: u16, payload: &[u8]) -> Vec<u8> {
    let rest = [0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0];
    [&40000u16.to_be_bytes()[..], &to.to_be_bytes(), &rest, payload].concat()
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &ethertype.to_be_bytes(), payload].concat()
}

fn ipv4(to: Ipv4Addr, protocol: u8, flags: u16, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let rest = [0xab, 0xcd, (flags >> 8) as u8, flags as u8, ttl, protocol, 0, 0];
    [&[0x45, 0][..], &length, &rest, &CLIENT.octets(), &to.octets(), payload].concat()
}

fn on_ipv4(to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(0x0800, &ipv4(to, protocol, 0, 64, payload))
}

fn on_ipv6(to: Ipv6Addr, next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    let packet = [&[0x60, 0, 0, 0][..], &length, &[next, hop_limit], &CLIENT6.octets(), &to.octets(), payload].concat();
    ethernet(0x86dd, &packet)
}

fn icmpv6(to: Ipv6Addr, kind: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    on_ipv6(to, 58, hop_limit, &[&[kind, 0, 0, 0][..], payload].concat())
}

fn igmp(payload: &[u8]) -> Vec<u8> {
    ethernet(0x0800, &ipv4(IGMP_REPORTS, 2, 0, 1, payload))
}

fn arp(padding: &[u8]) -> Vec<u8> {
    let payload =
        [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1][..], &CLIENT.octets(), &[0; 6], &ROUTER.octets(), padding];
    ethernet(0x0806, &payload.concat())
}

fn seen(bytes: Vec<u8>, link_type: LinkType) -> SeenFrame {
    let decoded = decode(&bytes, link_type);
    SeenFrame { sequence: 0, t: 0, bytes, decoded, after_barrier: 0, marker: None }
}

fn policy(state: State) -> Policy {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let patch: SettingsPatch =
        serde_json::from_value(serde_json::json!({"api": "https"})).expect("a setting of scenarios");
    Policy::of(state, Some(&settings(&patch, key, key)))
}

fn explained(state: State, frame: Vec<u8>) -> Option<Rule> {
    on_uplink(&seen(frame, LinkType::Ethernet), &policy(state), TAG)
}

/// A WireGuard data message around `content`, padded as its length must be.
fn wireguard(content: &[u8]) -> Vec<u8> {
    let mut message = [&[4, 0, 0, 0][..], &[7; 12], content].concat();
    message.resize((message.len() + 16).next_multiple_of(16), 0);
    message
}

/// A DHCP request with the magic cookie (RFC 2131).
fn dhcp(options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[0] = 1;
    [&message[..], &[0x63, 0x82, 0x53, 0x63], options].concat()
}

#[test]
fn what_a_link_needs_is_explained() {
    let target = CLIENT6.octets();
    let source = [1, 1, 2, 0, 0, 0, 0, 1];
    let record6 = [&[4, 0, 0, 0][..], &ALL_NODES.octets()].concat();
    for (frame, rule) in [
        (arp(&[]), Rule::Arp),
        (arp(&[0; 18]), Rule::Arp),
        (icmpv6(ALL_NODES, 133, 255, &[&[0; 4][..], &source].concat()), Rule::NeighbourDiscovery),
        (icmpv6(ALL_NODES, 135, 255, &[&[0; 4][..], &target, &source].concat()), Rule::NeighbourDiscovery),
        // Duplicate address detection with a nonce (RFC 7527).
        (
            icmpv6(ALL_NODES, 135, 255, &[&[0; 4][..], &target, &[14, 1, 9, 8, 7, 6, 5, 4]].concat()),
            Rule::NeighbourDiscovery,
        ),
        (icmpv6(MLD_REPORTS, 143, 1, &[&[0, 0, 0, 1][..], &record6].concat()), Rule::Multicast),
        (icmpv6(ALL_NODES, 131, 1, &[&[0; 4][..], &ALL_NODES.octets()].concat()), Rule::Multicast),
        (igmp(&[&[0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0][..], &IGMP_REPORTS.octets()].concat()), Rule::Multicast),
        (igmp(&[&[0x16, 0, 0, 0][..], &IGMP_REPORTS.octets()].concat()), Rule::Multicast),
        (on_ipv4(EVERYBODY, 17, &udp(68, 67, &dhcp(&[53, 1, 1, 255]))), Rule::Dhcp),
        (on_ipv6(DHCP_SERVERS, 17, 1, &udp(546, 547, &[1, 9, 9, 9])), Rule::Dhcp),
        (on_ipv4(RELAY, 17, &udp(40000, 51820, &wireguard(&[0xa5; 64]))), Rule::Relay),
    ] {
        assert_eq!(explained(State::Connected, frame.clone()), Some(rule), "{frame:02x?}");
    }
    assert_eq!(explained(State::Error, on_ipv4(API, 6, &tcp(443, b"\x16\x03\x01"))), Some(Rule::Api));
}

#[test]
fn a_query_is_not_explained_whatever_its_shape() {
    let query = query();
    let target = CLIENT6.octets();
    let option = [&[14, 1 + (query.len() / 8 + 1) as u8][..], &query].concat();
    for (name, frame) in [
        ("ARP", arp(&query)),
        ("solicitation", icmpv6(ALL_NODES, 135, 255, &[&[0; 4][..], &target, &option].concat())),
        ("trailing", icmpv6(ALL_NODES, 135, 255, &[&[0; 4][..], &target, &query].concat())),
        ("MLD", icmpv6(MLD_REPORTS, 131, 1, &[&[0; 20][..], &query].concat())),
        ("MLDv2", icmpv6(MLD_REPORTS, 143, 1, &[&[0; 4][..], &query].concat())),
        ("IGMP", igmp(&[&[0x16, 0, 0, 0][..], &query].concat())),
        ("DHCP", on_ipv4(EVERYBODY, 17, &udp(68, 67, &dhcp(&query)))),
        ("DHCPv6", on_ipv6(DHCP_SERVERS, 17, 1, &udp(546, 547, &[&[1, 9, 9, 9][..], &query, &[0]].concat()))),
        ("WireGuard", on_ipv4(RELAY, 17, &udp(40000, 51820, &wireguard(&query)))),
        ("API", on_ipv4(API, 6, &tcp(443, &[b"POST ", &query[..], b" HTTP/1.1"].concat()))),
    ] {
        for state in [State::Connecting, State::Connected, State::Disconnecting, State::Error] {
            assert_eq!(explained(state, frame.clone()), None, "{name} in {state:?}");
        }
    }
}

#[test]
fn shapes_that_carry_more_than_they_need_are_not_explained() {
    let target = CLIENT6.octets();
    for (name, frame) in [
        ("bytes after ARP", arp(b"secret")),
        (
            "an unknown option",
            icmpv6(ALL_NODES, 135, 255, &[&[0; 4][..], &target, &[99, 1, 0, 0, 0, 0, 0, 0]].concat()),
        ),
        ("an advertisement of a router", icmpv6(ALL_NODES, 134, 255, &[0; 12])),
        ("a report that left the link", icmpv6(MLD_REPORTS, 131, 64, &[0; 20])),
        ("auxiliary data", igmp(&[0x22, 0, 0, 0, 0, 0, 0, 1, 4, 1, 0, 0, 224, 0, 0, 251, 1, 2, 3, 4])),
        ("bytes after a report", igmp(&[0x16, 0, 0, 0, 224, 0, 0, 251, 1])),
        ("a WireGuard message of no such length", on_ipv4(RELAY, 17, &udp(40000, 51820, &[4, 0, 0, 0, 1, 2, 3]))),
    ] {
        assert_eq!(explained(State::Connected, frame), None, "{name}");
    }
}

#[test]
fn on_a_permitted_local_network_port_53_is_what_is_forbidden() {
    let mut policy = policy(State::Connected);
    policy.settings.as_mut().expect("settings").allow_lan = true;
    let of = |frame| on_uplink(&seen(frame, LinkType::Ethernet), &policy, TAG);
    assert_eq!(of(on_ipv4(ROUTER, 6, &tcp(853, b""))), Some(Rule::Lan));
    assert_eq!(of(on_ipv4(ROUTER, 17, &udp(40000, 5353, &query()))), Some(Rule::Lan));
    assert_eq!(of(on_ipv4(ROUTER, 6, &tcp(53, b""))), None);
    assert_eq!(of(ethernet(0x0800, &ipv4(ROUTER, 17, 1, 64, &query()))), None, "the second fragment");
    assert_eq!(of(on_ipv4(PUBLIC, 6, &tcp(853, b""))), None);
}

#[test]
fn in_the_tunnel_a_query_in_a_packet_or_fragment_is_found_too() {
    let query = query();
    let through = |packet: Vec<u8>| in_tunnel(&seen(packet, LinkType::Raw), &policy(State::Connected));
    assert_eq!(through(ipv4(PUBLIC, 17, 0, 64, &udp(40000, 443, b"hello"))), Some(Rule::Tunnel));
    assert_eq!(through(ipv4(PUBLIC, 17, 0, 64, &udp(40000, 53, &query))), None);
    assert_eq!(through(ipv4(PUBLIC, 4, 0, 64, &ipv4(PUBLIC, 17, 0, 64, &udp(40000, 53, &query)))), None);
    assert_eq!(through(ipv4(PUBLIC, 17, 1, 64, &query)), None, "the second fragment");
    let quoted = ipv4(CLIENT, 17, 0, 64, &udp(40000, 53, &query));
    let unreachable = ipv4(CLIENT, 1, 0, 64, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted].concat());
    assert_eq!(through(unreachable), Some(Rule::Tunnel), "an error that quotes what was refused");
    assert_eq!(through(ipv4(PUBLIC, 17, 1, 64, b"no query")), Some(Rule::Tunnel));
}
