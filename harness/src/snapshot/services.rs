//! What the client's resolver services are set to, a topic each, and the names that are owned on its system bus. Which of them a
//! client has is its profile's.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use crate::profile::{Forwarder, NetworkManagerSettings, ResolvedSettings, connect_to_bus, networkd_settings};
use crate::scenario::Profile;

use super::escape::{block, word};
use super::{Error, Scope};

/// The topics of the services that the client has.
pub async fn topics(scope: &Scope) -> Result<Vec<(&'static str, String)>, Error> {
    let mut topics = Vec::new();
    if scope.profile.has_bus() {
        let bus = connect_to_bus().await.map_err(|source| Error::Bus { service: "the system bus", source })?;
        topics.push(("bus-names", bus_names(&bus).await.map_err(failed("the system bus"))?));
        let absent = || "absent\n".to_owned();
        if scope.profile.has_resolved() {
            let settings = ResolvedSettings::read(&bus).await.map_err(failed("systemd-resolved"))?;
            topics.push(("systemd-resolved", settings.map_or_else(absent, |settings| settings.text())));
        }
        if scope.profile == Profile::SystemdNetworkd {
            let settings = networkd_settings(&bus).await.map_err(failed("systemd-networkd"))?;
            topics.push(("systemd-networkd", settings.unwrap_or_else(absent)));
        }
        if scope.profile.has_network_manager() {
            let settings = NetworkManagerSettings::read(&bus).await.map_err(failed("NetworkManager"))?;
            topics.push(("network-manager", settings.map_or_else(absent, |settings| settings.text())));
        }
    }
    match scope.profile {
        Profile::Openresolv => topics.push(("resolvconf", resolvconf(&scope.root, &OPENRESOLV)?)),
        Profile::DebianResolvconf => topics.push(("resolvconf", resolvconf(&scope.root, &DEBIAN)?)),
        _ => {}
    }
    // NetworkManager's own can be told behind its back.
    let own = (scope.profile == Profile::NetworkManagerDnsmasq).then_some(Forwarder::Dnsmasq);
    if let Some(which) = scope.profile.forwarder().or(own) {
        let failed = |source| Error::Forwarder { service: which.name(), source };
        let upstreams = which.upstreams().await.map_err(failed)?;
        let settings = which.settings().await.map_err(failed)?;
        topics.push(("forwarder", crate::watch::forwarder_text(&upstreams) + &settings));
    }
    Ok(topics)
}

fn failed(service: &'static str) -> impl Fn(zbus::Error) -> Error {
    move |source| Error::Bus { service, source }
}

/// Names that somebody asked for, without the numbers that the bus gives to everybody.
async fn bus_names(bus: &zbus::Connection) -> zbus::Result<String> {
    let names = zbus::fdo::DBusProxy::new(bus).await?.list_names().await?;
    let mut names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    names.retain(|name| !name.starts_with(':'));
    names.sort();
    Ok(names.iter().map(|name| format!("{name}\n")).collect())
}

/// Where an implementation of resolvconf keeps its records, and by what it orders them.
struct Resolvconf {
    records: &'static str,
    /// Folders with a file for each record that has something special, and files with rules.
    order: &'static [&'static str],
}

/// openresolv: metrics, exclusive, private and deprecated records by the names of files (resolvconf(8)).
const OPENRESOLV: Resolvconf = Resolvconf {
    records: "run/resolvconf/interfaces",
    order: &[
        "run/resolvconf/metrics",
        "run/resolvconf/exclusive",
        "run/resolvconf/private",
        "run/resolvconf/nosearch",
        "run/resolvconf/deprecated",
        "etc/resolvconf.conf",
    ],
};

/// Debian's resolvconf (resolvconf(8), interface-order(5)).
const DEBIAN: Resolvconf =
    Resolvconf { records: "run/resolvconf/interface", order: &["etc/resolvconf/interface-order"] };

/// The records with their content, and all that says in which order they count.
fn resolvconf(root: &Path, which: &Resolvconf) -> Result<String, Error> {
    let mut text = String::new();
    for name in names(&root.join(which.records))? {
        let path = root.join(which.records).join(&name);
        let bytes = fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
        let _ = write!(text, "record {}\n{}", word(name.as_bytes()), block(&bytes));
    }
    for place in which.order {
        let path = root.join(place);
        if path.is_file() {
            let bytes = fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
            let _ = write!(text, "order /{place}\n{}", block(&bytes));
            continue;
        }
        for name in names(&path)? {
            let _ = writeln!(text, "order /{place}/{}", word(name.as_bytes()));
        }
    }
    Ok(text)
}

/// The files in a folder, sorted; none if there is no such folder.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let listed = fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect()
    });
    let mut names: Vec<String> = match listed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        listed => listed.map_err(|source| Error::io("list", folder, source))?,
    };
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_their_order_are_told() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(resolvconf(root.path(), &OPENRESOLV).unwrap(), "");
        write("run/resolvconf/interfaces/wt0", "nameserver 10.64.0.1\n");
        write("run/resolvconf/interfaces/eth0.dhclient", "nameserver 192.168.1.1\n");
        write("run/resolvconf/exclusive/000000 wt0", "");
        assert_eq!(
            resolvconf(root.path(), &OPENRESOLV).unwrap(),
            "record eth0.dhclient\n    | nameserver 192.168.1.1\nrecord wt0\n    | nameserver 10.64.0.1\n\
             order /run/resolvconf/exclusive/000000\\x20wt0\n"
        );
        write("etc/resolvconf/interface-order", "lo*\neth*\n");
        write("run/resolvconf/interface/eth0.dhclient", "nameserver 192.168.1.1\n");
        assert_eq!(
            resolvconf(root.path(), &DEBIAN).unwrap(),
            "record eth0.dhclient\n    | nameserver 192.168.1.1\n\
             order /etc/resolvconf/interface-order\n    | lo*\n    | eth*\n"
        );
    }
}
