//! What the author of a backend implements.

use crate::{Capability, Profile, Servers};
use std::path::Path;

/// Why something could not be done. Its words are in the report: what failed, on what, why, and what to do next.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// One way of pointing the machine's resolver at the tunnel's servers.
///
/// It is called as root, from one thread at a time, and may take as long as it needs, up to the 30 s that a request of the
/// adapter protocol has. What it prints is its log. `state_dir` is a folder of its own, with mode 0700, that survives a crash.
///
/// A method that fails leaves things as they were before, or such that [`Backend::reset`] can put them right: the daemon then
/// blocks, and calls it until it succeeds.
pub trait Backend: Send + 'static {
    /// What it is called in reports.
    fn name(&self) -> &str;

    /// The kinds of machine that it is for: cases of other profiles are not run.
    fn profiles(&self) -> &[Profile];

    /// What it can do beyond the least: [`Capability::WatchesChanges`] if it notices and corrects what others do to the resolver's
    /// configuration. One that cannot do something leaves it out of the list: custom servers, servers on the local network,
    /// recovery from a crash, IPv6. The other capabilities are the daemon's.
    fn capabilities(&self) -> &[Capability] {
        &[Capability::CustomDns, Capability::LanDns, Capability::CrashRecovery, Capability::Ipv6]
    }

    /// Makes `servers` the only ones that the machine's resolver asks. The tunnel `interface` exists. Called again while they are
    /// set: it goes straight from the old servers to the new ones.
    fn set(&mut self, state_dir: &Path, interface: &str, servers: &Servers) -> Result<(), Error>;

    /// Puts back what was there before, or what others have left meanwhile. The tunnel's interface may be gone. Called
    /// when nothing is set, and again after a success: then it does nothing.
    fn reset(&mut self, state_dir: &Path) -> Result<(), Error>;

    /// At the daemon's start, before anything else: puts back what a run that crashed has left.
    fn recover(&mut self, state_dir: &Path) -> Result<(), Error> {
        self.reset(state_dir)
    }
}
