//! Everything that answers: resolvers on LAN, internet and inside the tunnel, the relay, the API, DHCP.
//!
//! Each query that arrives goes into the history before it is answered; the servers' own counts say whether all did.

use super::{Topology, TopologyError, plan::*};
use crate::history::{Event, Recorder};
use ipnet::Ipv6Net;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;
use watertight_resolvers::{
    QueryLog, QueryRecord, Relay, RelayConfig, Resolver, ResolverConfig, TlsIdentity, Transport,
    advertiser::{self, Advertiser, AdvertiserConfig},
    api::{self, Api, ApiRecord},
    dhcp::{self, DhcpExchange},
    generate_keypair,
    online::{self, Online},
    relay, resolver,
    sink::{self, Sink},
};

/// A server of the far side that could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FarSideError {
    /// A node or route is missing.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A thread is gone.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::SandboxError),
    /// A server could not be started.
    #[error("failed to start the testbed's {what}: {source}")]
    Server {
        /// Which.
        what: &'static str,
        /// Its words.
        source: watertight_resolvers::Error,
    },
}

/// The running servers.
pub struct FarSide {
    /// The relay.
    pub relay: Relay,
    /// The client's private key, base64.
    pub client_private_key: String,
    /// The relay's public key, base64.
    pub relay_public_key: String,
    resolvers: Vec<Resolver>,
    log: Arc<Log>,
    _api: Api,
    _sinks: Vec<Sink>,
    dhcp: dhcp::v4::Dhcp,
    _dhcp6: dhcp::v6::Dhcp6,
    _advertiser: Option<Advertiser>,
    _online: Online,
    acknowledged: watch::Receiver<u64>,
}

struct Log {
    recorder: Recorder,
    written: AtomicU64,
    cut: AtomicBool,
}

impl QueryLog for Log {
    fn record(&self, record: QueryRecord) {
        if self.cut.load(Ordering::Relaxed) {
            return;
        }
        // The API keeps no count of its own.
        if record.server != "api" {
            self.written.fetch_add(1, Ordering::Relaxed);
        }
        let transport = match record.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
        };
        self.recorder.record_at(
            record.at_ns,
            Event::Query {
                server: record.server,
                name: record.name,
                qtype: record.qtype,
                transport: transport.into(),
                client: record.client.to_string(),
                local: record.local.to_string(),
            },
        );
    }
}

impl FarSide {
    /// Starts all servers; everything is bound when it returns. Where the client's uplink is to be configured by the network, its
    /// lease is the plan's address, and the router advertises itself.
    pub async fn start(topology: &Topology, recorder: Recorder, configures: bool) -> Result<Self, FarSideError> {
        let failed = |what| move |source| FarSideError::Server { what, source };
        let log = Arc::new(Log { recorder, written: AtomicU64::new(0), cut: AtomicBool::new(false) });
        let identity = TlsIdentity::generate(["resolver.watertight.test"]).map_err(failed("TLS identity"))?;
        let all = |port| [any(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port), any(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)];

        let lan_v4: Vec<SocketAddr> = [LAN_V4, LAN_SECOND_V4].map(|address| any(address.into(), 53)).to_vec();
        let lan_tls = vec![any(LAN_V4.into(), 853), any(LAN_ULA.into(), 853)];
        let mut resolvers = Vec::new();
        let config = ResolverConfig {
            udp_tcp: [lan_v4, vec![any(LAN_V6.into(), 53), any(LAN_ULA.into(), 53)]].concat(),
            tls: lan_tls,
            identity: Some(identity.clone()),
            ..ResolverConfig::new("lan", 1)
        };
        let lan_log = log.clone();
        let lan = topology
            .router
            .run(move || async move {
                // The link-local address needs the interface's index, which only this namespace knows.
                let index = nix::net::if_::if_nametoindex(Topology::UPLINK.far).unwrap_or(0);
                let mut config = config;
                config.udp_tcp.push(SocketAddrV6::new(LAN_LINK_LOCAL, 53, 0, index).into());
                resolver::start(config, lan_log).await
            })
            .await?
            .map_err(failed("LAN resolver"))?;
        resolvers.push(lan);

        let isp = ResolverConfig {
            udp_tcp: vec![any(ISP_V4.into(), 53), any(ISP_V6.into(), 53)],
            ..ResolverConfig::new("isp", 2)
        };
        let public = ResolverConfig {
            udp_tcp: all(53).to_vec(),
            tls: all(853).to_vec(),
            any_address: true,
            identity: Some(identity.clone()),
            ..ResolverConfig::new("public", 3)
        };
        for (what, config) in [("provider's resolver", isp), ("public resolvers", public)] {
            let log = log.clone();
            let started = topology.internet.run(move || async move { resolver::start(config, log).await }).await?;
            resolvers.push(started.map_err(failed(what))?);
        }
        let wan_sink = topology
            .internet
            .run(|| async { sink::start(&[any(SINK_V4.into(), 53), any(SINK_V6.into(), 53)], false).await })
            .await?
            .map_err(failed("sink"))?;
        let lan_sink = topology
            .router
            .run(|| async { sink::start(&[any(LAN_SINK_V4.into(), 53)], false).await })
            .await?
            .map_err(failed("sink"))?;

        let online = topology
            .router
            .run(|| async { online::start(&[any(LAN_V4.into(), 80), any(LAN_ULA.into(), 80)]).await })
            .await?
            .map_err(failed("web server"))?;

        let (relay_private, relay_public) = generate_keypair();
        let (client_private, client_public) = generate_keypair();
        let config = RelayConfig {
            interface: RELAY_TUNNEL.into(),
            addresses: vec!["10.64.0.1/10".parse().expect("a prefix"), "fd64::1/64".parse().expect("a prefix")],
            private_key: relay_private,
            client_public_key: client_public,
            client_allowed_ips: vec![
                format!("{TUNNEL_V4}/32").parse().expect("a prefix"),
                format!("{TUNNEL_V6}/128").parse().expect("a prefix"),
            ],
            listen_addresses: vec![RELAY_V4.into(), RELAY_V6.into()],
            listen_ports: vec![RELAY_PORT, 53],
            mtu: 1420,
        };
        let relay_log = log.clone();
        let relay = topology
            .relay
            .run(move || async move { relay::start(config, relay_log).await })
            .await?
            .map_err(failed("relay"))?;
        topology.start_tunnel_side().await?;
        let tunnel_side = ResolverConfig {
            udp_tcp: all(53).to_vec(),
            tls: all(853).to_vec(),
            identity: Some(identity),
            any_address: true,
            interface: Some(RELAY_TUNNEL.into()),
            ..ResolverConfig::new("in-tunnel", 4)
        };
        let (tunnel_log, api_log) = (log.clone(), log.clone());
        let in_tunnel = topology
            .relay
            .run(move || async move { resolver::start(tunnel_side, tunnel_log).await })
            .await?
            .map_err(failed("in-tunnel resolvers"))?;
        resolvers.push(in_tunnel);
        let api = topology
            .relay
            .run(move || async move { api::start(&[API, API_PORT_53], Arc::new(|_: ApiRecord| {}), api_log).await })
            .await?
            .map_err(failed("API"))?;

        let dhcp4 = dhcp::v4::DhcpConfig {
            interface: Topology::UPLINK.far.into(),
            server: LAN_V4,
            prefix_len: 24,
            pool: if configures { vec![CLIENT_V4] } else { vec![Ipv4Addr::new(192, 168, 1, 200)] },
            router: Some(LAN_V4),
            dns: if configures { LEASED.to_vec() } else { vec![LAN_V4] },
            domain: None,
            search: Vec::new(),
            routes: Vec::new(),
            lease: Duration::from_secs(3600),
        };
        let dhcp6 = dhcp::v6::Dhcp6Config {
            interface: Topology::UPLINK.far.into(),
            pool: vec![Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x200)],
            dns: vec![LAN_ULA],
            search: Vec::new(),
            lease: Duration::from_secs(3600),
        };
        let (acknowledge, acknowledged) = watch::channel(0);
        let (dhcp, dhcp6) = topology
            .router
            .run(move || async move {
                let exchanged = move |exchange: DhcpExchange| {
                    if exchange.answer.as_deref() == Some("ACK") {
                        acknowledge.send_modify(|count| *count += 1);
                    }
                };
                Ok((
                    dhcp::v4::start(dhcp4, Arc::new(exchanged)).await?,
                    dhcp::v6::start(dhcp6, Arc::new(|_: DhcpExchange| {})).await?,
                ))
            })
            .await?
            .map_err(failed("DHCP servers"))?;
        let advertiser = match configures {
            false => None,
            true => {
                let started = topology.router.run(|| async { advertiser::start(advertised()).await }).await?;
                Some(started.map_err(failed("router advertisements"))?)
            }
        };
        Ok(Self {
            relay,
            client_private_key: base64(&client_private),
            relay_public_key: base64(&relay_public),
            resolvers,
            log,
            _api: api,
            _sinks: vec![wan_sink, lan_sink],
            dhcp,
            _dhcp6: dhcp6,
            _advertiser: advertiser,
            _online: online,
            acknowledged,
        })
    }

    /// From now on leases name other servers; who has one learns it when it asks again.
    pub fn change_lease(&self) {
        self.dhcp.update(|lease| lease.dns = RENEWED.to_vec());
    }

    /// How many leases were given or renewed.
    pub fn acknowledged(&self) -> watch::Receiver<u64> {
        self.acknowledged.clone()
    }

    /// Loses every record from now on, for the harness's own tests.
    pub fn cut_log(&self) {
        self.log.cut.store(true, Ordering::Relaxed);
    }

    /// What the servers say they received, by their own counts, against what was written; and what went wrong in them.
    pub fn account(&self) -> (u64, u64, Vec<String>) {
        let counted: u64 = self.resolvers.iter().map(Resolver::recorded).sum::<u64>() + self.relay.recorded();
        let mut problems: Vec<String> = self.resolvers.iter().filter_map(Resolver::failure).collect();
        problems.extend(self.relay.failure());
        for resolver in &self.resolvers {
            match resolver.dropped() {
                Ok(0) => {}
                Ok(dropped) => problems.push(format!("a resolver's socket dropped {dropped} datagrams")),
                Err(error) => problems.push(error.to_string()),
            }
        }
        (counted, self.log.written.load(Ordering::Relaxed), problems)
    }
}

impl std::fmt::Debug for FarSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FarSide").field("relay", &self.relay.interface()).finish_non_exhaustive()
    }
}

/// The LAN's prefixes, the router as the way out, and its resolver.
fn advertised() -> AdvertiserConfig {
    const LIFETIME: Duration = Duration::from_secs(3600);
    AdvertiserConfig {
        interface: Topology::UPLINK.far.into(),
        router_lifetime: LIFETIME,
        managed: false,
        other: false,
        prefixes: [CLIENT_V6, CLIENT_ULA].map(|address| Ipv6Net::new_assert(address, 64).trunc()).to_vec(),
        dns: vec![LAN_ULA],
        routes: Vec::new(),
        lifetime: LIFETIME,
    }
}

fn any(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
