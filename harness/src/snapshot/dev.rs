//! The topic "dev": all of /dev and of the filesystems of memory on it (/dev/shm): device nodes, files, links. Terminals
//! (/dev/pts) come and go; message queues (/dev/mqueue) are in the topic "ipc".

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, statfs};

use super::entry::{self, Keep};
use super::escape::word;
use super::files::{Entries, SHOWN, ignored, text};
use super::{Error, Scope};

/// The filesystems whose content is part of the client.
const IN_MEMORY: [FsType; 2] = [TMPFS_MAGIC, HUGETLBFS_MAGIC];

/// The topic.
pub fn dev(scope: &Scope) -> Result<String, Error> {
    let mut entries = Entries::new();
    let seen = scope.root.join("dev");
    if let Some(metadata) = entry::metadata(&seen)? {
        walk(scope, &seen, Path::new("/dev"), metadata.dev(), &mut entries)?;
    }
    Ok(text(&entries))
}

fn walk(scope: &Scope, seen: &Path, path: &Path, device: u64, entries: &mut Entries) -> Result<(), Error> {
    if ignored(scope, path) {
        return Ok(());
    }
    let Some(metadata) = entry::metadata(seen)? else { return Ok(()) };
    let key = word(path.as_os_str().as_bytes());
    if metadata.is_dir() && metadata.dev() != device && !is_in_memory(seen) {
        // That it is mounted, and of what kind it is, is in "mounts".
        entries.insert(key, "mount\n".into());
        return Ok(());
    }
    match entry::describe(seen, &metadata, Keep::Text(SHOWN)) {
        Ok(description) => drop(entries.insert(key.clone(), description)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    if metadata.is_dir() {
        match names(seen) {
            Ok(names) => {
                for name in names {
                    walk(scope, &seen.join(&name), &path.join(&name), metadata.dev(), entries)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Without root privileges, a folder of somebody who is not mapped.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                entries.entry(key).or_default().push_str(&format!("  not readable: {}\n", error.kind()));
            }
            Err(source) => return Err(Error::io("list", seen, source)),
        }
    }
    Ok(())
}

fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Not known is not in memory: then it is shown as a mount.
fn is_in_memory(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|statfs| IN_MEMORY.contains(&statfs.filesystem_type()))
}
