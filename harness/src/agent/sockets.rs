//! Sockets as a spec describes them, waiting with a deadline, and the error queue. No protocol.

use super::{
    trial::errno_name,
    wire::{Bind, Refusal, RefusalOrigin},
};
use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
    time::Instant,
};

/// A non-blocking socket towards `server`, bound and marked. The error is a reason why the attempt is not possible.
pub(super) fn towards(
    server: SocketAddr,
    kind: Type,
    protocol: Protocol,
    bind: &Bind,
    mark: Option<u32>,
) -> Result<Socket, String> {
    let socket = open(Domain::for_address(server), kind, protocol)?;
    match (bind, server) {
        // A link-local source is on the same link as the link-local server.
        (Bind::Source(IpAddr::V6(source)), SocketAddr::V6(server)) if source.is_unicast_link_local() => {
            bind_address(&socket, SocketAddrV6::new(*source, 0, 0, server.scope_id()).into())?;
        }
        _ => bind_to(&socket, bind)?,
    }
    if let Some(mark) = mark {
        socket.set_mark(mark).map_err(|error| format!("set packet mark {mark:#x}: {error}"))?;
    }
    Ok(socket)
}

/// A non-blocking socket.
pub(super) fn open(domain: Domain, kind: Type, protocol: Protocol) -> Result<Socket, String> {
    let text = |error| format!("open a {kind:?} socket: {error}");
    let socket = Socket::new(domain, kind, Some(protocol)).map_err(text)?;
    socket.set_nonblocking(true).map_err(text)?;
    Ok(socket)
}

/// Binds a socket to a device or an address.
pub(super) fn bind_to(socket: &Socket, bind: &Bind) -> Result<(), String> {
    match bind {
        Bind::None => Ok(()),
        Bind::Device(name) => {
            socket.bind_device(Some(name.as_bytes())).map_err(|error| format!("bind to device {name}: {error}"))
        }
        Bind::Source(address) => bind_address(socket, SocketAddr::new(*address, 0)),
        Bind::Address(name, address) => {
            bind_to(socket, &Bind::Device(name.clone()))?;
            // A socket of an earlier attempt that is kept for late answers may have the port still.
            socket.set_reuse_address(true).map_err(|error| format!("share {address}: {error}"))?;
            bind_address(socket, *address)
        }
    }
}

/// Binds a socket to an address and port.
pub(super) fn bind_address(socket: &Socket, address: SocketAddr) -> Result<(), String> {
    socket.bind(&SockAddr::from(address)).map_err(|error| format!("bind to {address}: {error}"))
}

/// The socket's own address.
pub(super) fn local(socket: &Socket) -> Option<SocketAddr> {
    socket.local_addr().ok()?.as_socket()
}

/// Waits until one of `events` or an error is there; empty when the deadline has passed.
pub(super) fn wait(socket: &impl AsFd, events: PollFlags, deadline: Instant) -> io::Result<PollFlags> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last part of a millisecond is not spent in a busy loop.
        let timeout = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(socket.as_fd(), events)];
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(0) if left.is_zero() => return Ok(PollFlags::empty()),
            Ok(0) => {}
            Ok(_) => return Ok(fds[0].revents().unwrap_or(PollFlags::POLLERR)),
        }
    }
}

/// Asks for ICMP errors with their details (IP_RECVERR, IPV6_RECVERR; ip(7)).
pub(super) fn want_errors(socket: &Socket, address: SocketAddr) -> Result<(), String> {
    match address {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4RecvErr, &true),
        // A mapped server (::ffff:192.0.2.1) is reached over IPv4, which has a switch of its own.
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvErr, &true)
            .and_then(|()| setsockopt(socket, sockopt::Ipv4RecvErr, &true)),
    }
    .map_err(|errno| format!("ask for ICMP errors: {errno}"))
}

/// Takes one entry from the error queue: a refusal, or the kernel's own error.
pub(super) fn queued_error(socket: &Socket) -> Option<Refusal> {
    let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let mut payload = [0; 512];
    let mut parts = [IoSliceMut::new(&mut payload)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, from) => {
            Some(refusal(&error, from.map(|from| IpAddr::from(u32::from_be(from.sin_addr.s_addr).to_be_bytes()))))
        }
        ControlMessageOwned::Ipv6RecvErr(error, from) => {
            Some(refusal(&error, from.map(|from| IpAddr::from(from.sin6_addr.s6_addr).to_canonical())))
        }
        _ => None,
    })
}

fn refusal(error: &libc::sock_extended_err, from: Option<IpAddr>) -> Refusal {
    let how = errno_name(error.ee_errno.cast_signed());
    let from = from.filter(|from| !from.is_unspecified());
    let described = Errno::from_raw(error.ee_errno.cast_signed()).desc();
    let (text, origin) = match error.ee_origin {
        libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => (
            format!(
                "{described}: ICMP type {} code {} from {}",
                error.ee_type,
                error.ee_code,
                from.map_or_else(|| "an unknown sender".into(), |from| from.to_string())
            ),
            RefusalOrigin::Icmp { icmp_type: error.ee_type, code: error.ee_code, from },
        ),
        _ => (described.to_owned(), RefusalOrigin::Local),
    };
    Refusal { how, text, origin }
}
