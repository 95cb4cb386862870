//! The topics "links" and "addresses": what interfaces there are and how they are set, with what `traffic` knows of their
//! queues. No counters, no indexes, no lifetimes: those change by themselves.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::Error;
use super::escape::{hex, quoted, word};
use super::netlink::{Netlink, attribute, attributes, encode, number, string};
use super::routes::address;
use super::traffic;

/// An interface's name by its index, for whatever else names interfaces.
pub struct Links {
    names: HashMap<u32, String>,
    hardware: HashMap<u32, Hardware>,
    /// The topic.
    pub text: String,
}

/// What an interface is on the wire.
#[derive(Debug, Clone, Default)]
pub struct Hardware {
    /// IFF_* of netdevice(7).
    pub flags: u32,
    /// Its own address; empty if it has none.
    pub address: Vec<u8>,
    /// The address of all that are on the link.
    pub broadcast: Vec<u8>,
}

impl Links {
    /// What the interface of that index is on the wire; nothing if there is none.
    pub fn hardware(&self, index: u32) -> Hardware {
        self.hardware.get(&index).cloned().unwrap_or_default()
    }

    /// The interface's name, or its number if there is none of that index.
    pub fn name(&self, index: u32) -> String {
        self.names.get(&index).cloned().unwrap_or_else(|| format!("#{index}"))
    }
}

// rtnetlink(7), include/uapi/linux/if_link.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_BROADCAST: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_QDISC: u16 = 6;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_XDP: u16 = 43;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INET6_TOKEN: u16 = 7;
const IFLA_XDP_ATTACHED: u16 = 2;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

/// IFF_* of netdevice(7), without RUNNING, which follows from the others.
const FLAGS: [(u32, &str); 17] = [
    (0x1, "up"),
    (0x2, "broadcast"),
    (0x4, "debug"),
    (0x8, "loopback"),
    (0x10, "pointopoint"),
    (0x20, "notrailers"),
    (0x80, "noarp"),
    (0x100, "promisc"),
    (0x200, "allmulti"),
    (0x400, "master"),
    (0x800, "slave"),
    (0x1000, "multicast"),
    (0x2000, "portsel"),
    (0x4000, "automedia"),
    (0x8000, "dynamic"),
    (0x10000, "lower_up"),
    (0x20000, "dormant"),
];

/// The topic "links", and the names for the other topics.
pub fn links(netlink: &mut Netlink) -> Result<Links, Error> {
    let mut request = vec![0; 16];
    request.extend(encode(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes()));
    let messages = netlink.dump("list the interfaces", libc::RTM_GETLINK, &request)?;
    let mut links = Links { names: HashMap::new(), hardware: HashMap::new(), text: String::new() };
    for message in &messages {
        let Some((header, rest)) = message.body.split_at_checked(16) else { continue };
        let (index, flags) = (number(&header[4..8]), number(&header[8..12]));
        let bytes = |kind: u16| attribute(rest, kind).unwrap_or_default().to_vec();
        links.names.insert(index, word(attribute(rest, IFLA_IFNAME).map(string).unwrap_or_default()));
        let hardware = Hardware { flags, address: bytes(IFLA_ADDRESS), broadcast: bytes(IFLA_BROADCAST) };
        links.hardware.insert(index, hardware);
    }
    let mut lines: Vec<String> =
        messages.iter().filter(|message| message.body.len() >= 16).map(|message| link(&links, &message.body)).collect();
    lines.extend(traffic::queues(netlink, &links)?);
    lines.sort();
    links.text = lines.concat();
    Ok(links)
}

fn link(links: &Links, body: &[u8]) -> String {
    let flags = number(&body[8..12]);
    let names: Vec<&str> = FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    let mut text = links.name(number(&body[4..8]));
    let kind = attribute(&body[16..], IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_KIND));
    let _ = write!(text, " kind {}", kind.map_or("-".into(), |kind| word(string(kind))));
    let _ = write!(text, " flags {}", names.join(","));
    // In this order, whatever order the kernel has.
    for (wanted, label) in [
        (IFLA_MTU, "mtu"),
        (IFLA_ADDRESS, "mac"),
        (IFLA_MASTER, "master"),
        (IFLA_LINK, "link"),
        (IFLA_QDISC, "qdisc"),
        (IFLA_TXQLEN, "txqlen"),
        (IFLA_GROUP, "group"),
        (IFLA_IFALIAS, "alias"),
    ] {
        let Some(payload) = attribute(&body[16..], wanted) else { continue };
        let value = match wanted {
            IFLA_MTU | IFLA_TXQLEN | IFLA_GROUP => number(payload).to_string(),
            IFLA_ADDRESS => hex(payload),
            IFLA_MASTER => links.name(number(payload)),
            // The other end of a veth may be in another namespace, where its number means another link.
            IFLA_LINK => continue,
            _ => quoted(string(payload)),
        };
        let _ = write!(text, " {label} {value}");
    }
    for (kind, name) in attributes(attribute(&body[16..], IFLA_PROP_LIST).unwrap_or_default()) {
        if kind == IFLA_ALT_IFNAME {
            let _ = write!(text, " altname {}", word(string(name)));
        }
    }
    // What addresses that the interface makes for itself end with (ip-token(8)).
    let token = attribute(&body[16..], IFLA_AF_SPEC)
        .and_then(|families| attribute(families, libc::AF_INET6 as u16))
        .and_then(|of_inet6| attribute(of_inet6, IFLA_INET6_TOKEN))
        .filter(|token| token.iter().any(|byte| *byte != 0));
    if let Some(token) = token {
        let _ = write!(text, " token {}", address(libc::AF_INET6 as u8, token));
    }
    let attached = attribute(&body[16..], IFLA_XDP).and_then(|xdp| attribute(xdp, IFLA_XDP_ATTACHED)).map_or(0, number);
    if attached != 0 {
        let _ = write!(text, " xdp {attached}");
    }
    text.push('\n');
    text
}

// include/uapi/linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_ANYCAST: u16 = 5;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_RT_PRIORITY: u16 = 9;
const IFA_PROTO: u16 = 11;

const ADDRESS_FLAGS: [(u32, &str); 12] = [
    (0x1, "secondary"),
    (0x2, "nodad"),
    (0x4, "optimistic"),
    (0x8, "dadfailed"),
    (0x10, "homeaddress"),
    (0x20, "deprecated"),
    (0x40, "tentative"),
    (0x80, "permanent"),
    (0x100, "managetempaddr"),
    (0x200, "noprefixroute"),
    (0x400, "mcautojoin"),
    (0x800, "stable-privacy"),
];

/// The topic "addresses".
pub fn addresses(netlink: &mut Netlink, links: &Links) -> Result<String, Error> {
    let mut lines = Vec::new();
    for message in netlink.dump("list the addresses", libc::RTM_GETADDR, &[0; 8])? {
        let Some((header, rest)) = message.body.split_at_checked(8) else { continue };
        let (family, prefix, scope) = (header[0], header[1], header[3]);
        let mut text = links.name(number(&header[4..8]));
        let flags = attribute(rest, IFA_FLAGS).map_or(u32::from(header[2]), number);
        let local = attribute(rest, IFA_LOCAL).or(attribute(rest, IFA_ADDRESS)).unwrap_or_default();
        let _ = write!(text, " {}/{prefix} scope {}", address(family, local), super::routes::scope(scope));
        let names: Vec<&str> =
            ADDRESS_FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
        let _ = write!(text, " flags {}", names.join(","));
        for (kind, payload) in attributes(rest) {
            let _ = match kind {
                IFA_ADDRESS if payload != local => write!(text, " peer {}", address(family, payload)),
                IFA_ADDRESS | IFA_LOCAL | IFA_FLAGS => Ok(()),
                IFA_LABEL => write!(text, " label {}", word(string(payload))),
                IFA_BROADCAST => write!(text, " broadcast {}", address(family, payload)),
                IFA_ANYCAST => write!(text, " anycast {}", address(family, payload)),
                IFA_RT_PRIORITY => write!(text, " metric {}", number(payload)),
                IFA_PROTO => write!(text, " proto {}", number(payload)),
                // The lifetimes tick: only whether there is an end to them.
                IFA_CACHEINFO => {
                    let length = |at: usize| match payload.get(at..at + 4).map(number) {
                        Some(u32::MAX) => "forever",
                        _ => "limited",
                    };
                    let (preferred, valid) = (length(0), length(4));
                    let preferred = if preferred == valid { "" } else { " preferred limited" };
                    write!(text, " lifetime {valid}{preferred}")
                }
                _ => write!(text, " attribute-{kind} {}", hex(payload)),
            };
        }
        text.push('\n');
        lines.push(text);
    }
    lines.sort();
    Ok(lines.concat())
}
