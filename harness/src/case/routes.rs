//! Routes that the client's network pushes, as the client's own software takes them: a DHCP client those of option 121
//! (RFC 3442; 249 in older clients of Microsoft's), the kernel those of router advertisements (RFC 4191).
//!
//! The router answers for what is said to be on the link, so that what is sent there is seen to leave.

use crate::{
    sandbox::Node,
    scenario::PushedRoutes,
    testbed::{Topology, plan::*},
};
use nlink::{
    Connection, Route,
    netlink::{
        route::{Ipv4Route, Ipv6Route},
        types::route::{RouteProtocol, RouteScope},
    },
};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A change of routes that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}: {source}")]
pub(super) struct RoutesError {
    action: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(action: String) -> impl FnOnce(E) -> RoutesError {
    move |source| RoutesError { action, source: source.into() }
}

/// Each half of all addresses, which is more than a default route, and the resolvers that probes and settings name.
const V4: [(Ipv4Addr, u8); 4] =
    [(Ipv4Addr::UNSPECIFIED, 1), (Ipv4Addr::new(128, 0, 0, 0), 1), (PUBLIC_V4, 32), (CUSTOM_V4, 32)];
const V6: [(Ipv6Addr, u8); 4] =
    [(Ipv6Addr::UNSPECIFIED, 1), (Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0), 1), (PUBLIC_V6, 128), (CUSTOM_V6, 128)];
/// Public networks that the LAN claims for itself.
const LAN_PREFIXES: [(Ipv4Addr, u8); 2] = [(Ipv4Addr::new(9, 9, 9, 0), 24), (Ipv4Addr::new(1, 1, 1, 0), 24)];

/// Adds them, or takes all of them away.
pub(super) async fn push(topology: &Topology, routes: PushedRoutes) -> Result<(), RoutesError> {
    match routes {
        PushedRoutes::Dhcp => in_client(topology, true, dhcp()).await,
        PushedRoutes::RouterAdvertisement => in_client(topology, true, advertised()).await,
        PushedRoutes::LanPrefix => {
            answer_for_prefixes(&topology.router, true).await?;
            in_client(topology, true, prefixes()).await
        }
        PushedRoutes::All => {
            answer_for_prefixes(&topology.router, true).await?;
            in_client(topology, true, all()).await
        }
        PushedRoutes::Withdrawn => {
            in_client(topology, false, all()).await?;
            answer_for_prefixes(&topology.router, false).await
        }
    }
}

enum Pushed {
    V4(Ipv4Route, String),
    V6(Ipv6Route, String),
}

fn dhcp() -> Vec<Pushed> {
    let route = |(network, length): (Ipv4Addr, u8)| {
        let route = Ipv4Route::from_addr(network, length).gateway(LAN_V4).dev(UPLINK).protocol(RouteProtocol::Dhcp);
        Pushed::V4(route, format!("{network}/{length} via {LAN_V4}"))
    };
    V4.into_iter().map(route).collect()
}

fn advertised() -> Vec<Pushed> {
    let route = |(network, length): (Ipv6Addr, u8)| {
        let route =
            Ipv6Route::from_addr(network, length).gateway(LAN_LINK_LOCAL).dev(UPLINK).protocol(RouteProtocol::Ra);
        Pushed::V6(route, format!("{network}/{length} via {LAN_LINK_LOCAL}"))
    };
    V6.into_iter().map(route).collect()
}

fn prefixes() -> Vec<Pushed> {
    let route = |(network, length): (Ipv4Addr, u8)| {
        let route =
            Ipv4Route::from_addr(network, length).dev(UPLINK).scope(RouteScope::Link).protocol(RouteProtocol::Dhcp);
        Pushed::V4(route, format!("{network}/{length} on the link"))
    };
    LAN_PREFIXES.into_iter().map(route).collect()
}

fn all() -> Vec<Pushed> {
    dhcp().into_iter().chain(advertised()).chain(prefixes()).collect()
}

async fn in_client(topology: &Topology, add: bool, routes: Vec<Pushed>) -> Result<(), RoutesError> {
    let work = topology.client.run(move || async move {
        let connection = Connection::<Route>::new().map_err(failed("open a netlink socket".into()))?;
        for route in routes {
            match route {
                Pushed::V4(route, words) if add => {
                    connection.replace_route(route).await.map_err(failed(format!("add the route {words}")))?;
                }
                Pushed::V6(route, words) if add => {
                    connection.replace_route(route).await.map_err(failed(format!("add the route {words}")))?;
                }
                Pushed::V4(route, words) => {
                    let removed = connection.del_route(route).await;
                    removed.or_else(was_gone).map_err(failed(format!("remove the route {words}")))?;
                }
                Pushed::V6(route, words) => {
                    let removed = connection.del_route(route).await;
                    removed.or_else(was_gone).map_err(failed(format!("remove the route {words}")))?;
                }
            }
        }
        Ok(())
    });
    work.await.map_err(failed("reach the client".into()))?
}

/// A route that was never pushed, or that the subject took away, need not be taken away again.
fn was_gone(error: nlink::Error) -> Result<(), nlink::Error> {
    if error.errno() == Some(nix::libc::ESRCH) || error.is_not_found() { Ok(()) } else { Err(error) }
}

/// Proxy ARP, at once: the router has a route to what the client takes for its neighbours.
async fn answer_for_prefixes(router: &Node, answer: bool) -> Result<(), RoutesError> {
    let work = router.run(move || async move {
        let value = if answer { "1" } else { "0" };
        for (key, value) in [("neigh/lan0/proxy_delay", "0"), ("conf/lan0/proxy_arp", value)] {
            let path = format!("/proc/sys/net/ipv4/{key}");
            std::fs::write(&path, value).map_err(failed(format!("write {value} to {path}")))?;
        }
        Ok(())
    });
    work.await.map_err(failed("reach the router".into()))?
}
