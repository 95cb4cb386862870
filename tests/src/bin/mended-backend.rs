//! The backend of `examples/tiny-resolver-backend` as it should be, with the suite around it: every case of it passes.
//!
//! The original stays where it is under another name, so that nothing of it has to be remembered: not its kind, mode,
//! owner, attributes or times.

use std::{fs, io, path::Path, process::ExitCode};
use watertight_conformance::{Backend, Error, Profile, Servers};

const FILE: &str = "/etc/resolv.conf";
const ORIGINAL: &str = "/etc/resolv.conf.tiny-original";
const NEW: &str = "/etc/resolv.conf.tiny-new";
/// The first line of a file that this backend wrote.
const MARK: &str = "# written by tiny-resolver, which puts your own file back\n";

struct Mended;

impl Backend for Mended {
    fn name(&self) -> &str {
        "tiny-resolver-mended"
    }

    fn profiles(&self) -> &[Profile] {
        &[Profile::StaticFile]
    }

    fn set(&mut self, _: &Path, _: &str, servers: &Servers) -> Result<(), Error> {
        let first = !is_ours();
        if first {
            remove(ORIGINAL)?;
            // A link to the file itself, or to the symbolic link; without a file there is nothing to keep.
            absent(fs::hard_link(FILE, ORIGINAL))?;
        }
        let lines: String = servers.ordered.iter().map(|server| format!("nameserver {server}\n")).collect();
        let set = fs::write(NEW, format!("{MARK}{lines}")).and_then(|()| fs::rename(NEW, FILE));
        if set.is_err() {
            remove(NEW)?;
            if first {
                remove(ORIGINAL)?;
            }
        }
        Ok(set?)
    }

    fn reset(&mut self, _: &Path) -> Result<(), Error> {
        remove(NEW)?;
        if !is_ours() {
            return Ok(remove(ORIGINAL)?);
        }
        match fs::rename(ORIGINAL, FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(remove(FILE)?),
            other => Ok(other?),
        }
    }
}

fn is_ours() -> bool {
    fs::read_to_string(FILE).is_ok_and(|text| text.starts_with(MARK))
}

fn remove(path: &str) -> io::Result<()> {
    absent(fs::remove_file(path))
}

/// A file that is not there is no trouble.
fn absent(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn main() -> ExitCode {
    watertight_conformance::main(|| Mended)
}
