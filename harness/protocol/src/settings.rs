//! The settings that `configure` carries.

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// What `configure` sends. All but `tunnel` may be absent and have the defaults of [`Settings::new`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Settings {
    /// The tunnel to build.
    pub tunnel: Tunnel,
    /// Which servers to use.
    #[serde(default)]
    pub dns: Dns,
    /// `auto`, or one of the adapter's `dns_methods`.
    #[serde(default = "auto")]
    pub dns_method: String,
    /// Permit private ranges and local multicast.
    #[serde(default)]
    pub allow_lan: bool,
    /// Block while disconnected.
    #[serde(default)]
    pub lockdown: bool,
    /// The client's own API, reachable where everything else is blocked.
    #[serde(default)]
    pub api_endpoint: Option<ApiEndpoint>,
}

fn auto() -> String {
    "auto".into()
}

impl Settings {
    /// Default settings for a tunnel.
    pub fn new(tunnel: Tunnel) -> Self {
        Self { tunnel, dns: Dns::default(), dns_method: auto(), allow_lan: false, lockdown: false, api_endpoint: None }
    }

    /// Checks what the types cannot: at least one tunnel address, keys of 32 bytes, an interface name the kernel takes.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let tunnel = &self.tunnel;
        if tunnel.addresses.is_empty() {
            return Err(SettingsError::new("tunnel.addresses", "at least one address is needed"));
        }
        if tunnel.interface.is_empty() || tunnel.interface.len() > 15 || tunnel.interface.contains(['/', ' ']) {
            return Err(SettingsError::new("tunnel.interface", "1 to 15 characters, without '/' and spaces"));
        }
        if tunnel.mtu < 1280 {
            return Err(SettingsError::new("tunnel.mtu", "at least 1280 (RFC 8200, section 5)"));
        }
        tunnel.private_key_bytes()?;
        tunnel.peer_public_key_bytes()?;
        Ok(())
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad settings: {field}: {problem}")]
pub struct SettingsError {
    field: &'static str,
    problem: String,
}

impl SettingsError {
    fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// A tunnel: a WireGuard interface with one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tunnel {
    /// The kind of tunnel.
    #[serde(default)]
    pub kind: TunnelKind,
    /// Name of the interface, at most 15 bytes.
    pub interface: String,
    /// The tunnel's own addresses with prefix lengths.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpNet>,
    /// The relay's resolvers inside the tunnel.
    pub gateways: Vec<IpAddr>,
    /// Base64 of 32 bytes.
    pub private_key: String,
    /// Base64 of 32 bytes.
    pub peer_public_key: String,
    /// The relay's address and port.
    pub endpoint: SocketAddr,
    /// The relay's transport.
    #[serde(default)]
    pub protocol: IpProtocol,
    /// What the relay carries.
    #[schemars(with = "Vec<String>")]
    pub allowed_ips: Vec<IpNet>,
    /// Bytes.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
}

fn default_mtu() -> u16 {
    1420
}

impl Tunnel {
    /// The private key's 32 bytes.
    pub fn private_key_bytes(&self) -> Result<[u8; 32], SettingsError> {
        decode_key("tunnel.private_key", &self.private_key)
    }

    /// The peer's public key's 32 bytes.
    pub fn peer_public_key_bytes(&self) -> Result<[u8; 32], SettingsError> {
        decode_key("tunnel.peer_public_key", &self.peer_public_key)
    }
}

fn decode_key(field: &'static str, text: &str) -> Result<[u8; 32], SettingsError> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| SettingsError::new(field, format!("not base64: {error}")))?;
    bytes.try_into().map_err(|bytes: Vec<u8>| SettingsError::new(field, format!("{} bytes instead of 32", bytes.len())))
}

/// The kind of tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// WireGuard.
    #[default]
    Wireguard,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IpProtocol {
    /// UDP.
    #[default]
    Udp,
    /// TCP.
    Tcp,
}

/// The API endpoint: permitted in `connecting`, required in `error` and lockdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiEndpoint {
    /// Address and port.
    pub address: SocketAddr,
    /// Transport.
    pub protocol: IpProtocol,
}

/// Which DNS servers to use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum Dns {
    /// All gateways of the families in the tunnel's addresses, in order.
    #[default]
    Default,
    /// These, in order; an empty list means the default (DNS-4).
    Custom {
        /// Addresses, a link-local one with its interface: `fe80::1%eth0`.
        #[serde(default)]
        #[schemars(with = "Vec<String>")]
        servers: Vec<Server>,
    },
}

/// A DNS server's address, with the interface that a link-local address needs (RFC 4007, section 11).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// The address.
    pub address: IpAddr,
    /// The interface, for link-local IPv6 addresses.
    pub scope: Option<String>,
}

impl From<IpAddr> for Server {
    fn from(address: IpAddr) -> Self {
        Self { address, scope: None }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Some(scope) => write!(f, "{}%{scope}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

impl FromStr for Server {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, scope) = match text.split_once('%') {
            Some((address, scope)) => {
                let address: Ipv6Addr = address.parse().map_err(|_| format!("'{text}' is not an address"))?;
                if scope.is_empty() {
                    return Err(format!("'{text}' names no interface after '%'"));
                }
                (IpAddr::V6(address), Some(scope.to_owned()))
            }
            None => (text.parse().map_err(|_| format!("'{text}' is not an address"))?, None),
        };
        Ok(Self { address, scope })
    }
}

impl Serialize for Server {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
