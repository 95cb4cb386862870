//! Watches the client's configuration: every nftables generation, every route, rule, address and link change, every
//! version of the resolver file goes into the history as the kernel tells of it.
//!
//! What the kernel tells is noticed on one thread inside the client, so that events keep the order in which it queued them; what
//! passes over the system bus on another; resolver services are asked on a third. It decides nothing.

mod bus;
mod forwarder;
mod nodes;
mod resolver_file;
mod tamper;
mod version;

pub(crate) use forwarder::text as forwarder_text;
pub use resolver_file::ResolverFile;
pub use version::{Version, nameservers};

use crate::{
    history::{Event, Noticed, Recorder},
    sandbox::{Node, SandboxError, be_prompt},
    scenario::{Change, Profile, Tamper},
};
use futures::StreamExt;
use nlink::{Connection, Nftables, Route, RtnetlinkGroup, netlink::nftables::NftablesEvent};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};

/// A watcher that could not be started or went blind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The thread is gone.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Netlink notifications cannot be had.
    #[error("failed to watch the client's {what}: {source}")]
    Netlink {
        /// What.
        what: &'static str,
        /// The kernel's words.
        source: nlink::Error,
    },
    /// The system bus cannot be watched.
    #[error("failed to watch the client's system bus: {source}")]
    Bus {
        /// The bus's words.
        source: zbus::Error,
    },
    /// A local forwarder does not tell its servers.
    #[error("failed to ask {service} on the client for its servers: {source}; see its log in the bundle")]
    Forwarder {
        /// Which.
        service: &'static str,
        /// The kernel's words.
        source: std::io::Error,
    },
    /// The resolver file cannot be watched or changed.
    #[error("failed to {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's words.
        source: std::io::Error,
    },
}

/// Room for notifications that wait to be read, in bytes.
const NOTIFICATIONS: usize = 16 << 20;

type Tampering = (Tamper, oneshot::Sender<Result<Version, WatchError>>);

/// How many changes of each kind were noticed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Generations of the nftables ruleset.
    pub generations: u64,
    /// Versions of the resolver file.
    pub versions: u64,
    /// Changes of links, addresses, routes and rules.
    pub network: u64,
    /// When the last of these was noticed.
    pub network_at: Option<Noticed>,
}

impl Changes {
    /// Those of one kind.
    pub fn of(&self, change: Change) -> u64 {
        match change {
            Change::Ruleset => self.generations,
            Change::ResolverFile => self.versions,
            Change::Network => self.network,
        }
    }
}

/// Running watchers; they stop with the node.
#[derive(Debug)]
pub struct Watch {
    nodes: [Node; 2],
    bus_node: Arc<Node>,
    versions: watch::Receiver<Version>,
    changes: watch::Receiver<Changes>,
    tamper: mpsc::UnboundedSender<Tampering>,
    /// Dropped to stop listening to the system bus.
    bus: Option<oneshot::Sender<()>>,
    asked: watch::Receiver<Vec<String>>,
    /// To the one who asks the forwarder.
    forwarder: mpsc::UnboundedSender<forwarder::Wanted>,
}

impl Watch {
    /// Starts all watchers on `node`, a thread inside the client, and waits until each of them is listening. Where the profile has a
    /// system bus or a forwarder, they are watched too, on threads of their own: `bus` notes the messages on it, and `services` asks
    /// for settings. They have much to tell, and neither what the kernel tells nor what a message is may be noticed late.
    pub async fn start(
        [node, bus, services]: [Node; 3],
        recorder: Recorder,
        resolver_file: PathBuf,
        profile: Profile,
    ) -> Result<Self, WatchError> {
        let (tamper, tamperings) = mpsc::unbounded_channel();
        let (counted, changes) = watch::channel(Changes::default());
        let (for_services, of_services) = (counted.clone(), recorder.clone());
        let (listening, stopped) = oneshot::channel();
        let (tell_asked, asked) = watch::channel(Vec::new());
        let (forwarder, wanted) = mpsc::unbounded_channel();
        let versions = node
            .run(move || async move {
                be_prompt();
                tokio::task::spawn_local(stay_awake());
                let file = ResolverFile::open(resolver_file)?;
                let (tell, versions) = watch::channel(file.version()?);
                start_generations(recorder.clone(), versions.clone(), counted.clone()).await?;
                start_network(recorder.clone(), counted.clone()).await?;
                tokio::task::spawn_local(file.follow(recorder, tell, counted, tamperings));
                Ok::<_, WatchError>(versions)
            })
            .await??;
        let bus_node = Arc::new(bus);
        let prompt = Arc::clone(&bus_node);
        services
            .run(move || async move {
                if profile.has_bus() {
                    let (recorder, changes) = (of_services.clone(), for_services.clone());
                    bus::start(profile, &prompt, recorder, changes, tell_asked, stopped).await?;
                }
                match profile.forwarder() {
                    Some(which) => forwarder::start(which, of_services, for_services, wanted).await,
                    None => Ok(()),
                }
            })
            .await??;
        Ok(Self {
            nodes: [node, services],
            bus_node,
            versions,
            changes,
            tamper,
            bus: Some(listening),
            asked,
            forwarder,
        })
    }

    /// Changes the resolver file as an outsider would; gives back the version that the outsider left.
    pub async fn tamper(&self, how: Tamper) -> Result<Version, WatchError> {
        let (done, result) = oneshot::channel();
        let gone = || WatchError::Sandbox(SandboxError::NodeGone("watch".into()));
        self.tamper.send((how, done)).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// Keeps the watchers from looking, for the harness's own tests.
    pub(crate) async fn hold(&self, duration: Duration) {
        // Blocks the nodes' threads, which nothing else does.
        let hold = move || async move { std::thread::sleep(duration) };
        let held = [&self.nodes[0], &self.nodes[1], &*self.bus_node].map(|node| node.run(hold));
        // Begun when it is polled, and awaited by nobody.
        let _ = tokio::time::timeout(Duration::ZERO, futures::future::join_all(held)).await;
    }

    /// The servers that the resolver service asks, and those that follow.
    pub fn asked(&self) -> watch::Receiver<Vec<String>> {
        self.asked.clone()
    }

    /// Has everything in the history that happened until now: what waits to be read, however late the watchers are, and the servers
    /// of a local forwarder as they are now, where there is one.
    pub async fn look(&self) -> Result<(), WatchError> {
        futures::future::try_join(self.nodes[0].run(read_all), self.bus_node.run(read_all)).await?;
        let (done, known) = oneshot::channel();
        // Nobody listens where there is none.
        let is_watched = self.forwarder.send(done).is_ok();
        let gone = |_| WatchError::Sandbox(SandboxError::NodeGone("watch".into()));
        if is_watched { known.await.map_err(gone) } else { Ok(()) }
    }

    /// Stops listening to the system bus, which is about to end with the machine.
    pub fn close_bus(&mut self) {
        self.bus.take();
    }

    /// How many changes were noticed.
    pub fn changes(&self) -> watch::Receiver<Changes> {
        self.changes.clone()
    }

    /// The present version, and those that follow.
    pub fn versions(&self) -> watch::Receiver<Version> {
        self.versions.clone()
    }
}

/// Lets the node's other tasks read what there is to read: a task that steps back goes on when the kernel was asked for more, and the
/// others had their turn.
async fn read_all() {
    /// What is read passes through several tasks, which hand on so many messages at a time that a few turns are enough.
    const TURNS: usize = 32;
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

/// Wakes the node often. What a node learns had not happened when it last woke up but one, so that nothing is told more vaguely than
/// this, and what was told late shows.
pub(crate) async fn stay_awake() {
    const OFTEN: Duration = Duration::from_millis(10);
    let mut ticks = tokio::time::interval(OFTEN);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
    }
}

async fn start_generations(
    recorder: Recorder,
    resolver: watch::Receiver<Version>,
    counted: watch::Sender<Changes>,
) -> Result<(), WatchError> {
    let failed = |source| WatchError::Netlink { what: "nftables rules", source };
    let connection = Connection::<Nftables>::new().map_err(failed)?;
    // A batch of hundreds of rules arrives at once; a thread that is late must not lose it.
    connection.socket().set_rcvbuf(NOTIFICATIONS).map_err(failed)?;
    connection.subscribe_all().map_err(failed)?;
    let path = resolver.borrow().path.clone();
    tokio::task::spawn_local(async move {
        let mut events = connection.into_events().await;
        let mut changes = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(NftablesEvent::NewGen(generation)) => {
                    let noticed = Noticed::now();
                    // Read at once: what the file is now, it was at the latest after this generation took effect.
                    let resolver = Version::read(&path).map(|version| version.hash).ok();
                    recorder.record_noticed(
                        noticed,
                        Event::Generation {
                            id: generation.id,
                            process: generation.proc_name,
                            changes: std::mem::take(&mut changes),
                            resolver,
                        },
                    );
                    counted.send_modify(|changes| changes.generations += 1);
                }
                Ok(event) => changes.push(summary(&event)),
                Err(error) => {
                    recorder.record(Event::Harness { problem: format!("nftables notifications were lost: {error}") });
                }
            }
        }
    });
    Ok(())
}

/// A change in a few words; the whole ruleset is in the snapshots.
fn summary(event: &NftablesEvent) -> String {
    match event {
        NftablesEvent::NewTable(table) => format!("add table {} {}", table.family, table.name),
        NftablesEvent::DelTable(table) => format!("delete table {} {}", table.family, table.name),
        NftablesEvent::NewChain(chain) => format!("add chain {} {} {}", chain.family, chain.table, chain.name),
        NftablesEvent::DelChain(chain) => format!("delete chain {} {} {}", chain.family, chain.table, chain.name),
        NftablesEvent::NewRule(rule) => {
            format!("add rule {} {} {} handle {}", rule.family, rule.table, rule.chain, rule.handle)
        }
        NftablesEvent::DelRule(rule) => {
            format!("delete rule {} {} {} handle {}", rule.family, rule.table, rule.chain, rule.handle)
        }
        other => {
            let text = format!("{other:?}");
            text.chars().take(160).collect()
        }
    }
}

async fn start_network(recorder: Recorder, counted: watch::Sender<Changes>) -> Result<(), WatchError> {
    let failed = |source| WatchError::Netlink { what: "links, addresses, routes and rules", source };
    let connection = Connection::<Route>::new().map_err(failed)?;
    connection.socket().set_rcvbuf(NOTIFICATIONS).map_err(failed)?;
    connection
        .subscribe(&[
            RtnetlinkGroup::Link,
            RtnetlinkGroup::Ipv4Addr,
            RtnetlinkGroup::Ipv6Addr,
            RtnetlinkGroup::Ipv4Route,
            RtnetlinkGroup::Ipv6Route,
            RtnetlinkGroup::Ipv4Rule,
            RtnetlinkGroup::Ipv6Rule,
        ])
        .map_err(failed)?;
    tokio::task::spawn_local(async move {
        let mut events = connection.into_events().await;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    let (noticed, text) = (Noticed::now(), format!("{event:?}"));
                    recorder.record_noticed(noticed, Event::Network { change: text.chars().take(400).collect() });
                    counted.send_modify(|changes| {
                        changes.network += 1;
                        changes.network_at = Some(noticed);
                    });
                }
                Err(error) => {
                    recorder.record(Event::Harness { problem: format!("network notifications were lost: {error}") });
                }
            }
        }
    });
    Ok(())
}
