//! ISC's DHCP client (dhclient(8)): it configures the uplink by its lease, and its script writes /etc/resolv.conf.

use super::{
    service::{Program, Service, ServiceError},
    uplink,
};
use crate::{
    layer::DHCP_CLIENT,
    sandbox::{Client, Node},
    testbed::plan::UPLINK,
};
use std::{fs, path::Path};

/// Its name in the record, the bundle and errors.
pub(super) const NAME: &str = "dhclient";
/// Where it remembers leases: what it asks for again when it is started.
const LEASES: &str = "/var/lib/dhcp";
/// Where its process id is.
pub(super) const PID_FILE: &str = "/run/dhclient.eth0.pid";

/// Starts it on an uplink without addresses, and waits until that has its lease and what the router advertises.
pub(super) async fn start(client: &Client, node: &Node, folder: &Path) -> Result<Service, ServiceError> {
    node.run(|| async {
        fs::create_dir_all(LEASES).map_err(|source| ServiceError::File {
            action: "make",
            path: LEASES.into(),
            source,
        })?;
        uplink::clear().await?;
        uplink::accept_advertisements().await
    })
    .await??;
    let service = run(client, folder).await?;
    service.ready_when(node, || async { uplink::configured().await.map_err(|error| error.to_string()) }).await?;
    Ok(service)
}

/// Starts it: it asks for the lease that it remembers, if it does (RFC 2131 section 3.2), and has its script configure what it
/// gets, all of which is done when this returns.
pub(super) async fn run(client: &Client, folder: &Path) -> Result<Service, ServiceError> {
    const ARGUMENTS: [&str; 10] = [
        "-4",
        "-d",
        "-v",
        "-cf",
        "/etc/dhcp/dhclient.conf",
        "-lf",
        "/var/lib/dhcp/dhclient.eth0.leases",
        "-pf",
        PID_FILE,
        UPLINK,
    ];
    let program = Program {
        name: NAME,
        package: "isc-dhcp-client",
        layer: &DHCP_CLIENT,
        path: "/usr/sbin/dhclient",
        arguments: &ARGUMENTS,
        environment: &[],
        // Its script has ended by then.
        ready: Some("bound to "),
    };
    Service::start(&program, client, folder).await
}
