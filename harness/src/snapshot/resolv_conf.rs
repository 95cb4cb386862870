//! The topic "resolv.conf": /etc/resolv.conf and, where it is a link, what it leads to, each with type, target, mode, owner,
//! times of modification, attributes and bytes.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::escape::{block, quoted, word};
use super::{Error, entry};

/// The file that resolvers read.
pub const PATH: &str = "/etc/resolv.conf";

/// As the kernel's, path_resolution(7).
const MAX_LINKS: usize = 40;

/// The topic: one paragraph a file, links first, in the order in which they are followed.
pub fn resolv_conf(root: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let mut path = PathBuf::from(PATH);
    for _ in 0..MAX_LINKS {
        let Some(real) = real_parent(root, &path)? else {
            let _ = write!(text, "path: {}\ntype: missing\n", word(path.as_os_str().as_bytes()));
            return Ok(text);
        };
        let seen = root.join(real.strip_prefix("/").unwrap_or(&real));
        let _ = writeln!(text, "path: {}", word(real.as_os_str().as_bytes()));
        let Some(metadata) = entry::metadata(&seen)? else {
            text.push_str("type: missing\n");
            return Ok(text);
        };
        describe(&mut text, &seen, &metadata)?;
        if !metadata.is_symlink() {
            return Ok(text);
        }
        let target = fs::read_link(&seen).map_err(|source| Error::io("read the link", &seen, source))?;
        path = real.parent().unwrap_or(Path::new("/")).join(target);
        text.push('\n');
    }
    text.push_str("type: a loop of links\n");
    Ok(text)
}

fn describe(text: &mut String, path: &Path, metadata: &Metadata) -> Result<(), Error> {
    let _ = writeln!(text, "type: {}", entry::type_name(metadata));
    if metadata.is_symlink() {
        let target = fs::read_link(path).map_err(|source| Error::io("read the link", path, source))?;
        let _ = writeln!(text, "target: {}", word(target.as_os_str().as_bytes()));
    } else {
        let _ = writeln!(text, "mode: {:04o}", metadata.mode() & 0o7777);
    }
    let _ = writeln!(text, "owner: {}:{}", metadata.uid(), metadata.gid());
    let _ = writeln!(text, "mtime: {}.{:09}", metadata.mtime(), metadata.mtime_nsec());
    for (name, value) in entry::attributes(path)? {
        let _ = writeln!(text, "attribute: {} = {}", word(name.as_bytes()), quoted(&value));
    }
    if metadata.is_file() {
        let flags = entry::inode_flags(path).map_err(|source| Error::io("read the inode flags of", path, source))?;
        let _ = writeln!(text, "flags: {}", if flags.is_empty() { "none".into() } else { flags.join(" ") });
        let bytes = entry::content(path, u64::MAX).map_err(|source| Error::io("read", path, source))?.bytes;
        let _ = write!(text, "content:\n{}", block(&bytes.unwrap_or_default()));
    }
    Ok(())
}

/// The path with every link in its parents followed, inside `root`, where an absolute link starts at `root` again; `None` if a
/// parent is missing or no directory. The last component is as it was.
fn real_parent(root: &Path, path: &Path) -> Result<Option<PathBuf>, Error> {
    let mut todo: VecDeque<OsString> = components(path);
    let mut real = PathBuf::from("/");
    let mut links = 0;
    while let Some(next) = todo.pop_front() {
        if next == ".." {
            real.pop();
            continue;
        }
        real.push(&next);
        if todo.is_empty() {
            break;
        }
        let seen = root.join(real.strip_prefix("/").unwrap_or(&real));
        match entry::metadata(&seen)? {
            Some(metadata) if metadata.is_symlink() => {
                links += 1;
                if links > MAX_LINKS {
                    return Ok(None);
                }
                let target = fs::read_link(&seen).map_err(|source| Error::io("read the link", &seen, source))?;
                real.pop();
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                for component in components(&target).into_iter().rev() {
                    todo.push_front(component);
                }
            }
            Some(metadata) if metadata.is_dir() => {}
            _ => return Ok(None),
        }
    }
    Ok(Some(real))
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}
