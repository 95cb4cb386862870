//! The catalogue of probes: every kind of attempt to get DNS out, from whom, to whom, and how.
//!
//! A kind has the same id in every window, so that what was seen to leave when nothing protected (the positive control)
//! can be asked for by name. What must become of an attempt in a state is the judge's business.

mod identities;

pub(crate) use identities::identities_in;

use crate::{
    agent::{
        Endpoint, MacAddress,
        wire::{Bind, Family, ProbeSpec, Protocol, Qtype, Shape, Via},
    },
    testbed::plan::*,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

/// Who makes the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// Root, in the client.
    Root,
    /// An ordinary user, in the client.
    User,
    /// A machine behind the client.
    Guest,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Who::Root => "root",
            Who::User => "user",
            Who::Guest => "guest",
        })
    }
}

/// How an attempt is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// getaddrinfo(3), under the system's configuration.
    System,
    /// The same, for a single label that the search list completes.
    Search,
    /// The same, for one name in all windows, which a cache may keep.
    Kept,
    /// A datagram.
    Udp(SocketAddr, Binding),
    /// A connection.
    Tcp(SocketAddr, Binding),
    /// DNS over TLS.
    Tls(SocketAddr),
    /// To the LAN resolver's link-local address.
    LinkLocal,
    /// A UDP flow that was opened before.
    OldUdp(SocketAddr),
    /// A TCP connection that was opened before.
    OldTcp(SocketAddr),
    /// A whole frame, below the output hook.
    Packet(SocketAddr),
    /// A datagram or a connection with something that the ruleset names (SPL-1).
    Imitating(Protocol, SocketAddr, Identity),
}

/// What a ruleset or routing rule may take for the daemon's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// A packet mark (`meta mark`, `socket mark`, `fwmark`).
    Mark(u32),
    /// The user of the socket (`meta skuid`, `uidrange`).
    Uid(u32),
    /// The group of the socket (`meta skgid`).
    Gid(u32),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Mark(mark) => write!(f, "mark-{mark:#x}"),
            Identity::Uid(uid) => write!(f, "uid-{uid}"),
            Identity::Gid(gid) => write!(f, "gid-{gid}"),
        }
    }
}

/// What is in the client at the time of a window, which decides what can be tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// An ordinary user.
    pub user: bool,
    /// A machine behind the client.
    pub guest: bool,
    /// A search list.
    pub search: bool,
    /// The tunnel's interface.
    pub tunnel: bool,
    /// What the ruleset names.
    pub identities: Vec<Identity>,
    /// Where a forwarder answers on the client itself.
    pub forwarder: Option<IpAddr>,
}

/// What the socket is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// Nothing.
    Free,
    /// The uplink (SO_BINDTODEVICE).
    Device,
    /// The uplink's address.
    Source,
    /// The uplink, and port 53, as answers of a resolver come from.
    Port53,
    /// The tunnel's interface.
    Tunnel,
}

/// A kind of probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Stable: `udp4-lan-root`.
    pub id: String,
    /// Who.
    pub who: Who,
    /// How.
    pub how: How,
}

/// The servers that are asked directly: name, IPv4, IPv6.
pub const SERVERS: [(&str, IpAddr, IpAddr); 5] = [
    ("lan", IpAddr::V4(LAN_V4), IpAddr::V6(LAN_ULA)),
    ("isp", IpAddr::V4(ISP_V4), IpAddr::V6(ISP_V6)),
    ("public", IpAddr::V4(PUBLIC_V4), IpAddr::V6(PUBLIC_V6)),
    ("custom", IpAddr::V4(CUSTOM_V4), IpAddr::V6(CUSTOM_V6)),
    ("gateway", IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)),
];

/// All kinds that a case has.
pub fn catalogue(present: &Present, relay_port: u16) -> Vec<Kind> {
    let mut kinds = Vec::new();
    let mut add = |id: String, who: Who, how: How| kinds.push(Kind { id: format!("{id}-{who}"), who, how });
    let at = |address: IpAddr, port| SocketAddr::new(address, port);
    for who in [Who::Root, Who::User] {
        if who == Who::User && !present.user {
            continue;
        }
        add("system".into(), who, How::System);
        add("kept".into(), who, How::Kept);
        if present.search {
            add("search".into(), who, How::Search);
        }
        for (server, v4, v6) in SERVERS {
            for (family, address) in [("4", v4), ("6", v6)] {
                add(format!("udp{family}-{server}"), who, How::Udp(at(address, 53), Binding::Free));
                add(format!("tcp{family}-{server}"), who, How::Tcp(at(address, 53), Binding::Free));
                if matches!(server, "lan" | "public" | "gateway") {
                    add(format!("udp{family}-{server}-device"), who, How::Udp(at(address, 53), Binding::Device));
                    add(format!("tcp{family}-{server}-device"), who, How::Tcp(at(address, 53), Binding::Device));
                }
                if matches!(server, "lan" | "public") {
                    add(format!("udp{family}-{server}-source"), who, How::Udp(at(address, 53), Binding::Source));
                    add(format!("tcp{family}-{server}-source"), who, How::Tcp(at(address, 53), Binding::Source));
                }
            }
        }
        let relay = IpAddr::V4(RELAY_V4);
        add("udp4-relay".into(), who, How::Udp(at(relay, relay_port), Binding::Free));
        add("udp4-relay-device".into(), who, How::Udp(at(relay, relay_port), Binding::Device));
        add("tcp4-relay".into(), who, How::Tcp(at(relay, relay_port), Binding::Free));
        add("udp4-api".into(), who, How::Udp(at(API.ip(), 53), Binding::Free));
        add("tcp4-api".into(), who, How::Tcp(at(API.ip(), 53), Binding::Free));
        add("dot4-lan".into(), who, How::Tls(at(LAN_V4.into(), 853)));
        add("dot4-public".into(), who, How::Tls(at(PUBLIC_V4.into(), 853)));
        add("dot6-public".into(), who, How::Tls(at(PUBLIC_V6.into(), 853)));
        add("udp6-lan-link-local".into(), who, How::LinkLocal);
        if let Some(forwarder) = present.forwarder {
            add("local-udp4".into(), who, How::Udp(at(forwarder, 53), Binding::Free));
        }
    }
    // What is not DNS by its port: whoever filters port 53 alone lets it out.
    for port in [123, 443, 853, 5300, 5353, 40_000] {
        add(format!("udp4-public-port{port}"), Who::Root, How::Udp(at(PUBLIC_V4.into(), port), Binding::Free));
        add(format!("udp4-public-port{port}-device"), Who::Root, How::Udp(at(PUBLIC_V4.into(), port), Binding::Device));
    }
    // One socket can have the port, so one server is asked.
    add("udp4-public-from53".into(), Who::Root, How::Udp(at(PUBLIC_V4.into(), 53), Binding::Port53));
    add("tcp4-public-port443-device".into(), Who::Root, How::Tcp(at(PUBLIC_V4.into(), 443), Binding::Device));
    add("tcp4-public-port443".into(), Who::Root, How::Tcp(at(PUBLIC_V4.into(), 443), Binding::Free));
    add("udp6-public-port443".into(), Who::Root, How::Udp(at(PUBLIC_V6.into(), 443), Binding::Free));
    for (server, v4, v6) in SERVERS {
        if matches!(server, "lan" | "public") {
            for (family, address) in [("4", v4), ("6", v6)] {
                add(format!("old-udp{family}-{server}"), Who::Root, How::OldUdp(at(address, 53)));
                add(format!("old-tcp{family}-{server}"), Who::Root, How::OldTcp(at(address, 53)));
                add(format!("packet{family}-{server}"), Who::Root, How::Packet(at(address, 53)));
            }
            if present.tunnel {
                add(format!("udp4-{server}-tunnel"), Who::Root, How::Udp(at(v4, 53), Binding::Tunnel));
                add(format!("udp6-{server}-tunnel"), Who::Root, How::Udp(at(v6, 53), Binding::Tunnel));
            }
            for identity in &present.identities {
                for (family, address) in [("4", v4), ("6", v6)] {
                    for (name, protocol) in [("udp", Protocol::Udp), ("tcp", Protocol::Tcp)] {
                        let how = How::Imitating(protocol, at(address, 53), *identity);
                        add(format!("{identity}-{name}{family}-{server}"), Who::Root, how);
                    }
                }
            }
        }
        if present.guest {
            for (family, address) in [("4", v4), ("6", v6)] {
                add(format!("udp{family}-{server}"), Who::Guest, How::Udp(at(address, 53), Binding::Free));
                add(format!("tcp{family}-{server}"), Who::Guest, How::Tcp(at(address, 53), Binding::Free));
            }
        }
    }
    kinds
}

impl Kind {
    /// The kind whose baseline shows that this one would be seen: itself, but for what is not there at first: the tunnel,
    /// and what a ruleset names.
    pub fn control(&self) -> String {
        let (protocol, server) = match &self.how {
            How::Imitating(Protocol::Tcp, server, _) => ("tcp", server),
            How::Imitating(Protocol::Udp, server, _) | How::Udp(server, Binding::Tunnel) => ("udp", server),
            _ => return self.id.clone(),
        };
        let family = if server.is_ipv4() { 4 } else { 6 };
        let named = SERVERS.iter().find(|(_, v4, v6)| [*v4, *v6].contains(&server.ip()));
        format!("{protocol}{family}-{}-{}", named.map_or("public", |(name, ..)| name), self.who)
    }

    /// The server asked directly, if there is one.
    pub fn server(&self) -> Option<SocketAddr> {
        match &self.how {
            How::System | How::Search | How::Kept => None,
            How::LinkLocal => Some(SocketAddr::new(LAN_LINK_LOCAL.into(), 53)),
            How::Udp(server, _)
            | How::Tcp(server, _)
            | How::Tls(server)
            | How::OldUdp(server)
            | How::OldTcp(server)
            | How::Packet(server)
            | How::Imitating(_, server, _) => Some(*server),
        }
    }

    /// What it asks, for people.
    pub fn target(&self) -> String {
        let server = |server: &SocketAddr| server.to_string();
        match &self.how {
            How::System => format!("getaddrinfo as {}", self.who),
            How::Kept => format!("getaddrinfo for a name that was asked before as {}", self.who),
            How::Search => format!("getaddrinfo for a single label as {}", self.who),
            How::Udp(to, binding) => format!("UDP to {} as {}{}", server(to), self.who, binding.words()),
            How::Tcp(to, binding) => format!("TCP to {} as {}{}", server(to), self.who, binding.words()),
            How::Tls(to) => format!("DNS over TLS to {} as {}", server(to), self.who),
            How::LinkLocal => format!("UDP to [{LAN_LINK_LOCAL}%{UPLINK}]:53 as {}", self.who),
            How::OldUdp(to) => format!("UDP to {} on a socket connected before", server(to)),
            How::OldTcp(to) => format!("TCP to {} on a connection opened before", server(to)),
            How::Packet(to) => format!("UDP to {} by a packet socket", server(to)),
            How::Imitating(protocol, to, identity) => {
                let protocol = if *protocol == Protocol::Tcp { "TCP" } else { "UDP" };
                let what = match identity {
                    Identity::Mark(mark) => format!("with the mark {mark:#x}"),
                    Identity::Uid(uid) => format!("as user {uid}"),
                    Identity::Gid(gid) => format!("as group {gid}"),
                };
                format!("{protocol} to {} {what}", server(to))
            }
        }
    }

    /// The old flow that an attempt of this kind uses in window `window`, if it does.
    pub fn old_flow(&self, window: usize) -> Option<(String, Protocol, SocketAddr)> {
        match &self.how {
            How::OldUdp(server) => Some((format!("{}-{window}", self.id), Protocol::Udp, *server)),
            How::OldTcp(server) => Some((format!("{}-{window}", self.id), Protocol::Tcp, *server)),
            _ => None,
        }
    }

    /// The zone that its names are in.
    pub fn zone(&self) -> &'static str {
        match self.how {
            How::Search => SEARCH_DOMAIN,
            How::Kept => KEPT_ZONE,
            _ => PROBE_ZONE,
        }
    }

    /// The name that it asks for in a window of a case.
    pub fn name(&self, tag: &str, window: usize) -> String {
        match self.how {
            How::Kept => format!("{tag}-{}.{}", self.id, self.zone()),
            _ => format!("{tag}-{window}-{}.{}", self.id, self.zone()),
        }
    }

    /// The attempt itself.
    pub fn spec(&self, id: &str, name: &str, window: usize, timeout_ms: u64) -> ProbeSpec {
        let bind = |binding: Binding, server: SocketAddr| match (binding, server.ip()) {
            (Binding::Free, _) => Bind::None,
            (Binding::Device, _) => Bind::Device(if self.who == Who::Guest { "eth0" } else { UPLINK }.into()),
            (Binding::Source, IpAddr::V4(_)) => Bind::Source(CLIENT_V4.into()),
            (Binding::Source, IpAddr::V6(_)) => Bind::Source(CLIENT_V6.into()),
            (Binding::Port53, _) => Bind::Address(UPLINK.into(), SocketAddr::new(CLIENT_V4.into(), 53)),
            (Binding::Tunnel, _) => Bind::Device(CLIENT_TUNNEL.into()),
        };
        let via = match &self.how {
            How::System | How::Search | How::Kept => Via::GetAddrInfo { family: Family::Any },
            How::Udp(server, binding) => {
                Via::Udp { server: Endpoint::from(*server), bind: bind(*binding, *server), mark: None }
            }
            How::Tcp(server, binding) => Via::Tcp {
                server: Endpoint::from(*server),
                bind: bind(*binding, *server),
                mark: None,
                fast_open: false,
            },
            How::Tls(server) => Via::Tls { server: Endpoint::from(*server), bind: Bind::None, mark: None },
            How::LinkLocal => Via::Udp { server: link_local(), bind: Bind::None, mark: None },
            How::OldUdp(_) => Via::UdpSocket { socket: format!("{}-{window}", self.id) },
            How::OldTcp(_) => Via::TcpSocket { socket: format!("{}-{window}", self.id) },
            How::Packet(server) => Via::PacketSocket {
                interface: UPLINK.into(),
                destination_mac: Some(MacAddress(ROUTER_MAC)),
                source: match server.ip() {
                    IpAddr::V4(_) => SocketAddr::new(CLIENT_V4.into(), 0),
                    IpAddr::V6(_) => SocketAddr::new(CLIENT_V6.into(), 0),
                },
                destination: *server,
                shape: Shape::Plain,
            },
            How::Imitating(protocol, server, identity) => {
                let mark = if let Identity::Mark(mark) = identity { Some(*mark) } else { None };
                let server = Endpoint::from(*server);
                match protocol {
                    Protocol::Udp => Via::Udp { server, bind: Bind::None, mark },
                    Protocol::Tcp => Via::Tcp { server, bind: Bind::None, mark, fast_open: false },
                }
            }
        };
        let (as_uid, as_gid) = match &self.how {
            How::Imitating(_, _, Identity::Uid(uid)) => (Some(*uid), None),
            How::Imitating(_, _, Identity::Gid(gid)) => (None, Some(*gid)),
            _ => (None, None),
        };
        let single_label = name.split('.').next().filter(|_| self.how == How::Search);
        let name = single_label.unwrap_or(name);
        ProbeSpec { id: id.into(), name: name.into(), qtype: Qtype::A, via, timeout_ms, as_uid, as_gid }
    }
}

impl Binding {
    fn words(self) -> &'static str {
        match self {
            Binding::Free => "",
            Binding::Device => ", bound to the uplink",
            Binding::Source => ", bound to the uplink's address",
            Binding::Port53 => ", bound to the uplink, from port 53",
            Binding::Tunnel => ", bound to the tunnel",
        }
    }
}

/// The LAN resolver's link-local address, on the uplink.
fn link_local() -> Endpoint {
    format!("[{LAN_LINK_LOCAL}%{UPLINK}]:53").parse().expect("an endpoint with a scope")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_imitated_over_every_protocol_and_has_a_control_for_each() {
        let kinds = catalogue(&Present { identities: vec![Identity::Mark(0x7a11)], ..Present::default() }, 51820);
        let imitations: Vec<&Kind> = kinds.iter().filter(|kind| matches!(kind.how, How::Imitating(..))).collect();
        let ways = |kinds: &[&Kind], server: &str| -> Vec<String> {
            let id = |kind: &&Kind| kind.id.strip_prefix("mark-0x7a11-")?.strip_suffix(server).map(str::to_owned);
            kinds.iter().filter_map(id).collect()
        };
        assert_eq!(ways(&imitations, "-lan-root"), ["udp4", "tcp4", "udp6", "tcp6"]);
        assert_eq!(ways(&imitations, "-public-root"), ["udp4", "tcp4", "udp6", "tcp6"]);
        for kind in imitations {
            assert_eq!(kind.id, format!("mark-0x7a11-{}", kind.control()));
            assert!(kinds.iter().any(|other| other.id == kind.control()));
            let spec = kind.spec(&kind.id, "name.example", 1, 1);
            let is_tcp = match spec.via {
                Via::Tcp { mark: Some(0x7a11), .. } => true,
                Via::Udp { mark: Some(0x7a11), .. } => false,
                other => panic!("no way to imitate: {other:?}"),
            };
            assert_eq!(is_tcp, kind.id.contains("-tcp"));
        }
    }
}
