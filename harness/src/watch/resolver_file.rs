//! Versions of the resolver file: noticed by inotify on its folder and on the folders of what it leads to, read at once.

use super::{
    Changes, Tampering, WatchError,
    nodes::{Nodes, Seen},
    tamper::Outsider,
    version::{Version, folder_of},
};
use crate::history::{Event, Recorder, now};
use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use std::{
    collections::HashSet,
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
}

/// What is listened for: a name in a watched folder.
#[derive(Debug, Default)]
struct Names {
    all: HashSet<(WatchDescriptor, OsString)>,
    /// The file itself.
    first: Option<(WatchDescriptor, OsString)>,
}

impl ResolverFile {
    /// Starts listening.
    pub fn open(path: PathBuf) -> Result<Self, WatchError> {
        let failed = |source| WatchError::File { action: "watch", path: path.clone(), source };
        let inotify = Inotify::init().map_err(failed)?;
        let mut names = Names::default();
        names.follow_links(&mut inotify.watches(), &path).map_err(failed)?;
        Ok(Self { path, inotify, names })
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
        let Self { path, inotify, mut names } = self;
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
            recorder.record_at(
                t,
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
        let mut note = |event: inotify::Event<OsString>, own: &[String], nodes: &mut Nodes| {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return trouble("notifications of the resolver file were lost".into());
            }
            let Some(name) = &event.name else { return };
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
            match names.follow_links(&mut watches, &path) {
                Ok(false) => {}
                // What happened before the folder was watched is seen now.
                Ok(true) => read("target", own),
                Err(error) => trouble(format!("what {} leads to is not watched: {error}", path.display())),
            }
        };
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => note(event, &own, &mut nodes),
                    Some(Err(error)) => {
                        recorder.record(Event::Harness { problem: format!("the resolver file is not watched any more: {error}") });
                        return;
                    }
                    None => return,
                },
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
        for _ in 0..MOST_LINKS {
            new |= self.listen_for(watches, &path)?;
            let Ok(target) = fs::read_link(&path) else { break };
            path = folder_of(&path).join(target);
        }
        Ok(new)
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
