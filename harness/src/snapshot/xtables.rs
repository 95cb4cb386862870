//! The topic "iptables": the tables of the older packet filter, which nftables does not show (`iptables-legacy`). Rules are shown
//! as they are on the wire, without their counters; a table that accepts everything is as good as none.

use std::fmt::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Error;
use super::escape::{hex, word};
use super::sockets;

/// What differs between the families (include/uapi/linux/netfilter_ipv4/ip_tables.h and its IPv6 twin).
struct Family {
    name: &'static str,
    /// The list of tables in /proc/net. A table that is not in it must not be asked for: asking makes it.
    names: &'static str,
    socket: AddressFamily,
    level: libc::c_int,
    /// Size of what a rule matches on its own, before `nfcache`.
    selector: usize,
    /// Size of a rule before its matches.
    entry: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "ip",
        names: "ip_tables_names",
        socket: AddressFamily::Inet,
        level: libc::IPPROTO_IP,
        selector: 84,
        entry: 112,
    },
    Family {
        name: "ip6",
        names: "ip6_tables_names",
        socket: AddressFamily::Inet6,
        level: libc::IPPROTO_IPV6,
        selector: 136,
        entry: 168,
    },
];

const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// XT_TABLE_MAXNAMELEN.
const NAME: usize = 32;
/// struct ipt_getinfo: name, valid hooks, hook entries, underflows, number of entries, size.
const INFO: usize = NAME + 4 + 20 + 20 + 4 + 4;

/// The topic.
pub fn iptables(root: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let net = sockets::proc_net(root)?;
    for family in &FAMILIES {
        let mut names: Vec<String> = sockets::table(&net.join(family.names))?.lines().map(str::to_owned).collect();
        names.sort();
        names.dedup();
        for name in names {
            let read = || -> Result<Vec<Vec<u8>>, Errno> {
                let socket = socket(family.socket, SockType::Raw, SockFlag::SOCK_CLOEXEC, RAW)?;
                entries(&socket, family, &name)
            };
            let entries = read().map_err(|errno| Error::netlink("read the rules of iptables", errno))?;
            if is_open(&entries, family) {
                continue;
            }
            let _ = writeln!(text, "table {} {}", family.name, word(name.as_bytes()));
            for entry in &entries {
                let _ = writeln!(text, "  rule {}", hex(entry));
            }
        }
    }
    Ok(text)
}

/// IPPROTO_RAW: the options are those of a raw socket.
const RAW: Option<nix::sys::socket::SockProtocol> = Some(nix::sys::socket::SockProtocol::Raw);

/// The rules of a table in their order, policies included, each without its counters and the kernel's scratch field.
fn entries(socket: &OwnedFd, family: &Family, table: &str) -> Result<Vec<Vec<u8>>, Errno> {
    let mut name = [0; NAME];
    name.get_mut(..table.len()).filter(|_| table.len() < NAME).ok_or(Errno::EINVAL)?.copy_from_slice(table.as_bytes());
    let mut info = [0; INFO];
    info[..NAME].copy_from_slice(&name);
    get(socket, family.level, GET_INFO, &mut info)?;
    let size = super::netlink::number(&info[INFO - 4..]) as usize;

    // struct ipt_get_entries: name, size, padding, then the rules.
    const HEADER: usize = NAME + 8;
    let mut blob = vec![0; HEADER + size];
    blob[..NAME].copy_from_slice(&name);
    blob[NAME..NAME + 4].copy_from_slice(&(size as u32).to_ne_bytes());
    get(socket, family.level, GET_ENTRIES, &mut blob)?;

    let mut entries = Vec::new();
    let mut rest = &blob[HEADER..];
    while rest.len() >= family.entry {
        // Selector, nfcache, offset of the target, offset of the next rule, scratch, counters.
        let next = family.selector + 6;
        let length = usize::from(u16::from_ne_bytes([rest[next], rest[next + 1]]));
        let entry = rest.get(..length).filter(|_| length >= family.entry).ok_or(Errno::EBADMSG)?;
        let mut entry = entry.to_vec();
        entry[family.selector..family.selector + 4].fill(0);
        entry[family.selector + 8..family.entry].fill(0);
        entries.push(entry);
        rest = &rest[length..];
    }
    Ok(entries)
}

fn get(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, buffer: &mut [u8]) -> Result<(), Errno> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the buffer is writable and `length` is its size, which the kernel does not exceed.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(result).map(drop)
}

/// Only policies, all of them ACCEPT, and the final entry that ends every table.
fn is_open(entries: &[Vec<u8>], family: &Family) -> bool {
    // struct xt_standard_target: size, name, revision, verdict; -NF_ACCEPT - 1.
    const ACCEPT: [u8; 4] = (-2i32).to_ne_bytes();
    let Some((_, policies)) = entries.split_last() else { return true };
    policies.iter().all(|entry| {
        let (selector, target) = (&entry[..family.selector], &entry[family.entry..]);
        selector.iter().all(|byte| *byte == 0)
            && target.len() == 40
            && target[2..32].iter().all(|byte| *byte == 0)
            && target[32..36] == ACCEPT
    })
}
