//! Whether loopback works: a DNS query that the agent sends to itself, over UDP and TCP, IPv4 and IPv6, on a free port and on
//! port 53, where the client's own stub resolvers live.

use super::{
    message::Question,
    sockets,
    wire::{CheckResult, Event, LoopbackCheck, Qtype},
};
use nix::poll::PollFlags;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

/// The time one check may take.
const DEADLINE: Duration = Duration::from_millis(500);
/// For port 53: an address that a stub resolver is not likely to have, so that both can be there.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 53, 53, 53);

/// Makes all checks.
pub(super) fn check(id: String) -> Event {
    let mut checks = Vec::new();
    for address in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
        SocketAddr::from((OTHER, 53)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 53)),
    ] {
        checks.push(one("udp", address, udp));
        checks.push(one("tcp", address, tcp));
    }
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check.result == CheckResult::Failed)
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect();
    // Checks that could not be made prove nothing: at least one must have passed.
    let ok = failed.is_empty() && checks.iter().any(|check| check.result == CheckResult::Passed);
    Event::Loopback { id, ok, detail: failed.join("; "), checks }
}

/// Why a check did not pass.
enum Trouble {
    NotPossible(String),
    Failed(String),
}

fn one(transport: &str, address: SocketAddr, check: fn(SocketAddr, Instant) -> Result<(), Trouble>) -> LoopbackCheck {
    let started = Instant::now();
    let (result, detail) = match check(address, started + DEADLINE) {
        Ok(()) => (CheckResult::Passed, String::new()),
        Err(Trouble::NotPossible(text)) => (CheckResult::NotPossible, text),
        Err(Trouble::Failed(text)) => (CheckResult::Failed, text),
    };
    let port = if address.port() == 0 { "any port".to_owned() } else { format!("port {}", address.port()) };
    let name = format!("{transport} {} {port}", address.ip());
    LoopbackCheck { name, result, detail, took_us: started.elapsed().as_micros() as u64 }
}

fn udp(address: SocketAddr, deadline: Instant) -> Result<(), Trouble> {
    let server = bound(address, Type::DGRAM, Protocol::UDP)?;
    let client =
        sockets::open(Domain::for_address(address), Type::DGRAM, Protocol::UDP).map_err(Trouble::NotPossible)?;
    let to = sockets::local(&server).unwrap_or(address);
    let query = query()?;
    client.connect(&SockAddr::from(to)).map_err(|error| failed("connect", &error))?;
    client.send(&query).map_err(|error| failed("send", &error))?;

    wait(&server, "the query", deadline)?;
    let mut buffer = [0; 512];
    let (received, from) = receive_from(&server, &mut buffer)?;
    server.send_to(&buffer[..received], &SockAddr::from(from)).map_err(|error| failed("send back", &error))?;

    wait(&client, "the echo", deadline)?;
    let received = (&client).read(&mut buffer).map_err(|error| failed("receive the echo", &error))?;
    same(&buffer[..received], &query)
}

fn tcp(address: SocketAddr, deadline: Instant) -> Result<(), Trouble> {
    let listener = bound(address, Type::STREAM, Protocol::TCP)?;
    listener.listen(1).map_err(|error| failed("listen", &error))?;
    let client =
        sockets::open(Domain::for_address(address), Type::STREAM, Protocol::TCP).map_err(Trouble::NotPossible)?;
    let to = sockets::local(&listener).unwrap_or(address);
    let query = query()?;
    match client.connect(&SockAddr::from(to)) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(failed("connect", &error)),
        _ => {}
    }
    wait(&listener, "the connection", deadline)?;
    let (server, _) = listener.accept().map_err(|error| failed("accept", &error))?;
    server.set_nonblocking(true).map_err(|error| failed("accept", &error))?;
    for socket in [&server, &client] {
        // No TIME_WAIT: it would keep port 53 from the next check.
        socket.set_linger(Some(Duration::ZERO)).map_err(|error| failed("set SO_LINGER", &error))?;
    }
    (&client).write_all(&query).map_err(|error| failed("send", &error))?;

    // The query fits into one segment, so it comes in one piece.
    wait(&server, "the query", deadline)?;
    let mut buffer = [0; 512];
    let received = (&server).read(&mut buffer).map_err(|error| failed("receive the query", &error))?;
    (&server).write_all(&buffer[..received]).map_err(|error| failed("send back", &error))?;

    wait(&client, "the echo", deadline)?;
    let received = (&client).read(&mut buffer).map_err(|error| failed("receive the echo", &error))?;
    same(&buffer[..received], &query)
}

fn bound(address: SocketAddr, kind: Type, protocol: Protocol) -> Result<Socket, Trouble> {
    let socket = sockets::open(Domain::for_address(address), kind, protocol).map_err(Trouble::NotPossible)?;
    sockets::bind_address(&socket, address).map_err(Trouble::NotPossible)?;
    Ok(socket)
}

fn query() -> Result<Vec<u8>, Trouble> {
    Question::new("loopback.test", Qtype::A).map(|question| question.bytes).map_err(Trouble::NotPossible)
}

fn wait(socket: &Socket, what: &str, deadline: Instant) -> Result<(), Trouble> {
    match sockets::wait(socket, PollFlags::POLLIN, deadline) {
        Ok(ready) if ready.is_empty() => {
            Err(Trouble::Failed(format!("{what} did not arrive within {} ms", DEADLINE.as_millis())))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(failed("wait", &error)),
    }
}

fn receive_from(socket: &Socket, buffer: &mut [u8; 512]) -> Result<(usize, SocketAddr), Trouble> {
    use nix::sys::socket::{SockaddrStorage, recvfrom};
    use std::os::fd::AsRawFd;
    let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), buffer)
        .map_err(|errno| failed("receive the query", &io::Error::from(errno)))?;
    let from = from.and_then(|from| {
        let v4 = from.as_sockaddr_in().map(|from| SocketAddr::new(IpAddr::V4(from.ip()), from.port()));
        v4.or_else(|| from.as_sockaddr_in6().map(|from| SocketAddr::new(IpAddr::V6(from.ip()), from.port())))
    });
    from.map(|from| (length, from)).ok_or_else(|| Trouble::Failed("receive the query: it has no sender".into()))
}

fn same(echo: &[u8], query: &[u8]) -> Result<(), Trouble> {
    if echo == query { Ok(()) } else { Err(Trouble::Failed("another message came back".into())) }
}

fn failed(what: &str, error: &io::Error) -> Trouble {
    Trouble::Failed(format!("{what}: {error}"))
}
