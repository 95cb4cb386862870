//! One version of the resolver file, and the servers in it.

use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
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
    /// Reads the present version.
    pub fn read(path: &Path) -> io::Result<Self> {
        let (mut content, changed) = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => ("missing\n".to_owned(), None),
            Err(error) => return Err(error),
            Ok(metadata) => {
                let changed =
                    |metadata: &fs::Metadata| metadata.ctime() as u64 * 1_000_000_000 + metadata.ctime_nsec() as u64;
                let target = fs::metadata(path).map(|target| changed(&target)).unwrap_or_default();
                (head(path, &metadata)?, Some(target.max(changed(&metadata))))
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
        Ok(Self { changed, ..Self::of(path, content) })
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
    Ok(format!("file {:04o} {}:{}\n", metadata.permissions().mode() & 0o7777, metadata.uid(), metadata.gid()))
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
    use super::nameservers;

    #[test]
    fn servers_are_addresses_and_not_spellings() {
        let content = "file 0644 0:0\n; nameserver 192.0.2.1\nnameserver\t10.64.0.1 # ours\nnameserver FD64:0:0:0:0:0:0:1\n\
                       nameserver FE80::1%eth0\nnameserver nonsense\nnameserver\n#nameserver 192.0.2.2\n";
        assert_eq!(nameservers(content), ["10.64.0.1", "fd64::1", "fe80::1%eth0", "nonsense"]);
    }
}
