//! Points `/etc/resolv.conf` at a VPN's DNS servers, and back again.

use std::{fs, io, io::ErrorKind::NotFound, path::Path};

const FILE: &str = "/etc/resolv.conf";
const NEW: &str = "/etc/resolv.conf.tiny-new";
const BACKUP: &str = "resolv.conf.backup";
/// The first line of a file that this crate wrote.
const MARK: &str = "# written by tiny-resolver, which puts your own file back\n";

/// Makes `servers` the ones that this machine asks. The original is kept in `state_dir`.
pub fn set(state_dir: &Path, servers: &[String]) -> io::Result<()> {
    let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let text = format!("{MARK}{lines}");
    if is_set() {
        // It is our own file already.
        return fs::write(FILE, text);
    }
    match fs::read(FILE) {
        Ok(original) => fs::write(state_dir.join(BACKUP), original)?,
        Err(error) if error.kind() == NotFound => {}
        Err(error) => return Err(error),
    }
    replace(text.as_bytes()).or_else(|error| {
        remove(&state_dir.join(BACKUP))?;
        Err(error)
    })
}

/// Puts back what was there before `set`. Does nothing if nothing is set, and keeps a file that somebody else has put there.
pub fn reset(state_dir: &Path) -> io::Result<()> {
    remove(Path::new(NEW))?;
    if is_set() {
        match fs::read(state_dir.join(BACKUP)) {
            Ok(original) => replace(&original)?,
            Err(error) if error.kind() == NotFound => remove(Path::new(FILE))?,
            Err(error) => return Err(error),
        }
    }
    remove(&state_dir.join(BACKUP))
}

fn is_set() -> bool {
    fs::read_to_string(FILE).is_ok_and(|text| text.starts_with(MARK))
}

/// Replaces the file in one step: no reader sees half of it.
fn replace(content: &[u8]) -> io::Result<()> {
    fs::write(NEW, content)?;
    fs::rename(NEW, FILE).or_else(|error| {
        remove(Path::new(NEW))?;
        Err(error)
    })
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|error| if error.kind() == NotFound { Ok(()) } else { Err(error) })
}
