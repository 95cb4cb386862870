//! The servers of a local forwarder: in the history at first, and again whenever they are others after something of the client
//! has changed, or when somebody wants to know. It tells nobody when it is told, so that one who has only waited may know old ones.

use super::{Changes, WatchError};
use crate::{
    history::{Event, Noticed, Recorder, now},
    profile::{FORWARDER_ADDRESS, Forwarder},
};
use tokio::sync::{mpsc, oneshot, watch};

/// Who wants to know, and hears when it is known.
pub(super) type Wanted = oneshot::Sender<()>;

/// Starts looking; the servers as they are now are in the history when this returns.
pub(super) async fn start(
    which: Forwarder,
    recorder: Recorder,
    changes: watch::Sender<Changes>,
    mut wanted: mpsc::UnboundedReceiver<Wanted>,
) -> Result<(), WatchError> {
    let mut changes = changes.subscribe();
    let service = which.name();
    let record = move |cause: &str, begun: Noticed, asked: &[String]| {
        recorder.record_noticed(
            begun.read_now(),
            Event::Resolver {
                service: service.into(),
                cause: cause.into(),
                asked: asked.to_vec(),
                at: vec![FORWARDER_ADDRESS.to_string()],
                settings: text(asked),
            },
        );
    };
    let begun = Noticed::at(now(libc::CLOCK_REALTIME));
    let mut last = which.upstreams().await.map_err(|source| WatchError::Forwarder { service, source })?;
    record("start", begun, &last);
    tokio::task::spawn_local(async move {
        loop {
            let (cause, who) = tokio::select! {
                biased;
                who = wanted.recv() => match who {
                    Some(who) => ("asked", Some(who)),
                    None => return,
                },
                changed = changes.changed() => match changed {
                    Ok(()) => ("change", None),
                    Err(_) => return,
                },
            };
            let begun = Noticed::at(now(libc::CLOCK_REALTIME));
            // One that does not answer asks nobody: it ended, or is cut off from this machine, and both show elsewhere.
            if let Ok(asked) = which.upstreams().await
                && asked != last
            {
                record(cause, begun, &asked);
                last = asked;
            }
            if let Some(who) = who {
                let _ = who.send(());
            }
        }
    });
    Ok(())
}

/// Canonical text, for snapshots and the history.
pub fn text(upstreams: &[String]) -> String {
    upstreams.iter().map(|server| format!("forward {server}\n")).collect()
}
