//! The client machine's configuration as canonical text, one file a topic: taken before the subject starts and after it has
//! restored, and compared exactly. Not for what changes while the subject works: that is the history's.
//!
//! What is compared is what [`Snapshot::write_to`] stored, so a verdict can be reached again from the bundle alone.
//! Access times, inodes and the times of directories are in no topic.

mod backup;
mod base85;
mod compare;
mod dev;
mod diff;
mod entry;
mod escape;
mod exposure;
mod files;
mod hostname;
mod ipc;
mod links;
mod mptcp;
mod neighbours;
mod netlink;
mod nft_objects;
mod nftables;
mod processes;
mod resolv_conf;
mod resolver;
mod routes;
mod services;
mod sockets;
mod sysctl;
mod traffic;
mod xfrm;
mod xtables;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::scenario::Profile;

pub use compare::{
    Difference, Occasion, Severity, TOLERATED_REMAINS, Tolerance, ToleratedRemain, compare, tolerated_remains,
};
pub use exposure::exposed_copies;
pub use resolv_conf::PATH as RESOLV_CONF;
pub use resolver::ResolvConf;
pub use sysctl::NOT_SETTINGS;

/// The client's configuration at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Canonical text by topic: "resolv.conf", "etc", "files", "state_dir", "nftables", "iptables", "routes", "rules", "addresses",
    /// "links", "sysctl", "processes", "sockets", "mounts", "dev", "hostname", "ipc", "neighbours", "address-labels", "xfrm",
    /// "mptcp"; and, of the resolver services that the client has, "systemd-resolved", "network-manager", "resolvconf", "forwarder"
    /// and "bus-names". What a version did not know yet is not in the bundles that it wrote.
    pub topics: BTreeMap<String, String>,
}

impl Snapshot {
    /// Leaves out what systemd-resolved has from a resolver file that is not its own.
    pub(crate) fn forget_what_follows_the_resolver_file(&mut self) {
        let Some(text) = self.topics.get_mut("systemd-resolved") else { return };
        let follows = |line: &&str| ["global DNS ", "global Domains "].iter().any(|start| line.starts_with(start));
        *text = text.lines().filter(|line| !follows(line)).map(|line| format!("{line}\n")).collect();
    }
}

/// What of the machine a snapshot covers, and from where it is seen.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// The client's root as the calling thread sees it: `/` inside the client's mount namespace.
    pub root: PathBuf,
    /// The upper directory of the overlay that is the client's root, as the calling thread sees it; `None` if it is no overlay.
    pub upper: Option<PathBuf>,
    /// The layers below `upper`, the top-most first, as the calling thread sees them (the order of `lowerdir=`).
    pub lower: Vec<PathBuf>,
    /// Directories of the client that are filesystems of their own and of which everything counts: `/run`, `/tmp`, `/var`.
    pub extra_trees: Vec<PathBuf>,
    /// Processes that are the harness's, in the numbers of the client's PID namespace.
    pub ignore_pids: Vec<u32>,
    /// Daemons of the profile, whose processes and sockets come and go with them.
    pub services: Vec<Daemon>,
    /// Paths in the client whose content is the harness's own or changes by itself.
    pub ignore_paths: Vec<PathBuf>,
    /// The subject's own directory, which is a topic of its own.
    pub state_dir: Option<PathBuf>,
    /// The client's software: what its resolver services are set to are topics.
    pub profile: Profile,
}

/// A daemon of the profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Its number in the client's PID namespace.
    pub pid: u32,
    /// Its command line, as in proc_pid_cmdline(5): it may be started again, by whomever, and is the same daemon.
    pub command: Vec<u8>,
}

/// Why there is no snapshot. Without one nothing can be said about what was restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory that must be readable is not.
    #[error("{action} {}: {source}; is the calling thread in the client's mount namespace, with rights to read all of it?", path.display())]
    #[non_exhaustive]
    Io {
        /// The verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A netlink request failed.
    #[error("{action}: {errno}; is the calling thread in the client's network namespace, with CAP_NET_ADMIN there?")]
    #[non_exhaustive]
    Netlink {
        /// What was asked.
        action: &'static str,
        /// The kernel's word.
        errno: Errno,
    },
    /// A service on the system bus did not tell its settings.
    #[error("{service} did not tell its settings: {source}; see its log in the bundle")]
    #[non_exhaustive]
    Bus {
        /// Which.
        service: &'static str,
        /// The bus's words.
        source: zbus::Error,
    },
    /// A local forwarder did not tell its servers.
    #[error("{service} did not tell its servers: {source}; see its log in the bundle")]
    #[non_exhaustive]
    Forwarder {
        /// Which.
        service: &'static str,
        /// The kernel's words.
        source: io::Error,
    },
    /// A list changed each time it was read.
    #[error(
        "{action}: the list changed during each of {attempts} attempts; stop what changes it and take the snapshot again"
    )]
    #[non_exhaustive]
    Restless {
        /// What was asked.
        action: &'static str,
        /// How often.
        attempts: usize,
    },
    /// Something went away between two questions about it.
    #[error("{what} vanished while it was read; stop what changes it and take the snapshot again")]
    #[non_exhaustive]
    Vanished {
        /// What.
        what: String,
    },
    /// The calling thread is in another network namespace than everything that it sees in /proc.
    #[error("no process in {} is in the calling thread's network namespace; call from a thread in the client's namespaces", proc.display())]
    #[non_exhaustive]
    NoProcess {
        /// The directory that was searched.
        proc: PathBuf,
    },
    /// A stored snapshot holds something that is no topic.
    #[error("{} is no snapshot: {reason}; give the `before` or `after` directory of a bundle", path.display())]
    #[non_exhaustive]
    NotASnapshot {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Error {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    fn netlink(action: &'static str, errno: Errno) -> Self {
        Self::Netlink { action, errno }
    }
}

/// Takes a snapshot of the client in whose network and mount namespaces the calling thread is, and whose /proc is at
/// `scope.root/proc`.
///
/// Everything is read by the calling thread itself, without a pause in between and without starting a process, so the future
/// never waits: it is to be awaited on the client's own current-thread runtime. Takes 5 to 15 ms.
///
/// # Errors
///
/// [`Error`] if anything that must be readable is not, or if something else changes the client meanwhile.
pub async fn take(scope: &Scope) -> Result<Snapshot, Error> {
    let mut topics = BTreeMap::new();
    let mut add = |name: &str, text: String| topics.insert(name.to_owned(), text);

    // Before any socket of the snapshot's own is open.
    let own = sockets::own_sockets();
    let mut ignored = scope.ignore_pids.clone();
    ignored.extend(processes::of_daemons(&scope.root, &scope.services)?);
    add("processes", processes::processes(&scope.root, &ignored)?);
    add("sockets", sockets::sockets(&scope.root, &ignored, &own)?);
    add("mounts", processes::mounts(&scope.root)?);

    add("resolv.conf", resolv_conf::resolv_conf(&scope.root)?);
    add("etc", files::etc(scope)?);
    add("files", files::files(scope)?);
    add("dev", dev::dev(scope)?);
    if let Some(text) = files::state_dir(scope)? {
        add("state_dir", text);
    }
    add("sysctl", sysctl::sysctl(&scope.root)?);
    add("hostname", hostname::hostname()?);
    add("ipc", ipc::ipc(&scope.root)?);

    let mut route = netlink::Netlink::route()?;
    let links = links::links(&mut route)?;
    add("addresses", links::addresses(&mut route, &links)?);
    add("routes", routes::routes(&mut route, &links)?);
    add("rules", routes::rules(&mut route)?);
    add("neighbours", neighbours::neighbours(&mut route, &links)?);
    add("address-labels", neighbours::address_labels(&mut route, &links)?);
    add("xfrm", xfrm::xfrm(&links)?);
    add("mptcp", mptcp::mptcp(&links)?);
    add("links", links.text);
    for (topic, text) in services::topics(scope).await? {
        add(topic, text);
    }
    add("iptables", xtables::iptables(&scope.root)?);
    add("nftables", nftables::nftables(&mut netlink::Netlink::netfilter()?)?);
    Ok(Snapshot { topics })
}

/// The topics "nftables" and "rules" alone, of the network namespace in which the calling thread is: what decides by a packet's mark or
/// its sender.
///
/// # Errors
///
/// As [`take`] for these.
pub fn deciding() -> Result<[String; 2], Error> {
    Ok([nftables::nftables(&mut netlink::Netlink::netfilter()?)?, routes::rules(&mut netlink::Netlink::route()?)?])
}

/// A line that says why there is nothing in a topic, and that a comparison passes over.
const NONE: &str = "none: ";

/// The text of a topic that not every kernel has and not everybody may read. `missing` says what the kernel lacks; that is as
/// good as an empty list. What may not be read is said, and is a difference if it could be read the other time.
fn none_or<T>(
    missing: &str,
    read: Result<T, Error>,
    text: impl FnOnce(T) -> Result<String, Error>,
) -> Result<String, Error> {
    const MISSING: [Errno; 4] = [Errno::EPROTONOSUPPORT, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::ENOENT];
    match read.and_then(text) {
        Err(Error::Netlink { errno, .. }) if MISSING.contains(&errno) => Ok(format!("{NONE}{missing}\n")),
        Err(Error::Netlink { action, errno: errno @ (Errno::EPERM | Errno::EACCES) }) => {
            Ok(format!("not readable: {action}: {}\n", errno.desc()))
        }
        other => other,
    }
}

const EXTENSION: &str = "txt";

impl Snapshot {
    /// Writes one file a topic, `TOPIC.txt`, into `dir`, which is created. What was there of an earlier snapshot is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the directory cannot be written.
    pub fn write_to(&self, dir: &Path) -> Result<(), Error> {
        fs::create_dir_all(dir).map_err(|source| Error::io("create", dir, source))?;
        for path in stored(dir)? {
            fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
        }
        for (topic, text) in &self.topics {
            let path = dir.join(format!("{topic}.{EXTENSION}"));
            fs::write(&path, text).map_err(|source| Error::io("write", &path, source))?;
        }
        Ok(())
    }

    /// Reads what [`write_to`](Self::write_to) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file cannot be read, [`Error::NotASnapshot`] if there is none or one is no text.
    pub fn read_from(dir: &Path) -> Result<Self, Error> {
        let mut topics = BTreeMap::new();
        for path in stored(dir)? {
            let bytes = fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
            let (Ok(text), Some(topic)) = (String::from_utf8(bytes), path.file_stem().and_then(|stem| stem.to_str()))
            else {
                return Err(Error::NotASnapshot { path, reason: "it is not UTF-8 text" });
            };
            topics.insert(topic.to_owned(), text);
        }
        if topics.is_empty() {
            return Err(Error::NotASnapshot { path: dir.to_owned(), reason: "it has no topics" });
        }
        Ok(Self { topics })
    }

    fn topic(&self, name: &str) -> &str {
        self.topics.get(name).map_or("", String::as_str)
    }
}

fn stored(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(|source| Error::io("list", dir, source))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| Error::io("list", dir, source))?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            paths.push(path);
        }
    }
    Ok(paths)
}
