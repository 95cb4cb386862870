//! resolvconf, openresolv's or Debian's: no daemon, but a program that whoever configures the uplink tells of its servers
//! (resolvconf(8)).

use super::{
    UPLINK_SERVERS,
    service::{ServiceError, Started, call, version},
};
use crate::{
    layer::Layer,
    sandbox::{Client, Node},
    testbed::plan::UPLINK,
};
use nix::mount::{MsFlags, mount, umount};
use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::Path};

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
    tell_uplink(client, &UPLINK_SERVERS, folder).await?;
    let name = record_name();
    Ok(Started {
        name: package.into(),
        program: PROGRAM.into(),
        version: version(package, layer),
        pid: 0,
        command_line: vec![PROGRAM.into(), "-a".into(), name],
    })
}

/// Gives it the uplink's record, as a DHCP client does.
pub(super) async fn tell_uplink(client: &Client, servers: &[Ipv4Addr], folder: &Path) -> Result<(), ServiceError> {
    let record: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    call(client, PROGRAM, &["-a", &record_name()], &record, folder).await
}

fn record_name() -> String {
    format!("{UPLINK}.dhclient")
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

/// Where the program is while another one stands in its place.
const KEPT: &str = "/run/resolvconf.kept";
/// That other one: it takes no record, and says why.
const BROKEN: &str = "/run/resolvconf.broken";
const BROKEN_TEXT: &str = "#!/bin/sh
for argument; do
    if [ \"$argument\" = -a ]; then
        cat >/dev/null
        echo 'resolvconf: the record was not written: No space left on device' >&2
        exit 1
    fi
done
exec /run/resolvconf.kept \"$@\"
";

/// Mounts a program that fails over it.
pub(super) fn break_program() -> Result<(), ServiceError> {
    let file = |path: &'static str, text: &str| {
        let written = fs::write(path, text).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
        written.map_err(|source| ServiceError::File { action: "write", path: path.into(), source })
    };
    file(KEPT, "")?;
    file(BROKEN, BROKEN_TEXT)?;
    bind(PROGRAM, KEPT)?;
    bind(BROKEN, PROGRAM)
}

/// Takes it away.
pub(super) fn mend_program() -> Result<(), ServiceError> {
    for path in [PROGRAM, KEPT] {
        umount(path).map_err(|errno| ServiceError::File {
            action: "unmount",
            path: path.into(),
            source: errno.into(),
        })?;
    }
    for path in [BROKEN, KEPT] {
        fs::remove_file(path).map_err(|source| ServiceError::File { action: "remove", path: path.into(), source })?;
    }
    Ok(())
}

fn bind(from: &str, to: &'static str) -> Result<(), ServiceError> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| ServiceError::File {
        action: "mount a file over",
        path: to.into(),
        source: errno.into(),
    })
}
