//! The software of a profile, running: the real daemons in the client machine, on a system bus of its own, with the
//! uplink's name servers configured as the network would.
//!
//! What a profile's client is (programs, users, files, who is told of the uplink) is here, one file a daemon; which
//! scenarios use which profile is theirs to say.

mod bus;
mod dhclient;
mod forwarder;
mod network_manager;
mod networkd;
mod resolvconf;
mod resolved;
mod service;
mod uplink;

pub(crate) use bus::connect as connect_to_bus;
pub use forwarder::{ADDRESS as FORWARDER_ADDRESS, Which as Forwarder};
pub use network_manager::{Servers as NetworkManagerServers, Settings as NetworkManagerSettings};
pub use networkd::settings as networkd_settings;
pub use resolved::{LinkSettings, STUBS, Settings as ResolvedSettings};
pub use service::{Service, ServiceError, Started};

use crate::{
    history::{Event, Recorder},
    layer::{self, Layer, Place},
    sandbox::{Client, Node},
    scenario::{Manager, Profile},
    testbed::plan::{ISP_V4, LAN_V4},
};
use nix::sys::signal::{Signal, kill};
use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

/// The servers that the network gives the uplink.
const UPLINK_SERVERS: [Ipv4Addr; 2] = [LAN_V4, ISP_V4];

impl Profile {
    /// The software it needs.
    pub fn layers(self) -> &'static [Layer] {
        match self {
            Profile::StaticFile => &[],
            Profile::SystemdResolved | Profile::SystemdResolvedUplink | Profile::SystemdResolvedForeign => {
                &[layer::SYSTEMD_RESOLVED]
            }
            Profile::NetworkManager | Profile::NetworkManagerDhcp | Profile::NetworkManagerDnsmasq => {
                &[layer::NETWORK_MANAGER]
            }
            Profile::NetworkManagerResolved => &[layer::SYSTEMD_RESOLVED, layer::NETWORK_MANAGER],
            Profile::SystemdNetworkd => &[layer::SYSTEMD_NETWORKD],
            Profile::DhcpClient => &[layer::DHCP_CLIENT],
            Profile::Dnsmasq => &[layer::DNSMASQ],
            Profile::Unbound => &[layer::UNBOUND],
            Profile::Openresolv => &[layer::OPENRESOLV],
            Profile::DebianResolvconf => &[layer::DEBIAN_RESOLVCONF],
        }
    }

    /// Files that its daemons write of themselves when a link comes or goes, whoever made it: what a snapshot of files leaves out.
    /// What they are set to is a topic of its own.
    pub fn bookkeeping(self) -> &'static [&'static str] {
        match self {
            // A device's file outlives the device, the loopback interface's profile is made anew at each start; the others say when
            // a connection was last used.
            Profile::NetworkManager
            | Profile::NetworkManagerDhcp
            | Profile::NetworkManagerResolved
            | Profile::NetworkManagerDnsmasq => &[
                "/run/NetworkManager/devices",
                "/run/NetworkManager/dnsmasq.pid",
                "/run/NetworkManager/system-connections/lo.nmconnection",
                "/var/lib/NetworkManager/NetworkManager.state",
                "/var/lib/NetworkManager/seen-bssids",
                "/var/lib/NetworkManager/timestamps",
                "/var/lib/NetworkManager/secret_key",
            ],
            // Leases, with the times at which they end.
            Profile::DhcpClient => &["/var/lib/dhcp", dhclient::PID_FILE],
            // It follows the resolver file, which is a topic of its own.
            Profile::SystemdResolvedForeign => &["/run/systemd/resolve/resolv.conf"],
            // The state of every link that the kernel has, and leases.
            Profile::SystemdNetworkd => &["/run/systemd/netif"],
            _ => &[],
        }
    }

    /// Whether systemd-resolved runs.
    pub fn has_resolved(self) -> bool {
        matches!(
            self,
            Profile::SystemdResolved
                | Profile::SystemdResolvedUplink
                | Profile::SystemdResolvedForeign
                | Profile::NetworkManagerResolved
                | Profile::SystemdNetworkd
        )
    }

    /// Whether NetworkManager runs.
    pub fn has_network_manager(self) -> bool {
        self.network_manager().is_some()
    }

    /// Whether it has a system bus.
    pub fn has_bus(self) -> bool {
        self.has_resolved() || self.has_network_manager()
    }

    /// The local forwarder that an administrator has set up.
    pub fn forwarder(self) -> Option<Forwarder> {
        match self {
            Profile::Dnsmasq => Some(Forwarder::Dnsmasq),
            Profile::Unbound => Some(Forwarder::Unbound),
            _ => None,
        }
    }

    /// Where a forwarder with servers of its own, or of NetworkManager's, answers on the client itself.
    pub fn answers_locally(self) -> Option<IpAddr> {
        matches!(self, Profile::Dnsmasq | Profile::Unbound | Profile::NetworkManagerDnsmasq)
            .then_some(FORWARDER_ADDRESS.into())
    }

    /// Whether the uplink is configured by the testbed's DHCP server and by router advertisements.
    pub fn has_lease(self) -> bool {
        matches!(self, Profile::DhcpClient | Profile::NetworkManagerDhcp | Profile::SystemdNetworkd)
    }

    /// Why it cannot be had where there is one user only, if it cannot.
    pub fn needs_users(self) -> Option<&'static str> {
        (self == Profile::NetworkManagerDnsmasq).then_some(
            "the dnsmasq that NetworkManager starts changes its group, which a user namespace with one user does not permit; run this profile as root",
        )
    }

    fn network_manager(self) -> Option<network_manager::Kind> {
        use network_manager::Resolver;
        let resolver = match self {
            Profile::NetworkManager | Profile::NetworkManagerDhcp => Resolver::None,
            Profile::NetworkManagerResolved => Resolver::Resolved,
            Profile::NetworkManagerDnsmasq => Resolver::Dnsmasq,
            _ => return None,
        };
        Some(network_manager::Kind { resolver, dhcp: self.has_lease() })
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
        let running = &mut services.running;
        let alone = node.run(|| async { service::prepare_users() }).await??;
        if profile.has_bus() {
            running.push(Service::bus(client, folder, alone).await?);
        }
        match profile {
            Profile::SystemdResolved | Profile::SystemdResolvedUplink | Profile::SystemdResolvedForeign => {
                running.push(resolved::start(client, node, folder).await?);
            }
            Profile::NetworkManagerResolved | Profile::SystemdNetworkd => {
                running.push(resolved::start_alone(client, node, folder).await?);
            }
            _ => {}
        }
        if let Some(kind) = profile.network_manager() {
            running.push(network_manager::start(kind, client, node, folder).await?);
        }
        match profile {
            Profile::SystemdNetworkd => running.push(networkd::start(client, node, folder).await?),
            Profile::DhcpClient => running.push(dhclient::start(client, node, folder).await?),
            Profile::Dnsmasq => running.push(forwarder::start(&forwarder::DNSMASQ, client, node, folder).await?),
            Profile::Unbound => running.push(forwarder::start(&forwarder::UNBOUND, client, node, folder).await?),
            _ => {}
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
            let own = profile.network_manager().and_then(|kind| network_manager::own_resolver(kind, service));
            if let Some(started) = own {
                recorder.record(Event::ServiceStarted(started));
            }
        }
        Ok(services)
    }

    /// Ends the profile's resolver service in order and starts it again, as its unit would; gives back the new process's record.
    pub async fn restart(
        &mut self,
        profile: Profile,
        client: &Client,
        node: &Node,
        folder: &Path,
    ) -> Result<Started, ServiceError> {
        let service = match profile.network_manager() {
            Some(kind) => {
                if let Some(service) = self.take(network_manager::PROGRAM) {
                    service.stop().await?;
                }
                network_manager::run(kind, client, node, folder).await?
            }
            None => {
                self.stop_resolved().await?;
                resolved::start_alone(client, node, folder).await?
            }
        };
        Ok(self.keep(service))
    }

    /// Starts the systemd-resolved that was ended; gives back the new process's record.
    pub async fn start_resolved(
        &mut self,
        client: &Client,
        node: &Node,
        folder: &Path,
    ) -> Result<Started, ServiceError> {
        let service = resolved::start_alone(client, node, folder).await?;
        Ok(self.keep(service))
    }

    /// Has whoever holds the uplink's lease ask for it again; gives back the record of a process that was started for it.
    pub async fn renew_lease(
        &mut self,
        profile: Profile,
        client: &Client,
        node: &Node,
        folder: &Path,
    ) -> Result<Option<Started>, ServiceError> {
        if let Some(service) = self.take(dhclient::NAME) {
            // It would give the lease back if it were asked to end.
            service.kill().await?;
            return Ok(Some(self.keep(dhclient::run(client, folder).await?)));
        }
        if profile.has_network_manager() {
            network_manager::renew(client, folder).await?;
            return Ok(None);
        }
        let asked = node.run(|| async { networkd::renew().await }).await?;
        asked.map(|()| None).map_err(|source| ServiceError::Bus { service: "systemd-networkd", source })
    }

    /// Returns when NetworkManager has found the uplink online, by both families.
    pub async fn wait_until_online(&self, node: &Node, folder: &Path) -> Result<(), ServiceError> {
        network_manager::wait_until_online(node, folder).await
    }

    /// Has NetworkManager apply the uplink's profile anew.
    pub async fn reapply(&self, client: &Client, node: &Node, folder: &Path) -> Result<(), ServiceError> {
        network_manager::reapply(client, node, folder).await
    }

    fn take(&mut self, name: &str) -> Option<Service> {
        let place = self.running.iter().position(|service| service.started.name == name)?;
        Some(self.running.remove(place))
    }

    fn keep(&mut self, service: Service) -> Started {
        let started = service.started.clone();
        self.running.push(service);
        started
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
        if profile.has_network_manager() {
            return network_manager::tell_uplink(profile.has_lease(), client, node, servers, folder).await;
        }
        match profile.manager() {
            Manager::SystemdResolved => {
                let told = node.run(move || async move { resolved::tell_uplink(servers).await }).await?;
                told.map_err(|source| ServiceError::NotReady {
                    name: "systemd-resolved".into(),
                    reason: format!("it did not take the uplink's servers: {source}"),
                    log: folder.into(),
                })
            }
            Manager::Resolvconf => resolvconf::tell_uplink(client, servers, folder).await,
            Manager::Nobody | Manager::NetworkManager => Err(ServiceError::NotReady {
                name: "the uplink".into(),
                reason: format!("a client of the profile {profile} has nobody that could be told of its servers"),
                log: folder.into(),
            }),
        }
    }

    /// Stops the profile's resolver service (NetworkManager, else systemd-resolved) where it is, or lets it go on.
    pub fn freeze(&self, profile: Profile, frozen: bool) -> Result<(), ServiceError> {
        let name = if profile.has_network_manager() { network_manager::PROGRAM } else { "systemd-resolved" };
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        let service = self.running.iter().find(|service| service.started.name == name);
        let failed = |reason: String| ServiceError::NotReady { name: name.into(), reason, log: PathBuf::new() };
        let service = service.ok_or_else(|| failed(format!("a client of the profile {profile} does not run it")))?;
        kill(service.process.pid, signal).map_err(|errno| failed(format!("{signal} could not be sent: {errno}")))
    }

    /// Ends systemd-resolved in order.
    pub async fn stop_resolved(&mut self) -> Result<(), ServiceError> {
        match self.take("systemd-resolved") {
            Some(service) => service.stop().await,
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
