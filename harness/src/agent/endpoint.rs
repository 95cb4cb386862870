//! Addresses as the engine writes them: with interface names, which the agent turns into indices where it runs.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    str::FromStr,
};

/// An address and port, with an interface name for link-local addresses: `192.0.2.1:53`, `[fe80::1%eth0]:53`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The interface of a link-local address.
    pub interface: Option<String>,
}

impl Endpoint {
    /// An endpoint without an interface.
    pub fn new(address: impl Into<IpAddr>, port: u16) -> Self {
        Self { address: address.into(), port, interface: None }
    }

    /// An endpoint on an interface.
    pub fn on(address: impl Into<IpAddr>, port: u16, interface: impl Into<String>) -> Self {
        Self { address: address.into(), port, interface: Some(interface.into()) }
    }

    /// The socket address, with the interface's index in this namespace as the scope.
    ///
    /// # Errors
    /// The interface is not there (if_nametoindex(3)).
    pub fn resolve(&self) -> io::Result<SocketAddr> {
        match (self.address, &self.interface) {
            (IpAddr::V6(address), Some(interface)) => {
                Ok(SocketAddrV6::new(address, self.port, 0, interface_index(interface)?).into())
            }
            (address, _) => Ok(SocketAddr::new(address, self.port)),
        }
    }
}

/// The index of an interface of this namespace.
pub(super) fn interface_index(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|errno| io::Error::new(io::Error::from(errno).kind(), format!("interface {name}: {errno}")))
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip(), address.port())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, &self.interface) {
            (IpAddr::V6(address), Some(interface)) => write!(f, "[{address}%{interface}]:{}", self.port),
            (address, _) => SocketAddr::new(address, self.port).fmt(f),
        }
    }
}

/// A text that is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no endpoint; write it as 192.0.2.1:53, [2001:db8::1]:53 or [fe80::1%eth0]:53")]
pub struct ParseEndpointError(String);

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseEndpointError(text.to_owned());
        if let Some((inside, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once("]:"))
            && let Some((address, interface)) = inside.split_once('%')
        {
            let address: Ipv6Addr = address.parse().map_err(|_| bad())?;
            if interface.is_empty() {
                return Err(bad());
            }
            return Ok(Self::on(address, port.parse().map_err(|_| bad())?, interface));
        }
        text.parse::<SocketAddr>().map(Self::from).map_err(|_| bad())
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// An Ethernet address: `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no Ethernet address; write it as 02:00:00:00:00:01")]
pub struct ParseMacAddressError(String);

impl FromStr for MacAddress {
    type Err = ParseMacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseMacAddressError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .ok_or_else(bad)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(octets)) }
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_back_as_written() {
        for text in ["192.0.2.1:53", "[2001:db8::1]:853", "[fe80::1%eth0]:53"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in ["", "192.0.2.1", "[fe80::1%]:53", "[192.0.2.1%eth0]:53", "[fe80::1%eth0]:65536"] {
            text.parse::<Endpoint>().unwrap_err();
        }
    }

    #[test]
    fn a_missing_interface_is_named() {
        let error = "[fe80::1%no-such-link]:53".parse::<Endpoint>().unwrap().resolve().unwrap_err();
        assert!(error.to_string().contains("no-such-link"), "{error}");
    }

    #[test]
    fn ethernet_addresses_are_read_back_as_written() {
        assert_eq!("02:00:5e:00:00:0a".parse::<MacAddress>().unwrap().to_string(), "02:00:5e:00:00:0a");
        for text in
            ["", "02:00:5e:00:00", "02:00:5e:00:00:0a:0b", "2:0:5e:0:0:a", "02-00-5e-00-00-0a", "+2:00:5e:00:00:0a"]
        {
            text.parse::<MacAddress>().unwrap_err();
        }
    }
}
