//! What the decoder says of frames that were made by hand, and of bytes that nobody made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RData, Record, RecordType},
};
use proptest::prelude::*;

use super::{
    Arp, Decoded, Fragment, LinkType, Streams, Transport, decode, dns_message, dns_over_tcp, is_wireguard, names_in,
};

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 50);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x50);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn response(name: &str, addresses: u8) -> Vec<u8> {
    let name = Name::from_ascii(name).unwrap();
    let mut message = Message::response(0x1234, OpCode::Query);
    message.add_query(Query::query(name.clone(), RecordType::A));
    for last in 0..addresses {
        message.add_answer(Record::from_rdata(name.clone(), 60, RData::A(Ipv4Addr::new(10, 0, 0, last).into())));
    }
    message.to_vec().unwrap()
}

fn udp(sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &length, &[0, 0], payload].concat()
}

fn tcp(sport: u16, dport: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    // Twelve bytes of options: no operation.
    let header = [&[0, 0, 0, 9, 0, 0, 0, 0, 0x80, flags, 0xff, 0xff, 0, 0, 0, 0][..], &[1; 12]].concat();
    [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &header, payload].concat()
}

fn ipv4_fragment(protocol: u8, offset_and_flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let rest = [0xab, 0xcd, (offset_and_flags >> 8) as u8, offset_and_flags as u8, 64, protocol, 0, 0];
    [&[0x45, 0][..], &length, &rest, &CLIENT.octets(), &ROUTER.octets(), payload].concat()
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_fragment(protocol, 0, payload)
}

fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[next_header, 255], &CLIENT6.octets(), &ROUTER6.octets(), payload].concat()
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &ethertype.to_be_bytes(), payload].concat()
}

fn sound(frame: &[u8], link_type: LinkType) -> Decoded {
    let decoded = decode(frame, link_type);
    assert_eq!(decoded.malformed, None, "{decoded:?}");
    decoded
}

#[test]
fn summaries() {
    let dns = query("P12.Probe.Test", RecordType::A);
    let prefixed = [&(dns.len() as u16).to_be_bytes()[..], &dns].concat();
    let wireguard = [&[1, 0, 0, 0][..], &[9; 144]].concat();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1][..], &CLIENT.octets(), &[0; 6], &ROUTER.octets()].concat();
    for (frame, expected) in [
        (
            ethernet(0x0800, &ipv4(17, &udp(40000, 53, &dns))),
            "UDP 192.168.1.50:40000 → 192.168.1.1:53 DNS query p12.probe.test A",
        ),
        (
            ethernet(0x0800, &ipv4(17, &udp(40000, 51820, &dns))),
            "UDP 192.168.1.50:40000 → 192.168.1.1:51820 DNS query p12.probe.test A",
        ),
        (
            ethernet(0x0800, &ipv4(17, &udp(53, 40000, &response("p12.probe.test.", 2)))),
            "UDP 192.168.1.50:53 → 192.168.1.1:40000 DNS response p12.probe.test A, 2 answers",
        ),
        (
            ethernet(0x86dd, &ipv6(6, &tcp(40000, 443, 0x18, &prefixed))),
            "TCP [fd00::50]:40000 → [fd00::1]:443 [PA] DNS query p12.probe.test A",
        ),
        (ethernet(0x0800, &ipv4(6, &tcp(40000, 53, 2, &[]))), "TCP 192.168.1.50:40000 → 192.168.1.1:53 [S]"),
        (
            ethernet(0x0800, &ipv4(17, &udp(40000, 51820, &wireguard))),
            "UDP 192.168.1.50:40000 → 192.168.1.1:51820 WireGuard 148 bytes",
        ),
        (ethernet(0x0800, &ipv4(1, &[8, 0, 0, 0, 1, 2])), "ICMP 192.168.1.50 → 192.168.1.1 type 8 code 0"),
        (ethernet(0x86dd, &ipv6(58, &[135, 0, 0, 0])), "ICMPv6 fd00::50 → fd00::1 type 135 code 0"),
        (ethernet(0x0800, &ipv4(132, &[0; 12])), "IP protocol 132 192.168.1.50 → 192.168.1.1"),
        (ethernet(0x0806, &arp), "ARP who has 192.168.1.1? tell 192.168.1.50"),
        (ethernet(0x88b5, &[0; 46]), "Ethernet 0x88b5 02:00:00:00:00:01 → 02:00:00:00:00:02"),
        (
            ethernet(0x0800, &ipv4_fragment(17, 0x2001, &[0; 8])),
            "IP protocol 17 192.168.1.50 → 192.168.1.1 fragment at 8 of 0xabcd",
        ),
        (
            ethernet(0x8100, &[&[0x20, 7, 8, 0][..], &ipv4(1, &[0, 0, 0, 0])].concat()),
            "ICMP 192.168.1.50 → 192.168.1.1 type 0 code 0 VLAN 7",
        ),
        (vec![1, 2, 3], "3 bytes that are no packet (malformed: 3 bytes are too few for an Ethernet header)"),
    ] {
        assert_eq!(decode(&frame, LinkType::Ethernet).summary(&frame), expected);
    }
}

#[test]
fn the_parts_of_a_udp_frame() {
    let payload = b"not DNS at all";
    // Ethernet frames are filled up to 60 bytes; the filling belongs to nothing.
    let mut frame = ethernet(0x0800, &ipv4(17, &udp(1, 2, payload)));
    frame.resize(60, 0);
    let decoded = sound(&frame, LinkType::Ethernet);
    assert_eq!(decoded.src_mac.unwrap().to_string(), "02:00:00:00:00:01");
    assert_eq!(decoded.dst_mac.unwrap().to_string(), "02:00:00:00:00:02");
    assert_eq!(decoded.ethertype, 0x0800);
    assert_eq!(decoded.ports(), Some((1, 2)));
    assert_eq!(decoded.payload(&frame), payload);
    assert_eq!(decoded.dns, None);
    let ip = decoded.ip.unwrap();
    assert_eq!((ip.src, ip.dst, ip.protocol, ip.hop_limit), (IpAddr::V4(CLIENT), IpAddr::V4(ROUTER), 17, 64));
    assert_eq!(ip.fragment, None);

    let raw = ipv6(17, &udp(3, 4, payload));
    let decoded = sound(&raw, LinkType::Raw);
    assert_eq!((decoded.src_mac, decoded.ethertype, decoded.ports()), (None, 0x86dd, Some((3, 4))));
}

#[test]
fn arp_is_decoded() {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1][..], &CLIENT.octets(), &[0; 6], &ROUTER.octets()].concat();
    let decoded = sound(&ethernet(0x0806, &arp), LinkType::Ethernet);
    assert_eq!(decoded.arp, Some(Arp { operation: 2, sender: CLIENT, target: ROUTER }));
}

#[test]
fn dns_hides_behind_no_extension_header() {
    let datagram = udp(5, 5353, &query("p1.probe.test.", RecordType::AAAA));
    let options = |next: u8| [&[next, 0][..], &[1, 4, 0, 0, 0, 0]].concat();
    let authentication = |next: u8| [&[next, 4][..], &[0; 22]].concat();
    let fragment = |next: u8| vec![next, 0, 0, 0, 0, 0, 0, 7];
    for (first, headers, chain) in [
        (0, options(17), vec![0]),
        (60, [options(43), options(17)].concat(), vec![60, 43]),
        (51, authentication(17), vec![51]),
        (0, [options(60), options(51), authentication(44), fragment(17)].concat(), vec![0, 60, 51, 44]),
    ] {
        let frame = ethernet(0x86dd, &ipv6(first, &[headers, datagram.clone()].concat()));
        let decoded = sound(&frame, LinkType::Ethernet);
        assert_eq!(decoded.dns.expect("DNS").questions, [("p1.probe.test".to_owned(), 28)]);
        let ip = decoded.ip.unwrap();
        assert_eq!((ip.protocol, ip.ext_headers), (17, chain));
    }
    // IPv4 has the authentication header too.
    let frame = ipv4(51, &[authentication(17), datagram].concat());
    assert!(sound(&frame, LinkType::Raw).dns.is_some());
}

#[test]
fn fragments() {
    let datagram = udp(5, 53, &response("p1.probe.test.", 9));
    let (first, rest) = datagram.split_at(48);
    let frame = ipv4_fragment(17, 0x2000, first);
    let decoded = sound(&frame, LinkType::Raw);
    assert_eq!(decoded.ip.unwrap().fragment, Some(Fragment { id: 0xabcd, offset: 0, more: true }));
    assert_eq!(decoded.dns.expect("the question is in the first fragment").questions.len(), 1);

    let frame = ipv4_fragment(17, 48 / 8, rest);
    let decoded = sound(&frame, LinkType::Raw);
    assert_eq!(decoded.ip.as_ref().unwrap().fragment, Some(Fragment { id: 0xabcd, offset: 48, more: false }));
    assert_eq!((decoded.transport.as_ref(), decoded.ports()), (None, None), "a later fragment has no ports");
    assert_eq!(decoded.payload(&frame), rest);

    // In IPv6 what follows a later fragment's header is data, even if its number is that of a header.
    let frame = ipv6(44, &[&[60, 0, 0, 0x31, 0, 0, 0, 9][..], rest].concat());
    let decoded = sound(&frame, LinkType::Raw);
    let ip = decoded.ip.unwrap();
    assert_eq!(ip.fragment, Some(Fragment { id: 9, offset: 48, more: true }));
    assert_eq!((ip.protocol, decoded.transport), (60, None));
}

#[test]
fn contradictions_are_named() {
    let datagram = udp(5, 53, &query("p1.probe.test.", RecordType::A));
    let cut = ipv4(17, &datagram);
    let cut = &cut[..cut.len() - 3];
    let mut short_header = ipv4(17, &datagram);
    short_header[0] = 0x44;
    let mut long_udp = datagram.clone();
    long_udp[5] += 1;
    let trailing = [datagram.clone(), vec![0x41; 5]].concat();
    let mut tcp_header = tcp(1, 2, 2, &[]);
    tcp_header[12] = 0x40;
    for (frame, reason) in [
        (cut.to_vec(), "bytes of the IPv4 packet"),
        (short_header, "an IPv4 header of 16 bytes"),
        (ipv4(17, &long_udp), "bytes of the UDP datagram are there"),
        (ipv4(17, &trailing), "5 bytes after the end of the UDP datagram"),
        (ipv4(17, &[0; 7]), "the UDP header is cut"),
        (ipv4(6, &tcp_header), "a TCP header of 16 bytes"),
        (ipv6(0, &[17, 200, 0, 0, 0, 0, 0, 0]), "extension header 0 is cut"),
        (vec![0x50], "IP version 5"),
        (Vec::new(), "an empty frame"),
    ] {
        let decoded = decode(&frame, LinkType::Raw);
        assert!(decoded.malformed.as_ref().is_some_and(|text| text.contains(reason)), "{reason}: {decoded:?}");
    }
    assert!(decode(&ethernet(0x8100, &[0, 7]), LinkType::Ethernet).malformed.is_some());
    assert!(decode(&ethernet(0x0800, &ipv6(17, &datagram)), LinkType::Ethernet).malformed.is_some());
}

#[test]
fn tcp_segments_with_dns() {
    let one = query("p1.probe.test.", RecordType::A);
    let two = query("p2.probe.test.", RecordType::HTTPS);
    let prefixed = |message: &[u8]| [&(message.len() as u16).to_be_bytes()[..], message].concat();
    let questions = |payload: &[u8]| dns_over_tcp(payload).map(|message| message.questions);
    let (first, second) = (("p1.probe.test".to_owned(), 1), ("p2.probe.test".to_owned(), 65));
    assert_eq!(questions(&prefixed(&one)), Some(vec![first.clone()]));
    assert_eq!(questions(&[prefixed(&one), prefixed(&two)].concat()), Some(vec![first.clone(), second]));
    assert_eq!(questions(&one), Some(vec![first.clone()]), "the length came in a segment of its own");
    let large = prefixed(&response("p1.probe.test.", 30));
    assert_eq!(questions(&large[..80]), Some(vec![first]), "the rest comes in the next segment");
    assert_eq!(questions(b"GET / HTTP/1.1\r\nHost: p1.probe.test\r\n\r\n"), None);
    assert_eq!(questions(&[]), None);
}

#[test]
fn what_is_dns_and_what_only_looks_like_it() {
    let good = query("p1.probe.test.", RecordType::A);
    let with = |position: usize, value: u8| {
        let mut altered = good.clone();
        altered[position] = value;
        altered
    };
    let last = good.len() - 1;
    assert!(dns_message(&good).is_some());
    assert!(dns_message(&query(".", RecordType::NS)).is_some_and(|message| message.questions[0].0.is_empty()));
    assert!(dns_message(&with(last - 1, 0x80)).is_some(), "multicast DNS asks for a unicast answer");
    assert!(dns_message(&with(2, 0x29)).is_some(), "an update is DNS");
    for (why, bytes) in [
        ("trailing bytes", [&good[..], &[0]].concat()),
        ("a missing byte", good[..last].to_vec()),
        ("an operation that does not exist", with(2, 0x79)),
        ("no question", with(5, 0)),
        ("more questions than there are", with(5, 2)),
        ("a record that is not there", with(7, 1)),
        ("query type 0", with(last - 2, 0)),
        ("class 9", with(last, 9)),
        ("a label that is too long", with(12, 0x77)),
        ("a pointer to itself", with(12, 0xc0)),
        ("nothing", Vec::new()),
        ("a header of zeros", vec![0; 12]),
        ("zeros", vec![0; 64]),
    ] {
        assert_eq!(dns_message(&bytes), None, "{why}");
    }
}

#[test]
fn names_are_found_in_every_form() {
    let wire = query("p12.Probe.test.", RecordType::A);
    for (bytes, needle, expected) in [
        (&wire[..], "p12", true),
        (&wire, "P12", true),
        (&wire, "p12.probe.test", true),
        (&wire, "p12.probe.test.", true),
        (&wire, "p13", false),
        (&wire, "p12.probe.tesd", false),
        (b"GET / HTTP/1.1\r\nHost: p12.PROBE.test\r\n\r\n", "p12.probe.test", true),
        (b"p1", "p12", false),
        (b"", "p12", false),
        (&wire, "", false),
        (&wire, ".", false),
    ] {
        assert_eq!(names_in(bytes, needle), expected, "{needle}");
    }
}

#[test]
fn wireguard_by_its_form() {
    for (kind, length, expected) in [
        (1, 148, true),
        (1, 149, false),
        (2, 92, true),
        (2, 148, false),
        (3, 64, true),
        (3, 65, false),
        (4, 32, true),
        (4, 1440, true),
        (4, 40, false),
        (4, 16, false),
        (5, 148, false),
        (0, 148, false),
    ] {
        let mut payload = vec![0xff; length];
        payload[..4].copy_from_slice(&[kind, 0, 0, 0]);
        assert_eq!(is_wireguard(&payload), expected, "type {kind}, {length} bytes");
        payload[2] = 1;
        assert!(!is_wireguard(&payload), "reserved bytes are zero");
    }
    assert!(!is_wireguard(&[]));
}

/// Frames that are nearly right, so that the decoder gets far before something is wrong.
fn nearly_right() -> impl Strategy<Value = Vec<u8>> {
    let dns = query("p12.probe.test.", RecordType::A);
    let answer = response("p12.probe.test.", 3);
    let extended = ipv6(
        0,
        &[&[60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 1][..], &udp(1, 53, &dns)].concat(),
    );
    let frames = vec![
        ethernet(0x0800, &ipv4(17, &udp(1, 53, &answer))),
        ethernet(0x0800, &ipv4(6, &tcp(1, 53, 0x18, &dns))),
        ethernet(0x86dd, &extended),
        ethernet(0x8100, &[&[0, 7, 8, 0][..], &ipv4(1, &[8, 0, 0, 0])].concat()),
        ipv4(17, &udp(1, 53, &answer)),
        extended,
    ];
    let alterations = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::sample::select(frames), alterations, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut frame, alterations, cut, whole)| {
            for (position, value) in alterations {
                let position = position.index(frame.len());
                frame[position] = value;
            }
            if !whole {
                frame.truncate(cut.index(frame.len()));
            }
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_decoder_panic(
        bytes in prop_oneof![nearly_right(), prop::collection::vec(any::<u8>(), 0..200)],
        ethernet in any::<bool>(),
    ) {
        let decoded = decode(&bytes, if ethernet { LinkType::Ethernet } else { LinkType::Raw });
        prop_assert!(decoded.payload(&bytes).len() <= bytes.len());
        prop_assert!(!decoded.summary(&bytes).is_empty());
        names_in(&bytes, "p12.probe.test");
        is_wireguard(&bytes);
        dns_over_tcp(&bytes);
    }

    #[test]
    fn random_bytes_are_not_dns(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(dns_message(&bytes), None);
    }

    #[test]
    fn tunnel_packets_are_not_dns(
        kind in 1_u8..=4,
        receiver in any::<u8>().prop_flat_map(|session| prop_oneof![
            Just(u32::from(session) << 8),
            any::<u32>(),
        ]),
        counter in prop_oneof![0_u64..300, any::<u64>()],
        blocks in 1_usize..90,
        content in any::<[u8; 16]>(),
    ) {
        let length = match kind { 1 => 148, 2 => 92, 3 => 64, _ => 16 + 16 * blocks };
        let mut payload = [&[kind, 0, 0, 0][..], &receiver.to_le_bytes(), &counter.to_le_bytes()].concat();
        payload.extend(content.iter().cycle().take(length - payload.len()));
        prop_assert!(is_wireguard(&payload));
        prop_assert_eq!(dns_message(&payload), None);
    }

    #[test]
    fn dns_is_dns_on_every_port(
        labels in prop::collection::vec("[a-zA-Z0-9_][a-zA-Z0-9_-]{0,19}", 1..6),
        kind in 1_u16..300,
        ports in any::<(u16, u16)>(),
        over_tcp in any::<bool>(),
    ) {
        let name = labels.join(".");
        let message = query(&format!("{name}."), RecordType::from(kind));
        let frame = if over_tcp {
            ipv4(6, &tcp(ports.0, ports.1, 0x18, &[&(message.len() as u16).to_be_bytes()[..], &message].concat()))
        } else {
            ipv4(17, &udp(ports.0, ports.1, &message))
        };
        let decoded = decode(&frame, LinkType::Raw);
        prop_assert_eq!(decoded.ports(), Some(ports));
        prop_assert!(matches!(decoded.transport, Some(Transport::Udp(_) | Transport::Tcp(_))));
        prop_assert_eq!(decoded.dns.expect("DNS").questions, vec![(name.to_lowercase(), kind)]);
        prop_assert!(names_in(&frame, &labels[0]));
        prop_assert!(names_in(&frame, &name));
    }
}

/// The frames of a TCP stream whose segments these are.
fn segments(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut seq = u32::MAX - 3;
    let mut frames = Vec::new();
    for part in parts {
        let mut segment = tcp(40000, 53, 0x18, part);
        segment[4..8].copy_from_slice(&seq.to_be_bytes());
        seq = seq.wrapping_add(part.len() as u32);
        frames.push(ipv4(6, &segment));
    }
    frames
}

#[test]
fn a_query_in_several_segments_is_found_with_the_one_that_completes_its_question() {
    let message = query("split.probe.test", RecordType::A);
    let whole = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    for size in [1, 2, 3, 13, 14, whole.len() - 5] {
        let parts: Vec<&[u8]> = whole.chunks(size).collect();
        let mut streams = Streams::default();
        let mut found = Vec::new();
        for frame in segments(&parts) {
            let decoded = decode(&frame, LinkType::Raw);
            assert_eq!(decoded.dns, None, "in one segment of {size} bytes");
            // Twice: a segment that is sent again adds nothing.
            found.extend(streams.completes(&frame, &decoded));
            found.extend(streams.completes(&frame, &decoded));
        }
        assert_eq!(found.len(), 1, "segments of {size} bytes");
        assert_eq!(found[0].questions[0].0, "split.probe.test");
    }
}

#[test]
fn what_is_no_beginning_of_a_message_is_not_waited_for() {
    let message = query("split.probe.test", RecordType::A);
    let whole = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    // A TLS record, a length of nothing, and a stream whose middle is missing.
    let (first, last) = whole.split_at(20);
    for parts in [vec![&[0x16, 3, 1, 2, 0][..], &whole], vec![&[0, 0], &whole], vec![first, &last[9..]]] {
        let mut streams = Streams::default();
        for frame in segments(&parts) {
            assert_eq!(streams.completes(&frame, &decode(&frame, LinkType::Raw)), None);
        }
    }
}
