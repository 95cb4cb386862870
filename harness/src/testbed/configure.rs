//! What a node is to have: kernel settings, links, interfaces that are up, addresses, routes. One conversation with the
//! kernel for each node, so that a case's network is there in milliseconds.

use super::{
    plan::LAN_LINK_LOCAL,
    topology::{Link, TopologyError},
};
use crate::sandbox::{Node, SandboxError};
use futures::StreamExt;
use nlink::{
    Connection, Route, RtnetlinkGroup,
    netlink::{
        addr::{Ipv4Address, Ipv6Address},
        batch::Batch,
        link::VethLink,
        route::{Ipv4Route, Ipv6Route},
        types::route::RouteType,
    },
};
use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// An address, or a destination, with the length of its prefix in bits.
pub(super) type Network = (IpAddr, u8);

pub(super) fn v4(address: Ipv4Addr, length: u8) -> Network {
    (address.into(), length)
}

pub(super) fn v6(address: Ipv6Addr, length: u8) -> Network {
    (address.into(), length)
}

/// Makes a machine that passes packets on.
pub(super) const FORWARD: [(&str, &str); 2] = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];

/// Interfaces that a node is to have up, their addresses, and routes.
pub(super) struct Wanted {
    interfaces: Vec<(&'static str, Vec<Network>)>,
    routes: Vec<Hop>,
}

/// A route: through a neighbour, or to this very machine.
struct Hop {
    destination: Network,
    via: Option<IpAddr>,
    device: &'static str,
}

impl Wanted {
    pub(super) fn new() -> Self {
        Self { interfaces: Vec::new(), routes: Vec::new() }
    }

    pub(super) fn interface(mut self, name: &'static str, addresses: impl Into<Vec<Network>>) -> Self {
        self.interfaces.push((name, addresses.into()));
        self
    }

    pub(super) fn via(mut self, destination: Network, via: impl Into<IpAddr>, device: &'static str) -> Self {
        self.routes.push(Hop { destination, via: Some(via.into()), device });
        self
    }

    pub(super) fn local(mut self, destination: Network) -> Self {
        self.routes.push(Hop { destination, via: None, device: "lo" });
        self
    }

    pub(super) async fn apply(self, node: &Node, name: &'static str) -> Result<(), TopologyError> {
        node.run(move || self.apply_here(name)).await?
    }

    async fn apply_here(self, node: &'static str) -> Result<(), TopologyError> {
        let failed = |action: &str| {
            let action = action.to_owned();
            move |source| TopologyError::Netlink { action, node, source }
        };
        let connection = Connection::<Route>::new().map_err(failed("open a netlink socket"))?;
        let mut batch = connection.batch();
        let mut actions = Vec::new();
        for (interface, addresses) in self.interfaces {
            let index = index_of(interface).map_err(failed(&format!("find {interface}")))?;
            connection.set_link_up_by_index(index).await.map_err(failed(&format!("bring {interface} up")))?;
            for (address, length) in addresses {
                actions.push(format!("add {address}/{length} to {interface}"));
                batch = match address {
                    IpAddr::V4(v4) => batch.add_address(Ipv4Address::with_index(index, v4, length), index),
                    IpAddr::V6(v6) => batch.add_address(Ipv6Address::with_index(index, v6, length).nodad(), index),
                };
            }
        }
        let (batched, single): (Vec<Hop>, Vec<Hop>) = self.routes.into_iter().partition(Hop::is_found_by_gateway);
        for hop in batched {
            let (destination, length) = hop.destination;
            actions.push(format!("add the route {destination}/{length}"));
            batch = hop.add_to(batch);
        }
        if !actions.is_empty() {
            let results = batch.execute().await.map_err(failed("add addresses and routes"))?;
            if results.len() != actions.len() {
                let source = nlink::Error::invalid_message(format!("{} answers to {}", results.len(), actions.len()));
                return Err(failed("add addresses and routes")(source));
            }
            if let Some((at, error)) = results.errors().next() {
                return Err(failed(&actions[at])(nlink::Error::invalid_message(error.to_string())));
            }
        }
        for hop in single {
            let (destination, length) = hop.destination;
            hop.add(&connection).await.map_err(failed(&format!("add the route {destination}/{length}")))?;
        }
        Ok(())
    }
}

impl Hop {
    /// Whether the kernel finds the device by itself, from the gateway's address. nlink 0.33 leaves the device out of a batch's
    /// routes, so that the others cannot be in one.
    fn is_found_by_gateway(&self) -> bool {
        match self.via {
            Some(IpAddr::V4(_)) => true,
            Some(IpAddr::V6(via)) => !via.is_unicast_link_local(),
            None => false,
        }
    }

    fn add_to<'a>(&self, batch: Batch<'a>) -> Batch<'a> {
        let length = self.destination.1;
        match (self.destination.0, self.via) {
            (IpAddr::V4(to), Some(IpAddr::V4(via))) => batch.add_route(Ipv4Route::from_addr(to, length).gateway(via)),
            (IpAddr::V6(to), Some(IpAddr::V6(via))) => batch.add_route(Ipv6Route::from_addr(to, length).gateway(via)),
            _ => batch,
        }
    }

    async fn add(&self, connection: &Connection<Route>) -> Result<(), nlink::Error> {
        let index = index_of(self.device)?;
        let kind = if self.via.is_none() { RouteType::Local } else { RouteType::Unicast };
        let length = self.destination.1;
        match self.destination.0 {
            IpAddr::V4(to) => {
                let route = Ipv4Route::from_addr(to, length).dev_index(index).route_type(kind);
                match self.via {
                    Some(IpAddr::V4(via)) => connection.add_route(route.gateway(via)).await,
                    _ => connection.add_route(route).await,
                }
            }
            IpAddr::V6(to) => {
                let route = Ipv6Route::from_addr(to, length).dev_index(index).route_type(kind);
                match self.via {
                    Some(IpAddr::V6(via)) => connection.add_route(route.gateway(via)).await,
                    _ => connection.add_route(route).await,
                }
            }
        }
    }
}

/// Waits until interfaces have the link-local addresses that the kernel gives them: only then does IPv6 work on them, and none
/// appears after the first snapshot. That is when the kernel's link watch has seen the carrier: up to a second after both
/// ends are up, or, since Linux 6.9, when somebody asks about the link.
pub(super) async fn settled(node: &Node, name: &'static str, interfaces: &[&'static str]) -> Result<(), TopologyError> {
    const DEADLINE: Duration = Duration::from_secs(10);
    let interfaces = interfaces.to_vec();
    node.run(move || async move {
        let failed = |source| TopologyError::Netlink {
            action: format!("see the link-local addresses of {}", interfaces.join(", ")),
            node: name,
            source,
        };
        let connection = Connection::<Route>::new().map_err(failed)?;
        let mut missing =
            interfaces.iter().map(|interface| index_of(interface)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        look(&connection, &mut missing).await.map_err(failed)?;
        if missing.is_empty() {
            return Ok(());
        }
        let listener = Connection::<Route>::new().map_err(failed)?;
        listener.subscribe(&[RtnetlinkGroup::Ipv6Addr]).map_err(failed)?;
        let mut events = listener.into_events().await;
        let deadline = Instant::now() + DEADLINE;
        loop {
            // Again after listening began, so that nothing falls between.
            look(&connection, &mut missing).await.map_err(failed)?;
            if missing.is_empty() {
                return Ok(());
            }
            match timeout_at(deadline, events.next()).await {
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return Err(failed(error)),
                Ok(None) => return Err(failed(nlink::Error::invalid_message("notifications ended"))),
                Err(_) => {
                    let text = format!("none within {} s; is IPv6 switched off in this kernel?", DEADLINE.as_secs());
                    return Err(failed(nlink::Error::invalid_message(text)));
                }
            }
        }
    })
    .await?
}

/// Asks about the links, and takes those that have their address off the list.
async fn look(connection: &Connection<Route>, missing: &mut Vec<u32>) -> Result<(), nlink::Error> {
    for index in &*missing {
        connection.get_link_by_index(*index).await?;
    }
    for address in connection.get_addresses().await? {
        let from_kernel = |v6: &Ipv6Addr| v6.is_unicast_link_local() && *v6 != LAN_LINK_LOCAL;
        if matches!(address.address(), Some(IpAddr::V6(v6)) if from_kernel(v6)) {
            missing.retain(|index| *index != address.ifindex());
        }
    }
    Ok(())
}

/// An interface's index in the calling thread's network namespace (if_nametoindex(3)).
fn index_of(interface: &str) -> Result<u32, nlink::Error> {
    nix::net::if_::if_nametoindex(interface)
        .map_err(|errno| nlink::Error::from_errno_with_context(errno as i32, "if_nametoindex"))
}

/// A node whose namespace is calm (no address detection, no autoconfiguration), with loopback.
pub(super) async fn prepared(
    node: impl Future<Output = Result<Node, SandboxError>>,
    name: &'static str,
    forward: bool,
) -> Result<Node, TopologyError> {
    let node = node.await?;
    let mut settings = vec![
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/router_solicitations", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        // Errors are evidence here: all of them, at once.
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
    ];
    if forward {
        settings.extend(FORWARD);
    } else {
        // An ordinary machine's: a tunnel's marks and its reverse path filter are the subject's business.
        settings.retain(|(key, _)| !key.contains("icmp"));
    }
    sysctl(&node, name, &settings).await?;
    Wanted::new().interface("lo", []).apply(&node, name).await?;
    Ok(node)
}

pub(super) async fn sysctl(
    node: &Node,
    name: &'static str,
    settings: &[(&'static str, &'static str)],
) -> Result<(), TopologyError> {
    let settings = settings.to_vec();
    node.run(move || async move {
        for (key, value) in settings {
            std::fs::write(format!("/proc/sys/{key}"), value).map_err(|source| TopologyError::Sysctl {
                key: key.into(),
                node: name,
                source,
            })?;
        }
        Ok(())
    })
    .await?
}

/// A pair of virtual Ethernet interfaces; the far end is born in another node's namespace.
pub(super) async fn veth(
    near: &Node,
    name: &'static str,
    link: Link,
    far: OwnedFd,
    addresses: Option<([u8; 6], [u8; 6])>,
) -> Result<(), TopologyError> {
    near.run(move || async move {
        let failed =
            |source| TopologyError::Netlink { action: format!("make the link {}", link.name), node: name, source };
        let connection = Connection::<Route>::new().map_err(failed)?;
        let mut veth = VethLink::new(link.near, link.far).peer_netns_fd(far.as_fd());
        if let Some((near, far)) = addresses {
            veth = veth.address(near).peer_address(far);
        }
        connection.add_link(veth).await.map_err(failed)
    })
    .await?
}
