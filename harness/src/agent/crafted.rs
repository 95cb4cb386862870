//! Packets built by hand: whole frames on a packet socket (packet(7)), whole IP packets on a raw socket (raw(7)).

use super::{
    endpoint::{MacAddress, interface_index},
    message::Question,
    sockets,
    trial::{self, Trial},
    udp,
    wire::{Bind, Outcome, Shape, Stage},
};
use nix::{
    poll::PollFlags,
    sys::socket::{LinkAddr, MsgFlags, SockaddrLike, sendto},
};
use pnet::packet::{
    ip::IpNextHeaderProtocols,
    ipv4::{self, MutableIpv4Packet},
    ipv6::MutableIpv6Packet,
    udp::{MutableUdpPacket, ipv4_checksum, ipv6_checksum},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

/// Ports that no program takes by itself: those that are given out begin at 1024 (dnsmasq(8), `min-port`; ip(7),
/// `ip_local_port_range`). A frame on a packet socket passes by the kernel's table of connections and its answer does not: a flow
/// that later happens to come from the same port would be taken for an answer to the answer.
const UNUSED_PORTS: std::ops::RangeInclusive<u16> = 600..=800;

/// One attempt with a frame of our own.
pub(super) fn probe_packet(
    trial: &mut Trial,
    interface: &str,
    destination_mac: Option<MacAddress>,
    source: SocketAddr,
    destination: SocketAddr,
    shape: Shape,
    question: &Question,
) -> Outcome {
    let prepared = Reserved::new(source).and_then(|reserved| {
        let packets = packets(reserved.source, destination, shape, question)?;
        let link = Link::open(interface, destination)?;
        let own = destination_mac.map(|_| own_mac(interface)).transpose()?;
        Ok((reserved, packets, link, own))
    });
    let (reserved, packets, link, own) = match prepared {
        Ok(prepared) => prepared,
        Err(reason) => return Outcome::NotPossible { reason },
    };
    trial.announce(Some(reserved.source));
    for packet in packets {
        let frame = match (destination_mac, own) {
            (Some(to), Some(from)) => [&to.0[..], &from.0, &link.ethertype.to_be_bytes(), &packet].concat(),
            _ => packet,
        };
        trial.tried = true;
        if let Err(error) = link.send(&frame, destination_mac) {
            return trial::failed_at_once(&error, &format!("send a frame on {interface}"), None);
        }
        trial.sent();
    }
    reserved.await_answer(trial, destination, question)
}

/// One attempt with an IP packet of our own.
pub(super) fn probe_raw(
    trial: &mut Trial,
    source: SocketAddr,
    destination: SocketAddr,
    bind: &Bind,
    shape: Shape,
    question: &Question,
) -> Outcome {
    let prepared = Reserved::new(source).and_then(|reserved| {
        let packets = packets(reserved.source, destination, shape, question)?;
        let raw = sockets::open(Domain::for_address(destination), Type::RAW, Protocol::from(libc::IPPROTO_RAW))?;
        if let Bind::Device(_) = bind {
            sockets::bind_to(&raw, bind)?;
        }
        Ok((reserved, packets, raw))
    });
    let (reserved, packets, raw) = match prepared {
        Ok(prepared) => prepared,
        Err(reason) => return Outcome::NotPossible { reason },
    };
    // In IPv6 the port of a raw destination is a protocol number (ipv6(7)).
    let mut to = destination;
    to.set_port(0);
    trial.announce(Some(reserved.source));
    for packet in packets {
        trial.tried = true;
        if let Err(error) = raw.send_to(&packet, &SockAddr::from(to)) {
            return trial::failed_at_once(&error, &format!("send a packet to {destination}"), None);
        }
        trial.sent();
    }
    reserved.await_answer(trial, destination, question)
}

/// A UDP socket that holds the source port, so that the kernel does not answer the answer with an ICMP message, and that
/// receives the answer. A source address that is not the client's own has none, and neither has a port that somebody holds.
struct Reserved {
    source: SocketAddr,
    socket: Option<Socket>,
}

impl Reserved {
    /// With a port of [`UNUSED_PORTS`] that is free, where `source` has none.
    fn new(source: SocketAddr) -> Result<Self, String> {
        let first = match source.port() {
            0 => rand::random_range(UNUSED_PORTS),
            given => given,
        };
        let others = UNUSED_PORTS.filter(|port| source.port() == 0 && *port != first);
        for port in std::iter::once(first).chain(others) {
            let source = SocketAddr::new(source.ip(), port);
            let socket = sockets::open(Domain::for_address(source), Type::DGRAM, Protocol::UDP)?;
            match socket.bind(&SockAddr::from(source)) {
                Ok(()) => return Ok(Self { source, socket: Some(socket) }),
                Err(error) => match error.raw_os_error() {
                    // A foreign address, or a user who may not: nothing can be reserved. What is wrong shows when the packet is sent.
                    Some(libc::EADDRNOTAVAIL | libc::EACCES) => return Ok(Self { source, socket: None }),
                    Some(libc::EADDRINUSE) => {}
                    _ => return Err(format!("bind to {source}: {error}")),
                },
            }
        }
        // Whoever has it gets the answer.
        Ok(Self { source: SocketAddr::new(source.ip(), first), socket: None })
    }

    fn await_answer(self, trial: &Trial, server: SocketAddr, question: &Question) -> Outcome {
        // Nobody answers to a foreign address: there is nothing to wait for.
        let Some(socket) = self.socket else { return trial.no_answer(Stage::Answer) };
        let mut buffer = vec![0; 65_535];
        loop {
            match sockets::wait(&socket, PollFlags::POLLIN, trial.deadline) {
                Err(error) => return trial::failed_at_once(&error, "wait for the answer", None),
                Ok(ready) if ready.is_empty() => {
                    udp::keep_quiet(socket);
                    return trial.no_answer(Stage::Answer);
                }
                Ok(_) => {}
            }
            if let Ok(length) = (&socket).read(&mut buffer)
                && let Some(answer) = question.answer(&buffer[..length])
            {
                return answer.outcome(Some(server), trial.since_sent());
            }
        }
    }
}

/// A packet socket that only sends. PACKET_QDISC_BYPASS is off: the frame goes the way of every other frame of the link.
struct Link {
    socket: Socket,
    index: u32,
    ethertype: u16,
}

impl Link {
    fn open(interface: &str, destination: SocketAddr) -> Result<Self, String> {
        let index = interface_index(interface).map_err(|error| error.to_string())?;
        let ethertype = if destination.is_ipv4() { libc::ETH_P_IP } else { libc::ETH_P_IPV6 } as u16;
        // Protocol 0: nothing is received.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)
            .map_err(|error| format!("open a packet socket: {error}; CAP_NET_RAW is needed"))?;
        Ok(Self { socket, index, ethertype })
    }

    fn send(&self, frame: &[u8], to: Option<MacAddress>) -> io::Result<()> {
        let mut address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: self.ethertype.to_be(),
            sll_ifindex: self.index.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        address.sll_addr[..6].copy_from_slice(&to.map_or([0; 6], |to| to.0));
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is a complete `sockaddr_ll`, and `length` is its size.
        let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }
            .ok_or(io::ErrorKind::InvalidInput)?;
        sendto(self.socket.as_raw_fd(), frame, &address, MsgFlags::empty())?;
        Ok(())
    }
}

/// The Ethernet address of an interface of this namespace.
pub(super) fn own_mac(interface: &str) -> Result<MacAddress, String> {
    nix::ifaddrs::getifaddrs()
        .map_err(|errno| format!("list interfaces: {errno}"))?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr()?.addr())
        .map(MacAddress)
        .ok_or_else(|| format!("interface {interface} has no Ethernet address"))
}

/// The IP packets that carry the query.
fn packets(
    source: SocketAddr,
    destination: SocketAddr,
    shape: Shape,
    question: &Question,
) -> Result<Vec<Vec<u8>>, String> {
    let too_long = || "build a packet: the query is too long".to_owned();
    let length = u16::try_from(8 + question.bytes.len()).map_err(|_| too_long())?;
    let mut datagram = vec![0; usize::from(length)];
    let mut udp = MutableUdpPacket::new(&mut datagram).ok_or_else(too_long)?;
    udp.set_source(source.port());
    udp.set_destination(destination.port());
    udp.set_length(length);
    udp.set_payload(&question.bytes);
    let packets = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            udp.set_checksum(transmitted(ipv4_checksum(&udp.to_immutable(), &from, &to)));
            packets_v4(from, to, shape, &datagram, question.id)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            udp.set_checksum(transmitted(ipv6_checksum(&udp.to_immutable(), &from, &to)));
            packets_v6(from, to, shape, &datagram, question.id)
        }
        _ => return Err(format!("build a packet from {source} to {destination}: different address families")),
    };
    packets.ok_or_else(too_long)
}

/// A checksum as it is sent: 0 would say that there is none, which receivers of IPv6 drop (RFC 768; RFC 8200, section 8.1).
fn transmitted(checksum: u16) -> u16 {
    if checksum == 0 { u16::MAX } else { checksum }
}

/// The first fragment ends inside the query: the second has no UDP header, and its offset is a multiple of 8.
const FRAGMENT: usize = 24;

fn packets_v4(from: Ipv4Addr, to: Ipv4Addr, shape: Shape, datagram: &[u8], id: u16) -> Option<Vec<Vec<u8>>> {
    // Four no-operation options (RFC 791, section 3.1).
    let options: &[u8] = if shape == Shape::Extensions { &[1, 1, 1, 1] } else { &[] };
    let one = |payload: &[u8], offset: usize, more: bool| {
        let header = 20 + options.len();
        let mut packet = vec![0; header + payload.len()];
        packet[20..header].copy_from_slice(options);
        packet[header..].copy_from_slice(payload);
        let total = u16::try_from(packet.len()).ok()?;
        let mut ip = MutableIpv4Packet::new(&mut packet)?;
        ip.set_version(4);
        ip.set_header_length((header / 4) as u8);
        ip.set_total_length(total);
        // The kernel would fill in an id of 0 by itself, a different one for each fragment.
        ip.set_identification(id.max(1));
        ip.set_flags(u8::from(more));
        ip.set_fragment_offset((offset / 8) as u16);
        ip.set_ttl(64);
        ip.set_next_level_protocol(IpNextHeaderProtocols::Udp);
        ip.set_source(from);
        ip.set_destination(to);
        ip.set_checksum(ipv4::checksum(&ip.to_immutable()));
        Some(packet)
    };
    match shape {
        Shape::Plain | Shape::Extensions => Some(vec![one(datagram, 0, false)?]),
        Shape::Fragments => {
            let (first, second) = datagram.split_at_checked(FRAGMENT)?;
            Some(vec![one(first, 0, true)?, one(second, FRAGMENT, false)?])
        }
    }
}

fn packets_v6(from: Ipv6Addr, to: Ipv6Addr, shape: Shape, datagram: &[u8], id: u16) -> Option<Vec<Vec<u8>>> {
    const HOP_BY_HOP: u8 = 0;
    const UDP: u8 = 17;
    const FRAGMENT_HEADER: u8 = 44;
    const DESTINATION: u8 = 60;
    let one = |next: u8, extension: &[u8], payload: &[u8]| {
        let mut packet = vec![0; 40];
        packet.extend_from_slice(extension);
        packet.extend_from_slice(payload);
        let length = u16::try_from(packet.len() - 40).ok()?;
        let mut ip = MutableIpv6Packet::new(&mut packet)?;
        ip.set_version(6);
        ip.set_payload_length(length);
        ip.set_next_header(pnet::packet::ip::IpNextHeaderProtocol(next));
        ip.set_hop_limit(64);
        ip.set_source(from);
        ip.set_destination(to);
        Some(packet)
    };
    // Offset in units of 8 octets in the upper 13 bits, "more fragments" in the lowest (RFC 8200, section 4.5).
    let fragment = |offset: usize, more: bool| {
        let field = (((offset / 8) as u16) << 3) | u16::from(more);
        let id = u32::from(id);
        [&[UDP, 0][..], &field.to_be_bytes(), &id.to_be_bytes()].concat()
    };
    match shape {
        Shape::Plain => Some(vec![one(UDP, &[], datagram)?]),
        // Each is 8 octets with one PadN option (RFC 8200, section 4.2).
        Shape::Extensions => {
            let extension = [[DESTINATION, 0, 1, 4, 0, 0, 0, 0], [UDP, 0, 1, 4, 0, 0, 0, 0]].concat();
            Some(vec![one(HOP_BY_HOP, &extension, datagram)?])
        }
        Shape::Fragments => {
            let (first, second) = datagram.split_at_checked(FRAGMENT)?;
            Some(vec![
                one(FRAGMENT_HEADER, &fragment(0, true), first)?,
                one(FRAGMENT_HEADER, &fragment(FRAGMENT, false), second)?,
            ])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_packet_says_that_it_has_no_checksum() {
        let to: SocketAddr = "[2620:fe::fe]:53".parse().unwrap();
        let source = |port| SocketAddr::new("2001:db8:1::50".parse().unwrap(), port);
        let question = Question::new("a.probe.watertight.test", crate::agent::wire::Qtype::A).unwrap();
        // With one port in 65,536 the sum of everything else is such that the checksum comes out as 0.
        let sums = (1..=u16::MAX).map(|port| {
            let packet = packets(source(port), to, Shape::Plain, &question).unwrap().remove(0);
            u16::from_be_bytes([packet[40 + 6], packet[40 + 7]])
        });
        let (mut least, mut all_ones) = (u16::MAX, 0);
        for sum in sums {
            least = least.min(sum);
            all_ones += usize::from(sum == u16::MAX);
        }
        assert_eq!((least, all_ones), (1, 1));
    }
}
