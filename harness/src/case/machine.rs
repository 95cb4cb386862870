//! The client's original configuration: what a profile and a shape of resolv.conf put on its disk.

use super::CaseError;
use crate::{
    profile::Services,
    sandbox::Node,
    scenario::{Original, Profile},
    testbed::plan::*,
};
use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

/// The folder that is the subject's own.
pub const STATE_DIR: &str = "/var/lib/watertight-subject";
/// Owner and group of an original that is not root's.
const OWNER: u32 = 1000;
/// The resolver file.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Writes everything. To be called before anything is watched.
pub async fn prepare(client: &Node, profile: Profile, original: Original) -> Result<(), CaseError> {
    client.run(move || async move { write(profile, original) }).await?
}

fn write(profile: Profile, original: Original) -> Result<(), CaseError> {
    let failed = |action: &str| {
        let action = action.to_owned();
        move |source: io::Error| CaseError::File { action, source }
    };
    for (path, text) in [
        ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("/etc/hostname", "client\n"),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ("/etc/host.conf", "multi on\n"),
    ] {
        replace(Path::new(path), text.as_bytes(), 0o644).map_err(failed(&format!("write {path}")))?;
    }
    fs::create_dir_all(STATE_DIR)
        .and_then(|()| fs::set_permissions(STATE_DIR, fs::Permissions::from_mode(0o700)))
        .map_err(failed(&format!("make {STATE_DIR}")))?;
    let written = match profile {
        Profile::SystemdResolved | Profile::NetworkManagerResolved | Profile::SystemdNetworkd => {
            link("../run/systemd/resolve/stub-resolv.conf")
        }
        Profile::SystemdResolvedUplink => link("../run/systemd/resolve/resolv.conf"),
        // It finds none and makes one.
        Profile::NetworkManager
        | Profile::NetworkManagerDhcp
        | Profile::NetworkManagerDnsmasq
        | Profile::DhcpClient
        | Profile::Openresolv => remove(Path::new(RESOLV_CONF)),
        Profile::DebianResolvconf => link("../run/resolvconf/resolv.conf"),
        Profile::Dnsmasq | Profile::Unbound => {
            replace(Path::new(RESOLV_CONF), b"nameserver 127.0.0.1\noptions edns0 trust-ad\n", 0o644)
        }
        Profile::StaticFile | Profile::SystemdResolvedForeign => resolv_conf(original),
    };
    written.map_err(failed(&format!("write {RESOLV_CONF}")))
}

/// Gives the local network a domain, as whoever configures the uplink would. To be called inside the client, when its services run.
pub(super) async fn search_domain(profile: Profile) -> Result<(), CaseError> {
    let failed =
        |source: io::Error| CaseError::File { action: format!("give the uplink the domain {SEARCH_DOMAIN}"), source };
    match profile {
        Profile::StaticFile => {
            let append = || {
                let mut text = fs::read_to_string(RESOLV_CONF)?;
                text.push_str(&format!("search {SEARCH_DOMAIN}\n"));
                fs::write(RESOLV_CONF, text)
            };
            append().map_err(failed)
        }
        Profile::SystemdResolved | Profile::SystemdResolvedUplink => {
            Services::set_link_domain(UPLINK, SEARCH_DOMAIN).await.map_err(|error| failed(io::Error::other(error)))
        }
        other => Err(failed(io::Error::other(format!("nobody does it on {other}; leave the profile out")))),
    }
}

/// Gives NetworkManager something to check its connectivity with. To be called inside the client, before its services run.
pub(super) fn connectivity_check(profile: Profile) -> Result<(), CaseError> {
    const FOLDER: &str = "/etc/NetworkManager/conf.d";
    let failed = |source: io::Error| CaseError::File { action: "configure the connectivity check".into(), source };
    if !profile.has_network_manager() {
        return Err(failed(io::Error::other(format!("nobody does it on {profile}; leave the profile out"))));
    }
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{LAN_V4} {ONLINE}\n{LAN_ULA} {ONLINE}\n");
    // Once: the interval is longer than any case.
    let check = format!("[connectivity]\nuri=http://{ONLINE}/\ninterval=3600\n");
    fs::create_dir_all(FOLDER)
        .and_then(|()| replace(Path::new("/etc/hosts"), hosts.as_bytes(), 0o644))
        .and_then(|()| replace(&Path::new(FOLDER).join("connectivity.conf"), check.as_bytes(), 0o644))
        .map_err(failed)
}

fn link(target: &str) -> io::Result<()> {
    let path = Path::new(RESOLV_CONF);
    remove(path)?;
    symlink(target, path)
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    remove(path)?;
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn resolv_conf(original: Original) -> io::Result<()> {
    let path = Path::new(RESOLV_CONF);
    let plain = format!("nameserver {LAN_V4}\nnameserver {ISP_V4}\noptions timeout:1 attempts:1\n");
    let target = |target: &str| replace(Path::new(target), plain.as_bytes(), 0o644);
    remove(path)?;
    match original {
        Original::Plain => replace(path, plain.as_bytes(), 0o644),
        Original::Comments => {
            let text = format!(
                "# made by hand\n\n; the router\nnameserver\t{LAN_V4}\n\n   \n# the provider\nnameserver {ISP_V4}  \nsearch home.test lan.test\noptions timeout:1 attempts:1 edns0\n\n"
            );
            replace(path, text.as_bytes(), 0o644)
        }
        Original::NoFinalNewline => replace(path, plain.trim_end().as_bytes(), 0o644),
        Original::Crlf => replace(path, plain.replace('\n', "\r\n").as_bytes(), 0o644),
        Original::Empty => replace(path, b"", 0o644),
        Original::Missing => Ok(()),
        Original::SymlinkRelative => {
            target("/etc/resolv.conf.site")?;
            symlink("resolv.conf.site", path)
        }
        Original::SymlinkAbsolute => {
            fs::create_dir_all("/run/resolver")?;
            target("/run/resolver/resolv.conf")?;
            symlink("/run/resolver/resolv.conf", path)
        }
        Original::Dangling => symlink("/run/nobody/resolv.conf", path),
        Original::Mode0640 => replace(path, plain.as_bytes(), 0o640),
        Original::OwnedByUser => {
            replace(path, plain.as_bytes(), 0o644)?;
            // The user namespace of an ordinary user has no other user; the case says so.
            match std::os::unix::fs::chown(path, Some(OWNER), Some(OWNER)) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                result => result,
            }
        }
        Original::ExtendedAttribute => {
            replace(path, plain.as_bytes(), 0o644)?;
            xattr::set(path, "user.origin", b"made by hand")
        }
        Original::UnknownOption => replace(
            path,
            format!("{plain}options watertight-unknown:7 no-such-option\nfuture-keyword yes\n").as_bytes(),
            0o644,
        ),
        Original::SixNameservers => {
            let text = format!(
                "nameserver {LAN_V4}\nnameserver {ISP_V4}\nnameserver {LAN_ULA}\nnameserver {PUBLIC_V4}\nnameserver {PUBLIC_V6}\nnameserver {ISP_V6}\noptions timeout:1 attempts:1\n"
            );
            replace(path, text.as_bytes(), 0o644)
        }
    }
}
