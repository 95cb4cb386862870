//! systemd-networkd (systemd-networkd.service(8)): it configures the uplink by DHCP and router advertisements, and tells
//! systemd-resolved of the servers.

use super::{
    bus,
    network_manager::without_udev,
    resolved,
    service::{Program, Service, ServiceError},
    uplink,
};
use crate::{
    layer::SYSTEMD_NETWORKD,
    sandbox::{Client, Node},
    testbed::plan::UPLINK,
};
use std::{fs, path::Path};

const NAME: &str = "org.freedesktop.network1";
const PATH: &str = "/org/freedesktop/network1";
const MANAGER: &str = "org.freedesktop.network1.Manager";

/// Starts it on an uplink without addresses, and waits until that is configured and systemd-resolved has its servers.
pub(super) async fn start(client: &Client, node: &Node, folder: &Path) -> Result<Service, ServiceError> {
    node.run(|| async {
        let path = Path::new("/etc/systemd/network/10-uplink.network");
        let failed = |source| ServiceError::File { action: "write", path: path.into(), source };
        fs::create_dir_all(path.parent().unwrap_or(path)).map_err(failed)?;
        let identifier = uplink::interface_identifier();
        let text = format!(
            "[Match]\nName={UPLINK}\n\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=yes\nIPv6PrivacyExtensions=no\n\n\
             [DHCPv4]\nUseHostname=no\nUseNTP=no\nRoutesToDNS=no\n\n[IPv6AcceptRA]\nToken=static:{identifier}\nDHCPv6Client=no\n"
        );
        fs::write(path, text).map_err(failed)?;
        without_udev()?;
        uplink::clear().await
    })
    .await??;
    let program = Program {
        name: "systemd-networkd",
        package: "systemd",
        layer: &SYSTEMD_NETWORKD,
        path: "/usr/lib/systemd/systemd-networkd",
        arguments: &[],
        environment: &[("SYSTEMD_LOG_TARGET", "console"), ("SYSTEMD_LOG_LEVEL", "info")],
        ready: None,
    };
    let service = Service::start(&program, client, folder).await?;
    let ready = || async {
        uplink::configured().await.map_err(|error| error.to_string())?;
        resolved::asks_somebody().await.map_err(|error| error.to_string())
    };
    service.ready_when(node, ready).await?;
    Ok(service)
}

/// What it was told of each link while it runs, as canonical text; what it has from its files and from the network is not in it, as
/// that comes and goes by itself. `None` if it does not run. To be called inside the client.
pub async fn settings(bus: &zbus::Connection) -> zbus::Result<Option<String>> {
    let proxy = zbus::Proxy::new(bus, NAME, PATH, MANAGER).await?;
    let text: String = match proxy.call("Describe", &()).await {
        Err(error) if resolved::is_gone(&error.clone().into()) => return Ok(None),
        told => told?,
    };
    let described = serde_json::from_str(&text).map_err(|error| zbus::Error::Failure(format!("its links: {error}")))?;
    Ok(Some(told_at_run_time(&described)))
}

/// Of its description (systemd-networkd(8), `networkctl --json`), what has the source `runtime`.
fn told_at_run_time(described: &serde_json::Value) -> String {
    let mut lines = Vec::new();
    for interface in described["Interfaces"].as_array().into_iter().flatten() {
        let name = interface["Name"].as_str().unwrap_or_default();
        for (key, values) in interface.as_object().into_iter().flatten() {
            let values = values.as_array().into_iter().flatten();
            let told = values.filter(|value| value["ConfigSource"] == "runtime");
            lines.extend(told.map(|value| format!("link {name} {key} {value}\n")));
        }
    }
    lines.sort_unstable();
    lines.concat()
}

/// Has it renew the uplink's lease. To be called inside the client.
pub(super) async fn renew() -> zbus::Result<()> {
    let bus = bus::connect().await?;
    let index = nix::net::if_::if_nametoindex(UPLINK).map_err(|errno| zbus::Error::Failure(errno.to_string()))?;
    let proxy = zbus::Proxy::new(&bus, NAME, PATH, MANAGER).await?;
    proxy.call("RenewLink", &(index as i32)).await
}

#[cfg(test)]
mod tests {
    use super::told_at_run_time;

    #[test]
    fn what_was_told_is_told_from_what_the_network_gave() {
        let described = serde_json::json!({"Interfaces": [
            {"Name": "lo"},
            {"Name": "eth0", "DNS": [
                {"Address": [192, 168, 1, 1], "ConfigSource": "DHCPv4"},
                {"Address": [9, 9, 9, 9], "ConfigSource": "runtime"},
            ]},
        ]});
        let line = "link eth0 DNS {\"Address\":[9,9,9,9],\"ConfigSource\":\"runtime\"}\n";
        assert_eq!(told_at_run_time(&described), line);
        assert_eq!(told_at_run_time(&serde_json::json!({})), "");
    }
}
