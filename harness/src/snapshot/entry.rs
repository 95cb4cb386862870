//! One file, directory or link as a snapshot sees it: type, mode, owner, extended attributes, content. No times, no inode,
//! no link count.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Error;
use super::escape::{block, hex, quoted, word};

/// How much of a file's content is kept beside its digest.
#[derive(Clone, Copy)]
pub enum Keep {
    /// The digest alone.
    Digest,
    /// Text up to this size, for a reader of the diff.
    Text(u64),
    /// Whatever it is, up to this size.
    All(u64),
}

/// What is at `path` itself (links are not followed); `None` if nothing is.
pub fn metadata(path: &Path) -> Result<Option<Metadata>, Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(Error::io("look at", path, source)),
    }
}

/// The word for a file type.
pub fn type_name(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "dir",
        () if kind.is_symlink() => "symlink",
        () if kind.is_socket() => "socket",
        () if kind.is_fifo() => "fifo",
        () if kind.is_char_device() => "char-device",
        () => "block-device",
    }
}

/// `type mode uid:gid …` and a newline, then the content where it is kept.
pub fn describe(path: &Path, metadata: &Metadata, keep: Keep) -> Result<String, Error> {
    let mut text = properties(path, metadata)?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(|source| Error::io("read the link", path, source))?;
        let _ = writeln!(text, " -> {}", word(target.as_os_str().as_bytes()));
        return Ok(text);
    }
    if !kind.is_file() {
        text.push('\n');
        return Ok(text);
    }
    let limit = match keep {
        Keep::Digest => 0,
        Keep::Text(limit) | Keep::All(limit) => limit,
    };
    let content = match content(path, limit) {
        Ok(content) => content,
        // A file of a special filesystem.
        Err(error) => {
            let _ = writeln!(text, " not readable: {}", error.kind());
            return Ok(text);
        }
    };
    let _ = writeln!(text, " size {} sha256 {}", content.size, hex(&content.digest));
    if let Some(bytes) = content.bytes {
        let is_text = !bytes.contains(&0) && std::str::from_utf8(&bytes).is_ok();
        if matches!(keep, Keep::All(_)) || matches!(keep, Keep::Text(_)) && is_text {
            text.push_str(&block(&bytes));
        }
    }
    Ok(text)
}

/// Type, mode, owner, device number, extended attributes; without a newline.
pub fn properties(path: &Path, metadata: &Metadata) -> Result<String, Error> {
    let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    let mut text = format!("{} {mode:04o} {uid}:{gid}", type_name(metadata));
    if metadata.file_type().is_char_device() || metadata.file_type().is_block_device() {
        let device = metadata.rdev();
        let _ = write!(text, " device {}:{}", libc::major(device), libc::minor(device));
    }
    for (name, value) in attributes(path)? {
        let _ = write!(text, " {}={}", word(name.as_bytes()), quoted(&value));
    }
    Ok(text)
}

/// Extended attributes by name, without overlayfs's own.
pub fn attributes(path: &Path) -> Result<Vec<(std::ffi::OsString, Vec<u8>)>, Error> {
    let unsupported = |error: &io::Error| error.raw_os_error() == Some(libc::ENOTSUP);
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(error) if unsupported(&error) => return Ok(Vec::new()),
        Err(source) => return Err(Error::io("list the extended attributes of", path, source)),
    };
    let mut attributes = Vec::new();
    for name in names.filter(|name| !is_overlays(name)) {
        match xattr::get(path, &name) {
            Ok(Some(value)) => attributes.push((name, value)),
            Ok(None) => {}
            Err(error) if unsupported(&error) => {}
            Err(source) => return Err(Error::io("read an extended attribute of", path, source)),
        }
    }
    attributes.sort();
    Ok(attributes)
}

fn is_overlays(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"trusted.overlay.") || name.as_bytes().starts_with(b"user.overlay.")
}

/// A file's digest, and its bytes if it is not longer than asked for.
pub struct Content {
    pub size: u64,
    pub digest: Vec<u8>,
    pub bytes: Option<Vec<u8>>,
}

/// Reads a regular file.
pub fn content(path: &Path, limit: u64) -> io::Result<Content> {
    let mut file = open(path)?;
    let mut context = Sha256::new();
    let (mut size, mut bytes) = (0, Some(Vec::new()));
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        size += read.len() as u64;
        context.update(read);
        if size > limit {
            bytes = None;
        }
        if let Some(bytes) = &mut bytes {
            bytes.extend_from_slice(read);
        }
    }
    Ok(Content { size, digest: context.finalize().to_vec(), bytes })
}

/// Opens a regular file without waiting for anything and without following a link.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)
}

/// The inode flags that keep others from writing (chattr(1)): immutable, append-only. None where the filesystem has no flags.
pub fn inode_flags(path: &Path) -> io::Result<Vec<&'static str>> {
    nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
    const FLAGS: [(libc::c_long, &str); 2] = [(0x10, "immutable"), (0x20, "append-only")];
    let file = open(path)?;
    let mut flags = 0;
    // SAFETY: FS_IOC_GETFLAGS writes an int into the long it is given (ioctl_iflags(2)).
    match unsafe { get_flags(file.as_raw_fd(), &raw mut flags) } {
        Ok(_) => Ok(FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect()),
        Err(nix::errno::Errno::ENOTTY | nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EINVAL) => Ok(Vec::new()),
        Err(errno) => Err(errno.into()),
    }
}
