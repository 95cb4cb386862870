//! The software of a profile, running: the real daemons in the client machine, on a system bus of its own, with the
//! uplink's name servers configured as the network would.
//!
//! What a profile's client is (programs, users, files, who is told of the uplink) is here, one file a daemon; which
//! scenarios use which profile is theirs to say.

mod network_manager;
mod resolvconf;
mod resolved;
mod service;

pub(crate) use resolved::connect as connect_to_bus;
pub use resolved::{LinkSettings, STUBS, Settings as ResolvedSettings};
pub use service::{Service, ServiceError, Started};

use crate::{
    history::{Event, Recorder},
    layer::{self, Layer, Place},
    sandbox::{Client, Node},
    scenario::{Manager, Profile},
    testbed::plan::{ISP_V4, LAN_V4},
};
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// The servers that the network gives the uplink.
const UPLINK_SERVERS: [Ipv4Addr; 2] = [LAN_V4, ISP_V4];

/// Where programs in the client find the system bus.
pub(crate) const BUS_ADDRESS: &str = "unix:path=/run/dbus/system_bus_socket";

impl Profile {
    /// The software it needs.
    pub fn layers(self) -> &'static [Layer] {
        match self {
            Profile::StaticFile => &[],
            Profile::SystemdResolved | Profile::SystemdResolvedUplink | Profile::SystemdResolvedForeign => {
                &[layer::SYSTEMD_RESOLVED]
            }
            Profile::NetworkManager => &[layer::NETWORK_MANAGER],
            Profile::Openresolv => &[layer::OPENRESOLV],
            Profile::DebianResolvconf => &[layer::DEBIAN_RESOLVCONF],
        }
    }

    /// Files that its daemons write of themselves when a link comes or goes, whoever made it: what a snapshot of files leaves out.
    /// What they are set to is a topic of its own.
    pub fn bookkeeping(self) -> &'static [&'static str] {
        match self {
            // A device's file outlives the device; the others say when a connection was last used.
            Profile::NetworkManager => &[
                "/run/NetworkManager/devices",
                "/var/lib/NetworkManager/seen-bssids",
                "/var/lib/NetworkManager/timestamps",
                "/var/lib/NetworkManager/secret_key",
            ],
            _ => &[],
        }
    }

    /// Whether systemd-resolved runs.
    pub fn has_resolved(self) -> bool {
        self.layers().contains(&layer::SYSTEMD_RESOLVED)
    }

    /// The folders of the layers that have to be put above the machine's root, or the first layer that is nowhere.
    pub fn folders(self) -> Result<Vec<PathBuf>, &'static Layer> {
        let mut folders = Vec::new();
        for layer in self.layers() {
            match layer.place() {
                Place::Machine => {}
                Place::Folder(folder) => folders.push(folder),
                Place::Missing => return Err(layer),
            }
        }
        Ok(folders)
    }
}

/// A profile's running daemons. They end with the client machine.
#[derive(Debug, Default)]
pub struct Services {
    running: Vec<Service>,
}

impl Services {
    /// Starts what the profile has, in order, each when the one before is ready. Logs go to `folder`.
    pub async fn start(
        profile: Profile,
        client: &Client,
        node: &Node,
        folder: &Path,
        recorder: &Recorder,
    ) -> Result<Self, ServiceError> {
        let mut services = Self::default();
        if profile.has_resolved() {
            node.run(|| async { service::prepare_users() }).await??;
            services.running.push(Service::bus(client, folder).await?);
            services.running.push(resolved::start(client, node, folder).await?);
        }
        if profile == Profile::NetworkManager {
            node.run(|| async { service::prepare_users() }).await??;
            services.running.push(Service::bus(client, folder).await?);
            services.running.push(network_manager::start(client, node, folder).await?);
        }
        let once = match profile {
            Profile::Openresolv => Some((&layer::OPENRESOLV, "openresolv")),
            Profile::DebianResolvconf => Some((&layer::DEBIAN_RESOLVCONF, "resolvconf")),
            _ => None,
        };
        if let Some((layer, package)) = once {
            let started = resolvconf::start(client, node, layer, package, folder).await?;
            recorder.record(Event::ServiceStarted(started));
        }
        for service in &services.running {
            recorder.record(Event::ServiceStarted(service.started.clone()));
        }
        Ok(services)
    }

    /// Ends systemd-resolved in order and starts it again, as its unit would; gives back the new process's record.
    pub async fn restart_resolved(
        &mut self,
        client: &Client,
        node: &Node,
        folder: &Path,
    ) -> Result<Started, ServiceError> {
        self.stop_resolved().await?;
        let service = resolved::start_again(client, node, folder).await?;
        let started = service.started.clone();
        self.running.push(service);
        Ok(started)
    }

    /// Tells whoever manages the resolver configuration that the uplink has these servers, as whoever configures the uplink does.
    pub async fn tell_uplink(
        &self,
        profile: Profile,
        client: &Client,
        node: &Node,
        servers: &'static [Ipv4Addr],
        folder: &Path,
    ) -> Result<(), ServiceError> {
        match profile.manager() {
            Manager::SystemdResolved => {
                let told = node.run(move || async move { resolved::tell_uplink(servers).await }).await?;
                told.map_err(|source| ServiceError::NotReady {
                    name: "systemd-resolved",
                    reason: format!("it did not take the uplink's servers: {source}"),
                    log: folder.into(),
                })
            }
            Manager::Resolvconf => resolvconf::tell_uplink(client, servers, folder).await,
            Manager::Nobody | Manager::NetworkManager => Err(ServiceError::NotReady {
                name: "the uplink",
                reason: format!("a client of the profile {profile} has nobody that could be told of its servers"),
                log: folder.into(),
            }),
        }
    }

    /// Ends systemd-resolved in order.
    pub async fn stop_resolved(&mut self) -> Result<(), ServiceError> {
        let place = self.running.iter().position(|service| service.started.name == "systemd-resolved");
        match place {
            Some(place) => self.running.remove(place).stop().await,
            None => Ok(()),
        }
    }

    /// Has resolvconf fail when it is given a record, or work again. To be called inside the client.
    pub(crate) fn break_resolvconf(broken: bool) -> Result<(), ServiceError> {
        if broken { resolvconf::break_program() } else { resolvconf::mend_program() }
    }

    /// Makes systemd-resolved forget what it was told about a link. To be called inside the client.
    pub(crate) async fn wipe_link(interface: &str) -> zbus::Result<()> {
        resolved::revert_link(interface).await
    }

    /// Gives a link a search domain in systemd-resolved. To be called inside the client.
    pub(crate) async fn set_link_domain(interface: &str, domain: &str) -> zbus::Result<()> {
        resolved::set_domain(interface, domain).await
    }

    /// Process ids as the client machine itself counts them.
    pub fn pids(&self) -> Vec<u32> {
        self.running.iter().map(|service| service.started.pid).collect()
    }
}
