//! A backend that talks on standard output, claims little and refuses to set anything, with the suite around it.

use std::{path::Path, process::ExitCode};
use watertight_conformance::{Backend, Capability, Error, Profile, Servers};

struct Stubborn;

impl Backend for Stubborn {
    fn name(&self) -> &str {
        "stubborn"
    }

    fn profiles(&self) -> &[Profile] {
        &[Profile::StaticFile, Profile::SystemdResolved]
    }

    fn capabilities(&self) -> &[Capability] {
        &[Capability::Ipv6]
    }

    fn set(&mut self, _: &Path, interface: &str, servers: &Servers) -> Result<(), Error> {
        println!("asked for {} servers", servers.ordered.len());
        Err(format!("{interface} is not to my liking; ask again tomorrow").into())
    }

    fn reset(&mut self, _: &Path) -> Result<(), Error> {
        println!("nothing to reset");
        Ok(())
    }
}

fn main() -> ExitCode {
    watertight_conformance::main(|| Stubborn)
}
