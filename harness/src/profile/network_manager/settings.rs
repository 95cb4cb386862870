//! All that NetworkManager was told, as it tells it: global switches and servers, what is in force on each device, where it keeps
//! profiles, and which servers follow from all that (its D-Bus reference, interfaces NetworkManager, Device, Settings, DnsManager).

use super::{DEVICE, NAME, PATH, proxy};
use crate::profile::resolved::is_gone;
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};
use zbus::{
    Connection,
    fdo::DBusProxy,
    proxy::Proxy,
    wire::{OwnedObjectPath, OwnedVariant},
};

const DNS_MANAGER: &str = "org.freedesktop.NetworkManager.DnsManager";
const DNS_MANAGER_PATH: &str = "/org/freedesktop/NetworkManager/DnsManager";
const PROFILES: &str = "org.freedesktop.NetworkManager.Settings";
const PROFILES_PATH: &str = "/org/freedesktop/NetworkManager/Settings";
const PROFILE: &str = "org.freedesktop.NetworkManager.Settings.Connection";
/// Where the dnsmasq that it starts answers.
const DNSMASQ: &str = "127.0.0.1";
/// NM_DEVICE_STATE_ACTIVATED.
const ACTIVATED: u32 = 100;

/// Properties of a device, the interface of the objects that they name, and what of these is about names. Addresses and routes are
/// the kernel's to tell.
const CONFIGURATIONS: [(&str, &str, &[&str]); 2] = [
    (
        "Ip4Config",
        "org.freedesktop.NetworkManager.IP4Config",
        &["DnsOptions", "DnsPriority", "Domains", "NameserverData", "Searches"],
    ),
    (
        "Ip6Config",
        "org.freedesktop.NetworkManager.IP6Config",
        &["DnsOptions", "DnsPriority", "Domains", "Nameservers", "Searches"],
    ),
];

/// Sections of keys, sorted.
type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// The settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Settings that belong to no device, by property.
    pub global: Vec<(&'static str, String)>,
    /// `default`, `dnsmasq`, `systemd-resolved`, ….
    pub mode: String,
    /// What its resolver has, the first first.
    pub servers: Vec<Servers>,
    /// What is in force on each active device, by interface.
    pub applied: BTreeMap<String, Sections>,
    /// Where it has profiles, sorted.
    pub profiles: Vec<String>,
}

/// Servers of one connection, or of the global configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Servers {
    /// The connection's interface; `None` for the global configuration.
    pub interface: Option<String>,
    /// The lower, the earlier; a negative one excludes higher ones.
    pub priority: i32,
    /// Their addresses.
    pub servers: Vec<String>,
    /// Search and routing domains, the latter with `~`.
    pub domains: Vec<String>,
}

impl Settings {
    /// Reads them. To be called inside the client. `None` if the service is not on the bus, or is about to leave it.
    pub(crate) async fn read(bus: &Connection) -> zbus::Result<Option<Self>> {
        Self::read_as(bus, true).await
    }

    /// As [`Self::read`], without devices and profiles: few questions, so that the answer is not old when it is there.
    pub(crate) async fn read_servers(bus: &Connection) -> zbus::Result<Option<Self>> {
        Self::read_as(bus, false).await
    }

    async fn read_as(bus: &Connection, whole: bool) -> zbus::Result<Option<Self>> {
        if !DBusProxy::new(bus).await?.name_has_owner(NAME.try_into()?).await? {
            return Ok(None);
        }
        use zbus::fdo::Error::{UnknownMethod, UnknownObject};
        match Self::ask(bus, whole).await {
            // It ended meanwhile, or is not complete yet; what becomes of it is told by the bus.
            Err(zbus::Error::FDO(error))
                if is_gone(&error) || matches!(*error, UnknownMethod(_) | UnknownObject(_)) =>
            {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    async fn ask(bus: &Connection, whole: bool) -> zbus::Result<Self> {
        let manager = proxy(bus, PATH, NAME).await?;
        let dns = proxy(bus, DNS_MANAGER_PATH, DNS_MANAGER).await?;
        let mut settings = Settings { mode: dns.get_property("Mode").await?, ..Settings::default() };
        let entries: Vec<HashMap<String, OwnedVariant>> = dns.get_property("Configuration").await?;
        settings.servers = entries.into_iter().map(servers).collect();
        let switch: bool = manager.get_property("ConnectivityCheckEnabled").await?;
        settings.global.push(("ConnectivityCheckEnabled", switch.to_string()));
        for switch in ["NetworkingEnabled", "WirelessEnabled", "WwanEnabled"] {
            settings.global.push((switch, manager.get_property::<bool>(switch).await?.to_string()));
        }
        let checkpoints: Vec<OwnedObjectPath> = manager.get_property("Checkpoints").await?;
        settings.global.push(("Checkpoints", checkpoints.len().to_string()));
        let available: bool = manager.get_property("ConnectivityCheckAvailable").await?;
        settings.global.push(("ConnectivityCheckAvailable", available.to_string()));
        let global: HashMap<String, OwnedVariant> = manager.get_property("GlobalDnsConfiguration").await?;
        settings.global.push(("GlobalDnsConfiguration", text_of(&section(global))));
        settings.global.push(("DnsMode", settings.mode.clone()));
        settings.global.push(("RcManager", dns.get_property("RcManager").await?));
        if !whole {
            return Ok(settings);
        }
        let devices: Vec<OwnedObjectPath> = manager.get_property("Devices").await?;
        for device in devices {
            let device = proxy(bus, device.as_str(), DEVICE).await?;
            let found = gone_is_none(applied(bus, &device).await)?.flatten();
            settings.applied.extend(found);
        }
        let profiles: Vec<OwnedObjectPath> =
            proxy(bus, PROFILES_PATH, PROFILES).await?.get_property("Connections").await?;
        for profile in profiles {
            let profile = proxy(bus, profile.as_str(), PROFILE).await?;
            settings.profiles.extend(gone_is_none(kept(&profile).await)?);
        }
        settings.profiles.sort();
        Ok(settings)
    }

    /// The servers that the name of a stranger is asked of: those of the global configuration alone, if there is one
    /// (NetworkManager.conf(5)), or those of the lowest priority alone where that is negative (nm-settings(5), `dns-priority`).
    pub fn asked(&self) -> Vec<String> {
        let global = self.servers.iter().any(|servers| servers.interface.is_none());
        let lowest = self.servers.iter().map(|servers| servers.priority).min().unwrap_or(0);
        let counts = |servers: &&Servers| match global {
            true => servers.interface.is_none(),
            false => lowest >= 0 || servers.priority == lowest,
        };
        let mut asked: Vec<String> = Vec::new();
        for server in self.servers.iter().filter(counts).flat_map(|servers| &servers.servers) {
            if !asked.contains(server) {
                asked.push(server.clone());
            }
        }
        asked
    }

    /// What is in force on a device of IPv4 servers, as text.
    pub(super) fn given_to(&self, interface: &str) -> &str {
        let found = self.applied.get(interface).and_then(|sections| sections.get("ip4config")?.get("NameserverData"));
        found.map_or("", String::as_str)
    }

    /// Where a resolver of its own answers on this machine.
    pub fn at(&self) -> Vec<String> {
        if self.mode == "dnsmasq" { vec![DNSMASQ.into()] } else { Vec::new() }
    }

    /// Canonical text, for snapshots and the history.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (property, value) in &self.global {
            let _ = writeln!(text, "global {property} {value}");
        }
        for servers in &self.servers {
            let whose = servers.interface.as_deref().map_or("global".to_owned(), |name| format!("link {name}"));
            let (list, domains) = (servers.servers.join(" "), servers.domains.join(" "));
            let _ = writeln!(text, "servers {whose} priority {} {list} domains {domains}", servers.priority);
        }
        for (interface, sections) in &self.applied {
            for (section, keys) in sections {
                for (key, value) in keys {
                    let _ = writeln!(text, "applied {interface} {section}.{key} {value}");
                }
            }
        }
        for profile in &self.profiles {
            let _ = writeln!(text, "profile {profile}");
        }
        text
    }
}

/// Interface of an active device, and what is in force there. What was applied itself is told only to who is in the client machine.
async fn applied(bus: &Connection, device: &Proxy<'_>) -> zbus::Result<Option<(String, Sections)>> {
    let interface: String = device.get_property("Interface").await?;
    // It is the same in every client, and its connection has another id after each start.
    if interface == "lo" || device.get_property::<u32>("State").await? != ACTIVATED {
        return Ok(None);
    }
    let mut sections = Sections::new();
    let autoconnects: bool = device.get_property("Autoconnect").await?;
    sections.entry("device".to_owned()).or_default().insert("Autoconnect".to_owned(), autoconnects.to_string());
    for (property, interface, keys) in CONFIGURATIONS {
        let path: OwnedObjectPath = device.get_property(property).await?;
        if path.as_str() == "/" {
            continue;
        }
        let configuration = proxy(bus, path.as_str(), interface).await?;
        let section = sections.entry(property.to_lowercase()).or_default();
        for key in keys {
            let value: OwnedVariant = configuration.get_property(key).await?;
            section.insert((*key).to_owned(), format!("{}", *value));
        }
    }
    Ok(Some((interface, sections)))
}

/// A profile's place. Its content is the file's, or nobody's but NetworkManager's.
async fn kept(profile: &Proxy<'_>) -> zbus::Result<String> {
    let file: String = profile.get_property("Filename").await?;
    let unsaved: bool = profile.get_property("Unsaved").await?;
    let flags: u32 = profile.get_property("Flags").await?;
    Ok(format!("{} unsaved {unsaved} flags {flags}", if file.is_empty() { "in-memory" } else { &file }))
}

/// What is gone between two questions has nothing to tell.
fn gone_is_none<T>(result: zbus::Result<T>) -> zbus::Result<Option<T>> {
    use zbus::fdo::Error::{UnknownMethod, UnknownObject};
    match result {
        Err(zbus::Error::FDO(error)) if matches!(*error, UnknownMethod(_) | UnknownObject(_)) => Ok(None),
        other => other.map(Some),
    }
}

fn section(keys: HashMap<String, OwnedVariant>) -> BTreeMap<String, String> {
    keys.into_iter().map(|(key, value)| (key, format!("{}", *value))).collect()
}

fn text_of(keys: &BTreeMap<String, String>) -> String {
    keys.iter().map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join(" ")
}

fn servers(mut entry: HashMap<String, OwnedVariant>) -> Servers {
    let mut list = |key: &str| entry.remove(key).and_then(|value| Vec::try_from(value).ok()).unwrap_or_default();
    Servers {
        servers: list("nameservers"),
        domains: list("domains"),
        interface: entry.remove("interface").and_then(|value| String::try_from(value).ok()),
        priority: entry.remove("priority").and_then(|value| i32::try_from(value).ok()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(interface: Option<&str>, priority: i32, servers: &[&str]) -> Servers {
        let servers = servers.iter().map(|server| (*server).to_owned()).collect();
        Servers { interface: interface.map(Into::into), priority, servers, domains: Vec::new() }
    }

    #[test]
    fn a_negative_priority_and_a_global_configuration_exclude_the_others() {
        let mut settings = Settings { mode: "dnsmasq".into(), ..Settings::default() };
        assert!(settings.asked().is_empty());
        settings.servers = vec![
            of(Some("wt0"), 50, &["10.64.0.1", "192.168.1.1"]),
            of(Some("eth0"), 100, &["192.168.1.1", "198.51.100.53"]),
        ];
        assert_eq!(settings.asked(), ["10.64.0.1", "192.168.1.1", "198.51.100.53"]);
        settings.servers[0].priority = -5;
        assert_eq!(settings.asked(), ["10.64.0.1", "192.168.1.1"]);
        settings.servers.push(of(None, 0, &["9.9.9.9"]));
        assert_eq!(settings.asked(), ["9.9.9.9"]);
        assert_eq!(settings.at(), ["127.0.0.1"]);
    }

    #[test]
    fn text_has_a_line_a_setting() {
        let keys = HashMap::from([
            ("Searches".to_owned(), OwnedVariant::from(zbus::Str::from("home.test"))),
            ("DnsPriority".to_owned(), OwnedVariant::from(100_i32)),
        ]);
        let applied = Sections::from([("ip4config".to_owned(), section(keys))]);
        let settings = Settings {
            global: vec![("ConnectivityCheckEnabled", "true".into())],
            servers: vec![of(Some("eth0"), 100, &["192.168.1.1"])],
            applied: BTreeMap::from([("eth0".to_owned(), applied)]),
            profiles: vec!["/etc/x unsaved false flags 0".into()],
            ..Settings::default()
        };
        assert_eq!(
            settings.text(),
            "global ConnectivityCheckEnabled true\nservers link eth0 priority 100 192.168.1.1 domains \n\
             applied eth0 ip4config.DnsPriority 100\napplied eth0 ip4config.Searches \"home.test\"\n\
             profile /etc/x unsaved false flags 0\n"
        );
    }
}
