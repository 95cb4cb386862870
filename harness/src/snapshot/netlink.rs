//! Whole dumps over netlink, as the kernel sent them: a snapshot must not lose an attribute because a library has no field
//! for it, so the messages are read raw and every attribute is either shown or left out by name. Only dumps and questions;
//! nothing here changes anything.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, connect, recv, send, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use socket2::{Domain, Protocol, Socket, Type};

use super::Error;

/// The kernel answers a dump at once; if it does not, something is wrong with it.
const DEADLINE: Duration = Duration::from_secs(5);
/// A dump that something else changed meanwhile is marked by the kernel and must be read again (netlink(7), NLM_F_DUMP_INTR).
const ATTEMPTS: usize = 16;

const HEADER: usize = 16;

/// One message of a dump: what follows the netlink header.
pub struct Message {
    pub body: Vec<u8>,
}

/// A netlink socket in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Links, addresses, routes, rules.
    pub fn route() -> Result<Self, Error> {
        Self::open(libc::NETLINK_ROUTE, "open a routing netlink socket")
    }

    /// nftables.
    pub fn netfilter() -> Result<Self, Error> {
        Self::open(libc::NETLINK_NETFILTER, "open a netfilter netlink socket")
    }

    /// Sockets.
    pub fn sockets() -> Result<Self, Error> {
        Self::open(libc::NETLINK_SOCK_DIAG, "open a socket-diagnosis netlink socket")
    }

    /// IPsec. Fails with EPROTONOSUPPORT on a kernel without it.
    pub fn xfrm() -> Result<Self, Error> {
        Self::open(libc::NETLINK_XFRM, "open an XFRM netlink socket")
    }

    /// Families without a protocol number of their own.
    pub fn generic() -> Result<Self, Error> {
        Self::open(libc::NETLINK_GENERIC, "open a generic netlink socket")
    }

    fn open(protocol: libc::c_int, action: &'static str) -> Result<Self, Error> {
        let open = || -> Result<OwnedFd, Errno> {
            let socket: OwnedFd =
                Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))
                    .map_err(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))?
                    .into();
            connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(DEADLINE.as_secs() as i64))?;
            Ok(socket)
        };
        let socket = open().map_err(|errno| Error::netlink(action, errno))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; 256 * 1024] })
    }

    /// Every object of a kind: `kind` is the GET message, `body` its fixed header and attributes; `action` names it in errors.
    pub fn dump(&mut self, action: &'static str, kind: u16, body: &[u8]) -> Result<Vec<Message>, Error> {
        for _ in 0..ATTEMPTS {
            if let Some(messages) = self.dump_once(kind, body).map_err(|errno| Error::netlink(action, errno))? {
                return Ok(messages);
            }
        }
        Err(Error::Restless { action, attempts: ATTEMPTS })
    }

    /// One object: the kernel's answer to a GET message without a dump.
    pub fn ask(&mut self, action: &'static str, kind: u16, body: &[u8]) -> Result<Message, Error> {
        // With an acknowledgement the answer has an end, as a dump has.
        let answer = self.send(kind, libc::NLM_F_ACK, body).and_then(|()| self.receive());
        let messages = answer.map_err(|errno| Error::netlink(action, errno))?;
        messages.into_iter().flatten().next().ok_or(Error::netlink(action, Errno::ENODATA))
    }

    /// `None` if the kernel says that the list changed while it was read.
    fn dump_once(&mut self, kind: u16, body: &[u8]) -> Result<Option<Vec<Message>>, Errno> {
        self.send(kind, libc::NLM_F_DUMP, body)?;
        self.receive()
    }

    fn send(&mut self, kind: u16, flags: libc::c_int, body: &[u8]) -> Result<(), Errno> {
        self.sequence += 1;
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(body);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty()).map(drop)
    }

    /// The messages up to the end of the list or the acknowledgement.
    fn receive(&mut self) -> Result<Option<Vec<Message>>, Errno> {
        let mut messages = Vec::new();
        let mut steady = true;
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC)?;
            let mut rest = self.buffer.get(..length).ok_or(Errno::EMSGSIZE)?;
            while rest.len() >= HEADER {
                let size = number(&rest[..4]) as usize;
                let message = rest.get(..size).filter(|_| size >= HEADER).ok_or(Errno::EBADMSG)?;
                rest = &rest[size.next_multiple_of(4).min(rest.len())..];
                let kind = u16::from_ne_bytes([message[4], message[5]]);
                let flags = i32::from(u16::from_ne_bytes([message[6], message[7]]));
                // What is left of an earlier dump that ended in an error.
                if number(&message[8..12]) != self.sequence {
                    continue;
                }
                steady &= flags & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(kind) {
                    libc::NLMSG_NOOP => {}
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        let code = message.get(HEADER..HEADER + 4).map_or(0, |code| number(code) as i32);
                        return if code == 0 { Ok(steady.then_some(messages)) } else { Err(Errno::from_raw(-code)) };
                    }
                    libc::NLMSG_OVERRUN => return Err(Errno::ENOBUFS),
                    _ => messages.push(Message { body: message[HEADER..].to_vec() }),
                }
            }
        }
    }
}

/// The attributes in `bytes`: number without its flag bits, and payload.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let size = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & 0x3fff;
        let payload = rest.get(4..size)?;
        rest = &rest[size.next_multiple_of(4).min(rest.len())..];
        Some((kind, payload))
    })
}

/// The payload of the first attribute of this number.
pub fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, payload)| (kind == wanted).then_some(payload))
}

/// An attribute on the wire.
pub fn encode(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 8);
    bytes.extend(((4 + payload.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Up to 4 bytes as a number in the machine's order; what is longer counts as its first 4.
pub fn number(payload: &[u8]) -> u32 {
    match *payload {
        [a, b, c, d, ..] => u32::from_ne_bytes([a, b, c, d]),
        [a, b, ..] => u32::from(u16::from_ne_bytes([a, b])),
        [a] => u32::from(a),
        [] => 0,
    }
}

/// Up to 4 bytes as a number in network order, as nftables sends them.
pub fn number_be(payload: &[u8]) -> u32 {
    payload.iter().take(4).fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// A string attribute without its final NUL.
pub fn string(payload: &[u8]) -> &[u8] {
    payload.strip_suffix(&[0]).unwrap_or(payload)
}
