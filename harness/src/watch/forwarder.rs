//! The servers of a local forwarder: in the history at first, and again whenever they are others after something of the client
//! has changed.

use super::{Changes, WatchError};
use crate::{
    history::{Event, Recorder, now},
    profile::{FORWARDER_ADDRESS, Forwarder},
};
use tokio::sync::watch;

/// Starts looking; the servers as they are now are in the history when this returns.
pub(super) async fn start(
    which: Forwarder,
    recorder: Recorder,
    changes: watch::Sender<Changes>,
) -> Result<(), WatchError> {
    let mut changes = changes.subscribe();
    let service = which.name();
    let record = move |cause: &str, t: u64, asked: &[String]| {
        recorder.record_at(
            t,
            Event::Resolver {
                service: service.into(),
                cause: cause.into(),
                asked: asked.to_vec(),
                at: vec![FORWARDER_ADDRESS.to_string()],
                settings: text(asked),
            },
        );
    };
    let mut last = which.upstreams().await.map_err(|source| WatchError::Forwarder { service, source })?;
    record("start", now(libc::CLOCK_REALTIME), &last);
    tokio::task::spawn_local(async move {
        while changes.changed().await.is_ok() {
            let t = now(libc::CLOCK_REALTIME);
            // One that does not answer asks nobody: it ended, or is cut off from this machine, and both show elsewhere.
            let Ok(asked) = which.upstreams().await else { continue };
            if asked != last {
                record("change", t, &asked);
                last = asked;
            }
        }
    });
    Ok(())
}

/// Canonical text, for snapshots and the history.
pub fn text(upstreams: &[String]) -> String {
    upstreams.iter().map(|server| format!("forward {server}\n")).collect()
}
