//! Asks for a lease offer and takes none: DISCOVER and OFFER (RFC 2131), SOLICIT and ADVERTISE (RFC 8415).

use super::{
    crafted::own_mac,
    endpoint::{MacAddress, interface_index},
    sockets,
    wire::{Bind, DhcpVersion, Event},
};
use dhcproto::{Decodable, Decoder, Encodable, v4, v6};
use nix::poll::PollFlags;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::{Duration, Instant},
};

/// Longest wait for an offer that a command can ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
const SERVERS_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// An address offered, and by whom.
struct Offer {
    address: IpAddr,
    server: Option<IpAddr>,
}

/// Asks once.
pub(super) fn ask(id: String, interface: &str, version: DhcpVersion, timeout_ms: u64) -> Event {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms).min(MAX_TIMEOUT);
    let mut tried = false;
    let result = match version {
        DhcpVersion::V4 => discover(interface, deadline, &mut tried),
        DhcpVersion::V6 => solicit(interface, deadline, &mut tried),
    };
    match result {
        Ok(Offer { address, server }) => {
            Event::Dhcp { id, tried, offered: Some(address), server, detail: "offered".into() }
        }
        Err(text) => {
            let detail = format!("ask for a DHCP{version:?} offer on {interface}: {text}");
            Event::Dhcp { id, tried, offered: None, server: None, detail }
        }
    }
}

fn discover(interface: &str, deadline: Instant, tried: &mut bool) -> Result<Offer, String> {
    let mac = own_mac(interface)?;
    let socket = bound(interface, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)))?;
    socket.set_broadcast(true).map_err(|error| format!("set SO_BROADCAST: {error}"))?;

    let any = Ipv4Addr::UNSPECIFIED;
    let mut message = v4::Message::new(any, any, any, any, &mac.0);
    let xid = message.xid();
    // The answer goes to everybody: there is no address yet to send it to.
    message.set_flags(v4::Flags::default().set_broadcast());
    let options = message.opts_mut();
    options.insert(v4::DhcpOption::MessageType(v4::MessageType::Discover));
    options.insert(v4::DhcpOption::ClientIdentifier([&[1], &mac.0[..]].concat()));
    options.insert(v4::DhcpOption::ParameterRequestList(vec![
        v4::OptionCode::SubnetMask,
        v4::OptionCode::Router,
        v4::OptionCode::DomainNameServer,
    ]));
    let bytes = message.to_vec().map_err(|error| format!("encode the message: {error}"))?;
    let to = SocketAddr::from((Ipv4Addr::BROADCAST, 67));
    exchange(&socket, &bytes, to, deadline, tried, |answer| {
        let answer = v4::Message::decode(&mut Decoder::new(answer)).ok()?;
        let offer = answer.xid() == xid && answer.opts().msg_type() == Some(v4::MessageType::Offer);
        let server = answer.opts().get(v4::OptionCode::ServerIdentifier).and_then(|option| match option {
            v4::DhcpOption::ServerIdentifier(server) => Some(IpAddr::V4(*server)),
            _ => None,
        });
        offer.then(|| Offer { address: IpAddr::V4(answer.yiaddr()), server })
    })
}

fn solicit(interface: &str, deadline: Instant, tried: &mut bool) -> Result<Offer, String> {
    let MacAddress(mac) = own_mac(interface)?;
    let index = interface_index(interface).map_err(|error| error.to_string())?;
    let socket = bound(interface, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 546)))?;

    let mut message = v6::Message::new(v6::MessageType::Solicit);
    let xid = message.xid();
    let options = message.opts_mut();
    // DUID-LL, Ethernet (RFC 8415, section 11.4).
    options.insert(v6::DhcpOption::ClientId([&[0, 3, 0, 1], &mac[..]].concat()));
    options.insert(v6::DhcpOption::ElapsedTime(0));
    options.insert(v6::DhcpOption::IANA(v6::IANA {
        id: u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]),
        t1: 0,
        t2: 0,
        opts: v6::DhcpOptions::new(),
    }));
    let bytes = message.to_vec().map_err(|error| format!("encode the message: {error}"))?;
    let to = SocketAddrV6::new(SERVERS_V6, 547, 0, index).into();
    exchange(&socket, &bytes, to, deadline, tried, |answer| {
        let answer = v6::Message::decode(&mut Decoder::new(answer)).ok()?;
        let advertise = answer.xid() == xid && answer.msg_type() == v6::MessageType::Advertise;
        let address = answer.opts().iter().find_map(|option| match option {
            v6::DhcpOption::IANA(association) => association.opts.iter().find_map(|option| match option {
                v6::DhcpOption::IAAddr(address) => Some(address.addr),
                _ => None,
            }),
            _ => None,
        })?;
        advertise.then_some(Offer { address: IpAddr::V6(address), server: None })
    })
}

fn bound(interface: &str, address: SocketAddr) -> Result<Socket, String> {
    let socket = sockets::open(Domain::for_address(address), Type::DGRAM, Protocol::UDP)?;
    // The client's own DHCP client may hold the port as well.
    socket.set_reuse_address(true).map_err(|error| format!("set SO_REUSEADDR: {error}"))?;
    if address.is_ipv6() {
        socket.set_only_v6(true).map_err(|error| format!("set IPV6_V6ONLY: {error}"))?;
    }
    sockets::bind_to(&socket, &Bind::Device(interface.to_owned()))?;
    sockets::bind_address(&socket, address)?;
    Ok(socket)
}

fn exchange(
    socket: &Socket,
    bytes: &[u8],
    to: SocketAddr,
    deadline: Instant,
    tried: &mut bool,
    offer: impl Fn(&[u8]) -> Option<Offer>,
) -> Result<Offer, String> {
    *tried = true;
    socket.send_to(bytes, &SockAddr::from(to)).map_err(|error| format!("send to {to}: {error}"))?;
    let mut buffer = vec![0; 65_535];
    loop {
        let ready = sockets::wait(socket, PollFlags::POLLIN, deadline).map_err(|error| format!("wait: {error}"))?;
        if ready.is_empty() {
            return Err("no offer came before the deadline".into());
        }
        let mut reader = socket;
        if let Ok(length) = reader.read(&mut buffer)
            && let Some(offer) = offer(&buffer[..length])
        {
            return Ok(offer);
        }
    }
}
