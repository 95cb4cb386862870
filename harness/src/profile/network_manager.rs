//! NetworkManager: started with a profile for the uplink, and awaited until that is active (NetworkManager(8)).

use super::{
    resolved,
    service::{Program, READY, Service, ServiceError},
};
use crate::{
    layer::NETWORK_MANAGER,
    sandbox::{Client, Node},
    testbed::plan::{CLIENT_ULA, CLIENT_V4, CLIENT_V6, ISP_V4, LAN_LINK_LOCAL, LAN_V4, UPLINK},
};
use futures::StreamExt;
use nix::mount::{MsFlags, mount};
use nlink::{Connection, Route};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};
use zbus::{
    MatchRule, MessageStream,
    message::Type,
    proxy::{CacheProperties, Proxy},
    wire::OwnedObjectPath,
};

const NAME: &str = "org.freedesktop.NetworkManager";
const PATH: &str = "/org/freedesktop/NetworkManager";
const DEVICE: &str = "org.freedesktop.NetworkManager.Device";
const UNKNOWN_DEVICE: &str = "org.freedesktop.NetworkManager.UnknownDevice";
/// NM_DEVICE_STATE_ACTIVATED.
const ACTIVATED: u32 = 100;

/// Starts it, and waits until the uplink is its own and active.
pub(super) async fn start(client: &Client, node: &Node, folder: &Path) -> Result<Service, ServiceError> {
    node.run(|| async { prepare().await }).await??;
    let program = Program {
        name: "NetworkManager",
        package: "network-manager",
        layer: &NETWORK_MANAGER,
        path: "/usr/sbin/NetworkManager",
        // It writes its log to standard error in this mode only.
        arguments: &["--debug", "--log-level=INFO"],
        environment: &[],
    };
    let service = Service::start(&program, client, folder).await?;
    let ready = node.run(|| async { activated().await });
    let mut end = service.process.end();
    tokio::select! {
        ready = tokio::time::timeout(READY, ready) => match ready {
            Ok(Ok(Ok(()))) => Ok(service),
            Ok(Ok(Err(source))) => Err(service.not_ready("NetworkManager", &source.to_string()).await),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(service.not_ready("NetworkManager", "the uplink was not active in time").await),
        },
        _ = end.wait_for(Option::is_some) => Err(service.not_ready("NetworkManager", "it ended").await),
    }
}

/// Its configuration, and an uplink without addresses: a link that has some it takes for somebody else's.
async fn prepare() -> Result<(), ServiceError> {
    let write = |path: &str, text: &str, mode: u32| {
        let path = Path::new(path);
        let failed = |source| ServiceError::File { action: "write", path: path.into(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        fs::write(path, text).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
    };
    write(
        "/etc/NetworkManager/NetworkManager.conf",
        "[main]\nplugins=keyfile\nno-auto-default=*\nauth-polkit=root-only\n",
        0o644,
    )?;
    let uplink = format!(
        "[connection]\nid=uplink\nuuid=2f3c8f5e-7a51-4b43-9d5c-1f1e5a6b7c8d\ntype=ethernet\ninterface-name={UPLINK}\n\n\
         [ipv4]\nmethod=manual\naddress1={CLIENT_V4}/24,{LAN_V4}\ndns={LAN_V4};{ISP_V4};\n\n\
         [ipv6]\nmethod=manual\naddr-gen-mode=eui64\naddress1={CLIENT_V6}/64,{LAN_LINK_LOCAL}\naddress2={CLIENT_ULA}/64\n"
    );
    write("/etc/NetworkManager/system-connections/uplink.nmconnection", &uplink, 0o600)?;
    // Without a udev that answers it waits for one, unless /sys is read-only, as in a container.
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, "/sys", None::<&str>, read_only, None::<&str>).map_err(|errno| ServiceError::File {
        action: "make read-only",
        path: "/sys".into(),
        source: errno.into(),
    })?;
    remove_addresses().await.map_err(|source| ServiceError::Uplink { source })
}

async fn remove_addresses() -> Result<(), nlink::Error> {
    let connection = Connection::<Route>::new()?;
    for address in connection.get_addresses_by_name(UPLINK).await? {
        if let Some(ip) = address.address() {
            connection.del_address(UPLINK, *ip, address.prefix_len()).await?;
        }
    }
    Ok(())
}

/// Returns when the uplink's device is activated.
async fn activated() -> zbus::Result<()> {
    let bus = resolved::connect().await?;
    resolved::wait_for_name(&bus, NAME).await?;
    let rule = MatchRule::builder().msg_type(Type::Signal).path_namespace(PATH).build()?;
    // A connection of their own: signals that nobody reads hold up the answers behind them.
    let listening = resolved::connect().await?;
    let mut signals = MessageStream::for_match_rule(rule, &listening, None).await?;
    loop {
        if state(&bus).await? == Some(ACTIVATED) {
            return Ok(());
        }
        if signals.next().await.is_none() {
            return Err(zbus::Error::Failure("the bus has gone".into()));
        }
    }
}

async fn state(bus: &zbus::Connection) -> zbus::Result<Option<u32>> {
    let proxy = |path: String, interface: &'static str| async move {
        zbus::proxy::Builder::new(bus)
            .destination(NAME)
            .path(path)
            .interface(interface)
            .cache_properties(CacheProperties::No)
            .build()
            .await
    };
    let manager: Proxy<'_> = proxy(PATH.into(), NAME).await?;
    let device: OwnedObjectPath = match manager.call("GetDeviceByIpIface", &UPLINK).await {
        Ok(device) => device,
        Err(zbus::Error::MethodError(name, ..)) if name.as_str() == UNKNOWN_DEVICE => return Ok(None),
        // It takes its name before its objects are there.
        Err(zbus::Error::FDO(error)) if matches!(*error, zbus::fdo::Error::UnknownMethod(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    proxy(device.to_string(), DEVICE).await?.get_property("State").await.map(Some)
}
