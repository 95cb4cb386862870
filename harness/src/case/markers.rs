//! Sends barriers and canaries on every captured link, and writes down that it did.

use crate::{
    capture::{Envelope, Marker, MarkerKind as Kind, MarkerSender},
    history::{Cause, Event, MarkerKind, Recorder},
    testbed::{FarSide, plan::*},
};
use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

/// The senders of a case.
pub(super) struct Markers {
    recorder: Recorder,
    nonce: u64,
    inner: Mutex<Inner>,
}

struct Inner {
    next: u64,
    senders: Vec<(String, MarkerSender)>,
    tunnel: Option<Arc<FarSide>>,
    lose_canaries: u32,
}

impl Markers {
    pub(super) fn new(recorder: Recorder, nonce: u64, lose_canaries: u32) -> Self {
        let inner = Inner { next: 1, senders: Vec::new(), tunnel: None, lose_canaries };
        Self { recorder, nonce, inner: Mutex::new(inner) }
    }

    /// From now on, markers go out on this link too.
    pub(super) fn add(&self, link: &str, sender: MarkerSender) {
        self.inner.lock().expect("no holder panics").senders.push((link.into(), sender));
    }

    /// From now on, markers go out on the tunnel's link too: injected at the relay, as if the client had sent them.
    pub(super) fn add_tunnel(&self, far: Arc<FarSide>) {
        self.inner.lock().expect("no holder panics").tunnel = Some(far);
    }

    /// Cuts the stream.
    pub(super) fn barrier(&self, cause: Cause) -> u64 {
        self.send(MarkerKind::Barrier, cause)
    }

    /// Shows that the captures live.
    pub(super) fn canary(&self, cause: Cause) -> u64 {
        self.send(MarkerKind::Canary, cause)
    }

    fn send(&self, marker: MarkerKind, cause: Cause) -> u64 {
        let mut inner = self.inner.lock().expect("no holder panics");
        let id = inner.next;
        inner.next += 1;
        let mut links: Vec<String> = inner.senders.iter().map(|(link, _)| link.clone()).collect();
        links.extend(inner.tunnel.is_some().then(|| "tunnel".to_owned()));
        self.recorder.record(Event::Marker { id, marker, cause, links });
        if marker == MarkerKind::Canary && inner.lose_canaries > 0 {
            inner.lose_canaries -= 1;
            return id;
        }
        let kind = match marker {
            MarkerKind::Barrier => Kind::Barrier,
            MarkerKind::Canary => Kind::Canary,
        };
        for (link, sender) in &mut inner.senders {
            if let Err(error) = sender.send(kind, id) {
                self.recorder
                    .record(Event::Harness { problem: format!("marker {id} was not sent on {link}: {error}") });
            }
        }
        if let Some(far) = &inner.tunnel {
            // A source that no machine takes from a link: the packet is captured and dropped, and nobody answers it.
            let envelope = Envelope::Ip { source: Ipv4Addr::LOCALHOST.into(), destination: GATEWAY_V4.into() };
            let sent = Marker { kind, nonce: self.nonce, id }
                .encode(&envelope)
                .map_err(|error| error.to_string())
                .and_then(|packet| far.relay.inject(&packet).map_err(|error| error.to_string()));
            if let Err(problem) = sent {
                self.recorder
                    .record(Event::Harness { problem: format!("marker {id} was not sent on tunnel: {problem}") });
            }
        }
        id
    }
}
