//! What the requirements permit in each state. Written from the requirements alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use watertight_protocol::{Dns, IpProtocol, Server, Settings, State};

/// What holds at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is restricted: no subject, or disconnected without lockdown (FWL-1).
    Open,
    /// Disconnected with lockdown (FWL-2).
    Lockdown,
    /// Connecting (FWL-3, FWL-4).
    Connecting,
    /// Connected (FWL-5 to FWL-7).
    Connected,
    /// Disconnecting (FWL-9).
    Disconnecting,
    /// Error (FWL-8).
    Error,
}

/// A mode under settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The mode.
    pub mode: Mode,
    /// Settings in force; none before the first `configure`.
    pub settings: Option<Settings>,
}

/// The approved servers of settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Approved {
    /// Asked through the tunnel.
    pub tunnel: Vec<IpAddr>,
    /// Asked on their own interface.
    pub lan: Vec<Server>,
}

/// Which servers are approved (DNS-1 to DNS-4).
pub fn approved(settings: &Settings) -> Approved {
    let tunnel = &settings.tunnel;
    let default = || {
        let has_v4 = tunnel.addresses.iter().any(|network| network.addr().is_ipv4());
        let has_v6 = tunnel.addresses.iter().any(|network| network.addr().is_ipv6());
        tunnel
            .gateways
            .iter()
            .copied()
            .filter(|gateway| if gateway.is_ipv4() { has_v4 } else { has_v6 })
            .collect::<Vec<_>>()
    };
    match &settings.dns {
        Dns::Default => Approved { tunnel: default(), lan: Vec::new() },
        Dns::Custom { servers } if servers.is_empty() => Approved { tunnel: default(), lan: Vec::new() },
        Dns::Custom { servers } => {
            let mut approved = Approved::default();
            for server in servers {
                if !tunnel.gateways.contains(&server.address) && is_private(server.address) {
                    approved.lan.push(server.clone());
                } else {
                    approved.tunnel.push(server.address);
                }
            }
            approved
        }
    }
}

/// The ranges of DNS-3.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            a == 10
                || (a == 172 && (16..32).contains(&b))
                || (a == 192 && b == 168)
                || (a == 169 && b == 254)
                || a == 127
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            (first & 0xffc0) == 0xfe80 || (first & 0xfe00) == 0xfc00 || v6 == Ipv6Addr::LOCALHOST
        }
    }
}

/// Multicast and broadcast of the local network.
pub fn is_local_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4 == Ipv4Addr::BROADCAST || v4.octets()[..3] == [224, 0, 0] || v4.octets()[..2] == [239, 255]
        }
        // Scopes 1 to 5: interface-local to site-local (RFC 4291, section 2.7).
        IpAddr::V6(v6) => v6.segments()[0] & 0xff00 == 0xff00 && (1..=5).contains(&(v6.segments()[0] & 0xf)),
    }
}

impl Policy {
    /// Nothing restricted.
    pub fn open() -> Self {
        Self { mode: Mode::Open, settings: None }
    }

    /// The policy of a reported state.
    pub fn of(state: State, settings: Option<&Settings>) -> Self {
        let lockdown = settings.is_some_and(|settings| settings.lockdown);
        let mode = match state {
            State::Disconnected if lockdown => Mode::Lockdown,
            State::Disconnected => Mode::Open,
            State::Connecting => Mode::Connecting,
            State::Connected => Mode::Connected,
            State::Disconnecting => Mode::Disconnecting,
            State::Error => Mode::Error,
        };
        Self { mode, settings: settings.cloned() }
    }

    /// Whether anything is restricted.
    pub fn protects(&self) -> bool {
        self.mode != Mode::Open
    }

    /// The relay's endpoint, where tunnel packets may go.
    pub fn relay(&self) -> Option<(SocketAddr, IpProtocol)> {
        let tunnel = &self.settings.as_ref()?.tunnel;
        // A tunnel that is being taken down may still say so; in error and lockdown there is none.
        matches!(self.mode, Mode::Connecting | Mode::Connected | Mode::Disconnecting)
            .then_some((tunnel.endpoint, tunnel.protocol))
    }

    /// The API endpoint, where it may be talked to.
    pub fn api(&self) -> Option<(SocketAddr, IpProtocol)> {
        let api = self.settings.as_ref()?.api_endpoint?;
        matches!(self.mode, Mode::Connecting | Mode::Error | Mode::Lockdown | Mode::Disconnecting)
            .then_some((api.address, api.protocol))
    }

    /// The approved servers, where DNS is approved at all.
    pub fn approved(&self) -> Approved {
        match (&self.mode, &self.settings) {
            (Mode::Connected, Some(settings)) => approved(settings),
            _ => Approved::default(),
        }
    }

    /// Whether the local network is permitted.
    pub fn allows_lan(&self) -> bool {
        self.settings.as_ref().is_some_and(|settings| settings.allow_lan)
    }

    /// The requirement that is broken by what leaves in this mode.
    pub fn requirement(&self) -> &'static str {
        match self.mode {
            Mode::Open => "FWL-1",
            Mode::Lockdown => "FWL-2",
            Mode::Connecting => "FWL-3",
            Mode::Connected => {
                let Some(settings) = &self.settings else { return "FWL-5" };
                let approved = approved(settings);
                match &settings.dns {
                    Dns::Custom { servers } if !servers.is_empty() && approved.tunnel.is_empty() => "FWL-7",
                    Dns::Custom { servers } if !servers.is_empty() => "FWL-6",
                    _ => "FWL-5",
                }
            }
            Mode::Disconnecting => "FWL-9",
            Mode::Error => "FWL-8",
        }
    }

    /// The mode in words.
    pub fn name(&self) -> &'static str {
        match self.mode {
            Mode::Open => "open",
            Mode::Lockdown => "disconnected with lockdown",
            Mode::Connecting => "connecting",
            Mode::Connected => "connected",
            Mode::Disconnecting => "disconnecting",
            Mode::Error => "error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_ranges_are_those_of_the_requirement_and_no_more() {
        for inside in [
            "10.0.0.0",
            "10.255.255.255",
            "172.16.0.0",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.1.1",
            "127.0.0.53",
            "fe80::1",
            "febf::1",
            "fc00::1",
            "fdff::1",
            "::1",
        ] {
            assert!(is_private(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "9.255.255.255",
            "11.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.0.1",
            "169.253.1.1",
            "100.64.0.1",
            "fec0::1",
            "fe7f::1",
            "fbff::1",
            "fe00::1",
            "::2",
        ] {
            assert!(!is_private(outside.parse().unwrap()), "{outside}");
        }
    }
}
