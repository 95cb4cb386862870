//! Software that a profile needs and this machine may not have: packages, unpacked into a folder of the cache and never
//! installed. A client machine gets the folder's `usr` above its own and the files of its `etc` ([`crate::sandbox::Client`]).
//!
//! A layer is named, fetched once for each distribution release and architecture, and used read-only afterwards.

mod fetch;

pub use fetch::{FetchError, fetch};

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Software by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// The name that people use.
    pub name: &'static str,
    /// Packages of Debian and its descendants.
    pub packages: &'static [&'static str],
    /// Programs that must be there, below `/usr`.
    pub programs: &'static [&'static str],
}

/// systemd's resolver service.
pub const SYSTEMD_RESOLVED: Layer = Layer {
    name: "systemd-resolved",
    packages: &["systemd-resolved", "dbus-daemon"],
    programs: &["lib/systemd/systemd-resolved", "bin/dbus-daemon"],
};

/// NetworkManager, with dnsmasq, which it can start.
pub const NETWORK_MANAGER: Layer = Layer {
    name: "network-manager",
    packages: &["network-manager", "dnsmasq-base", "dbus-daemon"],
    programs: &["sbin/NetworkManager", "bin/nmcli", "sbin/dnsmasq", "bin/dbus-daemon"],
};

/// Roy Marples' resolvconf.
pub const OPENRESOLV: Layer =
    Layer { name: "openresolv", packages: &["openresolv"], programs: &["sbin/resolvconf", "lib/resolvconf/libc"] };

/// Debian's own resolvconf.
pub const DEBIAN_RESOLVCONF: Layer = Layer {
    name: "debian-resolvconf",
    packages: &["resolvconf"],
    programs: &["sbin/resolvconf", "lib/resolvconf/list-records"],
};

/// ISC's DHCP client, with the program that its script configures links with.
pub const DHCP_CLIENT: Layer = Layer {
    name: "dhcp-client",
    packages: &["isc-dhcp-client", "iproute2"],
    programs: &["sbin/dhclient", "sbin/dhclient-script", "bin/ip"],
};

/// systemd's network configuration service, with the resolver service that it tells its servers.
pub const SYSTEMD_NETWORKD: Layer = Layer {
    name: "systemd-networkd",
    packages: &["systemd", "systemd-resolved", "dbus-daemon"],
    programs: &["lib/systemd/systemd-networkd", "lib/systemd/systemd-resolved", "bin/dbus-daemon"],
};

/// dnsmasq, without the service that Debian makes of it.
pub const DNSMASQ: Layer = Layer { name: "dnsmasq", packages: &["dnsmasq-base"], programs: &["sbin/dnsmasq"] };

/// NLnet Labs' resolver.
pub const UNBOUND: Layer = Layer { name: "unbound", packages: &["unbound"], programs: &["sbin/unbound"] };

/// WireGuard in userspace, for adapters: no profile has it.
pub const WIREGUARD_GO: Layer =
    Layer { name: "wireguard-go", packages: &["wireguard-go"], programs: &["bin/wireguard-go"] };

/// All layers.
pub const LAYERS: &[Layer] = &[
    SYSTEMD_RESOLVED,
    NETWORK_MANAGER,
    OPENRESOLV,
    DEBIAN_RESOLVCONF,
    DHCP_CLIENT,
    SYSTEMD_NETWORKD,
    DNSMASQ,
    UNBOUND,
    WIREGUARD_GO,
];

/// Where a layer's software is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this machine itself.
    Machine,
    /// In the cache.
    Folder(PathBuf),
    /// Nowhere yet.
    Missing,
}

/// A package in a layer, with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, as the distribution writes it.
    pub version: String,
}

impl Layer {
    /// The layer of that name.
    pub fn named(name: &str) -> Option<&'static Layer> {
        LAYERS.iter().find(|layer| layer.name == name)
    }

    /// Where its software is now.
    pub fn place(&self) -> Place {
        let has_all = |usr: &Path| self.programs.iter().all(|program| usr.join(program).is_file());
        if has_all(Path::new("/usr")) {
            return Place::Machine;
        }
        let folder = self.folder();
        // The list is written last: a folder without it is the remains of a fetch that was broken off. What the machine
        // has itself is in no package that was fetched.
        let complete = folder.join(PACKAGES).is_file()
            && self
                .programs
                .iter()
                .all(|program| folder.join("usr").join(program).is_file() || Path::new("/usr").join(program).is_file());
        if complete { Place::Folder(folder) } else { Place::Missing }
    }

    /// Where it is kept, if it is.
    pub fn folder(&self) -> PathBuf {
        cache().join(release()).join(self.name)
    }

    /// What the kept layer consists of.
    pub fn contents(&self) -> io::Result<Vec<Package>> {
        let list = fs::read_to_string(self.folder().join(PACKAGES))?;
        let packages = list.lines().filter_map(|line| line.split_once(' '));
        Ok(packages.map(|(name, version)| Package { name: name.into(), version: version.into() }).collect())
    }

    /// Why a case that needs it cannot be run, and what helps.
    pub fn missing(&self) -> String {
        format!(
            "this machine has no {0}, and the cache has no layer of it; get it, without installing anything, with `watertight fetch {0}`",
            self.name
        )
    }
}

/// The list of a layer's packages, one `name version` a line.
const PACKAGES: &str = "packages";

/// Where layers are kept: WATERTIGHT_LAYERS, or `watertight/layers` in the user's cache (XDG Base Directory).
pub fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("WATERTIGHT_LAYERS").unwrap_or_else(|| {
        let caches = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        let caches = caches.or_else(|| set("HOME").map(|home| home.join(".cache")));
        caches.unwrap_or_else(|| PathBuf::from("/var/cache")).join("watertight/layers")
    })
}

/// A word for this distribution's release and architecture (os-release(5)): its packages fit no other.
fn release() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned()).unwrap_or_else(|| "unknown".into())
    };
    format!("{}-{}-{}", value("ID"), value("VERSION_ID"), std::env::consts::ARCH)
}
