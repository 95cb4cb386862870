//! The matrix of a scenario, and the axes of one case.

use super::DnsChoice;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use watertight_protocol::Capability;

/// What a scenario varies. An absent axis has its first value only.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Matrix {
    /// The client's software and original configuration.
    #[serde(default)]
    pub profile: Vec<Profile>,
    /// DNS settings.
    #[serde(default)]
    pub dns: Vec<DnsChoice>,
    /// Families that the tunnel carries, and its servers are of.
    #[serde(default)]
    pub family: Vec<Family>,
    /// Shape of the original resolver file.
    #[serde(default)]
    pub original: Vec<Original>,
    /// The relay's port.
    #[serde(default)]
    pub relay_port: Vec<u16>,
}

/// Families of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone; the relay is still reached over IPv4.
    Ipv6,
    /// Both.
    Both,
}

/// The client's software.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Nobody manages /etc/resolv.conf.
    #[default]
    StaticFile,
    /// systemd-resolved, /etc/resolv.conf a link to the file that names its stub.
    SystemdResolved,
    /// systemd-resolved, /etc/resolv.conf a link to the file that names the servers of all links.
    SystemdResolvedUplink,
    /// systemd-resolved runs, and /etc/resolv.conf is somebody else's file.
    SystemdResolvedForeign,
    /// NetworkManager, which writes /etc/resolv.conf.
    NetworkManager,
    /// openresolv, which writes /etc/resolv.conf.
    Openresolv,
    /// Debian's resolvconf, /etc/resolv.conf a link to the file that it writes.
    DebianResolvconf,
    /// A DHCP client (dhclient), which writes /etc/resolv.conf.
    DhcpClient,
    /// NetworkManager, which writes /etc/resolv.conf, with an uplink by DHCP and router advertisements.
    NetworkManagerDhcp,
    /// NetworkManager with systemd-resolved, /etc/resolv.conf a link to the file that names the latter's stub.
    NetworkManagerResolved,
    /// NetworkManager with a dnsmasq of its own, which is what /etc/resolv.conf names.
    NetworkManagerDnsmasq,
    /// systemd-networkd with systemd-resolved, an uplink by DHCP and router advertisements, /etc/resolv.conf a link to the file
    /// that names the stub.
    SystemdNetworkd,
    /// dnsmasq as a local forwarder with servers of its own, named by an /etc/resolv.conf that nobody manages.
    Dnsmasq,
    /// unbound as a local forwarder with servers of its own, named by an /etc/resolv.conf that nobody manages.
    Unbound,
}

/// Who manages a profile's /etc/resolv.conf, and so which of the subject's DNS methods is the right one there (SEL-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Manager {
    /// Nobody who would be asked: the file itself is what can be changed.
    Nobody,
    /// systemd-resolved.
    SystemdResolved,
    /// NetworkManager.
    NetworkManager,
    /// resolvconf, either implementation.
    Resolvconf,
}

impl Profile {
    /// All profiles, in the order of reports.
    pub const ALL: &[Profile] = &[
        Profile::StaticFile,
        Profile::DhcpClient,
        Profile::Dnsmasq,
        Profile::Unbound,
        Profile::SystemdResolved,
        Profile::SystemdResolvedUplink,
        Profile::SystemdResolvedForeign,
        Profile::SystemdNetworkd,
        Profile::NetworkManager,
        Profile::NetworkManagerDhcp,
        Profile::NetworkManagerDnsmasq,
        Profile::NetworkManagerResolved,
        Profile::Openresolv,
        Profile::DebianResolvconf,
    ];

    /// Who manages /etc/resolv.conf.
    pub fn manager(self) -> Manager {
        match self {
            Profile::StaticFile
            | Profile::DhcpClient
            | Profile::Dnsmasq
            | Profile::Unbound
            | Profile::SystemdResolvedForeign => Manager::Nobody,
            Profile::SystemdResolved
            | Profile::SystemdResolvedUplink
            | Profile::SystemdNetworkd
            | Profile::NetworkManagerResolved => Manager::SystemdResolved,
            Profile::NetworkManager | Profile::NetworkManagerDhcp | Profile::NetworkManagerDnsmasq => {
                Manager::NetworkManager
            }
            Profile::Openresolv | Profile::DebianResolvconf => Manager::Resolvconf,
        }
    }
}

/// Shapes of an original /etc/resolv.conf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Original {
    /// A file as an installer writes it.
    #[default]
    Plain,
    /// Comments of both kinds, blank lines, tabs, options.
    Comments,
    /// The last line has no newline.
    NoFinalNewline,
    /// Lines end with carriage return and newline.
    Crlf,
    /// No bytes.
    Empty,
    /// No file.
    Missing,
    /// A symbolic link to a relative path.
    SymlinkRelative,
    /// A symbolic link to an absolute path.
    SymlinkAbsolute,
    /// A symbolic link to nothing.
    Dangling,
    /// Not readable by others.
    #[serde(rename = "mode-0640")]
    Mode0640,
    /// Of a user and group that are not root's.
    OwnedByUser,
    /// With an attribute of its owner's (xattr(7)).
    ExtendedAttribute,
    /// An option that no resolver knows.
    UnknownOption,
    /// Six nameservers, of which glibc takes three.
    SixNameservers,
}

/// The axes of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axes {
    /// The profile.
    pub profile: Profile,
    /// DNS settings, if the scenario varies them.
    pub dns: Option<DnsChoice>,
    /// The tunnel's families, if the scenario varies them.
    #[serde(default)]
    pub family: Option<Family>,
    /// The original resolver file.
    pub original: Original,
    /// The relay's port, if the scenario varies it.
    pub relay_port: Option<u16>,
}

impl Matrix {
    /// The profiles.
    pub fn profiles(&self) -> Vec<Profile> {
        or(&self.profile, Profile::default())
    }

    /// All combinations, in the order of the file.
    pub fn cases(&self) -> Vec<Axes> {
        let mut cases = Vec::new();
        for profile in self.profiles() {
            for dns in optional(&self.dns) {
                for family in optional(&self.family) {
                    for original in or(&self.original, Original::default()) {
                        for relay_port in optional(&self.relay_port) {
                            cases.push(Axes { profile, dns, family, original, relay_port });
                        }
                    }
                }
            }
        }
        cases
    }
}

fn or<T: Copy>(list: &[T], otherwise: T) -> Vec<T> {
    if list.is_empty() { vec![otherwise] } else { list.to_vec() }
}

fn optional<T: Copy>(list: &[T]) -> Vec<Option<T>> {
    if list.is_empty() { vec![None] } else { list.iter().copied().map(Some).collect() }
}

impl Axes {
    /// Capabilities without which the values make no sense.
    pub fn needs(&self) -> Vec<Capability> {
        let mut needs = self.dns_needs().to_vec();
        if matches!(self.family, Some(Family::Ipv6 | Family::Both)) {
            needs.push(Capability::Ipv6);
        }
        needs
    }

    fn dns_needs(&self) -> &'static [Capability] {
        match self.dns {
            None | Some(DnsChoice::Default) => &[],
            Some(
                DnsChoice::CustomEmpty | DnsChoice::CustomTunnel | DnsChoice::CustomTunnelV4 | DnsChoice::CustomGateway,
            ) => &[Capability::CustomDns],
            Some(
                DnsChoice::CustomLan | DnsChoice::CustomLanV6 | DnsChoice::CustomLinkLocal | DnsChoice::CustomMixed,
            ) => &[Capability::CustomDns, Capability::LanDns],
        }
    }

    /// The case's id: what differs from the first values, joined by `+`. A folder's name in the bundle.
    pub fn id(&self) -> String {
        let mut parts = vec![word(&self.profile)];
        parts.extend(self.dns.as_ref().map(word));
        parts.extend(self.family.as_ref().map(word));
        if self.original != Original::default() {
            parts.push(word(&self.original));
        }
        parts.extend(self.relay_port.map(|port| format!("relay-{port}")));
        parts.join("+")
    }
}

/// A unit variant's name in the files.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("a unit variant is a string, not {other:?}"),
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&word(self))
    }
}
