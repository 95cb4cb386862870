//! The settings that a subject gets, from a scenario's choices and the testbed's addresses.

use crate::{
    scenario::{ApiChoice, DnsChoice, SettingsPatch},
    testbed::plan::*,
};
use std::net::{IpAddr, SocketAddr};
use watertight_protocol::{ApiEndpoint, Dns, IpProtocol, Server, Settings, Tunnel, TunnelKind};

/// The settings for a patch and the keys of this case's tunnel.
pub fn settings(patch: &SettingsPatch, private_key: &str, peer_public_key: &str) -> Settings {
    let ipv6 = patch.ipv6.unwrap_or(true);
    let mut settings = Settings {
        tunnel: Tunnel {
            kind: TunnelKind::Wireguard,
            interface: CLIENT_TUNNEL.into(),
            addresses: vec![
                format!("{TUNNEL_V4}/32").parse().expect("a prefix"),
                format!("{TUNNEL_V6}/128").parse().expect("a prefix"),
            ],
            gateways: vec![GATEWAY_V4.into(), GATEWAY_V6.into()],
            private_key: private_key.into(),
            peer_public_key: peer_public_key.into(),
            endpoint: SocketAddr::new(RELAY_V4.into(), patch.relay_port.unwrap_or(RELAY_PORT)),
            protocol: IpProtocol::Udp,
            allowed_ips: vec!["0.0.0.0/0".parse().expect("a prefix"), "::/0".parse().expect("a prefix")],
            mtu: 1420,
        },
        dns: dns(patch.dns.unwrap_or(DnsChoice::Default)),
        dns_method: patch.dns_method.clone().unwrap_or_else(|| "auto".into()),
        allow_lan: patch.allow_lan.unwrap_or(false),
        lockdown: patch.lockdown.unwrap_or(false),
        api_endpoint: patch.api.map(|api| ApiEndpoint {
            address: match api {
                ApiChoice::Https => API,
                ApiChoice::Port53 => API_PORT_53,
            },
            protocol: IpProtocol::Tcp,
        }),
    };
    if !ipv6 {
        let tunnel = &mut settings.tunnel;
        tunnel.addresses.retain(|network| network.addr().is_ipv4());
        tunnel.gateways.retain(IpAddr::is_ipv4);
        tunnel.allowed_ips.retain(|network| network.addr().is_ipv4());
        if let Dns::Custom { servers } = &mut settings.dns {
            // A server that is asked through the tunnel needs a tunnel that carries its family.
            servers.retain(|server| server.address != IpAddr::from(CUSTOM_V6));
        }
    }
    settings
}

fn dns(choice: DnsChoice) -> Dns {
    let plain = |address: IpAddr| Server { address, scope: None };
    let servers = match choice {
        DnsChoice::Default => return Dns::Default,
        DnsChoice::CustomEmpty => vec![],
        DnsChoice::CustomTunnel => vec![plain(CUSTOM_V4.into()), plain(CUSTOM_V6.into())],
        DnsChoice::CustomTunnelV4 => vec![plain(CUSTOM_V4.into())],
        DnsChoice::CustomGateway => vec![plain(GATEWAY_V4.into())],
        DnsChoice::CustomLan => vec![plain(LAN_V4.into())],
        DnsChoice::CustomLanV6 => vec![plain(LAN_ULA.into())],
        DnsChoice::CustomLinkLocal => vec![Server { address: LAN_LINK_LOCAL.into(), scope: Some(UPLINK.into()) }],
        DnsChoice::CustomMixed => vec![plain(LAN_V4.into()), plain(CUSTOM_V4.into())],
    };
    Dns::Custom { servers }
}
