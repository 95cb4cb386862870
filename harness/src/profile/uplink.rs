//! The uplink as a profile's own software gets it: taken away from the testbed, which configured it at first, and awaited until
//! it has the plan's addresses and a way out again, from a lease and from router advertisements.

use super::service::ServiceError;
use crate::testbed::plan::{CLIENT_ULA, CLIENT_V4, CLIENT_V6, UPLINK};
use futures::StreamExt;
use nix::errno::Errno;
use nlink::{
    Connection, Route, RtnetlinkGroup,
    netlink::route::{Ipv4Route, Ipv6Route},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fs, io,
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr},
    os::fd::OwnedFd,
};

/// The addresses that the client has in every profile.
const ADDRESSES: [IpAddr; 3] = [IpAddr::V4(CLIENT_V4), IpAddr::V6(CLIENT_V6), IpAddr::V6(CLIENT_ULA)];

/// Takes addresses and ways out from the uplink, as on a link that nobody has configured. To be called inside the client.
pub(super) async fn clear() -> Result<(), ServiceError> {
    clear_here(false).await.map_err(|source| ServiceError::Uplink { action: "clear", source })
}

/// As [`clear()`], with the address that the kernel itself gave.
pub(super) async fn clear_wholly() -> Result<(), ServiceError> {
    clear_here(true).await.map_err(|source| ServiceError::Uplink { action: "clear", source })
}

async fn clear_here(link_local: bool) -> Result<(), nlink::Error> {
    let connection = Connection::<Route>::new()?;
    let index = index()?;
    for route in connection.get_routes().await? {
        let by_uplink = route.oif() == Some(index) && route.is_default();
        match route.gateway() {
            Some(IpAddr::V4(via)) if by_uplink => {
                let unspecified = std::net::Ipv4Addr::UNSPECIFIED;
                let route = Ipv4Route::from_addr(unspecified, 0).gateway(*via).dev_index(index);
                connection.del_route(route).await?;
            }
            Some(IpAddr::V6(via)) if by_uplink => {
                let route = Ipv6Route::from_addr(Ipv6Addr::UNSPECIFIED, 0).gateway(*via).dev_index(index);
                connection.del_route(route).await?;
            }
            _ => {}
        }
    }
    for address in connection.get_addresses_by_name(UPLINK).await? {
        let Some(ip) = address.address() else { continue };
        if link_local || !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            connection.del_address(UPLINK, *ip, address.prefix_len()).await?;
        }
    }
    Ok(())
}

/// Has the kernel take router advertisements, and make the plan's addresses of their prefixes. To be called inside the client.
pub(super) async fn accept_advertisements() -> Result<(), ServiceError> {
    // 2: also where packets are passed on.
    for (key, value) in [("accept_ra", "2"), ("autoconf", "1"), ("router_solicitations", "3")] {
        let path = format!("/proc/sys/net/ipv6/conf/{UPLINK}/{key}");
        fs::write(&path, value).map_err(|source| ServiceError::File { action: "write", path: path.into(), source })?;
    }
    // Setting it asks the router too.
    set_token(interface_identifier()).map_err(|errno| ServiceError::Uplink {
        action: "set the interface identifier of",
        source: nlink::Error::from_errno_with_context(errno as i32, "RTM_SETLINK"),
    })
}

/// The last half of the plan's addresses.
pub(super) fn interface_identifier() -> Ipv6Addr {
    let segments = CLIENT_V6.segments();
    Ipv6Addr::new(0, 0, 0, 0, segments[4], segments[5], segments[6], segments[7])
}

/// Returns when the uplink has the plan's addresses and one of its own link, all of which may be used, and a way out for both
/// families. To be called inside the client.
pub(super) async fn configured() -> Result<(), nlink::Error> {
    let listener = Connection::<Route>::new()?;
    listener.subscribe(&[
        RtnetlinkGroup::Ipv4Addr,
        RtnetlinkGroup::Ipv6Addr,
        RtnetlinkGroup::Ipv4Route,
        RtnetlinkGroup::Ipv6Route,
    ])?;
    let mut events = listener.into_events().await;
    let connection = Connection::<Route>::new()?;
    while !is_configured(&connection).await? {
        match events.next().await {
            Some(event) => drop(event?),
            None => return Err(nlink::Error::invalid_message("notifications ended")),
        }
    }
    Ok(())
}

async fn is_configured(connection: &Connection<Route>) -> Result<bool, nlink::Error> {
    let addresses = connection.get_addresses_by_name(UPLINK).await?;
    let has = |wanted: &IpAddr| addresses.iter().any(|address| address.address() == Some(wanted));
    let is_of_the_link = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let of_the_link = addresses.iter().filter_map(|address| address.address()).any(is_of_the_link);
    // Who asks a DHCPv6 server while the address of the link is tentative is told that there is no address to ask from.
    let tentative = addresses.iter().any(|address| address.is_tentative());
    if !ADDRESSES.iter().all(has) || !of_the_link || tentative {
        return Ok(false);
    }
    let index = index()?;
    let routes = connection.get_routes().await?;
    let leads_out =
        |v6: bool| routes.iter().any(|route| route.is_default() && route.oif() == Some(index) && route.is_ipv6() == v6);
    Ok(leads_out(false) && leads_out(true))
}

fn index() -> Result<u32, nlink::Error> {
    nix::net::if_::if_nametoindex(UPLINK)
        .map_err(|errno| nlink::Error::from_errno_with_context(errno as i32, "if_nametoindex"))
}

/// What the kernel makes addresses of advertised prefixes with (ip-token(8)); nlink 0.33 has no call for it.
fn set_token(token: Ipv6Addr) -> Result<(), Errno> {
    const IFLA_AF_SPEC: u16 = 26;
    const IFLA_INET6_TOKEN: u16 = 7;
    const NESTED: u16 = 1 << 15;
    let attribute = |kind: u16, value: &[u8]| {
        let mut bytes = Vec::new();
        bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes
    };
    let token = attribute(IFLA_INET6_TOKEN, &token.octets());
    let family = attribute(libc::AF_INET6 as u16 | NESTED, &token);
    let attributes = attribute(IFLA_AF_SPEC | NESTED, &family);
    // struct ifinfomsg: family, padding, type, index, flags, change.
    let mut body = vec![0; 4];
    body.extend(nix::net::if_::if_nametoindex(UPLINK)?.to_ne_bytes());
    body.extend([0; 8]);
    body.extend(attributes);
    // struct nlmsghdr: length, type, flags, sequence, port.
    let mut request = Vec::new();
    request.extend(((16 + body.len()) as u32).to_ne_bytes());
    request.extend(libc::RTM_SETLINK.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    let exchange = || -> io::Result<[u8; 64]> {
        let netlink = Protocol::from(libc::NETLINK_ROUTE);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), Some(netlink))?;
        let mut socket = fs::File::from(OwnedFd::from(socket));
        socket.write_all(&request)?;
        let mut answer = [0; 64];
        let _ = socket.read(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    // struct nlmsgerr follows the header: zero, or the negative of an error's number.
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(Errno::from_raw(-error)),
    }
}
