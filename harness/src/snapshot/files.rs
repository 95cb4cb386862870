//! The topics "etc", "files" and "state_dir". "files" holds what is different in the client's private root from the layers below
//! it, however overlayfs stores that, and all of the separate trees (/run, /tmp, /var).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::entry::{self, Keep};
use super::escape::word;
use super::{Error, Scope};

/// Text files up to this size are in the topic with their content.
pub const SHOWN: u64 = 4096;
/// Files in the state directory are kept with their content up to this size, so that a copy of a resolver file is found.
const SEARCHED: u64 = 64 * 1024;
/// Files that say how names are resolved, shown in full.
const RESOLVER_FILES: [&str; 5] = ["nsswitch.conf", "hosts", "host.conf", "gai.conf", "resolvconf.conf"];

/// Lines by path, so that they are sorted and none is there twice.
pub type Entries = BTreeMap<String, String>;

/// The topic "etc": the directory of resolv.conf itself, not what is below it.
pub fn etc(scope: &Scope) -> Result<String, Error> {
    let dir = scope.root.join("etc");
    let mut entries = Entries::new();
    if let Some(metadata) = entry::metadata(&dir)? {
        entries.insert("/etc".into(), format!("{}\n", entry::properties(&dir, &metadata)?));
    }
    for name in names(&dir)? {
        let path = dir.join(&name);
        let Some(metadata) = entry::metadata(&path)? else { continue };
        let shown = Path::new("/etc").join(&name);
        if ignored(scope, &shown) {
            continue;
        }
        let keep = if RESOLVER_FILES.iter().any(|file| name == *file) { Keep::All(1 << 20) } else { Keep::Digest };
        entries.insert(word(shown.as_os_str().as_bytes()), entry::describe(&path, &metadata, keep)?);
    }
    Ok(text(&entries))
}

/// The topic "files".
pub fn files(scope: &Scope) -> Result<String, Error> {
    let mut entries = Entries::new();
    if let Some(upper) = &scope.upper {
        changed(scope, upper, Path::new("/"), &mut entries)?;
    }
    for tree in &scope.extra_trees {
        let seen = scope.root.join(tree.strip_prefix("/").unwrap_or(tree));
        if let Some(metadata) = entry::metadata(&seen)? {
            everything(scope, &seen, tree, metadata.dev(), &mut entries)?;
        }
    }
    Ok(text(&entries))
}

/// The topic "state_dir".
pub fn state_dir(scope: &Scope) -> Result<Option<String>, Error> {
    let Some(dir) = &scope.state_dir else { return Ok(None) };
    let mut entries = Entries::new();
    let seen = scope.root.join(dir.strip_prefix("/").unwrap_or(dir));
    if let Some(metadata) = entry::metadata(&seen)? {
        tree(&seen, dir, metadata.dev(), Keep::All(SEARCHED), &|_| false, &mut entries)?;
    }
    Ok(Some(text(&entries)))
}

/// Below `path`, a directory of the upper layer: what is not the same in the layers below. A file that was copied up and is the
/// same again is not in the list.
fn changed(scope: &Scope, upper: &Path, path: &Path, entries: &mut Entries) -> Result<(), Error> {
    let dir = upper.join(path.strip_prefix("/").unwrap_or(path));
    let present: BTreeSet<OsString> = names(&dir)?.into_iter().collect();
    for name in &present {
        let path = path.join(name);
        if ignored(scope, &path) {
            continue;
        }
        let over = dir.join(name);
        let Some(metadata) = entry::metadata(&over)? else { continue };
        let below = lower(scope, &path)?;
        let key = word(path.as_os_str().as_bytes());
        if is_whiteout(&over, &metadata) {
            if let Some((_, below)) = below {
                entries.insert(key, format!("deleted {}\n", entry::type_name(&below)));
            }
            continue;
        }
        // With metacopy the upper file has no data of its own: the merged view has.
        let over = match xattr::get(&over, "trusted.overlay.metacopy").ok().flatten() {
            Some(_) => scope.root.join(path.strip_prefix("/").unwrap_or(&path)),
            None => over,
        };
        match &below {
            None => {
                entries.insert(key, format!("new {}", entry::describe(&over, &metadata, Keep::Text(SHOWN))?));
            }
            Some((below, other)) if !same((&over, &metadata), (below, other))? => {
                let moved = redirect(&over);
                entries
                    .insert(key, format!("changed{moved} {}", entry::describe(&over, &metadata, Keep::Text(SHOWN))?));
            }
            Some(_) => {}
        }
        if metadata.is_dir() {
            changed(scope, upper, &path, entries)?;
        }
    }
    // An opaque directory hides all that is below it without a whiteout for each.
    if is_opaque(&dir)
        && let Some((_, metadata)) = lower(scope, path)?
        && metadata.is_dir()
    {
        for name in lower_names(scope, path)?.difference(&present) {
            let path = path.join(name);
            if let Some((_, metadata)) = lower(scope, &path)?
                && !ignored(scope, &path)
            {
                let key = word(path.as_os_str().as_bytes());
                entries.insert(key, format!("deleted {}\n", entry::type_name(&metadata)));
            }
        }
    }
    Ok(())
}

/// What the layers below show at `path`: the top-most layer that has something decides, and a whiteout there is nothing.
fn lower(scope: &Scope, path: &Path) -> Result<Option<(PathBuf, Metadata)>, Error> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    for layer in &scope.lower {
        let seen = layer.join(relative);
        if let Some(metadata) = entry::metadata(&seen)? {
            return Ok((!is_whiteout(&seen, &metadata)).then_some((seen, metadata)));
        }
        // A parent that is a whiteout, opaque or no directory hides the layers further down.
        let mut parent = layer.clone();
        for component in relative.parent().unwrap_or(Path::new("")).components() {
            parent.push(component);
            match entry::metadata(&parent)? {
                Some(metadata) if metadata.is_dir() && !is_opaque(&parent) => {}
                Some(_) => return Ok(None),
                None => break,
            }
        }
    }
    Ok(None)
}

fn lower_names(scope: &Scope, path: &Path) -> Result<BTreeSet<OsString>, Error> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let mut all = BTreeSet::new();
    for layer in &scope.lower {
        let dir = layer.join(relative);
        if entry::metadata(&dir)?.is_some_and(|metadata| metadata.is_dir()) {
            all.extend(names(&dir)?);
        }
    }
    Ok(all)
}

fn same((one, of_one): (&Path, &Metadata), (other, of_other): (&Path, &Metadata)) -> Result<bool, Error> {
    if entry::properties(one, of_one)? != entry::properties(other, of_other)? {
        return Ok(false);
    }
    if of_one.is_symlink() {
        let target = |path: &Path| fs::read_link(path).map_err(|source| Error::io("read the link", path, source));
        return Ok(target(one)? == target(other)?);
    }
    if of_one.is_file() {
        let digest = |path: &Path| {
            entry::content(path, 0).map(|content| content.digest).map_err(|source| Error::io("read", path, source))
        };
        return Ok(of_one.len() == of_other.len() && digest(one)? == digest(other)?);
    }
    Ok(redirect(one).is_empty())
}

/// overlayfs: a character device 0:0, or an empty file with an attribute.
fn is_whiteout(path: &Path, metadata: &Metadata) -> bool {
    let marked =
        || ["trusted.overlay.whiteout", "user.overlay.whiteout"].iter().any(|name| overlay(path, name).is_some());
    metadata.file_type().is_char_device() && metadata.rdev() == 0
        || metadata.is_file() && metadata.len() == 0 && marked()
}

fn is_opaque(dir: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| overlay(dir, name).as_deref() == Some(b"y"))
}

/// A directory that was renamed takes its content from elsewhere in the layers below.
fn redirect(path: &Path) -> String {
    let names = ["trusted.overlay.redirect", "user.overlay.redirect"];
    names.iter().find_map(|name| overlay(path, name)).map_or_else(String::new, |from| format!(" from {}", word(&from)))
}

fn overlay(path: &Path, name: &str) -> Option<Vec<u8>> {
    xattr::get(path, name).ok().flatten()
}

/// A separate tree: everything in it.
fn everything(scope: &Scope, seen: &Path, path: &Path, device: u64, entries: &mut Entries) -> Result<(), Error> {
    tree(seen, path, device, Keep::Text(SHOWN), &|path| ignored(scope, path), entries)
}

/// `seen` and what is below it, on the same filesystem; `path` is its name in the topic.
fn tree(
    seen: &Path,
    path: &Path,
    device: u64,
    keep: Keep,
    ignored: &dyn Fn(&Path) -> bool,
    entries: &mut Entries,
) -> Result<(), Error> {
    if ignored(path) {
        return Ok(());
    }
    let Some(metadata) = entry::metadata(seen)? else { return Ok(()) };
    let elsewhere = metadata.is_dir() && metadata.dev() != device;
    let description = match elsewhere {
        // Another filesystem is a tree of its own; that it is mounted is in "mounts".
        true => "mount\n".into(),
        false => entry::describe(seen, &metadata, keep)?,
    };
    entries.insert(word(path.as_os_str().as_bytes()), description);
    if metadata.is_dir() && !elsewhere {
        for name in names(seen)? {
            tree(&seen.join(&name), &path.join(&name), device, keep, ignored, entries)?;
        }
    }
    Ok(())
}

/// What is in a directory; nothing if it went away.
fn names(dir: &Path) -> Result<Vec<OsString>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::io("list", dir, source)),
    };
    entries
        .map(|entry| Ok(entry.map_err(|source| Error::io("list", dir, source))?.file_name()))
        .collect::<Result<Vec<_>, _>>()
}

/// Whether the path is the harness's or the subject's own.
pub fn ignored(scope: &Scope, path: &Path) -> bool {
    scope.ignore_paths.iter().chain(&scope.state_dir).any(|prefix| path.starts_with(prefix))
}

/// The topic of these entries.
pub fn text(entries: &Entries) -> String {
    entries.iter().map(|(path, description)| format!("{path} {description}")).collect()
}
