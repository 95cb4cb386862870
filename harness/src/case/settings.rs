//! The settings that a subject gets, from a scenario's choices and the testbed's addresses.

use crate::{
    scenario::{ApiChoice, DnsChoice, Family, SettingsPatch},
    testbed::plan::*,
};
use std::net::{IpAddr, SocketAddr};
use watertight_protocol::{ApiEndpoint, Dns, IpProtocol, Server, Settings, Tunnel, TunnelKind};

/// The settings for a patch and the keys of this case's tunnel.
pub fn settings(patch: &SettingsPatch, private_key: &str, peer_public_key: &str) -> Settings {
    let family = patch.family.unwrap_or(Family::Both);
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
        dns: dns(patch.dns.unwrap_or(DnsChoice::Default), family),
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
    let tunnel = &mut settings.tunnel;
    tunnel.addresses.retain(|network| carried(network.addr(), family));
    tunnel.gateways.retain(|gateway| carried(*gateway, family));
    tunnel.allowed_ips.retain(|network| carried(network.addr(), family));
    settings
}

/// The servers of a choice. One that is asked through the tunnel needs a tunnel that carries its family.
fn dns(choice: DnsChoice, family: Family) -> Dns {
    let plain = |address: IpAddr| Server { address, scope: None };
    let lan = if family == Family::Ipv6 { IpAddr::from(LAN_ULA) } else { LAN_V4.into() };
    let public = if family == Family::Ipv6 { IpAddr::from(CUSTOM_V6) } else { CUSTOM_V4.into() };
    let servers = match choice {
        DnsChoice::Default => return Dns::Default,
        DnsChoice::CustomEmpty => vec![],
        DnsChoice::CustomTunnel => {
            let both = [CUSTOM_V4.into(), CUSTOM_V6.into()];
            both.into_iter().filter(|server| carried(*server, family)).map(plain).collect()
        }
        DnsChoice::CustomTunnelV4 => vec![plain(CUSTOM_V4.into())],
        DnsChoice::CustomGateway => vec![plain(GATEWAY_V4.into())],
        DnsChoice::CustomLan => vec![plain(lan)],
        DnsChoice::CustomLanV6 => vec![plain(LAN_ULA.into())],
        DnsChoice::CustomLinkLocal => vec![Server { address: LAN_LINK_LOCAL.into(), scope: Some(UPLINK.into()) }],
        DnsChoice::CustomMixed => vec![plain(lan), plain(public)],
    };
    Dns::Custom { servers }
}

/// Whether a tunnel of these families carries the address.
fn carried(address: IpAddr, family: Family) -> bool {
    match family {
        Family::Ipv4 => address.is_ipv4(),
        Family::Ipv6 => address.is_ipv6(),
        Family::Both => true,
    }
}
