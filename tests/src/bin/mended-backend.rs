//! The backend of `examples/tiny-resolver-backend` as it should be, with the suite around it: every case of it passes.

#[path = "../../../examples/tiny-resolver-backend/src/mended.rs"]
mod mended;

use std::{path::Path, process::ExitCode};
use watertight_conformance::{Backend, Error, Profile, Servers};

struct Mended;

impl Backend for Mended {
    fn name(&self) -> &str {
        "tiny-resolver-mended"
    }

    fn profiles(&self) -> &[Profile] {
        &[Profile::StaticFile]
    }

    fn set(&mut self, state_dir: &Path, _: &str, servers: &Servers) -> Result<(), Error> {
        let servers: Vec<String> = servers.ordered.iter().map(ToString::to_string).collect();
        Ok(mended::set(state_dir, &servers)?)
    }

    fn reset(&mut self, state_dir: &Path) -> Result<(), Error> {
        Ok(mended::reset(state_dir)?)
    }
}

fn main() -> ExitCode {
    watertight_conformance::main(|| Mended)
}
