//! Nodes beside the resolver file, held from the moment they appear: when one of them has become the resolver file and was
//! replaced before anybody could read it, the handle still reads it.

use super::version::{KEPT, Version, head};
use inotify::EventMask;
use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

/// More nodes than this at a time are not held.
const MOST: usize = 64;

/// What became of the version that a notification is about.
#[derive(Debug)]
pub(super) enum Seen {
    /// It is what is there now.
    Now,
    /// It was replaced already; this is what it was.
    Late(Version),
    /// An earlier one was replaced before it was read, and is lost.
    Lost,
}

/// Handles by name, and by cookie while a rename is told of in two parts.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    named: HashMap<OsString, File>,
    moving: HashMap<u32, File>,
    /// Device and inode of the file by the last notification of a rename; before the first, of the file that was there.
    last: Option<(u64, u64)>,
}

impl Nodes {
    /// For a file that may be there already.
    pub(super) fn beside_of(path: &Path) -> Self {
        Self { last: node_of(path), ..Self::default() }
    }

    /// A node that this process made: the kernel may tell of it when it is gone.
    pub(super) fn made(&mut self, path: &Path) -> io::Result<()> {
        self.named.insert(path.file_name().unwrap_or_default().to_owned(), hold(path)?);
        Ok(())
    }

    /// A notification about another name of the folder.
    pub(super) fn beside(&mut self, path: &Path, name: &OsStr, mask: EventMask, cookie: u32) {
        let folder = path.parent().unwrap_or(Path::new("/"));
        if mask.contains(EventMask::MOVED_FROM) {
            if let Some(node) = self.named.remove(name) {
                if self.moving.len() >= MOST {
                    self.moving.clear();
                }
                self.moving.insert(cookie, node);
            }
        } else if mask.contains(EventMask::DELETE) {
            self.named.remove(name);
        } else if self.named.len() < MOST && !self.named.contains_key(name) {
            // It may be gone again: then a later rename is read by its new name, or found to be lost.
            if let Ok(node) = hold(&folder.join(name)) {
                self.named.insert(name.to_owned(), node);
            }
        }
    }

    /// A notification about the file itself.
    pub(super) fn itself(&mut self, path: &Path, mask: EventMask, cookie: u32) -> io::Result<Seen> {
        let now = node_of(path);
        // An exchange of two files (renameat2(2), RENAME_EXCHANGE) takes the old one away and leaves no gap.
        if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) && now.is_none() {
            self.last = None;
        }
        if !mask.contains(EventMask::MOVED_TO) {
            return Ok(Seen::Now);
        }
        let node = self.moving.remove(&cookie);
        if now.is_some() && now == self.last {
            // Read by an earlier notification, whose own version was not there any more.
            return Ok(Seen::Lost);
        }
        // A handle of the file that was there before was opened when the two had been exchanged already: it is none.
        let node = node.filter(|node| identity(node) != self.last);
        let Some(node) = node else {
            self.last = now;
            return Ok(Seen::Now);
        };
        let metadata = node.metadata()?;
        self.last = identity(&node);
        if self.last == now {
            return Ok(Seen::Now);
        }
        Ok(Seen::Late(read(path, &node, &metadata)?))
    }
}

/// Device and inode of what has this name.
fn node_of(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn identity(node: &File) -> Option<(u64, u64)> {
    node.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// A handle of the node: of a symbolic link the link itself (open(2), O_PATH), of anything else one that can be read.
fn hold(path: &Path) -> io::Result<File> {
    let open = |flags| File::options().read(true).custom_flags(flags | libc::O_NOFOLLOW).open(path);
    match open(libc::O_NONBLOCK) {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => open(libc::O_PATH),
        opened => opened,
    }
}

/// The version that a held node was.
fn read(path: &Path, node: &File, metadata: &fs::Metadata) -> io::Result<Version> {
    if metadata.is_symlink() {
        let target = nix::fcntl::readlinkat(node, "").map_err(io::Error::from)?;
        let text = fs::read(path.parent().unwrap_or(Path::new("/")).join(&target));
        let text = text.map_or("(nothing to read)\n".into(), |bytes| String::from_utf8_lossy(&bytes).into_owned());
        return Ok(Version::of(path, format!("symlink {}\n{text}", target.display())));
    }
    let mut bytes = vec![0; KEPT];
    let length = node.read_at(&mut bytes, 0)?;
    Ok(Version::of(path, head(path, metadata)? + &String::from_utf8_lossy(&bytes[..length])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Folder {
        folder: tempfile::TempDir,
        nodes: Nodes,
    }

    impl Folder {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().expect("a folder"), nodes: Nodes::default() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn create(&mut self, name: &str, told: bool) {
            fs::write(self.path(name), name).expect("a file");
            if told {
                self.nodes.beside(&self.path("resolv.conf"), name.as_ref(), EventMask::CREATE, 0);
            }
        }

        fn rename(&self, name: &str) {
            fs::rename(self.path(name), self.path("resolv.conf")).expect("renamed");
        }

        fn told(&mut self, name: &str, cookie: u32) -> Seen {
            self.nodes.beside(&self.path("resolv.conf"), name.as_ref(), EventMask::MOVED_FROM, cookie);
            self.nodes.itself(&self.path("resolv.conf"), EventMask::MOVED_TO, cookie).expect("readable")
        }
    }

    #[test]
    fn a_version_that_is_there_is_read_now() {
        let mut folder = Folder::new();
        for told in [true, false] {
            for (name, cookie) in [("one", 1), ("two", 2), ("three", 3)] {
                folder.create(name, told);
                folder.rename(name);
                assert!(matches!(folder.told(name, cookie), Seen::Now), "{name} {told}");
            }
        }
    }

    #[test]
    fn a_version_that_was_replaced_is_read_by_its_handle() {
        let mut folder = Folder::new();
        folder.create("one", true);
        folder.create("two", true);
        folder.rename("one");
        folder.rename("two");
        let Seen::Late(version) = folder.told("one", 1) else { panic!("it is not there any more") };
        assert!(version.content.ends_with("one"), "{}", version.content);
        assert!(matches!(folder.told("two", 2), Seen::Now));
    }

    #[test]
    fn a_version_that_was_replaced_and_not_held_is_known_to_be_lost() {
        for held in [true, false] {
            let mut folder = Folder::new();
            folder.create("one", false);
            folder.create("two", held);
            folder.rename("one");
            folder.rename("two");
            assert!(matches!(folder.told("one", 1), Seen::Now), "nobody can tell yet");
            assert!(matches!(folder.told("two", 2), Seen::Lost));
        }
    }

    #[test]
    fn a_symbolic_link_is_held_too() {
        let mut folder = Folder::new();
        std::os::unix::fs::symlink("elsewhere", folder.path("one")).expect("a link");
        folder.nodes.beside(&folder.path("resolv.conf"), "one".as_ref(), EventMask::CREATE, 0);
        folder.create("two", true);
        folder.rename("one");
        folder.rename("two");
        let Seen::Late(version) = folder.told("one", 1) else { panic!("it is not there any more") };
        assert_eq!(version.content, "symlink elsewhere\n(nothing to read)\n");
    }

    #[test]
    fn exchanged_files_are_told_apart_however_late() {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        for told in [true, false] {
            let mut folder = Folder::new();
            folder.create("resolv.conf", false);
            let own = folder.path("resolv.conf");
            folder.nodes = Nodes::beside_of(&own);
            let exchange = |folder: &Folder, name: &str| {
                renameat2(AT_FDCWD, &folder.path(name), AT_FDCWD, &own, RenameFlags::RENAME_EXCHANGE)
                    .expect("exchanged");
            };
            // In the order in which the kernel tells: the new file comes, then the old one goes.
            let tell = |folder: &mut Folder, name: &str, cookie| {
                if !told {
                    folder.nodes.beside(&own, name.as_ref(), EventMask::CREATE, 0);
                }
                let seen = folder.told(name, cookie);
                assert!(matches!(folder.nodes.itself(&own, EventMask::MOVED_FROM, cookie + 1), Ok(Seen::Now)));
                folder.nodes.beside(&own, name.as_ref(), EventMask::MOVED_TO, cookie + 1);
                folder.nodes.beside(&own, name.as_ref(), EventMask::DELETE, 0);
                seen
            };
            folder.create("one", told);
            exchange(&folder, "one");
            assert!(matches!(tell(&mut folder, "one", 1), Seen::Now), "{told}");
            // Twice before anybody looks.
            folder.create("two", told);
            exchange(&folder, "two");
            folder.create("three", told);
            exchange(&folder, "three");
            let (two, three) = (tell(&mut folder, "two", 3), tell(&mut folder, "three", 5));
            match told {
                true => assert!(
                    matches!((&two, &three), (Seen::Late(version), Seen::Now) if version.content.ends_with("two")),
                    "{two:?} {three:?}"
                ),
                false => assert!(matches!((&two, &three), (Seen::Now, Seen::Lost)), "{two:?} {three:?}"),
            }
        }
    }
}
