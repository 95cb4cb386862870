//! NetworkManager: started with a profile for the uplink, and awaited until that is active (NetworkManager(8)).

mod settings;

pub use settings::{Servers, Settings};

use super::{
    bus, resolved,
    service::{self, Program, Service, ServiceError, Started},
    uplink,
};
use crate::{
    layer::NETWORK_MANAGER,
    sandbox::{Client, Node},
    testbed::plan::{CLIENT_ULA, CLIENT_V4, CLIENT_V6, ISP_V4, LAN_LINK_LOCAL, LAN_V4, UPLINK},
};
use futures::StreamExt;
use nix::mount::{MsFlags, mount};
use std::{fs, io, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::Path, time::Duration};
use zbus::{MatchRule, MessageStream, message::Type, proxy::Proxy, wire::OwnedObjectPath};

const NAME: &str = "org.freedesktop.NetworkManager";
/// Its name in the record, the bundle and errors.
pub(super) const PROGRAM: &str = "NetworkManager";
const PATH: &str = "/org/freedesktop/NetworkManager";
const DEVICE: &str = "org.freedesktop.NetworkManager.Device";
const UNKNOWN_DEVICE: &str = "org.freedesktop.NetworkManager.UnknownDevice";
/// NM_MPTCP_FLAGS_DISABLED: endpoints of multipath TCP would get other numbers with each activation.
const NO_MPTCP: u32 = 1;
/// NM_DEVICE_STATE_ACTIVATED.
const ACTIVATED: u32 = 100;
/// NM_CONNECTIVITY_FULL.
const FULL: u32 = 4;
/// How long what it does of itself may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which resolver it uses (NetworkManager.conf(5), `dns=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolver {
    /// None: it writes its servers into /etc/resolv.conf.
    None,
    /// systemd-resolved, over the bus.
    Resolved,
    /// A dnsmasq that it starts.
    Dnsmasq,
}

/// How it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// Its resolver.
    pub(super) resolver: Resolver,
    /// The uplink is configured by DHCP and router advertisements.
    pub(super) dhcp: bool,
}

/// Starts it, and waits until the uplink is its own and active, and its resolver has the uplink's servers.
pub(super) async fn start(kind: Kind, client: &Client, node: &Node, folder: &Path) -> Result<Service, ServiceError> {
    node.run(move || async move { prepare(kind).await }).await??;
    run(kind, client, node, folder).await
}

/// The resolver that it has started itself, for the record.
pub(super) fn own_resolver(kind: Kind, service: &Service) -> Option<Started> {
    (kind.resolver == Resolver::Dnsmasq).then(|| service.child("dnsmasq", "dnsmasq-base", &NETWORK_MANAGER)).flatten()
}

/// Starts it again, with the configuration that it has.
pub(super) async fn run(kind: Kind, client: &Client, node: &Node, folder: &Path) -> Result<Service, ServiceError> {
    let program = Program {
        name: PROGRAM,
        package: "network-manager",
        layer: &NETWORK_MANAGER,
        path: "/usr/sbin/NetworkManager",
        // It writes its log to standard error in this mode only.
        arguments: &["--debug", "--log-level=INFO"],
        environment: &[],
        ready: None,
    };
    let service = Service::start(&program, client, folder).await?;
    let ready = move || async move {
        activated().await.map_err(|error| error.to_string())?;
        uplink::configured().await.map_err(|error| error.to_string())?;
        match kind.resolver {
            Resolver::None => Ok(()),
            Resolver::Resolved => resolved::asks_somebody().await.map_err(|error| error.to_string()),
            Resolver::Dnsmasq => super::forwarder::answers().await.map_err(|error| error.to_string()),
        }
    };
    service.ready_when(node, ready).await?;
    Ok(service)
}

/// Its configuration, and an uplink without addresses: a link that has some it takes for somebody else's.
async fn prepare(kind: Kind) -> Result<(), ServiceError> {
    let write = |path: &str, text: &str, mode: u32| {
        let path = Path::new(path);
        let failed = |source| ServiceError::File { action: "write", path: path.into(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        fs::write(path, text).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
    };
    let resolver = match kind.resolver {
        Resolver::None => "default",
        Resolver::Resolved => "systemd-resolved",
        Resolver::Dnsmasq => "dnsmasq",
    };
    let main = format!("[main]\nplugins=keyfile\nno-auto-default=*\nauth-polkit=root-only\ndns={resolver}\n");
    write("/etc/NetworkManager/NetworkManager.conf", &main, 0o644)?;
    let addresses = if kind.dhcp {
        let identifier = uplink::interface_identifier();
        format!("[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=auto\naddr-gen-mode=eui64\ntoken={identifier}\nip6-privacy=0\n")
    } else {
        format!(
            "[ipv4]\nmethod=manual\naddress1={CLIENT_V4}/24,{LAN_V4}\ndns={LAN_V4};{ISP_V4};\n\n\
             [ipv6]\nmethod=manual\naddr-gen-mode=eui64\naddress1={CLIENT_V6}/64,{LAN_LINK_LOCAL}\naddress2={CLIENT_ULA}/64\n"
        )
    };
    let uplink = format!(
        "[connection]\nid=uplink\nuuid=2f3c8f5e-7a51-4b43-9d5c-1f1e5a6b7c8d\ntype=ethernet\ninterface-name={UPLINK}\nmptcp-flags={NO_MPTCP}\n\n{addresses}"
    );
    write("/etc/NetworkManager/system-connections/uplink.nmconnection", &uplink, 0o600)?;
    // What the distribution runs on its own account when a connection comes: it would come and go between two snapshots.
    remove_scripts(Path::new("/etc/NetworkManager/dispatcher.d"))?;
    without_udev()?;
    uplink::clear_wholly().await
}

fn remove_scripts(folder: &Path) -> Result<(), ServiceError> {
    let removed = || -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if !path.is_dir() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    };
    match removed() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ServiceError::File { action: "empty", path: folder.into(), source }),
        Ok(()) => Ok(()),
    }
}

/// Without a udev that answers network managers wait for one, unless /sys is read-only, as in a container.
pub(super) fn without_udev() -> Result<(), ServiceError> {
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, "/sys", None::<&str>, read_only, None::<&str>).map_err(|errno| ServiceError::File {
        action: "make read-only",
        path: "/sys".into(),
        source: errno.into(),
    })
}

/// Returns when the uplink's device is activated.
async fn activated() -> zbus::Result<()> {
    let bus = bus::connect().await?;
    bus::wait_for_name(&bus, NAME).await?;
    signals_until(async || Ok(state(&bus).await? == Some(ACTIVATED))).await
}

/// Returns when it has found the uplink online, by both families.
pub(super) async fn wait_until_online(node: &Node, folder: &Path) -> Result<(), ServiceError> {
    let online = || async {
        let bus = bus::connect().await?;
        signals_until(async || {
            let Some(device) = uplink_device(&bus).await? else { return Ok(false) };
            let proxy = proxy(&bus, &device, DEVICE).await?;
            let (v4, v6): (u32, u32) =
                (proxy.get_property("Ip4Connectivity").await?, proxy.get_property("Ip6Connectivity").await?);
            Ok([v4, v6] == [FULL, FULL])
        })
        .await
    };
    await_within(node, online, folder, "find the uplink online").await
}

/// Waits for its signals until something holds.
async fn signals_until(mut holds: impl AsyncFnMut() -> zbus::Result<bool>) -> zbus::Result<()> {
    let rule = MatchRule::builder().msg_type(Type::Signal).path_namespace(PATH).build()?;
    // A connection of their own: signals that nobody reads hold up the answers behind them.
    let listening = bus::connect().await?;
    let mut signals = MessageStream::for_match_rule(rule, &listening, None).await?;
    loop {
        if holds().await? {
            return Ok(());
        }
        if signals.next().await.is_none() {
            return Err(zbus::Error::Failure("the bus has gone".into()));
        }
    }
}

/// Has it ask for the uplink's lease again: with another setting of DHCP, which is applied to the device alone.
pub(super) async fn renew(client: &Client, folder: &Path) -> Result<(), ServiceError> {
    let arguments = ["device", "modify", UPLINK, "ipv4.dhcp-send-hostname", "no"];
    service::call(client, "/usr/bin/nmcli", &arguments, "", folder).await
}

/// Has it apply the uplink's profile anew, as an administrator does. It answers only who is in the client machine, where it can
/// see who that is.
pub(super) async fn reapply(client: &Client, node: &Node, folder: &Path) -> Result<(), ServiceError> {
    service::call(client, "/usr/bin/nmcli", &["device", "reapply", UPLINK], "", folder).await?;
    await_within(node, uplink_again, folder, "configure the uplink again").await
}

/// Addresses that it has taken away meanwhile are there again, and may be used.
async fn uplink_again() -> zbus::Result<()> {
    uplink::configured().await.map_err(|error| zbus::Error::Failure(error.to_string()))
}

/// Gives the uplink other servers, or those of its profile again: on the device alone, no profile is written.
pub(super) async fn tell_uplink(
    leased: bool,
    client: &Client,
    node: &Node,
    servers: &'static [Ipv4Addr],
    folder: &Path,
) -> Result<(), ServiceError> {
    let theirs = leased && servers == super::UPLINK_SERVERS;
    let list = servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (list, ignore) = if theirs { (String::new(), "no") } else { (list, if leased { "yes" } else { "no" }) };
    // What router advertisements say stays: another setting of IPv6 would take its addresses away for a while.
    let arguments = ["device", "modify", UPLINK, "ipv4.dns", &list, "ipv4.ignore-auto-dns", ignore];
    service::call(client, "/usr/bin/nmcli", &arguments, "", folder).await?;
    let told = || async {
        let bus = bus::connect().await?;
        signals_until(async || {
            // On the device: with a global configuration the connections' servers are not among those that are used.
            let settings = Settings::read(&bus).await?.unwrap_or_default();
            let has = settings.given_to(UPLINK);
            Ok(servers.iter().all(|server| has.contains(&format!("\"{server}\""))))
        })
        .await?;
        uplink_again().await
    };
    await_within(node, told, folder, "take the uplink's servers").await
}

/// Waits for something of it, within a bound.
async fn await_within<F>(
    node: &Node,
    what: impl FnOnce() -> F + Send + 'static,
    folder: &Path,
    does: &str,
) -> Result<(), ServiceError>
where
    F: Future<Output = zbus::Result<()>>,
{
    let failed = |reason: String| ServiceError::NotReady { name: PROGRAM.into(), reason, log: folder.into() };
    match node.run(move || async move { tokio::time::timeout(PATIENCE, what()).await }).await? {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(format!("it was not seen to {does}: {error}"))),
        Err(_) => Err(failed(format!("it was not seen to {does} within {} s", PATIENCE.as_secs()))),
    }
}

async fn state(bus: &zbus::Connection) -> zbus::Result<Option<u32>> {
    match uplink_device(bus).await? {
        Some(device) => proxy(bus, &device, DEVICE).await?.get_property("State").await.map(Some),
        None => Ok(None),
    }
}

async fn proxy<'a>(bus: &zbus::Connection, path: &'a str, interface: &'a str) -> zbus::Result<Proxy<'a>> {
    bus::proxy(bus, NAME, path, interface).await
}

/// The uplink's device, if it is there already.
async fn uplink_device(bus: &zbus::Connection) -> zbus::Result<Option<String>> {
    let manager = proxy(bus, PATH, NAME).await?;
    let device: OwnedObjectPath = match manager.call("GetDeviceByIpIface", &UPLINK).await {
        Ok(device) => device,
        Err(zbus::Error::MethodError(name, ..)) if name.as_str() == UNKNOWN_DEVICE => return Ok(None),
        // It takes its name before its objects are there.
        Err(zbus::Error::FDO(error)) if matches!(*error, zbus::fdo::Error::UnknownMethod(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(device.to_string()))
}
