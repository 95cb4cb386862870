//! systemd-resolved: started, told of the uplink's servers, and read (org.freedesktop.resolve1(5)).

use super::{
    UPLINK_SERVERS,
    bus::{connect, wait_for_name},
    service::{Program, Service, ServiceError},
};
use crate::{
    layer::SYSTEMD_RESOLVED,
    sandbox::{Client, Node},
    testbed::plan::UPLINK,
};
use futures::StreamExt;
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};
use zbus::{Connection, MatchRule, MessageStream, fdo::DBusProxy, message::Type, proxy::Proxy, wire::OwnedObjectPath};

/// Its name on the bus.
pub(crate) const NAME: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";
const LINK: &str = "org.freedesktop.resolve1.Link";
const NO_SUCH_LINK: &str = "org.freedesktop.resolve1.NoSuchLink";

/// Addresses at which it answers on the machine itself (systemd-resolved.service(8)).
pub const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];

/// Starts it, and tells it of the uplink's servers as whoever configures the network would.
pub(super) async fn start(client: &Client, node: &Node, folder: &Path) -> Result<Service, ServiceError> {
    start_with(client, node, folder, true).await
}

/// Starts it for somebody who tells it of the uplink's servers, or again: what it was told of links by others it has kept in
/// /run/systemd/resolve/netif.
pub(super) async fn start_alone(client: &Client, node: &Node, folder: &Path) -> Result<Service, ServiceError> {
    start_with(client, node, folder, false).await
}

/// Makes it forget what it was told about a link. To be called inside the client.
pub(super) async fn revert_link(interface: &str) -> zbus::Result<()> {
    let bus = connect().await?;
    let index = nix::net::if_::if_nametoindex(interface).map_err(|errno| zbus::Error::Failure(errno.to_string()))?;
    proxy(&bus, PATH, MANAGER).await?.call("RevertLink", &(index as i32)).await
}

/// Gives a link a search domain. To be called inside the client.
pub(super) async fn set_domain(interface: &str, domain: &str) -> zbus::Result<()> {
    let bus = connect().await?;
    let index = nix::net::if_::if_nametoindex(interface).map_err(|errno| zbus::Error::Failure(errno.to_string()))?;
    proxy(&bus, PATH, MANAGER).await?.call("SetLinkDomains", &(index as i32, vec![(domain, false)])).await
}

async fn start_with(client: &Client, node: &Node, folder: &Path, hand_over: bool) -> Result<Service, ServiceError> {
    let program = Program {
        name: "systemd-resolved",
        package: "systemd-resolved",
        layer: &SYSTEMD_RESOLVED,
        path: "/usr/lib/systemd/systemd-resolved",
        arguments: &[],
        environment: &[("SYSTEMD_LOG_TARGET", "console"), ("SYSTEMD_LOG_LEVEL", "info")],
        ready: None,
    };
    let service = Service::start(&program, client, folder).await?;
    let ready = move || async move {
        let ready = async {
            let bus = connect().await?;
            wait_for_name(&bus, NAME).await?;
            if hand_over { set_uplink(&bus, &UPLINK_SERVERS).await } else { Ok(()) }
        };
        ready.await.map_err(|error: zbus::Error| error.to_string())
    };
    service.ready_when(node, ready).await?;
    Ok(service)
}

/// Returns when it has servers to ask. To be called inside the client.
pub(super) async fn asks_somebody() -> zbus::Result<()> {
    let rule = MatchRule::builder().msg_type(Type::Signal).path_namespace(PATH).build()?;
    let listening = connect().await?;
    let mut signals = MessageStream::for_match_rule(rule, &listening, None).await?;
    let bus = connect().await?;
    loop {
        if Settings::read(&bus).await?.is_some_and(|settings| !settings.asked().is_empty()) {
            return Ok(());
        }
        if signals.next().await.is_none() {
            return Err(zbus::Error::Failure("the bus has gone".into()));
        }
    }
}

/// Tells it of the uplink's servers. To be called inside the client.
pub(super) async fn tell_uplink(servers: &[Ipv4Addr]) -> zbus::Result<()> {
    set_uplink(&connect().await?, servers).await
}

async fn set_uplink(bus: &Connection, servers: &[Ipv4Addr]) -> zbus::Result<()> {
    let index = nix::net::if_::if_nametoindex(UPLINK).map_err(|errno| zbus::Error::Failure(errno.to_string()))?;
    let servers: Vec<(i32, Vec<u8>)> = servers.iter().map(|server| (libc::AF_INET, server.octets().to_vec())).collect();
    let manager = proxy(bus, PATH, MANAGER).await?;
    manager.call("SetLinkDNS", &(index as i32, servers)).await
}

async fn proxy<'a>(bus: &Connection, path: &'a str, interface: &'a str) -> zbus::Result<Proxy<'a>> {
    super::bus::proxy(bus, NAME, path, interface).await
}

/// All that it was told, as it tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Settings that belong to no link, by property.
    pub global: Vec<(&'static str, String)>,
    /// Servers that belong to no link.
    pub servers: Vec<String>,
    /// Search and routing domains that belong to no link, the latter with `~`.
    pub domains: Vec<String>,
    /// Servers that are asked where nothing else is configured.
    pub fallback: Vec<String>,
    /// Links, by name.
    pub links: Vec<LinkSettings>,
}

/// A link's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkSettings {
    /// The link.
    pub name: String,
    /// Its servers, in order.
    pub servers: Vec<String>,
    /// Search and routing domains, the latter with `~`.
    pub domains: Vec<String>,
    /// Whether names that no domain claims are asked here.
    pub default_route: bool,
    /// The rest, by property.
    pub rest: Vec<(&'static str, String)>,
}

impl Settings {
    /// Reads them. To be called inside the client. `None` if the service is not on the bus.
    pub(crate) async fn read(bus: &Connection) -> zbus::Result<Option<Self>> {
        match Self::ask(bus).await {
            // It ended meanwhile; who takes its place is told by the bus.
            Err(zbus::Error::FDO(error)) if is_gone(&error) => Ok(None),
            other => other,
        }
    }

    async fn ask(bus: &Connection) -> zbus::Result<Option<Self>> {
        if !DBusProxy::new(bus).await?.name_has_owner(NAME.try_into()?).await? {
            return Ok(None);
        }
        let manager = proxy(bus, PATH, MANAGER).await?;
        let mut settings = Settings::default();
        for property in ["DNSOverTLS", "DNSSEC", "LLMNR", "MulticastDNS", "ResolvConfMode", "DNSStubListener"] {
            settings.global.push((property, manager.get_property::<String>(property).await?));
        }
        let on_no_link = |list: Vec<(i32, i32, Vec<u8>)>| -> Vec<String> {
            list.into_iter().filter(|(link, ..)| *link == 0).map(|(_, _, bytes)| address(&bytes)).collect()
        };
        settings.servers = on_no_link(manager.get_property("DNS").await?);
        settings.fallback = on_no_link(manager.get_property("FallbackDNS").await?);
        let all: Vec<(i32, String, bool)> = manager.get_property("Domains").await?;
        settings.domains =
            all.into_iter().filter(|(link, ..)| *link == 0).map(|(_, name, only)| domain(&name, only)).collect();
        let interfaces = nix::net::if_::if_nameindex().map_err(|errno| zbus::Error::Failure(errno.to_string()))?;
        let mut names: Vec<(String, u32)> = interfaces
            .iter()
            .map(|interface| (interface.name().to_string_lossy().into_owned(), interface.index()))
            .collect();
        names.sort();
        for (name, index) in names {
            match link(bus, &manager, name, index).await {
                Ok(link) => settings.links.extend(link),
                // The kernel has it and the service does not know it yet, or not any more: it has no settings.
                Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_LINK => {}
                Err(zbus::Error::FDO(error)) if matches!(*error, zbus::fdo::Error::UnknownObject(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(settings))
    }

    /// The servers that the name of a stranger is asked of (systemd-resolved.service(8), "Protocols and routing").
    pub fn asked(&self) -> Vec<String> {
        let claims = |domains: &[String]| domains.iter().any(|domain| domain == "~." || domain == ".");
        let claimed = self.links.iter().any(|link| claims(&link.domains) && !link.servers.is_empty())
            || claims(&self.domains) && !self.servers.is_empty();
        let mut asked: Vec<String> = Vec::new();
        for link in &self.links {
            if if claimed { claims(&link.domains) } else { link.default_route } {
                asked.extend(link.servers.iter().cloned());
            }
        }
        if !claimed || claims(&self.domains) {
            asked.extend(self.servers.iter().cloned());
        }
        let configured = !self.servers.is_empty() || self.links.iter().any(|link| !link.servers.is_empty());
        if !configured {
            asked.extend(self.fallback.iter().cloned());
        }
        asked
    }

    /// Canonical text, for snapshots and the history.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (property, value) in &self.global {
            let _ = writeln!(text, "global {property} {value}");
        }
        let lists = [("DNS", &self.servers), ("Domains", &self.domains), ("FallbackDNS", &self.fallback)];
        for (property, list) in lists {
            let _ = writeln!(text, "global {property} {}", list.join(" "));
        }
        for link in &self.links {
            let name = &link.name;
            let _ = writeln!(text, "link {name} DNS {}", link.servers.join(" "));
            let _ = writeln!(text, "link {name} Domains {}", link.domains.join(" "));
            let _ = writeln!(text, "link {name} DefaultRoute {}", link.default_route);
            for (property, value) in &link.rest {
                let _ = writeln!(text, "link {name} {property} {value}");
            }
        }
        text
    }
}

/// Nobody is there to answer: it ended, and the bus cannot start it either, which is nobody's job here.
pub(super) fn is_gone(error: &zbus::fdo::Error) -> bool {
    use zbus::fdo::Error::{
        NameHasNoOwner, NoReply, ServiceUnknown, SpawnChildExited, SpawnChildSignaled, SpawnExecFailed, SpawnFailed,
    };
    matches!(
        error,
        NameHasNoOwner(_)
            | NoReply(_)
            | ServiceUnknown(_)
            | SpawnChildExited(_)
            | SpawnChildSignaled(_)
            | SpawnExecFailed(_)
            | SpawnFailed(_)
    )
}

async fn link(bus: &Connection, manager: &Proxy<'_>, name: String, index: u32) -> zbus::Result<Option<LinkSettings>> {
    // The loopback interface is none of its links.
    if name == "lo" {
        return Ok(None);
    }
    let path: OwnedObjectPath = manager.call("GetLink", &(index as i32)).await?;
    let link = proxy(bus, path.as_str(), LINK).await?;
    let servers: Vec<(i32, Vec<u8>)> = link.get_property("DNS").await?;
    let domains: Vec<(String, bool)> = link.get_property("Domains").await?;
    let mut settings = LinkSettings {
        name,
        servers: servers.into_iter().map(|(_, bytes)| address(&bytes)).collect(),
        domains: domains.into_iter().map(|(name, only)| domain(&name, only)).collect(),
        default_route: link.get_property("DefaultRoute").await?,
        rest: Vec::new(),
    };
    for property in ["DNSOverTLS", "DNSSEC", "LLMNR", "MulticastDNS"] {
        settings.rest.push((property, link.get_property::<String>(property).await?));
    }
    let anchors: Vec<String> = link.get_property("DNSSECNegativeTrustAnchors").await?;
    settings.rest.push(("DNSSECNegativeTrustAnchors", anchors.join(" ")));
    Ok(Some(settings))
}

fn domain(name: &str, routing_only: bool) -> String {
    if routing_only { format!("~{name}") } else { name.to_owned() }
}

fn address(bytes: &[u8]) -> String {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return IpAddr::from(Ipv4Addr::from(octets)).to_string();
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => IpAddr::from(Ipv6Addr::from(octets)).to_string(),
        Err(_) => format!("{bytes:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, servers: &[&str], domains: &[&str], default_route: bool) -> LinkSettings {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        LinkSettings {
            name: name.into(),
            servers: owned(servers),
            domains: owned(domains),
            default_route,
            rest: vec![],
        }
    }

    #[test]
    fn a_strangers_name_is_asked_where_all_names_are_claimed() {
        let mut settings = Settings { fallback: vec!["1.1.1.1".into()], ..Settings::default() };
        assert_eq!(settings.asked(), ["1.1.1.1"]);
        settings.links = vec![link("eth0", &["192.168.1.1"], &[], true), link("wt0", &["10.64.0.1"], &[], false)];
        assert_eq!(settings.asked(), ["192.168.1.1"]);
        settings.links[1].default_route = true;
        assert_eq!(settings.asked(), ["192.168.1.1", "10.64.0.1"]);
        settings.links[1].domains = vec!["~.".into()];
        assert_eq!(settings.asked(), ["10.64.0.1"]);
        settings.servers = vec!["9.9.9.9".into()];
        assert_eq!(settings.asked(), ["10.64.0.1"]);
        // A claim without a server is none.
        settings.links[1].servers.clear();
        assert_eq!(settings.asked(), ["192.168.1.1", "9.9.9.9"]);
    }
}
