//! The topic "sysctl": every readable kernel setting below /proc/sys/net, which shows the network namespace of the thread that
//! reads. Settings come and go with interfaces and kernel modules; the comparison looks at those that are there both times.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::dir::{Dir, Entry, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::read;

use super::Error;
use super::escape::{line, word};

/// What changes by itself or with the rest of the machine, and why. A star is one component.
pub const NOT_SETTINGS: &[(&str, &str)] = &[
    ("netfilter/nf_conntrack_count", "the number of tracked connections at this moment"),
    ("ipv4/tcp_fastopen_key", "generated when a socket first needs it"),
    ("ipv4/tcp_available_congestion_control", "grows when any process of the machine loads a module"),
    ("ipv4/tcp_allowed_congestion_control", "grows when any process of the machine loads a module"),
    ("ipv4/tcp_available_ulp", "grows when any process of the machine loads a module"),
    ("core/netdev_rss_key", "random, generated when a driver first needs it"),
];

/// The topic. `root` is the client's root as the calling thread sees it.
pub fn sysctl(root: &Path) -> Result<String, Error> {
    let mut lines = Vec::with_capacity(2048);
    let top = root.join("proc/sys/net");
    let dir = Dir::open(&top, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| Error::io("list", &top, errno.into()))?;
    walk(dir, "", &mut lines).map_err(|errno| Error::io("read the kernel settings below", &top, errno.into()))?;
    lines.sort();
    Ok(lines.concat())
}

/// Opens relative to the directory: looking up a path of five components costs more than reading a setting.
fn walk(mut dir: Dir, name: &str, lines: &mut Vec<String>) -> Result<(), Errno> {
    let entries: Vec<Entry> = dir.iter().collect::<Result<_, _>>()?;
    for entry in entries {
        let file = entry.file_name();
        if matches!(file.to_bytes(), b"." | b"..") {
            continue;
        }
        let path = if name.is_empty() { String::new() } else { format!("{name}/") } + &word(file.to_bytes());
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        if entry.file_type() == Some(Type::Directory) {
            match Dir::openat(&dir, file, flags | OFlag::O_DIRECTORY, Mode::empty()) {
                Ok(below) => walk(below, &path, lines)?,
                // An interface that goes away takes its directory with it.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        } else if !NOT_SETTINGS.iter().any(|(skipped, _)| *skipped == path) {
            match openat(&dir, file, flags, Mode::empty()).and_then(|file| value(&file)) {
                Ok(value) => lines.push(format!("{path} = {}\n", line(value.trim_ascii_end()))),
                // Write-only triggers.
                Err(Errno::EACCES | Errno::EPERM | Errno::ENOENT) => {}
                // A secret that is not set says so, the same both times.
                Err(errno) => lines.push(format!("{path} is not readable: {}\n", errno.desc())),
            }
        }
    }
    Ok(())
}

fn value(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut value = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = read(file, &mut buffer)?;
        value.extend_from_slice(&buffer[..length]);
        // The kernel gives a value whole if there is room for it.
        if length < buffer.len() {
            return Ok(value);
        }
    }
}
