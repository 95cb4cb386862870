//! Watertight's suite for DNS backends, on this one.

use std::path::Path;
use watertight_conformance::{Backend, Error, Profile, Servers};

struct TinyResolver;

impl Backend for TinyResolver {
    fn name(&self) -> &str {
        "tiny-resolver"
    }

    fn profiles(&self) -> &[Profile] {
        &[Profile::StaticFile]
    }

    fn set(&mut self, state_dir: &Path, _interface: &str, servers: &Servers) -> Result<(), Error> {
        let servers: Vec<String> = servers.ordered.iter().map(ToString::to_string).collect();
        Ok(tiny_resolver_backend::set(state_dir, &servers)?)
    }

    fn reset(&mut self, state_dir: &Path) -> Result<(), Error> {
        Ok(tiny_resolver_backend::reset(state_dir)?)
    }
}

fn main() -> std::process::ExitCode {
    watertight_conformance::main(|| TinyResolver)
}
