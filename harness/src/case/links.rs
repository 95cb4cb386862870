//! The witnesses of each link: a ring and a counter at its far end, and the accounts they give.

use super::{CaseError, Sabotage};
use crate::{
    capture::{
        Capture, InterfaceCounters, MarkerKind, MarkerWatch, Ring, RingConfig, Sink, WitnessCounter, quiet_veth,
    },
    history::{CaptureAccount, Event, Recorder},
    sandbox::Node,
};
use std::{path::Path, time::Duration};

/// How long the last barrier may take to be seen.
const LAST_BARRIER: Duration = Duration::from_secs(5);

/// One watched link.
pub(super) struct WatchedLink {
    pub(super) name: &'static str,
    capture: Capture,
    counter: WitnessCounter,
    counted_at_start: u64,
    seen: MarkerWatch,
}

/// Starts ring and counter on `interface`, in the node's namespace.
pub(super) async fn watch(
    node: &Node,
    name: &'static str,
    interface: &'static str,
    folder: &Path,
    nonce: u64,
    veth: bool,
    sabotage: Option<Sabotage>,
) -> Result<WatchedLink, CaseError> {
    let file = folder.join(format!("{name}.pcapng"));
    let (capture, counter, counted_at_start, seen) = node
        .run(move || async move {
            if veth {
                quiet_veth(interface).await?;
            }
            let counter = WitnessCounter::install(interface).await?;
            let mut config =
                if name == "uplink" { RingConfig::uplink(interface) } else { RingConfig::quiet(interface) };
            if sabotage == Some(Sabotage::TinyRing) && name == "uplink" {
                (config.blocks, config.block_size) = (2, 4096);
            }
            let ring = Ring::open(config)?;
            let counted_at_start = counter.read().await?.packets;
            let (seen, tap) = MarkerWatch::new(name, ring.link_type(), nonce);
            let capture = Capture::start(ring, Sink::file(file).link_name(name).tap(tap))?;
            Ok::<_, crate::capture::Error>((capture, counter, counted_at_start, seen))
        })
        .await??;
    Ok(WatchedLink { name, capture, counter, counted_at_start, seen })
}

impl WatchedLink {
    /// Makes the reader stop reading, for the harness's own tests.
    pub(super) fn freeze(&self) -> Result<(), CaseError> {
        Ok(self.capture.freeze()?)
    }

    /// Waits until the barrier was seen, stops, and writes the account down.
    pub(super) async fn finish(
        self,
        node: &Node,
        last_barrier: u64,
        near: Option<(&Node, &'static str)>,
        recorder: &Recorder,
    ) -> Result<(), CaseError> {
        let problem = |problem: String| {
            recorder.record(Event::Harness { problem });
        };
        if let Err(error) = self.seen.wait(MarkerKind::Barrier, last_barrier, LAST_BARRIER).await {
            problem(format!("the last barrier was not seen on {}: {error}", self.name));
        }
        // Nothing may arrive between the capture's end and the counters' last reading.
        if let Some((near, interface)) = near {
            let down = near
                .run(move || async move {
                    let connection = nlink::Connection::<nlink::Route>::new()?;
                    connection.set_link_down(interface).await
                })
                .await?;
            if let Err(error) = down {
                problem(format!("the near end of {} was not taken down: {error}", self.name));
            }
        }
        let (name, capture, counter) = (self.name, self.capture, self.counter);
        let stats = tokio::task::spawn_blocking(move || capture.stop()).await;
        let failure = match stats {
            Ok(Ok(stats)) => Ok(stats),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let stats = match failure {
            Ok(stats) => stats,
            Err(error) => {
                problem(format!("the capture of {name} failed: {error}"));
                return Ok(());
            }
        };
        if let Some(gap) = stats.gap() {
            problem(format!("the capture of {name} is no complete evidence: {gap}"));
        }
        let counted = node.run(move || async move { counter.read().await }).await?;
        let sent = match near {
            Some((near, interface)) => near
                .run(move || async move { InterfaceCounters::open(interface).and_then(|mut counters| counters.read()) })
                .await?
                .ok()
                .map(|counters| counters.tx_packets),
            None => None,
        };
        match counted {
            Ok(counted) => {
                recorder.record(Event::Capture(CaptureAccount {
                    link: name.into(),
                    captured: stats.captured,
                    dropped: stats.tp_drops,
                    interface: stats.link_rx_packets,
                    counter: counted.packets - self.counted_at_start,
                    sent,
                }));
            }
            Err(error) => problem(format!("the counter of {name} cannot be read: {error}")),
        }
        Ok(())
    }
}
