//! resolvconf, openresolv's or Debian's: no daemon, but a program that whoever configures the uplink tells of its servers
//! (resolvconf(8)).

use super::service::{ServiceError, Started, call, version};
use crate::{
    layer::Layer,
    sandbox::{Client, Node},
    testbed::plan::{ISP_V4, LAN_V4, UPLINK},
};
use std::{fs, path::Path};

/// The program, in both packages.
const PROGRAM: &str = "/usr/sbin/resolvconf";

/// Prepares it as its package's installation would, and gives it the uplink's record as a DHCP client would.
pub(super) async fn start(
    client: &Client,
    node: &Node,
    layer: &'static Layer,
    package: &'static str,
    folder: &Path,
) -> Result<Started, ServiceError> {
    if package == "resolvconf" {
        node.run(|| async { runtime_files() }).await??;
        call(client, PROGRAM, &["--enable-updates"], "", folder).await?;
    }
    let record = format!("nameserver {LAN_V4}\nnameserver {ISP_V4}\n");
    let name = format!("{UPLINK}.dhclient");
    call(client, PROGRAM, &["-a", &name], &record, folder).await?;
    Ok(Started {
        name: package.into(),
        program: PROGRAM.into(),
        version: version(package, layer),
        pid: 0,
        command_line: vec![PROGRAM.into(), "-a".into(), name],
    })
}

/// What the package has made at boot (tmpfiles.d/resolvconf.conf).
fn runtime_files() -> Result<(), ServiceError> {
    let folder = Path::new("/run/resolvconf/interface");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ServiceError::File { action: "make", path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let file = Path::new("/run/resolvconf/resolv.conf");
    fs::write(file, b"").map_err(failed(file))
}
