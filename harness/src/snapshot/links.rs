//! The topics "links" and "addresses": what interfaces there are, how they are set, what filters hang on them. No counters,
//! no indexes, no lifetimes: those change by themselves.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::Error;
use super::escape::{hex, quoted, word};
use super::netlink::{Netlink, attribute, attributes, encode, number, string};
use super::routes::address;

/// An interface's name by its index, for whatever else names interfaces.
pub struct Links {
    names: HashMap<u32, String>,
    /// The topic.
    pub text: String,
}

impl Links {
    /// The interface's name, or its number if there is none of that index.
    pub fn name(&self, index: u32) -> String {
        self.names.get(&index).cloned().unwrap_or_else(|| format!("#{index}"))
    }
}

// rtnetlink(7), include/uapi/linux/if_link.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_QDISC: u16 = 6;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_GROUP: u16 = 27;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_XDP: u16 = 43;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
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
    let mut links = Links { names: HashMap::new(), text: String::new() };
    for message in &messages {
        if let (Some(index), Some(name)) = (message.body.get(4..8), message.body.get(16..)) {
            let name = attribute(name, IFLA_IFNAME).map(string).unwrap_or_default();
            links.names.insert(number(index), word(name));
        }
    }
    let mut lines: Vec<String> =
        messages.iter().filter(|message| message.body.len() >= 16).map(|message| link(&links, &message.body)).collect();
    lines.extend(queues(netlink, &links)?);
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
    let attached = attribute(&body[16..], IFLA_XDP).and_then(|xdp| attribute(xdp, IFLA_XDP_ATTACHED)).map_or(0, number);
    if attached != 0 {
        let _ = write!(text, " xdp {attached}");
    }
    text.push('\n');
    text
}

const TCA_KIND: u16 = 1;
/// tc(8): where the filters of a clsact queueing discipline hang.
const TC_H_MIN_INGRESS: u32 = 0xffff_fff2;
const TC_H_MIN_EGRESS: u32 = 0xffff_fff3;

/// Queueing disciplines and the filters on "clsact" and "ingress", which see packets below every firewall hook.
fn queues(netlink: &mut Netlink, links: &Links) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    let mut hooked = Vec::new();
    for message in netlink.dump("list the queueing disciplines", libc::RTM_GETQDISC, &[0; 20])? {
        let Some((header, rest)) = message.body.split_at_checked(20) else { continue };
        let (index, parent) = (number(&header[4..8]), number(&header[12..16]));
        let kind = word(attribute(rest, TCA_KIND).map(string).unwrap_or_default());
        if kind == "clsact" || kind == "ingress" {
            hooked.push(index);
        }
        lines.push(format!("{} queue {kind} parent {parent:08x}\n", links.name(index)));
    }
    for index in hooked {
        for (parent, side) in [(TC_H_MIN_INGRESS, "ingress"), (TC_H_MIN_EGRESS, "egress")] {
            let mut request = vec![0; 20];
            request[4..8].copy_from_slice(&index.to_ne_bytes());
            request[12..16].copy_from_slice(&parent.to_ne_bytes());
            for message in netlink.dump("list the traffic control filters", libc::RTM_GETTFILTER, &request)? {
                let Some((header, rest)) = message.body.split_at_checked(20) else { continue };
                let kind = word(attribute(rest, TCA_KIND).map(string).unwrap_or_default());
                // Handle, then preference and protocol; the options hold counters.
                let (handle, info) = (number(&header[8..12]), number(&header[16..20]));
                let name = links.name(index);
                lines.push(format!("{name} filter {side} {kind} handle {handle:x} info {info:08x}\n"));
            }
        }
    }
    Ok(lines)
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
                    let forever = payload.get(4..8).map(number) == Some(u32::MAX);
                    write!(text, " lifetime {}", if forever { "forever" } else { "limited" })
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
