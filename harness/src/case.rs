//! Runs one case: builds the testbed, walks the subject through the scenario, records everything, judges nothing.

mod engine;
mod faults;
mod links;
mod machine;
mod markers;
mod probing;
mod routes;
mod services;
mod settings;
mod shared_tables;
mod steps;

use crate::{
    sandbox::Isolation,
    scenario::{Axes, Scenario},
    subject::SubjectCommand,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

pub(crate) use engine::inner_pid;
pub use machine::{STATE_DIR, prepare as prepare_client};
pub use settings::settings;
pub use shared_tables::SharedTables;

/// Everything that a case's process needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CasePlan {
    /// The scenario's id.
    pub scenario: String,
    /// The scenario.
    pub definition: Scenario,
    /// The case's axes.
    pub axes: Axes,
    /// The subject.
    pub subject: SubjectCommand,
    /// The case's folder in the bundle; it exists and is empty.
    pub folder: PathBuf,
    /// Marks the case's frames and names.
    pub nonce: u64,
    /// The command that runs this case again, for people.
    #[serde(default)]
    pub replay: String,
    /// Damage done to the evidence on purpose, by the harness's own tests.
    #[serde(default)]
    pub sabotage: Option<Sabotage>,
}

/// Ways in which evidence goes missing; each must end in `INCONCLUSIVE`, but for [`Sabotage::LateNotice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sabotage {
    /// The uplink's ring is so small that the kernel drops frames.
    TinyRing,
    /// The uplink's reader stops reading after the baseline.
    FrozenReader,
    /// The uplink's capture starts after the link carried frames.
    LateCapture,
    /// One planned probe is not made.
    SkippedProbe,
    /// One canary is not sent.
    LostCanary,
    /// The resolvers' log stops after the baseline.
    CutLog,
    /// The watchers learn late of all that happens in a step, as on a machine that is busy elsewhere. Nothing is
    /// missing then, and nothing may be found.
    LateNotice,
}

/// A case that could not be run to its end. What was recorded until then is in the bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaseError {
    /// Namespaces.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::SandboxError),
    /// Links.
    #[error(transparent)]
    Topology(#[from] crate::testbed::TopologyError),
    /// Servers.
    #[error(transparent)]
    FarSide(#[from] crate::testbed::FarSideError),
    /// Capture.
    #[error(transparent)]
    Capture(#[from] crate::capture::Error),
    /// The profile's daemons.
    #[error(transparent)]
    Service(#[from] crate::profile::ServiceError),
    /// The profile's software is nowhere. Looked at before, so this machine lost it meanwhile.
    #[error("{0}")]
    Layer(String),
    /// Watchers.
    #[error(transparent)]
    Watch(#[from] crate::watch::WatchError),
    /// Snapshots.
    #[error(transparent)]
    Snapshot(#[from] crate::snapshot::Error),
    /// Probes.
    #[error(transparent)]
    Agent(#[from] crate::agent::ClientError),
    /// The client's original files.
    #[error("failed to {action}: {source}")]
    File {
        /// What was tried.
        action: String,
        /// The kernel's words.
        source: std::io::Error,
    },
}

/// Runs a case in the calling process, which must be its PID 1 ([`crate::sandbox::isolate`]).
/// `tables` were opened before that.
pub async fn run(plan: CasePlan, isolation: Isolation, tables: SharedTables) -> Result<(), CaseError> {
    engine::Engine::run(plan, isolation, tables).await
}
