//! The topics "neighbours" (entries that somebody made by hand: permanent, without ARP, proxies, managed ones) and
//! "address-labels" (RFC 6724, which source address is used). What the kernel learns on the wire or makes for itself comes and
//! goes, and is in neither.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::Error;
use super::escape::hex;
use super::links::{Hardware, Links};
use super::netlink::{Netlink, attribute, number};
use super::none_or;
use super::routes::{address, protocol};

// include/uapi/linux/neighbour.h. struct ndmsg: family, padding, interface, state, flags, type.
const HEADER: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PROTOCOL: u16 = 12;
const NDA_FLAGS_EXT: u16 = 15;
const NTF_EXT_LEARNED: u8 = 0x10;
const NTF_EXT_MANAGED: u32 = 1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_POINTOPOINT: u32 = 0x10;
const IFF_NOARP: u32 = 0x80;

/// The topic "neighbours".
pub fn neighbours(netlink: &mut Netlink, links: &Links) -> Result<String, Error> {
    let mut lines = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for flags in [0, libc::NTF_PROXY] {
            let mut request = [0; HEADER];
            (request[0], request[10]) = (family as u8, flags);
            for message in netlink.dump("list the neighbours", libc::RTM_GETNEIGH, &request)? {
                let Some((header, rest)) = message.body.split_at_checked(HEADER) else { continue };
                // A kernel without IPv6 answers with what it has.
                if i32::from(header[0]) == family {
                    lines.extend(neighbour(links, header, rest));
                }
            }
        }
    }
    lines.sort();
    Ok(lines.concat())
}

/// `None` for what nobody made by hand.
fn neighbour(links: &Links, header: &[u8], rest: &[u8]) -> Option<String> {
    let (family, index, flags) = (header[0], number(&header[4..8]), header[10]);
    let state = u16::from_ne_bytes([header[8], header[9]]);
    let to = attribute(rest, NDA_DST).unwrap_or_default();
    let hardware = attribute(rest, NDA_LLADDR).unwrap_or_default();
    let managed = attribute(rest, NDA_FLAGS_EXT).map_or(0, number) & NTF_EXT_MANAGED != 0;
    let what = if flags & libc::NTF_PROXY != 0 {
        " proxy".into()
    } else if state & libc::NUD_PERMANENT != 0 {
        format!(" permanent mac {}", hex(hardware))
    } else if state & libc::NUD_NOARP != 0 {
        if is_kernels_own(family, to, hardware, &links.hardware(index)) {
            return None;
        }
        format!(" noarp mac {}", hex(hardware))
    } else {
        String::new()
    };
    // Their states and hardware addresses are learned; that they are kept is not.
    let kept = [(managed, " managed"), (flags & NTF_EXT_LEARNED != 0, " extern-learn")];
    let kept: String = kept.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
    if what.is_empty() && kept.is_empty() {
        return None;
    }
    let mut text = format!("{} {}{what}{kept}", links.name(index), address(family, to));
    if let Some(by) = attribute(rest, NDA_PROTOCOL).map(number) {
        let _ = write!(text, " proto {}", protocol(by));
    }
    Some(text + "\n")
}

/// What the kernel itself makes of an address that needs no resolution: for groups, for broadcasts, and on links that know no
/// resolution.
fn is_kernels_own(family: u8, to: &[u8], hardware: &[u8], link: &Hardware) -> bool {
    let multicast = address(family, to).parse().is_ok_and(|to: IpAddr| to.is_multicast());
    let unresolved = link.flags & (IFF_LOOPBACK | IFF_NOARP | IFF_POINTOPOINT) != 0;
    let unset = hardware.iter().all(|byte| *byte == 0);
    multicast || hardware == link.broadcast || unresolved && (unset || hardware == link.address)
}

/// The topic "address-labels". The kernel's list has a number that grows with each change, which is left out.
pub fn address_labels(netlink: &mut Netlink, links: &Links) -> Result<String, Error> {
    // include/uapi/linux/if_addrlabel.h. struct ifaddrlblmsg: family, reserved, prefix length, flags, interface, sequence.
    const HEADER: usize = 12;
    const IFAL_ADDRESS: u16 = 1;
    const IFAL_LABEL: u16 = 2;
    let mut request = [0; HEADER];
    request[0] = libc::AF_INET6 as u8;
    let messages = netlink.dump("list the address labels", libc::RTM_GETADDRLABEL, &request);
    none_or("this kernel has no IPv6", messages, |messages| {
        let mut lines = Vec::new();
        for message in messages {
            let Some((header, rest)) = message.body.split_at_checked(HEADER) else { continue };
            let prefix = address(header[0], attribute(rest, IFAL_ADDRESS).unwrap_or_default());
            let label = attribute(rest, IFAL_LABEL).map_or(0, number);
            let mut text = format!("{prefix}/{} label {label}", header[2]);
            match number(&header[4..8]) {
                0 => {}
                index => text += &format!(" dev {}", links.name(index)),
            }
            lines.push(text + "\n");
        }
        lines.sort();
        Ok(lines.concat())
    })
}
