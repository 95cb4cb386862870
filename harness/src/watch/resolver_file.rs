//! Versions of the resolver file: noticed by inotify on its folder and on the folders of what it leads to, and by the mount table,
//! since what is mounted over it is no change of a folder; read at once.

mod mounts;
#[cfg(test)]
mod tests;

use super::{
    Changes, Tampering, WatchError,
    nodes::{Nodes, Seen},
    tamper::Outsider,
    version::{Version, folder_of},
};
use crate::{
    history::{Event, Noticed, Recorder, now},
    sandbox::earliest,
};
use futures::{FutureExt, StreamExt};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use mounts::MountTable;
use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};
use tokio::sync::{mpsc, watch};

/// More symbolic links in a row than the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The watched file.
#[derive(Debug)]
pub struct ResolverFile {
    path: PathBuf,
    inotify: Inotify,
    names: Names,
    mounts: MountTable,
}

/// What is listened for: names in watched folders, and nodes that are mounted over one of these names. Of such a node the kernel
/// tells the folder that it was taken from.
#[derive(Debug, Default)]
struct Names {
    all: HashSet<(WatchDescriptor, OsString)>,
    /// The file itself.
    first: Option<(WatchDescriptor, OsString)>,
    /// Whether it is mounted over the file itself, not over what that leads to.
    mounted: HashMap<WatchDescriptor, bool>,
    /// Paths over which something is mounted.
    points: HashSet<PathBuf>,
    /// The node that is read, and those that were: they may be written to by another name.
    nodes: HashSet<WatchDescriptor>,
}

impl ResolverFile {
    /// Starts listening.
    pub fn open(path: PathBuf) -> Result<Self, WatchError> {
        let failed = |source| WatchError::File { action: "watch", path: path.clone(), source };
        let inotify = Inotify::init().map_err(failed)?;
        // Opened before it is read, so that what is mounted meanwhile is told of.
        let mounts = MountTable::open().map_err(failed)?;
        let mut names = Names { points: mounts.points().map_err(failed)?, ..Names::default() };
        names.follow_links(&mut inotify.watches(), &path).map_err(failed)?;
        Ok(Self { path, inotify, names, mounts })
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
        counted: watch::Sender<Changes>,
        mut tamperings: mpsc::UnboundedReceiver<Tampering>,
    ) {
        let Self { path, inotify, mut names, mounts } = self;
        let mut events = match inotify.into_event_stream(vec![0; 16 << 10]) {
            Ok(events) => events,
            Err(error) => {
                recorder.record(Event::Harness { problem: format!("the resolver file is not watched: {error}") });
                return;
            }
        };
        let mut watches = events.watches();
        // Versions that the harness itself made, by hash: the kernel tells of them like of any other.
        let mut own: Vec<String> = Vec::new();
        let mut outsider = Outsider::default();
        let mut nodes = Nodes::beside_of(&path);
        let record = |t: u64, cause: &str, version: Version, own: &[String]| {
            recorder.record_noticed(
                Noticed { at: t, since: earliest() },
                Event::File {
                    path: path.clone(),
                    cause: cause.into(),
                    by_harness: own.contains(&version.hash),
                    hash: version.hash.clone(),
                    content: version.content.clone(),
                    changed: version.changed,
                },
            );
            counted.send_modify(|changes| changes.versions += 1);
            version
        };
        let trouble = |problem: String| {
            recorder.record(Event::Harness { problem });
        };
        let read = |cause: &str, own: &[String]| {
            let t = now(libc::CLOCK_REALTIME);
            match Version::read(&path) {
                Ok(version) => {
                    tell.send_replace(record(t, cause, version, own));
                }
                Err(error) => trouble(format!("failed to read {}: {error}", path.display())),
            }
        };
        // Most changes of the mount table are about something else.
        let note_mounted = |t: u64, found: io::Result<Version>, own: &[String]| match found {
            Ok(version) if version.hash == tell.borrow().hash => {}
            Ok(version) => {
                // When the node was changed says nothing about when it was mounted.
                tell.send_replace(record(t, "mount", Version { changed: None, ..version }, own));
            }
            Err(error) => trouble(format!("failed to read {}: {error}", path.display())),
        };
        let note = |event: inotify::Event<OsString>,
                    own: &[String],
                    nodes: &mut Nodes,
                    names: &mut Names,
                    watches: &mut Watches| {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return trouble("notifications of the resolver file were lost".into());
            }
            let Some(name) = &event.name else {
                if let Some(itself) = names.mounted.get(&event.wd).filter(|_| event.mask.intersects(OF_NODE)) {
                    let cause = cause(event.mask);
                    read(&if *itself { cause.to_owned() } else { format!("target {cause}") }, own);
                } else if names.nodes.contains(&event.wd) && event.mask.contains(EventMask::MODIFY) {
                    // By its own name it was told too.
                    let noted = Version::read(&path).is_ok_and(|version| version.hash == tell.borrow().hash);
                    if !noted {
                        read(if path.is_symlink() { "target modify" } else { "modify" }, own);
                    }
                }
                return;
            };
            if !names.mean(&event.wd, name) {
                nodes.beside(&path, name, event.mask, event.cookie);
                return;
            }
            let own_node = names.is_first(&event.wd, name);
            if own_node {
                match nodes.itself(&path, event.mask, event.cookie) {
                    Ok(Seen::Now) => {}
                    Ok(Seen::Late(version)) => {
                        record(now(libc::CLOCK_REALTIME), cause(event.mask), version, own);
                        return;
                    }
                    Ok(Seen::Lost) => trouble(format!(
                        "a version of {} was replaced before it was read: two renames came within less time than it takes to notice one",
                        path.display()
                    )),
                    Err(error) => trouble(format!("failed to read a version of {}: {error}", path.display())),
                }
            }
            // What a link leads to is another node, which a subject may do with as it likes once nobody is led there.
            let cause = cause(event.mask);
            read(&if own_node { cause.to_owned() } else { format!("target {cause}") }, own);
            match names.follow_links(watches, &path) {
                Ok(false) => {}
                // What happened before the folder was watched is seen now.
                Ok(true) => read("target", own),
                Err(error) => trouble(format!("what {} leads to is not watched: {error}", path.display())),
            }
        };
        let blind = |error: io::Error| trouble(format!("the resolver file is not watched any more: {error}"));
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => note(event, &own, &mut nodes, &mut names, &mut watches),
                    Some(Err(error)) => return blind(error),
                    None => return,
                },
                changed = mounts.changed() => {
                    if let Err(error) = changed {
                        return blind(error);
                    }
                    // At once, for it may be gone soon.
                    let (t, found) = (now(libc::CLOCK_REALTIME), Version::read(&path));
                    // What was told before is about the nodes that were there before; and it has a cause of its own.
                    let before = counted.borrow().versions;
                    loop {
                        match events.next().now_or_never() {
                            Some(Some(Ok(event))) => note(event, &own, &mut nodes, &mut names, &mut watches),
                            Some(Some(Err(error))) => return blind(error),
                            Some(None) => return,
                            None => break,
                        }
                    }
                    if counted.borrow().versions == before {
                        note_mounted(t, found, &own);
                    }
                    match mounts.points().and_then(|points| names.follow_mounts(&mut watches, &path, points)) {
                        Ok(false) => {}
                        // What happened before it was watched is seen now.
                        Ok(true) => note_mounted(now(libc::CLOCK_REALTIME), Version::read(&path), &own),
                        Err(error) => trouble(format!("what is mounted over {} is not watched: {error}", path.display())),
                    }
                }
                tampering = tamperings.recv() => {
                    let Some((how, done)) = tampering else { return };
                    let result = outsider.tamper(&path, how, &mut nodes);
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

impl Names {
    /// Listens for the file, and for each node that it leads to by symbolic links; whether something new is listened for.
    /// Where a folder is missing, its appearance is listened for.
    fn follow_links(&mut self, watches: &mut Watches, path: &Path) -> io::Result<bool> {
        let mut new = false;
        let mut path = path.to_path_buf();
        for links in 0..MOST_LINKS {
            new |= self.listen_for(watches, &path)?;
            new |= self.listen_to_mounted(watches, &path, links == 0)?;
            let Ok(target) = fs::read_link(&path) else {
                self.listen_to_node(watches, &path)?;
                break;
            };
            path = folder_of(&path).join(target);
        }
        Ok(new)
    }

    /// After the mount table has changed: the same paths may lead to other nodes, and the old ones are nobody's resolver file.
    /// Whether it is about the file.
    fn follow_mounts(&mut self, watches: &mut Watches, path: &Path, points: HashSet<PathBuf>) -> io::Result<bool> {
        let old = std::mem::replace(self, Self { points, ..Self::default() });
        self.follow_links(watches, path)?;
        Ok(old.all != self.all || old.mounted != self.mounted)
    }

    /// Listens to a node that is mounted over this path, if one is; whether it is new.
    fn listen_to_mounted(&mut self, watches: &mut Watches, path: &Path, itself: bool) -> io::Result<bool> {
        // The table has no symbolic links in it.
        let Ok(folder) = fs::canonicalize(folder_of(path)) else { return Ok(false) };
        if !self.points.contains(&folder.join(path.file_name().unwrap_or_default())) {
            return Ok(false);
        }
        // Where it leads to a folder, that may be one of the watched ones.
        match watches.add(path, node_mask() | WatchMask::MASK_ADD) {
            Ok(watch) => Ok(self.mounted.insert(watch, itself).is_none()),
            // Unmounted meanwhile, which the table tells of.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Listens to the node itself: by another name, in another folder, it can be written to as well.
    fn listen_to_node(&mut self, watches: &mut Watches, path: &Path) -> io::Result<()> {
        match watches.add(path, WatchMask::MODIFY | WatchMask::MASK_ADD | WatchMask::DONT_FOLLOW) {
            Ok(watch) => drop(self.nodes.insert(watch)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn listen_for(&mut self, watches: &mut Watches, path: &Path) -> io::Result<bool> {
        let mut path = path;
        loop {
            let folder = folder_of(path);
            let name = path.file_name().unwrap_or_default();
            match watches.add(folder, mask()) {
                Ok(watch) => {
                    let listened = (watch, name.to_owned());
                    self.first.get_or_insert_with(|| listened.clone());
                    return Ok(self.all.insert(listened));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && folder.parent().is_some() => path = folder,
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a notification is about one of them.
    fn mean(&self, watch: &WatchDescriptor, name: &OsStr) -> bool {
        self.all.contains(&(watch.clone(), name.to_owned()))
    }

    /// Whether a notification is about the file itself and not about what it leads to.
    fn is_first(&self, watch: &WatchDescriptor, name: &OsStr) -> bool {
        self.first.as_ref().is_some_and(|(first, own)| first == watch && own == name)
    }
}

fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::MODIFY
        | WatchMask::CLOSE_WRITE
        | WatchMask::ATTRIB
        | WatchMask::DELETE
}

/// As [`node_mask()`], in what the kernel tells.
const OF_NODE: EventMask = EventMask::MODIFY.union(EventMask::CLOSE_WRITE).union(EventMask::ATTRIB);

/// What changes a node itself.
fn node_mask() -> WatchMask {
    WatchMask::MODIFY | WatchMask::CLOSE_WRITE | WatchMask::ATTRIB
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
