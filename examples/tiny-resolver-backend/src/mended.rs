//! Points `/etc/resolv.conf` at a VPN's DNS servers, and back again. This is `lib.rs` without its two bugs: put it in that
//! file's place.
//!
//! The original stays where it is under another name, so that nothing of it has to be remembered: not its kind, mode,
//! owner, attributes or times.

use std::{fs, io, io::ErrorKind::NotFound, path::Path};

const FILE: &str = "/etc/resolv.conf";
const ORIGINAL: &str = "/etc/resolv.conf.tiny-original";
const NEW: &str = "/etc/resolv.conf.tiny-new";
/// The first line of a file that this crate wrote.
const MARK: &str = "# written by tiny-resolver, which puts your own file back\n";

/// Makes `servers` the ones that this machine asks.
pub fn set(_state_dir: &Path, servers: &[String]) -> io::Result<()> {
    let first = !is_set();
    if first {
        remove(ORIGINAL)?;
        // The file, or the symbolic link itself; without one there is nothing to keep.
        fs::hard_link(FILE, ORIGINAL).or_else(absent)?;
    }
    let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let done = fs::write(NEW, format!("{MARK}{lines}")).and_then(|()| fs::rename(NEW, FILE));
    if done.is_err() {
        remove(NEW)?;
        if first {
            remove(ORIGINAL)?;
        }
    }
    done
}

/// Puts back what was there before `set`. Does nothing if nothing is set, and keeps a file that somebody else has put there.
pub fn reset(_state_dir: &Path) -> io::Result<()> {
    remove(NEW)?;
    if !is_set() {
        return remove(ORIGINAL);
    }
    fs::rename(ORIGINAL, FILE).or_else(|error| if error.kind() == NotFound { remove(FILE) } else { Err(error) })
}

fn is_set() -> bool {
    fs::read_to_string(FILE).is_ok_and(|text| text.starts_with(MARK))
}

fn remove(path: &str) -> io::Result<()> {
    fs::remove_file(path).or_else(absent)
}

/// A file that is not there is no trouble.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == NotFound { Ok(()) } else { Err(error) }
}
