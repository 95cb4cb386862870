//! The topics "processes" and "mounts": what runs and what is mounted in the client. Process numbers are not in it, because a
//! service that was started again is the same service.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::escape::{line, word};
use super::{Daemon, Error};

/// The numbers in /proc, without the processes to ignore.
pub fn pids(root: &Path, ignored: &[u32]) -> Result<Vec<(u32, PathBuf)>, Error> {
    let proc = root.join("proc");
    let mut pids = Vec::new();
    for entry in fs::read_dir(&proc).map_err(|source| Error::io("list", &proc, source))? {
        let entry = entry.map_err(|source| Error::io("list", &proc, source))?;
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && !ignored.contains(&pid)
        {
            pids.push((pid, entry.path()));
        }
    }
    pids.sort_unstable();
    Ok(pids)
}

/// The processes of daemons: their own, or of the same command where that has ended, and those below it.
pub fn of_daemons(root: &Path, daemons: &[Daemon]) -> Result<Vec<u32>, Error> {
    if daemons.is_empty() {
        return Ok(Vec::new());
    }
    let mut parents = Vec::new();
    let mut commands = Vec::new();
    for (pid, dir) in pids(root, &[])? {
        let Some(stat) = gone_is_none(fs::read(dir.join("stat")), &dir)? else { continue };
        let Some(command) = gone_is_none(fs::read(dir.join("cmdline")), &dir)? else { continue };
        // proc_pid_stat(5): after the name in brackets come state and parent.
        let after = stat.rsplit(|byte| *byte == b')').next().unwrap_or_default();
        let parent = after.split(|byte| *byte == b' ').filter(|field| !field.is_empty()).nth(1);
        let parent = parent.and_then(|parent| std::str::from_utf8(parent).ok()?.parse::<u32>().ok());
        parents.push((pid, parent.unwrap_or_default()));
        commands.push((pid, command));
    }
    let mut found: Vec<u32> = Vec::new();
    for daemon in daemons {
        let is_there = commands.iter().any(|(pid, command)| *pid == daemon.pid && *command == daemon.command);
        // Not where another of them has its place.
        let is_replaced = daemons.iter().any(|other| other.pid > daemon.pid && other.command == daemon.command);
        let again = commands.iter().find(|(pid, command)| *command == daemon.command && !found.contains(pid));
        found.extend(match is_there {
            true => Some(daemon.pid),
            false => again.map(|(pid, _)| *pid).filter(|_| !is_replaced),
        });
    }
    loop {
        let below: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if below.is_empty() {
            return Ok(found);
        }
        found.extend(below);
    }
}

/// The topic "processes": user and command line of each, sorted; no kernel threads, and none that has ended already.
pub fn processes(root: &Path, ignored: &[u32]) -> Result<String, Error> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let mut lines = Vec::new();
    for (_, dir) in pids(root, ignored)? {
        // proc_pid_stat(5): after the name in brackets come state, …, flags (the seventh).
        let Some(stat) = gone_is_none(fs::read(dir.join("stat")), &dir)? else { continue };
        let after = stat.rsplit(|byte| *byte == b')').next().unwrap_or_default();
        let mut fields = after.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let state = fields.next().unwrap_or_default();
        let flags = fields.nth(5).and_then(|flags| std::str::from_utf8(flags).ok()?.parse::<u64>().ok()).unwrap_or(0);
        if matches!(state, b"Z" | b"X") || flags & PF_KTHREAD != 0 {
            continue;
        }
        let Some(command) = gone_is_none(fs::read(dir.join("cmdline")), &dir)? else { continue };
        let Some(status) = gone_is_none(fs::read(dir.join("status")), &dir)? else { continue };
        let uid = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:\t")).unwrap_or_default();
        let uid = uid.split(|byte| *byte == b'\t').next().unwrap_or_default();
        let command = command.strip_suffix(&[0]).unwrap_or(&command);
        let command: Vec<String> = command.split(|byte| *byte == 0).map(word).collect();
        lines.push(format!("uid {} {}\n", line(uid), command.join(" ")));
    }
    lines.sort();
    Ok(lines.concat())
}

/// The topic "mounts": where, what of which filesystem, and its options.
pub fn mounts(root: &Path) -> Result<String, Error> {
    let candidates = [root.join("proc/thread-self/mountinfo"), root.join("proc/1/mountinfo")];
    let path = candidates.iter().find(|path| path.exists()).unwrap_or(&candidates[1]);
    let text = fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
    let mut mounts = Vec::new();
    for entry in text.lines() {
        // proc_pid_mountinfo(5): id, parent, device, root, mount point, options, tags…, "-", type, source, options.
        let Some((left, right)) = entry.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let [_, _, _, of, point, options, ..] = left[..] else { continue };
        let [of, options, right] = [of, options, right].map(|text| line(text.as_bytes()));
        mounts.push((line(point.as_bytes()), format!(" {options} from {of} {right}\n")));
    }
    // Mounts at different places have no order; at the same place the later one covers the earlier.
    mounts.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(mounts.into_iter().map(|(point, rest)| point + &rest).collect())
}

/// A process that ended while it was looked at is none.
fn gone_is_none(read: io::Result<Vec<u8>>, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(source) => Err(Error::io("read", path, source)),
    }
}
