//! One version of the resolver file, and the servers in it.

use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    fs,
    io::{self, Read},
    net::IpAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The largest content that a version keeps, in bytes.
pub(super) const KEPT: usize = 64 << 10;

/// One version of the resolver file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the content below, hexadecimal.
    pub hash: String,
    /// The first line is the type (`missing`, `file MODE UID:GID`, `symlink TARGET`), the rest what a reader gets.
    pub content: String,
    /// Time of the last change of its node, or of the node that it leads to, nanoseconds.
    pub changed: Option<u64>,
}

impl Version {
    /// Reads the present version: type and content of one and the same node, whatever takes its place meanwhile.
    pub fn read(path: &Path) -> io::Result<Self> {
        // Each further turn means that a file took a link's place between two questions, or the reverse.
        const TURNS: u32 = 1000;
        for _ in 0..TURNS {
            if let Some(version) = Self::read_once(path)? {
                return Ok(version);
            }
        }
        Err(io::Error::other(format!("it was a link and a file in turn, {TURNS} times in a row")))
    }

    /// `None` if the node was replaced while it was looked at.
    fn read_once(path: &Path) -> io::Result<Option<Self>> {
        let opened = fs::File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path);
        let (mut content, changed, read) = match opened {
            Ok(mut file) => {
                let metadata = file.metadata()?;
                let mut bytes = Vec::new();
                let read = file.read_to_end(&mut bytes).map(|_| bytes);
                (describe(&metadata), Some(changed(&metadata)), read)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                ("missing\n".to_owned(), None, Err(io::ErrorKind::NotFound.into()))
            }
            // What it is, though it may not be read; and a link, which opens for nobody that does not follow it.
            Err(error) => {
                let metadata = match fs::symlink_metadata(path) {
                    Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(None),
                    other => other?,
                };
                if metadata.is_symlink() {
                    let target = match fs::read_link(path) {
                        // It is no link any more.
                        Err(other) if matches!(other.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
                            return Ok(None);
                        }
                        other => other?,
                    };
                    // The same link still, so that its time and its target belong together.
                    let same = |now: fs::Metadata| now.ino() == metadata.ino() && changed(&now) == changed(&metadata);
                    if !fs::symlink_metadata(path).is_ok_and(same) {
                        return Ok(None);
                    }
                    let led_to = fs::metadata(path).map(|target| changed(&target)).unwrap_or_default();
                    (
                        format!("symlink {}\n", target.display()),
                        Some(led_to.max(changed(&metadata))),
                        fs::read(folder_of(path).join(target)),
                    )
                } else if error.raw_os_error() == Some(libc::ELOOP) {
                    return Ok(None);
                } else {
                    (describe(&metadata), Some(changed(&metadata)), Err(error))
                }
            }
        };
        match read {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(KEPT)]);
                content.push_str(&text);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => content.push_str("(nothing to read)\n"),
            Err(error) => {
                let _ = writeln!(content, "(unreadable: {error})");
            }
        }
        Ok(Some(Self { changed, ..Self::of(path, content) }))
    }

    /// A version with this content.
    pub(super) fn of(path: &Path, content: String) -> Self {
        let hash = Sha256::digest(content.as_bytes()).iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self { path: path.into(), hash, content, changed: None }
    }

    /// The servers that a resolver would take from it (resolv.conf(5)).
    pub fn nameservers(&self) -> Vec<String> {
        nameservers(&self.content)
    }
}

/// The first line of a version: what the node is.
pub(super) fn head(path: &Path, metadata: &fs::Metadata) -> io::Result<String> {
    if metadata.is_symlink() {
        return Ok(format!("symlink {}\n", fs::read_link(path)?.display()));
    }
    Ok(describe(metadata))
}

fn describe(metadata: &fs::Metadata) -> String {
    format!("file {:04o} {}:{}\n", metadata.permissions().mode() & 0o7777, metadata.uid(), metadata.gid())
}

/// Time of a node's last change, in nanoseconds.
fn changed(metadata: &fs::Metadata) -> u64 {
    metadata.ctime() as u64 * 1_000_000_000 + metadata.ctime_nsec() as u64
}

/// The folder that a node is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("/"))
}

/// The servers of a version's `nameserver` lines, each as its address is usually written (RFC 5952).
pub fn nameservers(content: &str) -> Vec<String> {
    content
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next().map(canonical)).flatten()
        })
        .collect()
}

/// An address with its scope; what is none stays as it is.
fn canonical(word: &str) -> String {
    let (address, scope) = word.split_once('%').map_or((word, None), |(address, scope)| (address, Some(scope)));
    match (address.parse::<IpAddr>(), scope) {
        (Ok(address), Some(scope)) => format!("{address}%{scope}"),
        (Ok(address), None) => address.to_string(),
        (Err(_), _) => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Version, nameservers};
    use std::{
        fs,
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, Ordering},
    };

    #[test]
    fn a_version_is_one_node_whatever_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("resolv.conf"), folder.path().join("target"));
        fs::write(&target, "nameserver 192.0.2.1\n").unwrap();
        symlink(&target, &path).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let beside = folder.path().join("beside");
                for _ in 0..3000 {
                    fs::write(&beside, "nameserver 192.0.2.2\n").unwrap();
                    fs::rename(&beside, &path).unwrap();
                    symlink(&target, &beside).unwrap();
                    fs::rename(&beside, &path).unwrap();
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                let content = Version::read(&path).unwrap().content;
                let link = content.starts_with("symlink ") && content.ends_with("192.0.2.1\n");
                let file = content.starts_with("file ") && content.ends_with("192.0.2.2\n");
                assert!(link || file, "{content}");
            }
        });
    }

    #[test]
    fn servers_are_addresses_and_not_spellings() {
        let content = "file 0644 0:0\n; nameserver 192.0.2.1\nnameserver\t10.64.0.1 # ours\nnameserver FD64:0:0:0:0:0:0:1\n\
                       nameserver FE80::1%eth0\nnameserver nonsense\nnameserver\n#nameserver 192.0.2.2\n";
        assert_eq!(nameservers(content), ["10.64.0.1", "fd64::1", "fe80::1%eth0", "nonsense"]);
    }
}
