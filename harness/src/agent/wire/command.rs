//! What the engine asks for.

use crate::agent::endpoint::{Endpoint, MacAddress};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// What the engine asks for. Each command is answered by one event with the same `id` (for `probe`: one for each spec).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub enum Command {
    /// Answered by [`Event::Pong`].
    Ping {
        /// Comes back in the answer.
        id: String,
    },
    /// Makes DNS attempts, all at the same time.
    Probe {
        /// The attempts; at most [`MAX_SPECS`].
        specs: Vec<ProbeSpec>,
    },
    /// Opens a flow that later probes use: a connected socket, one query and its answer.
    Open(OpenSpec),
    /// Closes a flow; a TCP flow is reset.
    Close {
        /// The flow's name.
        socket: String,
    },
    /// Starts sending queries as fast as the kernel takes them.
    HammerStart(HammerSpec),
    /// Stops a hammer; answered by its report.
    HammerStop {
        /// The hammer's name.
        id: String,
    },
    /// Reports whatever arrives at an address and port.
    Listen(ListenSpec),
    /// Ends a listener.
    Unlisten {
        /// The listener's name.
        id: String,
    },
    /// Talks to itself over loopback, UDP and TCP, both families.
    Loopback {
        /// Comes back in the answer.
        id: String,
    },
    /// Lets the kernel resolve a neighbour afresh (ARP, or neighbour discovery). Root only.
    Neighbour {
        /// Comes back in the answer.
        id: String,
        /// The neighbour.
        address: IpAddr,
        /// The link it is on.
        interface: String,
    },
    /// Asks for a lease offer, and takes none. Root only.
    Dhcp {
        /// Comes back in the answer.
        id: String,
        /// The link to ask on.
        interface: String,
        /// DHCPv4 or DHCPv6.
        version: DhcpVersion,
        /// How long to wait for the offer, in milliseconds.
        timeout_ms: u64,
    },
}

/// The most attempts one `probe` command may hold: each has a thread and a socket of its own.
pub const MAX_SPECS: usize = 256;

/// One DNS attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeSpec {
    /// Comes back with the attempt.
    pub id: String,
    /// The name to ask for; nobody else asks for it.
    pub name: String,
    /// The record type; not used by [`Via::GetAddrInfo`], where the family decides.
    #[serde(default)]
    pub qtype: Qtype,
    /// Which way the packet is to leave.
    pub via: Via,
    /// How long to wait for an answer, in milliseconds.
    pub timeout_ms: u64,
    /// Send as this user: the socket is created with this filesystem uid, which is what `meta skuid` and `uidrange` see.
    #[serde(default)]
    pub as_uid: Option<u32>,
    /// Send as this group, as `as_uid`.
    #[serde(default)]
    pub as_gid: Option<u32>,
}

/// The record type to ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Qtype {
    /// An IPv4 address.
    #[default]
    A,
    /// An IPv6 address.
    #[serde(rename = "AAAA")]
    Aaaa,
}

/// Which way an attempt leaves the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Via {
    /// The system resolver, in a fresh process: getaddrinfo(3) under the present configuration, one try of 1 s a server.
    GetAddrInfo {
        /// The families to ask for.
        family: Family,
    },
    /// One datagram of a fresh, connected UDP socket. No retry.
    Udp {
        /// The server.
        server: Endpoint,
        /// What the socket is bound to.
        #[serde(default)]
        bind: Bind,
        /// The packet mark (SO_MARK).
        #[serde(default)]
        mark: Option<u32>,
    },
    /// A fresh TCP connection.
    Tcp {
        /// The server.
        server: Endpoint,
        /// What the socket is bound to.
        #[serde(default)]
        bind: Bind,
        /// The packet mark (SO_MARK).
        #[serde(default)]
        mark: Option<u32>,
        /// Put the query into the SYN (RFC 7413), without a cookie.
        #[serde(default)]
        fast_open: bool,
    },
    /// DNS over TLS (RFC 7858); the certificate is not verified: the far side is the testbed's own.
    Tls {
        /// The server.
        server: Endpoint,
        /// What the socket is bound to.
        #[serde(default)]
        bind: Bind,
        /// The packet mark (SO_MARK).
        #[serde(default)]
        mark: Option<u32>,
    },
    /// A UDP flow opened earlier.
    UdpSocket {
        /// The flow's name.
        socket: String,
    },
    /// A TCP flow opened earlier. It is reset and gone unless it is answered: the kernel would go on retransmitting.
    TcpSocket {
        /// The flow's name.
        socket: String,
    },
    /// A whole frame on a packet socket, below the output hook; the netdev egress hook and the queueing discipline see it.
    PacketSocket {
        /// The link to send on.
        interface: String,
        /// The next hop; absent for links without Ethernet headers, such as a TUN device.
        #[serde(default)]
        destination_mac: Option<MacAddress>,
        /// The IP source; port 0 takes a free port.
        source: SocketAddr,
        /// The server.
        destination: SocketAddr,
        /// How the datagram is packed.
        #[serde(default)]
        shape: Shape,
    },
    /// A whole IP packet on a raw socket, which the output hook sees.
    RawSocket {
        /// The IP source; port 0 takes a free port. It need not be the client's own.
        source: SocketAddr,
        /// The server.
        destination: SocketAddr,
        /// What the socket is bound to; a source address has no effect.
        #[serde(default)]
        bind: Bind,
        /// How the datagram is packed.
        #[serde(default)]
        shape: Shape,
    },
}

/// The families that getaddrinfo is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Both: AF_UNSPEC.
    #[default]
    Any,
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

/// What a socket is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "to", rename_all = "snake_case")]
pub enum Bind {
    /// Nothing.
    #[default]
    None,
    /// An interface (SO_BINDTODEVICE).
    Device(String),
    /// A source address.
    Source(IpAddr),
    /// An interface, and a source address and port.
    Address(String, SocketAddr),
}

/// How a crafted datagram is packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// One packet.
    #[default]
    Plain,
    /// Two IP fragments; the second one has no UDP header.
    Fragments,
    /// IPv6: hop-by-hop and destination options before the UDP header. IPv4: a header with options.
    Extensions,
}

/// A transport of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// A flow to open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenSpec {
    /// The flow's name.
    pub socket: String,
    /// UDP or TCP.
    pub protocol: Protocol,
    /// The server.
    pub server: Endpoint,
    /// What the socket is bound to.
    #[serde(default)]
    pub bind: Bind,
    /// The name that the opening query asks for.
    pub name: String,
    /// How long to wait for the answer, in milliseconds.
    pub timeout_ms: u64,
}

/// A hammer to start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HammerSpec {
    /// The hammer's name.
    pub id: String,
    /// The servers, taken in turn.
    pub targets: Vec<Endpoint>,
    /// The first label is this and ten hexadecimal digits, the number of the attempt.
    pub name_prefix: String,
    /// The rest of the name.
    #[serde(default)]
    pub zone: String,
    /// The interface to bind to (SO_BINDTODEVICE).
    #[serde(default)]
    pub interface: Option<String>,
    /// Nothing is sent after this many successful sends.
    pub max_sent: u64,
}

/// What a listener listens to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListenSpec {
    /// The listener's name.
    pub id: String,
    /// Datagrams, connections or both.
    pub protocol: ListenProtocol,
    /// The address to bind; unspecified for all.
    pub address: IpAddr,
    /// The port to bind; 0 for a free one.
    pub port: u16,
}

/// The transports of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenProtocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// Both, on the same port.
    Both,
}

/// A version of DHCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DhcpVersion {
    /// DHCPv4 (RFC 2131): DISCOVER and OFFER.
    V4,
    /// DHCPv6 (RFC 8415): SOLICIT and ADVERTISE.
    V6,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_has_its_default() {
        let line = r#"{"cmd": "probe", "specs": [{"id": "1", "name": "a.test", "timeout_ms": 100,
                       "via": {"kind": "udp", "server": "[fe80::1%eth0]:53"}}]}"#;
        let server = Endpoint::on("fe80::1".parse::<IpAddr>().unwrap(), 53, "eth0");
        let expected = ProbeSpec {
            id: "1".into(),
            name: "a.test".into(),
            qtype: Qtype::A,
            via: Via::Udp { server, bind: Bind::None, mark: None },
            timeout_ms: 100,
            as_uid: None,
            as_gid: None,
        };
        assert_eq!(serde_json::from_str::<Command>(line).unwrap(), Command::Probe { specs: vec![expected] });
    }
}
