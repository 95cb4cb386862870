//! The topic "sockets": what takes packets in the client. Not connections: they come and go by themselves.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Error;
use super::netlink::{Netlink, number};
use super::processes::pids;

/// A socket, whoever told of it.
struct Socket {
    address: String,
    port: u16,
    uid: u32,
    inode: u64,
}

/// TCP_LISTEN, and TCP_CLOSE, which is what a datagram socket without a peer is in.
const LISTEN: u8 = 10;
const UNCONNECTED: u8 = 7;

/// The topic: TCP sockets that listen, UDP and raw sockets that take packets from anywhere, packet sockets. Not those of the
/// harness itself, whose numbers `own` holds.
pub fn sockets(root: &Path, ignored: &[u32], own: &HashSet<u64>) -> Result<String, Error> {
    let net = proc_net(root)?;
    let mut own = own.clone();
    for pid in ignored {
        own.extend(socket_inodes(&root.join(format!("proc/{pid}/fd"))));
    }
    let ephemeral = ephemeral_ports(root);
    let mut netlink = Netlink::sockets()?;
    let mut lines = Vec::new();
    // The kernel reads its whole table of connections for /proc/net/tcp, so it is asked for the sockets that listen.
    for (name, family, protocol, state) in [
        ("tcp", libc::AF_INET, libc::IPPROTO_TCP, LISTEN),
        ("tcp6", libc::AF_INET6, libc::IPPROTO_TCP, LISTEN),
        ("udp", libc::AF_INET, libc::IPPROTO_UDP, UNCONNECTED),
        ("udp6", libc::AF_INET6, libc::IPPROTO_UDP, UNCONNECTED),
        ("raw", libc::AF_INET, libc::IPPROTO_RAW, UNCONNECTED),
        ("raw6", libc::AF_INET6, libc::IPPROTO_RAW, UNCONNECTED),
    ] {
        let sockets = match protocol {
            // Few kernels can be asked for these, and there are few of them.
            libc::IPPROTO_RAW => listed(&net.join(name), state)?,
            _ => match asked(&mut netlink, family as u8, protocol as u8, state) {
                Err(Error::Netlink { errno: Errno::ENOENT, .. }) => listed(&net.join(name), state)?,
                sockets => sockets?,
            },
        };
        for socket in sockets.into_iter().filter(|socket| !own.contains(&socket.inode)) {
            // A port the kernel chose is another one after a restart of the same service.
            let port = if ephemeral.contains(&socket.port) { "ephemeral".into() } else { socket.port.to_string() };
            lines.push(format!("{name} {} {port} uid {}\n", socket.address, socket.uid));
        }
    }
    // Socket, reference count, type, protocol, interface index, running, memory, user, inode.
    for entry in table(&net.join("packet"))?.lines().skip(1) {
        let fields: Vec<&str> = entry.split_whitespace().collect();
        let [_, _, kind, protocol, _, _, _, uid, inode] = fields[..] else { continue };
        if !inode.parse().is_ok_and(|inode| own.contains(&inode)) {
            lines.push(format!("packet type {kind} protocol 0x{protocol} uid {uid}\n"));
        }
    }
    lines.sort();
    Ok(lines.concat())
}

/// sock_diag(7): struct inet_diag_req_v2, struct inet_diag_msg.
fn asked(netlink: &mut Netlink, family: u8, protocol: u8, state: u8) -> Result<Vec<Socket>, Error> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    let mut request = vec![family, protocol, 0, 0];
    request.extend((1_u32 << state).to_ne_bytes());
    request.resize(56, 0);
    let messages = netlink.dump("list the sockets", SOCK_DIAG_BY_FAMILY, &request)?;
    let parse = |body: &[u8]| {
        let address = if i32::from(family) == libc::AF_INET { body.get(8..12)? } else { body.get(8..24)? };
        Some(Socket {
            address: super::routes::address(family, address),
            port: u16::from_be_bytes([body[4], body[5]]),
            uid: number(body.get(64..68)?),
            inode: u64::from(number(body.get(68..72)?)),
        })
    };
    Ok(messages.iter().filter_map(|message| parse(&message.body)).collect())
}

/// proc_pid_net(5): local address and state are fields 1 and 3, uid is field 7, inode is field 9.
fn listed(path: &Path, wanted: u8) -> Result<Vec<Socket>, Error> {
    let parse = |entry: &str| {
        let fields: Vec<&str> = entry.split_whitespace().collect();
        let [_, local, _, state, _, _, _, uid, _, inode, ..] = fields[..] else { return None };
        let (address, port) = local.split_once(':')?;
        (u8::from_str_radix(state, 16).ok()? == wanted).then_some(Socket {
            address: listed_address(address),
            port: u16::from_str_radix(port, 16).ok()?,
            uid: uid.parse().ok()?,
            inode: inode.parse().ok()?,
        })
    };
    Ok(table(path)?.lines().skip(1).filter_map(parse).collect())
}

/// The kernel prints addresses as 32-bit words in the machine's order.
fn listed_address(text: &str) -> String {
    let words = (0..text.len() / 8).filter_map(|at| u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok());
    let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    match (<[u8; 4]>::try_from(&bytes[..]), <[u8; 16]>::try_from(&bytes[..])) {
        (Ok(bytes), _) => Ipv4Addr::from(bytes).to_string(),
        (_, Ok(bytes)) => Ipv6Addr::from(bytes).to_string(),
        _ => text.to_owned(),
    }
}

fn ephemeral_ports(root: &Path) -> RangeInclusive<u16> {
    let range = fs::read_to_string(root.join("proc/sys/net/ipv4/ip_local_port_range")).unwrap_or_default();
    let mut range = range.split_whitespace().filter_map(|port| port.parse().ok());
    range.next().unwrap_or(u16::MAX)..=range.next().unwrap_or(u16::MAX)
}

/// The inodes of the calling process's own sockets, asked of the kernel and not of a /proc that may not show this process.
pub fn own_sockets() -> HashSet<u64> {
    // Numbers are given lowest first, so nobody has many open files and a gap as long as this.
    const GAP: u64 = 4096;
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(GAP, |(soft, _)| soft);
    let mut inodes = HashSet::new();
    let (mut fd, mut missing) = (0, 0);
    while fd < limit && missing < GAP {
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: the number is only asked about, in one system call, which writes a whole `stat` or fails with EBADF.
        if unsafe { libc::fstat(fd as i32, stat.as_mut_ptr()) } == 0 {
            missing = 0;
            // SAFETY: the call succeeded, so it has been written.
            let stat = unsafe { stat.assume_init() };
            if stat.st_mode & libc::S_IFMT == libc::S_IFSOCK {
                inodes.insert(stat.st_ino);
            }
        } else {
            missing += 1;
        }
        fd += 1;
    }
    inodes
}

fn socket_inodes(dir: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

/// The net directory of a process in /proc that is in the calling thread's network namespace: /proc/self is not there
/// when /proc is of another PID namespace than the thread.
pub fn proc_net(root: &Path) -> Result<PathBuf, Error> {
    nix::ioctl_none_bad!(socket_namespace, libc::SIOCGSKNS);
    let own = || -> io::Result<u64> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        // SAFETY: the call takes no argument and gives a new descriptor, which the file below owns.
        let namespace = unsafe {
            let fd = socket_namespace(socket.as_raw_fd())?;
            File::from_raw_fd(fd)
        };
        Ok(namespace.metadata()?.ino())
    };
    let own = own().map_err(|source| Error::io("find the network namespace of", Path::new("this thread"), source))?;
    for (_, dir) in pids(root, &[])? {
        if fs::metadata(dir.join("ns/net")).is_ok_and(|namespace| namespace.ino() == own) {
            return Ok(dir.join("net"));
        }
    }
    Err(Error::NoProcess { proc: root.join("proc") })
}

/// Empty if the kernel has no such protocol.
pub fn table(path: &Path) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::io("read", path, source)),
    }
}
