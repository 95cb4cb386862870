//! What a host is made of, as text to compare: read from /proc and by netlink, with none of the harness's own code.

use nlink::{Connection, Nftables, Route};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
};

/// Everything, by topic; each topic's lines are sorted.
pub struct Snapshot(BTreeMap<String, BTreeSet<String>>);

impl Snapshot {
    /// Takes it.
    pub fn take() -> Result<Self, String> {
        let mut topics = BTreeMap::new();
        topics.insert(
            "namespaces".to_owned(),
            namespaces().map_err(|error| format!("failed to list namespaces: {error}"))?,
        );
        topics
            .insert("processes".to_owned(), processes().map_err(|error| format!("failed to list processes: {error}"))?);
        for file in [
            "self/mountinfo",
            "net/route",
            "net/ipv6_route",
            "net/fib_trie",
            "net/if_inet6",
            "sys/kernel/hostname",
            "sysvipc/msg",
            "sysvipc/sem",
            "sysvipc/shm",
        ] {
            let text = fs::read_to_string(format!("/proc/{file}"))
                .map_err(|error| format!("failed to read /proc/{file}: {error}"))?;
            topics.insert(file.to_owned(), numbered(&text));
        }
        let devices =
            fs::read_to_string("/proc/net/dev").map_err(|error| format!("failed to read /proc/net/dev: {error}"))?;
        topics.insert(
            "interfaces".into(),
            devices.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().into()).collect(),
        );
        for folder in ["/etc", "/run", "/tmp", "/dev/shm", "/dev/net"] {
            topics.insert(
                folder.to_owned(),
                files(Path::new(folder)).map_err(|error| format!("failed to list {folder}: {error}"))?,
            );
        }
        topics.insert("sysctl".into(), settings(Path::new("/proc/sys/net")));
        let (rules, tables) = netlink().map_err(|error| format!("failed to ask the kernel: {error}"))?;
        topics.insert("rules".into(), rules);
        topics.insert("nftables".into(), tables);
        Ok(Self(topics))
    }

    /// Says what differs, if anything.
    pub fn compare(&self, after: &Self) -> Result<(), String> {
        let mut differences = Vec::new();
        for (topic, before) in &self.0 {
            let after = &after.0[topic];
            differences.extend(before.difference(after).map(|line| format!("{topic}: - {line}")));
            differences.extend(after.difference(before).map(|line| format!("{topic}: + {line}")));
        }
        if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
    }
}

fn numbered(text: &str) -> BTreeSet<String> {
    text.lines().enumerate().map(|(number, line)| format!("{number}: {line}")).collect()
}

/// Namespaces that any process of the machine is in.
fn namespaces() -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for process in fs::read_dir("/proc")?.flatten() {
        let Ok(entries) = fs::read_dir(process.path().join("ns")) else { continue };
        found.extend(
            entries.flatten().filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())),
        );
    }
    Ok(found)
}

fn processes() -> io::Result<BTreeSet<String>> {
    let is_process = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
    let line = |entry: fs::DirEntry| {
        let name = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        format!("{} {}", entry.file_name().display(), name.replace('\0', " "))
    };
    Ok(fs::read_dir("/proc")?.flatten().filter(is_process).map(line).collect())
}

/// Every file with what a write to it would change; not the test's own folder.
fn files(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(found) };
    for entry in entries {
        let path = entry?.path();
        if path == Path::new(super::FOLDER) {
            continue;
        }
        let about = fs::symlink_metadata(&path)?;
        found.insert(format!(
            "{} mode {:o} owner {}:{} size {} modified {}.{:09}",
            path.display(),
            about.mode(),
            about.uid(),
            about.gid(),
            about.size(),
            about.mtime(),
            about.mtime_nsec()
        ));
        if about.is_dir() {
            found.extend(files(&path)?);
        }
    }
    Ok(found)
}

/// Kernel settings that can be read.
fn settings(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(settings(&path));
        } else if let Ok(value) = fs::read_to_string(&path) {
            found.insert(format!("{} = {}", path.display(), value.trim()));
        }
    }
    found
}

fn netlink() -> Result<(BTreeSet<String>, BTreeSet<String>), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let rules = Connection::<Route>::new()?.get_rules().await?;
        let tables = Connection::<Nftables>::new()?.list_tables().await?;
        let lines = |debug: Vec<String>| debug.into_iter().collect();
        Ok((
            lines(rules.iter().map(|rule| format!("{rule:?}")).collect()),
            lines(tables.iter().map(|table| format!("{table:?}")).collect()),
        ))
    })
}
