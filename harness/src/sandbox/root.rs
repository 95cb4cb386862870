//! The client machine's private root: an overlay on the host's root, with /run, /tmp, /var, /dev, /proc and /sys of its
//! own. Everything that is written lands in one tmpfs, which goes with the mount namespace.

use super::{SandboxError, io_error};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::pivot_root,
};
use std::{
    fs, io,
    os::fd::OwnedFd,
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

/// Folders of the private root that are empty at first and live beside the overlay.
const FRESH: [(&str, u32); 3] = [("run", 0o755), ("tmp", 0o1777), ("var", 0o755)];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Builds the root and makes it this mount namespace's. To be called in fresh mount, PID and network namespaces.
///
/// Gives back the tmpfs that holds all that is written (`upper`, the overlay's; `run`, `tmp`, `var`), and the host's root,
/// read-only, for comparisons.
pub(super) fn enter_private_root(rootless: bool, layers: &[PathBuf]) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    // Any folder of the host's root can carry the tmpfs: the mount is private to this namespace.
    let stage = Path::new("/tmp");
    mount_fs("tmpfs", stage, "tmpfs", MsFlags::empty(), "mode=755,size=512m")?;
    for name in ["upper", "work", "root", "host"] {
        make_dir(&stage.join(name), 0o755)?;
    }
    let stage_fd = open_dir(stage)?;
    let root = stage.join("root");
    let host = stage.join("host");
    bind_read_only(Path::new("/"), &host, rootless)?;
    let host_fd = open_dir(&host)?;
    if rootless {
        // pivot_root(2) wants a mount.
        bind(&root, &root)?;
        assemble_root(&root)?;
    } else {
        let options = format!("lowerdir=/,upperdir={0}/upper,workdir={0}/work", stage.display());
        mount_fs("overlay", &root, "overlay", MsFlags::empty(), &options)?;
    }
    add_layers(&root, layers)?;
    for (name, mode) in FRESH {
        make_dir(&stage.join(name), mode)?;
        bind(&stage.join(name), &root.join(name))?;
    }
    for name in ["lib", "cache", "log", "tmp", "spool"] {
        make_dir(&root.join("var").join(name), if name == "tmp" { 0o1777 } else { 0o755 })?;
    }
    symlink("/run", root.join("var/run")).map_err(SandboxError::system("link /var/run"))?;
    make_dev(&root.join("dev"))?;
    mount_fs("proc", &root.join("proc"), "proc", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, "")?;
    mount_fs("sysfs", &root.join("sys"), "sysfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, "")?;
    std::env::set_current_dir(&root).map_err(SandboxError::system("enter the private root"))?;
    pivot_root(".", ".").map_err(io_error).map_err(SandboxError::system("pivot_root to the private root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(io_error).map_err(SandboxError::system("detach the host's root"))?;
    std::env::set_current_dir("/").map_err(SandboxError::system("enter the private root"))?;
    Ok((stage_fd, host_fd))
}

/// Flags of a mount that an unprivileged remount must keep (mount_namespaces(7), "locked").
fn kept_flags(path: &Path) -> MsFlags {
    use nix::sys::statvfs::{FsFlags, statvfs};
    let have = statvfs(path).map(|stat| stat.flags()).unwrap_or(FsFlags::empty());
    [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ]
    .into_iter()
    .filter(|(flag, _)| have.contains(*flag))
    .fold(MsFlags::empty(), |all, (_, flag)| all | flag)
}

/// A root without an overlay. With one user mapped, the host's folders belong to nobody, so that an overlay could not copy
/// them up, and its root, with mounts of a more privileged namespace on it, can be no layer (mount_namespaces(7), "locked").
/// /etc is copied, so that it belongs to us; files that only the real root can read stay out. The rest is seen read-only.
fn assemble_root(root: &Path) -> Result<(), SandboxError> {
    let failed = |path: &Path| SandboxError::system(format!("read {}", path.display()));
    let top = Path::new("/");
    for entry in fs::read_dir(top).map_err(failed(top))? {
        let entry = entry.map_err(failed(top))?;
        let (from, to) = (entry.path(), root.join(entry.file_name()));
        let kind = entry.file_type().map_err(failed(&from))?;
        let name = entry.file_name();
        if kind.is_symlink() {
            let target = fs::read_link(&from).map_err(failed(&from))?;
            symlink(target, &to).map_err(SandboxError::system(format!("link {}", to.display())))?;
        } else if name == "etc" {
            copy_tree(&from, &to)?;
        } else if kind.is_dir() {
            make_dir(&to, 0o755)?;
            let ours =
                FRESH.iter().any(|(fresh, _)| name == *fresh) || name == "dev" || name == "proc" || name == "sys";
            // A folder that this user cannot enter is empty for it anyway.
            if !ours && name != "root" && fs::read_dir(&from).is_ok() {
                bind_read_only(&from, &to, true)?;
            }
        }
    }
    for name in ["dev", "proc", "sys", "run", "tmp", "var", "root"] {
        make_dir(&root.join(name), 0o755)?;
    }
    Ok(())
}

/// Puts software above the machine's: each layer's `usr` over /usr, read-only, and the files of its `etc` into /etc.
///
/// Only `usr`: a layer that lies on the machine's root cannot be a layer above that very root (overlayfs refuses overlapping
/// layers), and programs are nowhere else.
fn add_layers(root: &Path, layers: &[PathBuf]) -> Result<(), SandboxError> {
    if layers.is_empty() {
        return Ok(());
    }
    let folders: Vec<PathBuf> = layers.iter().map(|layer| layer.join("usr")).filter(|usr| usr.is_dir()).collect();
    if !folders.is_empty() {
        let mut lower = String::new();
        for folder in folders {
            // Colons separate layers (overlayfs, "lowerdir"), commas options.
            lower.push_str(&folder.display().to_string().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,"));
            lower.push(':');
        }
        mount_fs("overlay", &root.join("usr"), "overlay", MsFlags::MS_RDONLY, &format!("lowerdir={lower}/usr"))?;
    }
    for layer in layers {
        let etc = layer.join("etc");
        if etc.is_dir() {
            copy_tree(&etc, &root.join("etc"))?;
        }
    }
    Ok(())
}

/// Binds a folder, with what is mounted in it where that is the only way, and makes it read-only.
fn bind_read_only(from: &Path, to: &Path, with_submounts: bool) -> Result<(), SandboxError> {
    let failed = |source| SandboxError::Mount { what: from.display().to_string(), target: to.into(), source };
    let deep = if with_submounts { MsFlags::MS_REC } else { MsFlags::empty() };
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | deep, None::<&str>).map_err(io_error).map_err(failed)?;
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept_flags(to);
    mount(None::<&str>, to, None::<&str>, read_only, None::<&str>).map_err(io_error).map_err(failed)
}

fn make_dev(dev: &Path) -> Result<(), SandboxError> {
    // The host's nodes stay reachable below /tmp's stage only through these binds.
    let host = Path::new("/dev");
    mount_fs("tmpfs", dev, "tmpfs", MsFlags::MS_NOSUID, "mode=755")?;
    for name in DEVICES {
        if host.join(name).exists() {
            touch(&dev.join(name))?;
            bind(&host.join(name), &dev.join(name))?;
        }
    }
    make_dir(&dev.join("net"), 0o755)?;
    if host.join("net/tun").exists() {
        touch(&dev.join("net/tun"))?;
        bind(&host.join("net/tun"), &dev.join("net/tun"))?;
    }
    make_dir(&dev.join("shm"), 0o1777)?;
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(link)).map_err(SandboxError::system(format!("link /dev/{link}")))?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), SandboxError> {
    make_dir(to, 0o755)?;
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            copy_tree(&source, &target)?;
            continue;
        }
        // What was there is replaced, not written through.
        let gone = || match fs::remove_file(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let copied = if kind.is_symlink() {
            gone().and_then(|()| fs::read_link(&source)).and_then(|link| symlink(link, &target))
        } else if kind.is_file() {
            gone().and_then(|()| fs::copy(&source, &target)).map(drop)
        } else {
            continue;
        };
        match copied {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(SandboxError::system(format!("copy {}", source.display()))(error)),
        }
    }
    Ok(())
}

fn mount_fs(what: &str, target: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<(), SandboxError> {
    mount(Some(what), target, Some(kind), flags, Some(options))
        .map_err(io_error)
        .map_err(|source| SandboxError::Mount { what: what.into(), target: target.into(), source })
}

fn bind(from: &Path, to: &Path) -> Result<(), SandboxError> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(io_error)
        .map_err(|source| SandboxError::Mount { what: from.display().to_string(), target: to.into(), source })
}

fn make_dir(path: &Path, mode: u32) -> Result<(), SandboxError> {
    let action = || format!("make the folder {}", path.display());
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(SandboxError::system(action())(error)),
        _ => fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(SandboxError::system(action())),
    }
}

fn touch(path: &Path) -> Result<(), SandboxError> {
    fs::write(path, b"").map_err(SandboxError::system(format!("make {}", path.display())))
}

fn open_dir(path: &Path) -> Result<OwnedFd, SandboxError> {
    fs::File::open(path).map(Into::into).map_err(SandboxError::system(format!("open {}", path.display())))
}
