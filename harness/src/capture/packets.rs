//! The parts a frame is made of, as the decoder names them. They carry no bytes: payloads are ranges of the frame.

use std::{net::IpAddr, ops::Range};

/// An address resolution message (RFC 826) for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Protocol address of the sender.
    pub sender: std::net::Ipv4Addr,
    /// Protocol address asked for or answered to.
    pub target: std::net::Ipv4Addr,
}

/// The network layer, IPv4 (RFC 791) or IPv6 (RFC 8200) by the family of the addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol number after all extension headers.
    pub protocol: u8,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// Present if the packet is a fragment.
    pub fragment: Option<Fragment>,
    /// Numbers of the extension headers that were stepped over, in order; IPv4 has at most 51 (authentication).
    pub ext_headers: Vec<u8>,
    /// What follows those headers.
    pub payload: Range<usize>,
}

/// Which part of a datagram this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Offset in the datagram, in bytes.
    pub offset: u32,
    /// Whether more follow.
    pub more: bool,
}

/// The transport layer. Later fragments have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// UDP (RFC 768).
    Udp(Udp),
    /// TCP (RFC 9293).
    Tcp(Tcp),
    /// ICMP (RFC 792) or ICMPv6 (RFC 4443).
    Icmp(Icmp),
    /// Anything else; the number is in [`Ip::protocol`].
    Other,
}

/// A UDP datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Where its payload is in the frame.
    pub payload: Range<usize>,
}

/// A TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// The eight flags, FIN lowest.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Where its payload is in the frame.
    pub payload: Range<usize>,
}

impl Tcp {
    /// Whether this asks for a connection: SYN without ACK.
    pub fn is_connect(&self) -> bool {
        self.flags & 0x12 == 0x02
    }

    /// The flags as letters, lowest first: `SA`, `FA`, `R`; `-` if none is set.
    pub fn flag_letters(&self) -> String {
        let letters: String =
            "FSRPAUEC".chars().enumerate().filter(|(bit, _)| self.flags >> bit & 1 == 1).map(|(_, c)| c).collect();
        if letters.is_empty() { "-".to_owned() } else { letters }
    }
}

/// An ICMP or ICMPv6 message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Icmp {
    /// Whether it is ICMPv6.
    pub v6: bool,
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// What follows type, code and checksum.
    pub payload: Range<usize>,
}

impl Icmp {
    /// Whether this is router or neighbour discovery (RFC 4861): types 133 to 137.
    pub fn is_neighbour_discovery(&self) -> bool {
        self.v6 && matches!(self.kind, 133..=137)
    }
}

/// Whether a UDP payload has the outer form of a WireGuard message: type 1 to 4, three zero bytes, and the length of
/// that type (148, 92, 64, or 32 and more in steps of 16). Its content may still be something else: look for DNS too.
pub fn is_wireguard(payload: &[u8]) -> bool {
    match (payload.first_chunk::<4>(), payload.len()) {
        (Some([1, 0, 0, 0]), length) => length == 148,
        (Some([2, 0, 0, 0]), length) => length == 92,
        (Some([3, 0, 0, 0]), length) => length == 64,
        (Some([4, 0, 0, 0]), length) => length >= 32 && length.is_multiple_of(16),
        _ => false,
    }
}
