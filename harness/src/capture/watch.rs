//! Says when a marker has arrived. It is a tap of the capture: a marker that was seen here is in the file too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    error::Error,
    frame::{FrameTap, LinkType},
    marker::{Marker, MarkerKind},
};

/// Where a marker is in the capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenMarker {
    /// Sequence number of its frame.
    pub sequence: u64,
    /// Kernel timestamp of its frame, nanoseconds since 1970.
    pub timestamp_ns: u64,
}

/// The markers of one case that a link's capture has seen. Clones share what they know.
#[derive(Debug, Clone)]
pub struct MarkerWatch {
    link: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    seen: HashMap<(MarkerKind, u64), SeenMarker>,
    ended: bool,
}

impl MarkerWatch {
    /// A watch for markers with `nonce`, and the tap that feeds it. `link` names the link in errors.
    pub fn new(link: impl Into<String>, link_type: LinkType, nonce: u64) -> (Self, FrameTap) {
        let shared = Arc::new(Shared::default());
        let feed = Feed(Arc::clone(&shared));
        let tap: FrameTap = Box::new(move |frame| {
            if let Some(marker) = Marker::decode(&frame.bytes, link_type, nonce) {
                let seen = SeenMarker { sequence: frame.sequence, timestamp_ns: frame.timestamp_ns };
                // Of a marker that arrives twice, the first arrival counts.
                feed.0.state().seen.entry((marker.kind, marker.id)).or_insert(seen);
                feed.0.changed.notify_waiters();
            }
        });
        (Self { link: link.into(), shared }, tap)
    }

    /// Where the marker is, if it has been seen.
    pub fn seen(&self, kind: MarkerKind, id: u64) -> Option<SeenMarker> {
        self.shared.state().seen.get(&(kind, id)).copied()
    }

    /// Waits until the marker has been seen; at most `deadline`. Fails at once when the capture ends.
    pub async fn wait(&self, kind: MarkerKind, id: u64, deadline: Duration) -> Result<SeenMarker, Error> {
        let arrival = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                // From here on a change is noticed, even before the await.
                changed.as_mut().enable();
                let ended = {
                    let state = self.shared.state();
                    if let Some(seen) = state.seen.get(&(kind, id)) {
                        return Ok(*seen);
                    }
                    state.ended
                };
                if ended {
                    return Err(Error::WatchEnded { link: self.link.clone(), kind, id });
                }
                changed.await;
            }
        };
        match tokio::time::timeout(deadline, arrival).await {
            Ok(result) => result,
            Err(_) => Err(Error::MarkerNotSeen { link: self.link.clone(), kind, id, deadline }),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Belongs to the tap: when the reader thread drops it, nothing will be seen any more.
struct Feed(Arc<Shared>);

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_waiters();
    }
}
