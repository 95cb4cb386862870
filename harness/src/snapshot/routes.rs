//! The topics "routes" (all tables, both families, next-hop objects) and "rules" (policy routing). Expiry times and caches
//! are left out: they change by themselves.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::Error;
use super::escape::{hex, word};
use super::links::Links;
use super::netlink::{Netlink, attribute, attributes, number, string};

/// An address of the family (AF_INET, AF_INET6); hexadecimal if it is none.
pub fn address(family: u8, bytes: &[u8]) -> String {
    match (i32::from(family), bytes.len()) {
        (libc::AF_INET, 4) => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).unwrap_or_default()).to_string(),
        (libc::AF_INET6, 16) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()).to_string(),
        _ => hex(bytes),
    }
}

/// RT_SCOPE_* as ip(8) names them.
pub fn scope(scope: u8) -> String {
    match scope {
        0 => "global".into(),
        200 => "site".into(),
        253 => "link".into(),
        254 => "host".into(),
        255 => "nowhere".into(),
        other => other.to_string(),
    }
}

fn table(table: u32) -> String {
    match table {
        253 => "default".into(),
        254 => "main".into(),
        255 => "local".into(),
        other => other.to_string(),
    }
}

/// RTPROT_* as iproute2 names them.
pub fn protocol(protocol: u32) -> String {
    match protocol {
        0 => "unspec".into(),
        1 => "redirect".into(),
        2 => "kernel".into(),
        3 => "boot".into(),
        4 => "static".into(),
        9 => "ra".into(),
        16 => "dhcp".into(),
        other => other.to_string(),
    }
}

/// RTN_* as ip(8) names them.
fn route_type(kind: u8) -> String {
    const NAMES: [&str; 12] = [
        "unspec",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
        "throw",
        "nat",
        "xresolve",
    ];
    NAMES.get(usize::from(kind)).map_or_else(|| kind.to_string(), |name| (*name).into())
}

// include/uapi/linux/rtnetlink.h.
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_MFC_STATS: u16 = 17;
const RTA_VIA: u16 = 18;
const RTA_PREF: u16 = 20;
const RTA_EXPIRES: u16 = 23;
const RTA_PAD: u16 = 24;
const RTA_NH_ID: u16 = 30;
const RTM_F_CLONED: u32 = 0x200;
const RTM_GETNEXTHOP: u16 = 106;

const ROUTE_FLAGS: [(u32, &str); 4] = [(1, "dead"), (2, "pervasive"), (4, "onlink"), (16, "linkdown")];

/// The topic "routes".
pub fn routes(netlink: &mut Netlink, links: &Links) -> Result<String, Error> {
    let mut lines = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; 12];
        request[0] = family as u8;
        for message in netlink.dump("list the routes", libc::RTM_GETROUTE, &request)? {
            if let Some((header, rest)) = message.body.split_at_checked(12)
                && number(&header[8..12]) & RTM_F_CLONED == 0
            {
                lines.push(route(links, header, rest));
            }
        }
    }
    for message in netlink.dump("list the next-hop objects", RTM_GETNEXTHOP, &[0; 8])? {
        if let Some((header, rest)) = message.body.split_at_checked(8) {
            lines.push(next_hop_object(links, header, rest));
        }
    }
    lines.sort();
    Ok(lines.concat())
}

fn route(links: &Links, header: &[u8], rest: &[u8]) -> String {
    let family = header[0];
    let name = if i32::from(family) == libc::AF_INET { "v4" } else { "v6" };
    let in_table = attribute(rest, RTA_TABLE).map_or(u32::from(header[4]), number);
    let to = match attribute(rest, RTA_DST) {
        Some(to) => format!("{}/{}", address(family, to), header[1]),
        None if header[1] == 0 => "default".into(),
        None => format!("-/{}", header[1]),
    };
    let mut text = format!("{name} table {} {} {to}", table(in_table), route_type(header[7]));
    for (kind, payload) in attributes(rest) {
        let _ = match kind {
            RTA_SRC => write!(text, " from {}/{}", address(family, payload), header[2]),
            RTA_METRICS => write!(text, "{}", metrics(payload)),
            RTA_MULTIPATH => write!(text, "{}", multipath(links, family, payload)),
            RTA_DST | RTA_TABLE | RTA_CACHEINFO | RTA_MFC_STATS | RTA_EXPIRES | RTA_PAD => Ok(()),
            RTA_PREF if number(payload) == 0 => Ok(()),
            _ => write!(text, "{}", route_attribute(links, family, kind, payload)),
        };
    }
    let _ = write!(text, " proto {} scope {}", protocol(u32::from(header[5])), scope(header[6]));
    if header[3] != 0 {
        let _ = write!(text, " tos {:#04x}", header[3]);
    }
    let flags = number(&header[8..12]);
    for (_, flag) in ROUTE_FLAGS.iter().filter(|(bit, _)| flags & bit != 0) {
        let _ = write!(text, " {flag}");
    }
    text.push('\n');
    text
}

fn route_attribute(links: &Links, family: u8, kind: u16, payload: &[u8]) -> String {
    match kind {
        RTA_IIF => format!(" iif {}", links.name(number(payload))),
        RTA_OIF => format!(" dev {}", links.name(number(payload))),
        RTA_GATEWAY => format!(" via {}", address(family, payload)),
        RTA_VIA if payload.len() > 2 => {
            let of = u16::from_ne_bytes([payload[0], payload[1]]) as u8;
            format!(" via {}", address(of, &payload[2..]))
        }
        RTA_PRIORITY => format!(" metric {}", number(payload)),
        RTA_PREFSRC => format!(" src {}", address(family, payload)),
        RTA_NH_ID => format!(" nexthop-object {}", number(payload)),
        RTA_PREF => format!(" pref {}", number(payload)),
        _ => format!(" attribute-{kind} {}", hex(payload)),
    }
}

fn metrics(payload: &[u8]) -> String {
    const CONGESTION_CONTROL: u16 = 16;
    const NAMES: [(u16, &str); 5] = [(1, "lock"), (2, "mtu"), (3, "window"), (8, "advmss"), (10, "hoplimit")];
    attributes(payload).fold(String::new(), |mut text, (kind, payload)| {
        let name = NAMES.iter().find(|(known, _)| *known == kind);
        let name = name.map_or_else(|| format!("metric-{kind}"), |(_, name)| (*name).into());
        let value = match kind {
            CONGESTION_CONTROL => word(string(payload)),
            _ => number(payload).to_string(),
        };
        let _ = write!(text, " {name} {value}");
        text
    })
}

/// struct rtnexthop: length, flags, weight - 1, interface, attributes.
fn multipath(links: &Links, family: u8, payload: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = payload;
    while let Some((header, _)) = rest.split_at_checked(8) {
        let size = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let _ = write!(text, " nexthop dev {} weight {}", links.name(number(&header[4..8])), u32::from(header[3]) + 1);
        for (_, flag) in ROUTE_FLAGS.iter().filter(|(bit, _)| u32::from(header[2]) & bit != 0) {
            let _ = write!(text, " {flag}");
        }
        for (kind, payload) in attributes(rest.get(8..size).unwrap_or_default()) {
            text.push_str(&route_attribute(links, family, kind, payload));
        }
        rest = rest.get(size.next_multiple_of(4).max(8)..).unwrap_or_default();
    }
    text
}

/// struct nhmsg and NHA_* (include/uapi/linux/nexthop.h).
fn next_hop_object(links: &Links, header: &[u8], rest: &[u8]) -> String {
    const NHA_ID: u16 = 1;
    const NHA_OIF: u16 = 5;
    const NHA_GATEWAY: u16 = 6;
    let id = attribute(rest, NHA_ID).map_or(0, number);
    let mut text = format!("nexthop-object {id} proto {}", protocol(u32::from(header[2])));
    for (kind, payload) in attributes(rest) {
        let _ = match kind {
            NHA_ID => Ok(()),
            NHA_OIF => write!(text, " dev {}", links.name(number(payload))),
            NHA_GATEWAY => write!(text, " via {}", address(header[0], payload)),
            _ => write!(text, " attribute-{kind} {}", hex(payload)),
        };
    }
    let _ = writeln!(text, " flags {}", number(&header[4..8]));
    text
}

// include/uapi/linux/fib_rules.h.
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
const FRA_SPORT_MASK: u16 = 28;
const FRA_DPORT_MASK: u16 = 29;

/// The topic "rules".
pub fn rules(netlink: &mut Netlink) -> Result<String, Error> {
    let mut lines = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; 12];
        request[0] = family as u8;
        for message in netlink.dump("list the routing rules", libc::RTM_GETRULE, &request)? {
            if let Some((header, rest)) = message.body.split_at_checked(12) {
                lines.push(rule(header, rest));
            }
        }
    }
    lines.sort_by_cached_key(|(family, priority, text)| (*family, *priority, text.clone()));
    Ok(lines.into_iter().map(|(_, _, text)| text).collect())
}

fn rule(header: &[u8], rest: &[u8]) -> (u8, u32, String) {
    const INVERT: u32 = 2;
    const DETACHED: [(u32, &str); 3] = [(4, "unresolved"), (8, "iif-detached"), (16, "oif-detached")];
    let family = header[0];
    let name = if i32::from(family) == libc::AF_INET { "v4" } else { "v6" };
    let priority = attribute(rest, FRA_PRIORITY).map_or(0, number);
    let flags = number(&header[8..12]);
    let mut text = format!("{name} {priority}:");
    if flags & INVERT != 0 {
        text.push_str(" not");
    }
    let selector = |kind: u16, length: u8| match attribute(rest, kind) {
        Some(prefix) => format!("{}/{length}", address(family, prefix)),
        None => "all".into(),
    };
    let _ = write!(text, " from {}", selector(FRA_SRC, header[2]));
    if header[1] != 0 || attribute(rest, FRA_DST).is_some() {
        let _ = write!(text, " to {}", selector(FRA_DST, header[1]));
    }
    if header[3] != 0 {
        let _ = write!(text, " tos {:#04x}", header[3]);
    }
    for (kind, payload) in attributes(rest) {
        let range = |label: &str| {
            let (low, high) = payload.split_at(payload.len() / 2);
            format!(" {label} {}-{}", number(low), number(high))
        };
        text.push_str(&match kind {
            FRA_DST | FRA_SRC | FRA_PRIORITY | FRA_TABLE | FRA_PROTOCOL | FRA_PAD => continue,
            // The kernel sends these with "none" or "all" in them for every rule, or every rule with ports.
            FRA_SUPPRESS_PREFIXLEN | FRA_SUPPRESS_IFGROUP if number(payload) == u32::MAX => continue,
            FRA_SPORT_MASK | FRA_DPORT_MASK if number(payload) == 0xffff => continue,
            FRA_SPORT_MASK => format!(" sport-mask {:#x}", number(payload)),
            FRA_DPORT_MASK => format!(" dport-mask {:#x}", number(payload)),
            FRA_IIFNAME => format!(" iif {}", word(string(payload))),
            FRA_OIFNAME => format!(" oif {}", word(string(payload))),
            FRA_GOTO => format!(" goto {}", number(payload)),
            FRA_FWMARK => format!(" fwmark {:#x}", number(payload)),
            FRA_FWMASK => format!(" mask {:#x}", number(payload)),
            FRA_SUPPRESS_PREFIXLEN => format!(" suppress_prefixlength {}", number(payload)),
            FRA_SUPPRESS_IFGROUP => format!(" suppress_ifgroup {}", number(payload)),
            FRA_L3MDEV => format!(" l3mdev {}", number(payload)),
            FRA_UID_RANGE => range("uidrange"),
            FRA_IP_PROTO => format!(" ipproto {}", number(payload)),
            FRA_SPORT_RANGE => range("sport"),
            FRA_DPORT_RANGE => range("dport"),
            _ => format!(" attribute-{kind} {}", hex(payload)),
        });
    }
    // FR_ACT_*.
    let _ = match header[7] {
        1 => write!(text, " lookup {}", table(attribute(rest, FRA_TABLE).map_or(u32::from(header[4]), number))),
        2 => write!(text, " goto"),
        3 => write!(text, " nop"),
        6 => write!(text, " blackhole"),
        7 => write!(text, " unreachable"),
        8 => write!(text, " prohibit"),
        other => write!(text, " action {other}"),
    };
    let _ = write!(text, " proto {}", protocol(attribute(rest, FRA_PROTOCOL).map_or(0, number)));
    for (_, flag) in DETACHED.iter().filter(|(bit, _)| flags & bit != 0) {
        let _ = write!(text, " {flag}");
    }
    text.push('\n');
    (family, priority, text)
}
