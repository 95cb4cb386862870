//! Listeners for packets that nobody in the client asked for.

use super::{
    outbox::{Outbox, now_ns},
    sockets,
    wire::{Event, ListenProtocol, ListenSpec, Protocol, Received},
};
use nix::{
    errno::Errno,
    net::if_::if_indextoname,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
};
use socket2::{Domain, Socket, Type};
use std::{
    collections::HashMap,
    io::{self, IoSliceMut, PipeReader, PipeWriter, Read},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// The most listeners at a time.
const MAX_LISTENERS: usize = 32;
/// The most connections of a listener that have not sent anything yet.
const MAX_SILENT: usize = 32;
/// How long a new connection may stay silent before it is told without bytes.
const SILENCE: Duration = Duration::from_millis(300);
/// How much of a message is told.
const TOLD: usize = 64;
/// The most events of one listener; a flood must not drown everything else.
const MAX_EVENTS: usize = 10_000;

/// The listeners, by name. Dropping the pipe's end stops the thread.
#[derive(Default)]
pub(super) struct Listeners(Mutex<HashMap<String, PipeWriter>>);

impl Listeners {
    /// Starts a listener and tells when it is bound.
    pub(super) fn start(&self, spec: &ListenSpec, outbox: &Outbox) {
        if let Err(text) = self.try_start(spec, outbox) {
            outbox.error(Some(spec.id.clone()), text);
        }
    }

    fn try_start(&self, spec: &ListenSpec, outbox: &Outbox) -> Result<(), String> {
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if listeners.contains_key(&spec.id) {
            return Err(format!("listen {}: there is a listener of that name; unlisten first", spec.id));
        }
        if listeners.len() >= MAX_LISTENERS {
            return Err(format!("listen {}: {MAX_LISTENERS} listeners are there; end one", spec.id));
        }
        let bound = bind(spec).map_err(|text| format!("listen {}: {text}", spec.id))?;
        let (stopped, stop) = io::pipe().map_err(|error| format!("listen {}: open a pipe: {error}", spec.id))?;
        let local = [&bound.udp, &bound.tcp].into_iter().flatten().filter_map(sockets::local).collect();
        let mut listener = Listener { id: spec.id.clone(), bound, silent: Vec::new(), outbox: outbox.clone(), told: 0 };
        outbox.send(&Event::Listening { id: spec.id.clone(), local });
        thread::Builder::new()
            .name("listener".into())
            .spawn(move || {
                if let Err(error) = listener.run(&stopped) {
                    listener.outbox.error(Some(listener.id.clone()), format!("listen {}: {error}", listener.id));
                }
                let Listener { id, outbox, bound, .. } = listener;
                drop(bound);
                outbox.send(&Event::Unlistened { id });
            })
            .map_err(|error| format!("listen {}: start a thread: {error}", spec.id))?;
        listeners.insert(spec.id.clone(), stop);
        Ok(())
    }

    /// Ends a listener; its thread tells when the sockets are closed.
    pub(super) fn stop(&self, id: &str, outbox: &Outbox) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id).is_none() {
            outbox.error(Some(id.to_owned()), format!("unlisten {id}: no such listener"));
        }
    }
}

struct Bound {
    udp: Option<Socket>,
    tcp: Option<Socket>,
}

fn bind(spec: &ListenSpec) -> Result<Bound, String> {
    let mut address = SocketAddr::new(spec.address, spec.port);
    let mut bound = Bound { udp: None, tcp: None };
    if matches!(spec.protocol, ListenProtocol::Udp | ListenProtocol::Both) {
        let socket = open(address, Type::DGRAM, socket2::Protocol::UDP)?;
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true),
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true),
        }
        .map_err(|errno| format!("ask for packet information: {errno}"))?;
        address.set_port(sockets::local(&socket).map_or(address.port(), |local| local.port()));
        bound.udp = Some(socket);
    }
    if matches!(spec.protocol, ListenProtocol::Tcp | ListenProtocol::Both) {
        let socket = open(address, Type::STREAM, socket2::Protocol::TCP)?;
        socket.listen(64).map_err(|error| format!("listen on {address}/tcp: {error}"))?;
        bound.tcp = Some(socket);
    }
    Ok(bound)
}

fn open(address: SocketAddr, kind: Type, protocol: socket2::Protocol) -> Result<Socket, String> {
    let socket = sockets::open(Domain::for_address(address), kind, protocol)?;
    if address.is_ipv6() {
        socket.set_only_v6(true).map_err(|error| format!("set IPV6_V6ONLY: {error}"))?;
    }
    if kind == Type::STREAM {
        // Connections of an earlier listener in TIME_WAIT are not in the way.
        socket.set_reuse_address(true).map_err(|error| format!("set SO_REUSEADDR: {error}"))?;
    }
    sockets::bind_address(&socket, address)?;
    Ok(socket)
}

struct Listener {
    id: String,
    bound: Bound,
    /// Connections that have not sent anything yet, with the moment they are told anyway.
    silent: Vec<(Socket, Instant)>,
    outbox: Outbox,
    told: usize,
}

impl Listener {
    fn run(&mut self, stopped: &PipeReader) -> io::Result<()> {
        loop {
            if self.wait(stopped)? {
                return Ok(());
            }
            // All sockets are non-blocking: looking at one that is not ready costs a system call and nothing else.
            self.datagrams();
            self.accept();
            self.read_connections();
        }
    }

    /// Waits for something to do; tells whether it is to stop.
    fn wait(&self, stopped: &PipeReader) -> io::Result<bool> {
        let next = self.silent.iter().map(|(_, until)| *until).min();
        let timeout = next.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        let listeners = [&self.bound.udp, &self.bound.tcp];
        fds.extend(listeners.iter().copied().flatten().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.silent.iter().map(|(socket, _)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(fds[0].any().unwrap_or(true))
    }

    fn datagrams(&mut self) {
        while let Some(received) = self.bound.udp.as_ref().and_then(|socket| datagram(&self.id, socket)) {
            self.tell(received);
        }
    }

    fn accept(&mut self) {
        while let Some(Ok((socket, _))) = self.bound.tcp.as_ref().map(Socket::accept) {
            let _ = socket.set_nonblocking(true);
            let _ = socket.set_linger(Some(Duration::ZERO));
            self.silent.push((socket, Instant::now() + SILENCE));
            if self.silent.len() > MAX_SILENT {
                let (oldest, _) = self.silent.remove(0);
                self.tell_connection(&oldest, &[]);
            }
        }
    }

    fn read_connections(&mut self) {
        for (socket, until) in std::mem::take(&mut self.silent) {
            let mut bytes = [0; TOLD];
            match (&socket).read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    self.silent.push((socket, until));
                }
                read => self.tell_connection(&socket, &bytes[..read.unwrap_or(0)]),
            }
        }
    }

    fn tell_connection(&mut self, socket: &Socket, bytes: &[u8]) {
        let received = Received {
            id: self.id.clone(),
            protocol: Protocol::Tcp,
            from: socket.peer_addr().ok().and_then(|address| address.as_socket()),
            to: sockets::local(socket),
            interface: None,
            bytes_hex: hex(bytes),
            at_ns: now_ns(),
        };
        self.tell(received);
    }

    fn tell(&mut self, received: Received) {
        self.told += 1;
        if self.told <= MAX_EVENTS {
            self.outbox.send(&Event::Received(received));
        } else if self.told == MAX_EVENTS + 1 {
            self.outbox.error(Some(self.id.clone()), format!("listen {}: more than {MAX_EVENTS} events", self.id));
        }
    }
}

fn datagram(id: &str, socket: &Socket) -> Option<Received> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut bytes = [0; TOLD];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    let port = sockets::local(socket)?.port();
    let arrived = message.cmsgs().ok().and_then(|mut controls| {
        controls.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some((IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()), info.ipi_ifindex.cast_unsigned()))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some((IpAddr::from(info.ipi6_addr.s6_addr), info.ipi6_ifindex))
            }
            _ => None,
        })
    });
    let from = message.address.and_then(|from| {
        let v4 = from.as_sockaddr_in().map(|from| SocketAddr::from(std::net::SocketAddrV4::from(*from)));
        v4.or_else(|| from.as_sockaddr_in6().map(|from| SocketAddr::from(std::net::SocketAddrV6::from(*from))))
    });
    let length = message.bytes;
    Some(Received {
        id: id.to_owned(),
        protocol: Protocol::Udp,
        from,
        to: arrived.map(|(address, _)| SocketAddr::new(address, port)),
        interface: arrived.and_then(|(_, index)| if_indextoname(index).ok()?.into_string().ok()),
        bytes_hex: hex(&bytes[..length.min(TOLD)]),
        at_ns: now_ns(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
