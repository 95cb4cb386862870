//! Nodes and links of the testbed. Far ends come up first, so that a capture and a counter that are started on them
//! before [`Topology::start`] see every frame from the link's very first.

use super::plan::*;
use crate::sandbox::{Client, Node, SandboxError};
use nlink::{
    Connection, Nftables, Route,
    netlink::{
        addr::{Ipv4Address, Ipv6Address},
        link::VethLink,
        nftables::{BaseChain, Chain, CtState, Family, FilterHook, Policy, Priority, Rule},
        route::{Ipv4Route, Ipv6Route},
        rule::RuleBuilder,
        types::route::RouteType,
    },
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
};

/// A testbed that could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// A namespace or thread is missing.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The kernel refused a link, address, route or rule.
    #[error("failed to {action} on {node}: {source}")]
    Netlink {
        /// What was tried.
        action: String,
        /// Where.
        node: &'static str,
        /// The kernel's words.
        source: nlink::Error,
    },
    /// A kernel setting could not be written.
    #[error("failed to set {key} on {node}: {source}")]
    Sysctl {
        /// The setting.
        key: String,
        /// Where.
        node: &'static str,
        /// The kernel's words.
        source: std::io::Error,
    },
}

/// A link with the end at which it is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The link's name in history, captures and reports.
    pub name: &'static str,
    /// The interface at the near end, where harness frames are sent.
    pub near: &'static str,
    /// The interface at the far end, where frames are captured.
    pub far: &'static str,
}

/// The links, near to far.
pub const UPLINK_LINK: Link = Link { name: "uplink", near: UPLINK, far: "lan0" };
const WAN: Link = Link { name: "wan", near: "wan0", far: "isp0" };
const HOSTING: Link = Link { name: "hosting", near: "dc0", far: "net0" };

/// The running nodes.
#[derive(Debug)]
pub struct Topology {
    /// A thread inside the client machine.
    pub client: Node,
    /// The LAN's router.
    pub router: Node,
    /// Everything else.
    pub internet: Node,
    /// The relay's machine.
    pub relay: Node,
    /// A machine behind the client, where the scenario wants one.
    pub guest: Option<Node>,
}

impl Topology {
    /// The captured uplink.
    pub const UPLINK: Link = UPLINK_LINK;

    /// Makes nodes and links; the near ends stay down.
    pub async fn build(machine: &Client, guest: bool) -> Result<Self, TopologyError> {
        let this = Self {
            client: machine.node("client")?,
            router: Node::new("router")?,
            internet: Node::new("internet")?,
            relay: Node::new("relay")?,
            guest: guest.then(|| Node::new("guest")).transpose()?,
        };
        for (node, name) in this.nodes() {
            prepare(node, name, name != "client").await?;
        }
        veth(
            &this.client,
            "client",
            UPLINK_LINK,
            this.router.network_namespace().await?,
            Some((CLIENT_MAC, ROUTER_MAC)),
        )
        .await?;
        veth(&this.router, "router", WAN, this.internet.network_namespace().await?, None).await?;
        veth(&this.internet, "internet", HOSTING, this.relay.network_namespace().await?, None).await?;
        if let Some(guest) = &this.guest {
            let link = Link { name: "guest", near: GUEST_LINK, far: "eth0" };
            veth(&this.client, "client", link, guest.network_namespace().await?, None).await?;
            up(guest, "guest", &["eth0"]).await?;
        }
        up(&this.router, "router", &["lan0"]).await?;
        up(&this.internet, "internet", &["isp0"]).await?;
        up(&this.relay, "relay", &["net0"]).await?;
        Ok(this)
    }

    fn nodes(&self) -> Vec<(&Node, &'static str)> {
        let mut nodes = vec![
            (&self.client, "client"),
            (&self.router, "router"),
            (&self.internet, "internet"),
            (&self.relay, "relay"),
        ];
        nodes.extend(self.guest.as_ref().map(|guest| (guest, "guest")));
        nodes
    }

    /// Brings the near ends up and gives everything its addresses and routes.
    pub async fn start(&self) -> Result<(), TopologyError> {
        let v4 = |address: Ipv4Addr, prefix| (IpAddr::V4(address), prefix);
        let v6 = |address: Ipv6Addr, prefix| (IpAddr::V6(address), prefix);
        addresses(
            &self.router,
            "router",
            "lan0",
            vec![
                v4(LAN_V4, 24),
                v4(LAN_SECOND_V4, 24),
                v4(LAN_SINK_V4, 24),
                v6(LAN_V6, 64),
                v6(LAN_ULA, 64),
                v6(LAN_LINK_LOCAL, 64),
            ],
        )
        .await?;
        up(&self.router, "router", &["wan0"]).await?;
        addresses(&self.router, "router", "wan0", vec![v4(Ipv4Addr::new(198, 51, 100, 1), 24), v6(wan_v6(1), 64)])
            .await?;
        addresses(
            &self.internet,
            "internet",
            "isp0",
            vec![
                v4(WAN_PEER_V4, 24),
                v6(wan_v6(0xfe), 64),
                v4(ISP_V4, 24),
                v6(ISP_V6, 64),
                v4(SINK_V4, 24),
                v6(SINK_V6, 64),
            ],
        )
        .await?;
        up(&self.internet, "internet", &["dc0"]).await?;
        addresses(
            &self.internet,
            "internet",
            "dc0",
            vec![v4(Ipv4Addr::new(203, 0, 113, 1), 24), v6(hosting_v6(1), 64)],
        )
        .await?;
        addresses(&self.relay, "relay", "net0", vec![v4(RELAY_V4, 24), v6(RELAY_V6, 64), (API.ip(), 24)]).await?;
        routes(
            &self.router,
            "router",
            vec![
                Hop::via(v4(Ipv4Addr::UNSPECIFIED, 0), WAN_PEER_V4.into(), "wan0"),
                Hop::via(v6(Ipv6Addr::UNSPECIFIED, 0), wan_v6(0xfe).into(), "wan0"),
            ],
        )
        .await?;
        let router_wan = (IpAddr::from(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::from(wan_v6(1)));
        routes(
            &self.internet,
            "internet",
            vec![
                Hop::via(v4(Ipv4Addr::new(192, 168, 1, 0), 24), router_wan.0, "isp0"),
                Hop::via(v4(Ipv4Addr::new(172, 30, 0, 0), 24), router_wan.0, "isp0"),
                Hop::via(v6(prefix(CLIENT_V6), 64), router_wan.1, "isp0"),
                Hop::via(v6(prefix(CLIENT_ULA), 64), router_wan.1, "isp0"),
                Hop::via(v6(prefix(GUEST_V6), 64), router_wan.1, "isp0"),
                // The resolver that answers at every address: whatever is not routed elsewhere is here.
                Hop::local(v4(Ipv4Addr::UNSPECIFIED, 0)),
                Hop::local(v6(Ipv6Addr::UNSPECIFIED, 0)),
            ],
        )
        .await?;
        routes(
            &self.relay,
            "relay",
            vec![
                Hop::via(v4(Ipv4Addr::UNSPECIFIED, 0), Ipv4Addr::new(203, 0, 113, 1).into(), "net0"),
                Hop::via(v6(Ipv6Addr::UNSPECIFIED, 0), hosting_v6(1).into(), "net0"),
            ],
        )
        .await?;
        let link = up(&self.client, "client", &[UPLINK]);
        link.await?;
        addresses(&self.client, "client", UPLINK, vec![v4(CLIENT_V4, 24), v6(CLIENT_V6, 64), v6(CLIENT_ULA, 64)])
            .await?;
        routes(
            &self.client,
            "client",
            vec![
                Hop::via(v4(Ipv4Addr::UNSPECIFIED, 0), LAN_V4.into(), UPLINK),
                Hop::via(v6(Ipv6Addr::UNSPECIFIED, 0), LAN_LINK_LOCAL.into(), UPLINK),
            ],
        )
        .await?;
        if let Some(guest) = &self.guest {
            self.start_guest(guest).await?;
        }
        stateful_rule(&self.client).await
    }

    async fn start_guest(&self, guest: &Node) -> Result<(), TopologyError> {
        sysctl(&self.client, "client", &[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]).await?;
        up(&self.client, "client", &[GUEST_LINK]).await?;
        addresses(
            &self.client,
            "client",
            GUEST_LINK,
            vec![(GUEST_GATEWAY_V4.into(), 24), (GUEST_GATEWAY_V6.into(), 64)],
        )
        .await?;
        addresses(guest, "guest", "eth0", vec![(GUEST_V4.into(), 24), (GUEST_V6.into(), 64)]).await?;
        routes(
            guest,
            "guest",
            vec![
                Hop::via((Ipv4Addr::UNSPECIFIED.into(), 0), GUEST_GATEWAY_V4.into(), "eth0"),
                Hop::via((Ipv6Addr::UNSPECIFIED.into(), 0), GUEST_GATEWAY_V6.into(), "eth0"),
            ],
        )
        .await?;
        routes(
            &self.router,
            "router",
            vec![
                Hop::via((Ipv4Addr::new(172, 30, 0, 0).into(), 24), CLIENT_V4.into(), "lan0"),
                Hop::via((prefix(GUEST_V6).into(), 64), CLIENT_ULA.into(), "lan0"),
            ],
        )
        .await
    }

    /// Sends whatever arrives through the tunnel to the relay's own resolvers, whichever address it asks.
    /// To be called when the relay's tunnel interface exists.
    pub async fn start_tunnel_side(&self) -> Result<(), TopologyError> {
        const TABLE: u32 = 100;
        self.relay
            .run(|| async move {
                let failed =
                    |source| TopologyError::Netlink { action: "route the tunnel's side".into(), node: "relay", source };
                let connection = Connection::<Route>::new().map_err(failed)?;
                for rule in [RuleBuilder::v4(), RuleBuilder::v6()] {
                    connection.add_rule(rule.priority(50).iif(RELAY_TUNNEL).table(TABLE)).await.map_err(failed)?;
                }
                connection
                    .add_route(Ipv4Route::default_route().dev("lo").route_type(RouteType::Local).table(TABLE))
                    .await
                    .map_err(failed)?;
                connection
                    .add_route(Ipv6Route::default_route().dev("lo").route_type(RouteType::Local).table(TABLE))
                    .await
                    .map_err(failed)
            })
            .await?
    }
}

const WAN_PEER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);

const fn wan_v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, host)
}

const fn hosting_v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, host)
}

fn prefix(address: Ipv6Addr) -> Ipv6Addr {
    let segments = address.segments();
    Ipv6Addr::new(segments[0], segments[1], segments[2], segments[3], 0, 0, 0, 0)
}

/// A route: through a neighbour, or to this very machine.
struct Hop {
    destination: (IpAddr, u8),
    via: Option<IpAddr>,
    device: &'static str,
}

impl Hop {
    fn via(destination: (IpAddr, u8), via: IpAddr, device: &'static str) -> Self {
        Self { destination, via: Some(via), device }
    }

    fn local(destination: (IpAddr, u8)) -> Self {
        Self { destination, via: None, device: "lo" }
    }
}

/// Settings that make a namespace calm (no address detection, no autoconfiguration), and loopback.
async fn prepare(node: &Node, name: &'static str, forward: bool) -> Result<(), TopologyError> {
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
        settings.extend([("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]);
    } else {
        // An ordinary machine's: a tunnel's marks and its reverse path filter are the subject's business.
        settings.retain(|(key, _)| !key.contains("icmp"));
    }
    sysctl(node, name, &settings).await?;
    up(node, name, &["lo"]).await
}

async fn sysctl(
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

async fn veth(
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

async fn up(node: &Node, name: &'static str, interfaces: &[&'static str]) -> Result<(), TopologyError> {
    let interfaces = interfaces.to_vec();
    node.run(move || async move {
        for interface in interfaces {
            let failed =
                |source| TopologyError::Netlink { action: format!("bring {interface} up"), node: name, source };
            let connection = Connection::<Route>::new().map_err(failed)?;
            connection.set_link_up(interface).await.map_err(failed)?;
        }
        Ok(())
    })
    .await?
}

async fn addresses(
    node: &Node,
    name: &'static str,
    interface: &'static str,
    list: Vec<(IpAddr, u8)>,
) -> Result<(), TopologyError> {
    node.run(move || async move {
        let failed = |address: IpAddr| {
            move |source| TopologyError::Netlink { action: format!("add {address} to {interface}"), node: name, source }
        };
        let connection = Connection::<Route>::new().map_err(failed(Ipv4Addr::UNSPECIFIED.into()))?;
        for (address, length) in list {
            match address {
                IpAddr::V4(v4) => connection.add_address(Ipv4Address::new(interface, v4, length)).await,
                IpAddr::V6(v6) => connection.add_address(Ipv6Address::new(interface, v6, length).nodad()).await,
            }
            .map_err(failed(address))?;
        }
        Ok(())
    })
    .await?
}

async fn routes(node: &Node, name: &'static str, hops: Vec<Hop>) -> Result<(), TopologyError> {
    node.run(move || async move {
        for hop in hops {
            let (destination, length) = hop.destination;
            let failed = |source| TopologyError::Netlink {
                action: format!("add the route {destination}/{length}"),
                node: name,
                source,
            };
            let connection = Connection::<Route>::new().map_err(failed)?;
            let kind = if hop.via.is_none() { RouteType::Local } else { RouteType::Unicast };
            match destination {
                IpAddr::V4(v4) => {
                    let mut route = Ipv4Route::from_addr(v4, length).dev(hop.device).route_type(kind);
                    if let Some(IpAddr::V4(via)) = hop.via {
                        route = route.gateway(via);
                    }
                    connection.add_route(route).await
                }
                IpAddr::V6(v6) => {
                    let mut route = Ipv6Route::from_addr(v6, length).dev(hop.device).route_type(kind);
                    if let Some(IpAddr::V6(via)) = hop.via {
                        route = route.gateway(via);
                    }
                    connection.add_route(route).await
                }
            }
            .map_err(failed)?;
        }
        Ok(())
    })
    .await?
}

/// Somebody else's stateful rule in the client. Without any, connection tracking is off in a fresh namespace and faults
/// about surviving flows cannot show; and a subject that removes it touches what is not its own (FWL-16).
async fn stateful_rule(client: &Node) -> Result<(), TopologyError> {
    client
        .run(|| async {
            let failed = |source| TopologyError::Netlink {
                action: "add the machine's own nftables rule".into(),
                node: "client",
                source,
            };
            let chain = |name: &str, hook| -> Result<Chain, nlink::Error> {
                Ok(Chain::new("machine", name)?
                    .family(Family::Inet)
                    .base(BaseChain::filter(hook, Priority::Custom(10)).policy(Policy::Accept)))
            };
            let rule = |name: &str| {
                Rule::new("machine", name).family(Family::Inet).match_ct_state(CtState::ESTABLISHED).accept()
            };
            let connection = Connection::<Nftables>::new().map_err(failed)?;
            connection
                .transaction()
                .add_table("machine", Family::Inet)
                .add_chain(chain("input", FilterHook::Input).map_err(failed)?)
                .add_chain(chain("output", FilterHook::Output).map_err(failed)?)
                .add_rule(rule("input"))
                .add_rule(rule("output"))
                .commit(&connection)
                .await
                .map_err(failed)
        })
        .await?
}
