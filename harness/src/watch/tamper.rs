//! What an outsider does to the resolver file: other content, another node, no right to change it.

use super::{
    WatchError,
    nodes::Nodes,
    version::{Version, head},
};
use crate::scenario::Tamper;
use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

/// What an outsider writes: a server of the LAN, so that a subject that keeps it leaks visibly.
const OUTSIDER: &str = "# written by somebody else\nnameserver 192.168.1.1\nnameserver 198.51.100.53\n";
/// The second time.
const OUTSIDER_AGAIN: &str = "# written by somebody else, again\nnameserver 198.51.100.53\n";

/// The outsider.
#[derive(Debug, Default)]
pub(super) struct Outsider {
    /// What nobody can change any more, by the outsider's doing.
    locked: Vec<PathBuf>,
    /// How often it did something.
    times: usize,
}

impl Outsider {
    /// Does it, and gives back the version that it left. What somebody else makes of it the moment after is not in it.
    pub(super) fn tamper(&mut self, path: &Path, how: Tamper, nodes: &mut Nodes) -> Result<Version, WatchError> {
        let failed = |source| WatchError::File { action: "change", path: path.into(), source };
        self.times += 1;
        // Another name each time: notifications about an earlier one may still be on their way.
        let beside = path.with_file_name(format!(".outsider-{}", self.times));
        let left = |content: String| Version::of(path, content);
        let mut by_rename = |text: &str| -> io::Result<()> {
            fs::write(&beside, text)?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o644))?;
            nodes.made(&beside)?;
            fs::rename(&beside, path)
        };
        match how {
            Tamper::Rewrite => {
                let head = match fs::symlink_metadata(path) {
                    Ok(metadata) => head(path, &metadata).map_err(failed)?,
                    Err(_) => "file 0644 0:0\n".into(),
                };
                fs::write(path, OUTSIDER).map_err(failed)?;
                Ok(left(head + OUTSIDER))
            }
            Tamper::Rename => {
                by_rename(OUTSIDER).map_err(failed)?;
                Ok(left(format!("file 0644 0:0\n{OUTSIDER}")))
            }
            Tamper::RenameTwice => {
                by_rename(OUTSIDER_AGAIN).map_err(failed)?;
                Ok(left(format!("file 0644 0:0\n{OUTSIDER_AGAIN}")))
            }
            Tamper::Delete => {
                fs::remove_file(path).map_err(failed)?;
                Ok(left("missing\n(nothing to read)\n".into()))
            }
            Tamper::Symlink => {
                let target = path.with_file_name("resolv.conf.outsider");
                fs::write(&target, OUTSIDER).map_err(failed)?;
                symlink("resolv.conf.outsider", &beside).and_then(|()| nodes.made(&beside)).map_err(failed)?;
                fs::rename(&beside, path).map_err(failed)?;
                Ok(left(format!("symlink resolv.conf.outsider\n{OUTSIDER}")))
            }
            Tamper::Immutable => self.lock(path).and_then(|()| Version::read(path)).map_err(failed),
            Tamper::Mutable => self.unlock().and_then(|()| Version::read(path)).map_err(failed),
        }
    }

    /// A symbolic link has no such attribute: its folder and what it leads to are locked instead.
    fn lock(&mut self, path: &Path) -> io::Result<()> {
        let mut wanted = vec![path.to_path_buf()];
        if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
            wanted = path.parent().map(Path::to_path_buf).into_iter().chain(fs::canonicalize(path)).collect();
        }
        for path in wanted {
            set_writable(&path, false)?;
            self.locked.push(path);
        }
        Ok(())
    }

    fn unlock(&mut self) -> io::Result<()> {
        while let Some(path) = self.locked.pop() {
            set_writable(&path, true)?;
        }
        Ok(())
    }
}

/// Sets or clears the immutable attribute (ioctl_iflags(2)); where that is not permitted, a read-only mount of the file
/// on itself stands in: it cannot be written or replaced either.
fn set_writable(path: &Path, writable: bool) -> io::Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let to_io = |errno: nix::errno::Errno| io::Error::from_raw_os_error(errno as i32);
    match set_immutable(path, !writable) {
        Ok(()) => Ok(()),
        Err(_) if writable => umount2(path, MntFlags::MNT_DETACH).map_err(to_io),
        Err(_) => {
            mount(Some(path), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(to_io)?;
            mount(
                None::<&str>,
                path,
                None::<&str>,
                MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
                None::<&str>,
            )
            .map_err(to_io)
        }
    }
}

fn set_immutable(path: &Path, immutable: bool) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    const FS_IMMUTABLE_FL: libc::c_long = 0x10;
    let file = fs::File::open(path)?;
    let mut flags: libc::c_long = 0;
    // SAFETY: the descriptor is open and the kernel writes one long to `flags`.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let wanted = if immutable { flags | FS_IMMUTABLE_FL } else { flags & !FS_IMMUTABLE_FL };
    if wanted == flags {
        // Not set by this attribute then.
        return if immutable { Ok(()) } else { Err(io::Error::other("not immutable")) };
    }
    // SAFETY: the descriptor is open and the kernel reads one long from `wanted`.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const wanted) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
