//! Points `/etc/resolv.conf` at a VPN's DNS servers, and back again.

use std::{
    fs, io,
    io::ErrorKind::NotFound,
    path::{Path, PathBuf},
};

const FILE: &str = "/etc/resolv.conf";
const NEW: &str = "/etc/resolv.conf.tiny-new";
/// The first line of a file that this crate wrote.
const MARK: &str = "# written by tiny-resolver, which puts your own file back\n";

/// Makes `servers` the ones that this machine asks. Files of its own go to `state_dir`.
pub fn set(state_dir: &Path, servers: &[String]) -> io::Result<()> {
    // Start from the original, whatever is set now.
    reset(state_dir)?;
    match fs::read(FILE) {
        Ok(original) => fs::write(backup(state_dir), original)?,
        Err(error) if error.kind() == NotFound => {}
        Err(error) => return Err(error),
    }
    let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    replace(format!("{MARK}{lines}").as_bytes()).or_else(|error| {
        remove(&backup(state_dir))?;
        Err(error)
    })
}

/// Puts back what was there before `set`. Does nothing if nothing is set; keeps a file that
/// somebody else has put there meanwhile.
pub fn reset(state_dir: &Path) -> io::Result<()> {
    remove(Path::new(NEW))?;
    if fs::read_to_string(FILE).is_ok_and(|text| text.starts_with(MARK)) {
        match fs::read(backup(state_dir)) {
            Ok(original) => replace(&original)?,
            // There was no file.
            Err(error) if error.kind() == NotFound => remove(Path::new(FILE))?,
            Err(error) => return Err(error),
        }
    }
    remove(&backup(state_dir))
}

fn backup(state_dir: &Path) -> PathBuf {
    state_dir.join("resolv.conf.backup")
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
    match fs::remove_file(path) {
        Err(error) if error.kind() != NotFound => Err(error),
        _ => Ok(()),
    }
}
