//! Versions of the resolver file: noticed by inotify on its folder, read at once.

use super::{Tampering, WatchError};
use crate::{
    history::{Event, Recorder, now},
    scenario::Tamper,
};
use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use sha2::{Digest, Sha256};
use std::{
    ffi::OsString,
    fmt::Write as _,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};
use tokio::sync::{mpsc, watch};

/// What an outsider writes: a server of the LAN, so that a subject that keeps it leaks visibly.
const OUTSIDER: &str = "# written by somebody else\nnameserver 192.168.1.1\nnameserver 198.51.100.53\n";
/// The second time.
const OUTSIDER_AGAIN: &str = "# written by somebody else, again\nnameserver 198.51.100.53\n";
/// The largest content that a version keeps, in bytes.
const KEPT: usize = 64 << 10;

/// One version of the resolver file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the content below, hexadecimal.
    pub hash: String,
    /// The first line is the type (`missing`, `file MODE UID:GID`, `symlink TARGET`), the rest what a reader gets.
    pub content: String,
    /// Time of the last change of its node, nanoseconds.
    pub changed: Option<u64>,
}

impl Version {
    /// Reads the present version.
    pub fn read(path: &Path) -> io::Result<Self> {
        let (mut content, changed) = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => ("missing\n".to_owned(), None),
            Err(error) => return Err(error),
            Ok(metadata) => {
                let changed = metadata.ctime() as u64 * 1_000_000_000 + metadata.ctime_nsec() as u64;
                let kind = if metadata.is_symlink() {
                    format!("symlink {}\n", fs::read_link(path)?.display())
                } else {
                    format!(
                        "file {:04o} {}:{}\n",
                        metadata.permissions().mode() & 0o7777,
                        metadata.uid(),
                        metadata.gid()
                    )
                };
                (kind, Some(changed))
            }
        };
        match fs::read(path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(KEPT)]);
                content.push_str(&text);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => content.push_str("(nothing to read)\n"),
            Err(error) => {
                let _ = writeln!(content, "(unreadable: {error})");
            }
        }
        let hash = Sha256::digest(content.as_bytes()).iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        Ok(Self { path: path.into(), hash, content, changed })
    }

    /// The servers that a resolver would take from it (resolv.conf(5)).
    pub fn nameservers(&self) -> Vec<String> {
        nameservers(&self.content)
    }
}

/// The `nameserver` lines of a version's content.
pub fn nameservers(content: &str) -> Vec<String> {
    content
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next().map(str::to_owned)).flatten()
        })
        .collect()
}

/// The watched file.
#[derive(Debug)]
pub struct ResolverFile {
    path: PathBuf,
    name: OsString,
    inotify: Inotify,
}

impl ResolverFile {
    /// Starts listening.
    pub fn open(path: PathBuf) -> Result<Self, WatchError> {
        let failed = |source| WatchError::File { action: "watch", path: path.clone(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("/"));
        let inotify = Inotify::init().map_err(failed)?;
        inotify
            .watches()
            .add(
                folder,
                WatchMask::CREATE
                    | WatchMask::MOVED_TO
                    | WatchMask::MOVED_FROM
                    | WatchMask::MODIFY
                    | WatchMask::CLOSE_WRITE
                    | WatchMask::ATTRIB
                    | WatchMask::DELETE,
            )
            .map_err(failed)?;
        let name = path.file_name().unwrap_or_default().to_owned();
        Ok(Self { path, name, inotify })
    }

    /// The present version.
    pub fn version(&self) -> Result<Version, WatchError> {
        Version::read(&self.path).map_err(|source| WatchError::File { action: "read", path: self.path.clone(), source })
    }

    /// Records versions until the sender of tamperings is gone.
    pub(super) async fn follow(
        self,
        recorder: Recorder,
        tell: watch::Sender<Version>,
        mut tamperings: mpsc::UnboundedReceiver<Tampering>,
    ) {
        let Self { path, name, inotify } = self;
        let mut events = match inotify.into_event_stream(vec![0; 16 << 10]) {
            Ok(events) => events,
            Err(error) => {
                recorder.record(Event::Harness { problem: format!("the resolver file is not watched: {error}") });
                return;
            }
        };
        // Versions that the harness itself made, by hash: the kernel tells of them like of any other.
        let mut own: Vec<String> = Vec::new();
        let note = |event: inotify::Event<OsString>, own: &[String]| {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                recorder.record(Event::Harness { problem: "notifications of the resolver file were lost".into() });
                return;
            }
            if event.name.as_deref() != Some(name.as_os_str()) {
                return;
            }
            let t = now(libc::CLOCK_REALTIME);
            match Version::read(&path) {
                Ok(version) => {
                    recorder.record_at(
                        t,
                        Event::File {
                            path: path.clone(),
                            cause: cause(event.mask).into(),
                            by_harness: own.contains(&version.hash),
                            hash: version.hash.clone(),
                            content: version.content.clone(),
                            changed: version.changed,
                        },
                    );
                    tell.send_replace(version);
                }
                Err(error) => {
                    recorder.record(Event::Harness { problem: format!("failed to read {}: {error}", path.display()) });
                }
            }
        };
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => note(event, &own),
                    Some(Err(error)) => {
                        recorder.record(Event::Harness { problem: format!("the resolver file is not watched any more: {error}") });
                        return;
                    }
                    None => return,
                },
                tampering = tamperings.recv() => {
                    let Some((how, done)) = tampering else { return };
                    let result = tamper(&path, how);
                    if let Ok(version) = &result {
                        own.push(version.hash.clone());
                        recorder.record(Event::File {
                            path: path.clone(),
                            cause: "outsider".into(),
                            by_harness: true,
                            hash: version.hash.clone(),
                            content: version.content.clone(),
                            changed: version.changed,
                        });
                        tell.send_replace(version.clone());
                    }
                    let _ = done.send(result);
                }
            }
        }
    }
}

fn cause(mask: EventMask) -> &'static str {
    [
        (EventMask::MOVED_TO, "moved-to"),
        (EventMask::MOVED_FROM, "moved-from"),
        (EventMask::CREATE, "create"),
        (EventMask::MODIFY, "modify"),
        (EventMask::CLOSE_WRITE, "close-write"),
        (EventMask::DELETE, "delete"),
        (EventMask::ATTRIB, "attributes"),
    ]
    .into_iter()
    .find(|(bit, _)| mask.contains(*bit))
    .map_or("other", |(_, name)| name)
}

/// Does it, and gives back the version that it left. What somebody else makes of it the moment after is not in it.
fn tamper(path: &Path, how: Tamper) -> Result<Version, WatchError> {
    let failed = |source| WatchError::File { action: "change", path: path.into(), source };
    let beside = path.with_file_name(".outsider");
    let left = |content: String| {
        let hash = Sha256::digest(content.as_bytes()).iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        Version { path: path.into(), hash, content, changed: None }
    };
    let by_rename = |text: &str| -> io::Result<()> {
        fs::write(&beside, text)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o644))?;
        fs::rename(&beside, path)
    };
    match how {
        Tamper::Rewrite => {
            let head = match fs::symlink_metadata(path) {
                Ok(metadata) if metadata.is_file() => {
                    format!(
                        "file {:04o} {}:{}\n",
                        metadata.permissions().mode() & 0o7777,
                        metadata.uid(),
                        metadata.gid()
                    )
                }
                _ => "file 0644 0:0\n".into(),
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
            let _ = fs::remove_file(&beside);
            symlink("resolv.conf.outsider", &beside).map_err(failed)?;
            fs::rename(&beside, path).map_err(failed)?;
            Ok(left(format!("symlink resolv.conf.outsider\n{OUTSIDER}")))
        }
        Tamper::Immutable => set_writable(path, false).and_then(|()| Version::read(path)).map_err(failed),
        Tamper::Mutable => set_writable(path, true).and_then(|()| Version::read(path)).map_err(failed),
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
