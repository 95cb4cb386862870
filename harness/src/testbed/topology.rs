//! Nodes and links of the testbed. Far ends come up first, so that a capture and a counter that are started on them
//! before [`Topology::start`] see every frame from the link's very first.

use super::{
    configure::{FORWARD, Network, Wanted, prepared, settled, sysctl, v4, v6, veth},
    plan::*,
};
use crate::sandbox::{Client, Node, SandboxError};
use futures::future::try_join_all;
use nlink::{
    Connection, Nftables, Route,
    netlink::{
        nftables::{BaseChain, Chain, CtState, Family, FilterHook, Policy, Priority, Rule},
        route::{Ipv4Route, Ipv6Route},
        rule::RuleBuilder,
        types::route::RouteType,
    },
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};
use tokio::try_join;

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
const GUEST: Link = Link { name: "guest", near: GUEST_LINK, far: "eth0" };

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

    /// Makes the client machine, nodes and links; the client's own links stay down. The far side is made while the machine is.
    /// The machine is to outlive the topology.
    pub async fn build(rootless: bool, layers: Vec<PathBuf>, guest: bool) -> Result<(Client, Self), TopologyError> {
        let machine = tokio::task::spawn_blocking(move || Client::start(rootless, &layers));
        let ((machine, client), (router, internet, relay), guest) = try_join!(
            async {
                let machine = machine.await.map_err(|_| SandboxError::NodeGone("client".into()))??;
                let node = prepared(machine.node("client"), "client", false).await?;
                Ok((machine, node))
            },
            far_side(),
            async { if guest { prepared(Node::new("guest"), "guest", true).await.map(Some) } else { Ok(None) } },
        )?;
        let this = Self { client, router, internet, relay, guest };
        try_join!(
            link(&this.client, "client", UPLINK_LINK, (&this.router, "router"), Some((CLIENT_MAC, ROUTER_MAC))),
            async {
                match &this.guest {
                    Some(guest) => link(&this.client, "client", GUEST, (guest, "guest"), None).await,
                    None => Ok(()),
                }
            },
        )?;
        Ok((machine, this))
    }

    /// Ends all connections, so that nothing of the nodes outlives them.
    pub async fn end_connections(&self) -> Result<(), SandboxError> {
        let nodes = [&self.client, &self.router, &self.internet, &self.relay];
        try_join_all(nodes.into_iter().chain(&self.guest).map(super::connections::end)).await.map(drop)
    }

    /// Brings the client's links up and gives both ends their addresses and routes.
    pub async fn start(&self) -> Result<(), TopologyError> {
        let (anywhere_v4, anywhere_v6) = ANYWHERE;
        let mut router = Wanted::new().interface(
            "lan0",
            [
                v4(LAN_V4, 24),
                v4(LAN_SECOND_V4, 24),
                v4(LAN_SINK_V4, 24),
                v6(LAN_V6, 64),
                v6(LAN_ULA, 64),
                v6(LAN_LINK_LOCAL, 64),
            ],
        );
        let mut client = Wanted::new()
            .interface(UPLINK, [v4(CLIENT_V4, 24), v6(CLIENT_V6, 64), v6(CLIENT_ULA, 64)])
            .via(anywhere_v4, LAN_V4, UPLINK)
            .via(anywhere_v6, LAN_LINK_LOCAL, UPLINK);
        let mut guest = None;
        if let Some(node) = &self.guest {
            sysctl(&self.client, "client", &FORWARD).await?;
            client = client.interface(GUEST.near, [v4(GUEST_GATEWAY_V4, 24), v6(GUEST_GATEWAY_V6, 64)]);
            let wanted = Wanted::new()
                .interface(GUEST.far, [v4(GUEST_V4, 24), v6(GUEST_V6, 64)])
                .via(anywhere_v4, GUEST_GATEWAY_V4, GUEST.far)
                .via(anywhere_v6, GUEST_GATEWAY_V6, GUEST.far);
            guest = Some((node, wanted));
            router = router.via(v4(Ipv4Addr::new(172, 30, 0, 0), 24), CLIENT_V4, "lan0").via(
                v6(prefix(GUEST_V6), 64),
                CLIENT_ULA,
                "lan0",
            );
        }
        // The client comes up when everything that it could ask is there.
        try_join!(router.apply(&self.router, "router"), stateful_rule(&self.client))?;
        client.apply(&self.client, "client").await?;
        let mut client_links = vec![UPLINK];
        if let Some((node, wanted)) = guest {
            wanted.apply(node, "guest").await?;
            settled(node, "guest", &[GUEST.far]).await?;
            client_links.push(GUEST.near);
        }
        try_join!(settled(&self.router, "router", &["lan0"]), settled(&self.client, "client", &client_links))?;
        Ok(())
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

/// Every destination, of either family.
const ANYWHERE: (Network, Network) = ((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0));

/// Router, internet and relay, with all between them; no client can see it yet.
async fn far_side() -> Result<(Node, Node, Node), TopologyError> {
    let node = |name| async move { prepared(Node::new(name), name, true).await };
    let (router, internet, relay) = try_join!(node("router"), node("internet"), node("relay"))?;
    try_join!(
        link(&router, "router", WAN, (&internet, "internet"), None),
        link(&internet, "internet", HOSTING, (&relay, "relay"), None),
    )?;
    let (anywhere_v4, anywhere_v6) = ANYWHERE;
    let router_wan = (Ipv4Addr::new(198, 51, 100, 1), wan_v6(1));
    let hosting = (Ipv4Addr::new(203, 0, 113, 1), hosting_v6(1));
    let of_router = Wanted::new()
        .interface("wan0", [v4(router_wan.0, 24), v6(router_wan.1, 64)])
        .via(anywhere_v4, WAN_PEER_V4, "wan0")
        .via(anywhere_v6, wan_v6(0xfe), "wan0");
    let of_internet = Wanted::new()
        .interface(
            "isp0",
            [
                v4(WAN_PEER_V4, 24),
                v6(wan_v6(0xfe), 64),
                v4(ISP_V4, 24),
                v6(ISP_V6, 64),
                v4(SINK_V4, 24),
                v6(SINK_V6, 64),
            ],
        )
        .interface("dc0", [v4(hosting.0, 24), v6(hosting.1, 64)])
        .via(v4(Ipv4Addr::new(192, 168, 1, 0), 24), router_wan.0, "isp0")
        .via(v4(Ipv4Addr::new(172, 30, 0, 0), 24), router_wan.0, "isp0")
        .via(v6(prefix(CLIENT_V6), 64), router_wan.1, "isp0")
        .via(v6(prefix(CLIENT_ULA), 64), router_wan.1, "isp0")
        .via(v6(prefix(GUEST_V6), 64), router_wan.1, "isp0")
        // The resolver that answers at every address: whatever is not routed elsewhere is here.
        .local(anywhere_v4)
        .local(anywhere_v6);
    let of_relay = Wanted::new()
        .interface("net0", [v4(RELAY_V4, 24), v6(RELAY_V6, 64), (API.ip(), 24)])
        .via(anywhere_v4, hosting.0, "net0")
        .via(anywhere_v6, hosting.1, "net0");
    try_join!(
        of_router.apply(&router, "router"),
        of_internet.apply(&internet, "internet"),
        of_relay.apply(&relay, "relay"),
    )?;
    try_join!(
        settled(&router, "router", &["wan0"]),
        settled(&internet, "internet", &["isp0", "dc0"]),
        settled(&relay, "relay", &["net0"]),
    )?;
    Ok((router, internet, relay))
}

/// A link whose far end is up.
async fn link(
    near: &Node,
    name: &'static str,
    link: Link,
    far: (&Node, &'static str),
    addresses: Option<([u8; 6], [u8; 6])>,
) -> Result<(), TopologyError> {
    veth(near, name, link, far.0.network_namespace().await?, addresses).await?;
    Wanted::new().interface(link.far, []).apply(far.0, far.1).await
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
