//! Watertight's suite for the author of a DNS backend.
//!
//! A backend is the part of a VPN client that points the machine's resolver at the tunnel's servers, and back. Its author
//! implements [`Backend`], and gets every scenario that applies as a test of their own repository:
//!
//! ```toml
//! [dev-dependencies]
//! watertight-conformance = { path = "../watertight/conformance" }
//!
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//!
//! ```no_run
//! // tests/conformance.rs
//! use std::path::Path;
//! use watertight_conformance::{Backend, Error, Profile, Servers};
//!
//! struct Mine;
//!
//! impl Backend for Mine {
//!     fn name(&self) -> &str {
//!         "mine"
//!     }
//!     fn profiles(&self) -> &[Profile] {
//!         &[Profile::StaticFile]
//!     }
//!     fn set(&mut self, state_dir: &Path, interface: &str, servers: &Servers) -> Result<(), Error> {
//!         Err(format!("{} servers for {interface}: not written yet", servers.ordered.len()).into())
//!     }
//!     fn reset(&mut self, state_dir: &Path) -> Result<(), Error> {
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     watertight_conformance::main(|| Mine)
//! }
//! ```
//!
//! Each test is a case in namespaces of its own: nothing of the machine is touched. The reference daemon of Watertight is the
//! VPN client around the backend, with its firewall and its tunnel; the backend runs in the daemon's process. The test program
//! starts itself again for all of that.
//!
//! # Outcomes
//!
//! - A test that fails prints each finding, and keeps the case's folder: captures, history, snapshots, logs.
//! - A test whose case cannot be run, for want of a capability or of a profile's software, is ignored, with the reason.
//! - A case whose evidence is not complete fails, with the reason: it says nothing for the backend.
//!
//! # Variables
//!
//! | variable | meaning |
//! | --- | --- |
//! | `WATERTIGHT_BUNDLE` | the folder for what failing tests keep; otherwise a new one below `watertight-bundles` in the target folder |
//! | `WATERTIGHT_SEED` | the number that names and marker frames are derived from; otherwise a random one |
//! | `WATERTIGHT_REQUIRE_PRIVILEGES=1` | a machine that cannot run cases makes the tests fail; otherwise they are ignored |
//! | `WATERTIGHT_LAYERS` | where `watertight fetch` keeps the software of profiles |
//! | `RUST_LOG`, `RUST_BACKTRACE` | are handed on to the daemon and the backend; their words are in `subject.log` |

mod backend;
mod bundle;
mod daemon;
mod options;
mod suite;

pub use backend::{Backend, Error};
pub use watertight::scenario::Profile;
pub use watertight_dns_manager::{ResolvedDns as Servers, Server};
pub use watertight_protocol::Capability;

use std::process::ExitCode;

/// The test program: all of `main`.
///
/// `make` is called in each process that needs a backend. It is to prepare nothing and change nothing: what a daemon does at
/// its start is [`Backend::recover`].
pub fn main<B: Backend>(make: fn() -> B) -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // Before any thread or runtime exists: these entries make namespaces.
    if let Some(code) = watertight::entry::run(&words) {
        return code;
    }
    match words.as_slice() {
        [_, daemon::ENTRY] => daemon::main(make()),
        _ => suite::main(&make()),
    }
}
