//! The engine's side of an agent: commands as methods, over any pair of byte streams. It starts no process.

use super::MacAddress;
use super::wire::{
    Attempt, Command, DhcpVersion, Event, HammerReport, HammerSpec, ListenSpec, LoopbackCheck, MAX_SPECS, OpenSpec,
    ProbeSpec, Received,
};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

/// Time on top of a command's own for the agent to start the work and to answer.
const GRACE: Duration = Duration::from_secs(3);
/// Received packets that wait for the engine, a listener; more are counted and dropped.
const RECEIVED: usize = 4096;

/// Why a command of the engine has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The command could not be written.
    #[error("write `{command}` to the agent: {source}; see why its process ended")]
    Write {
        /// The command.
        command: String,
        /// The error.
        source: io::Error,
    },
    /// The agent has closed its output.
    #[error("wait for the answer to `{command}`: the agent has ended; see why its process ended")]
    Ended {
        /// The command.
        command: String,
    },
    /// No answer came in time.
    #[error("wait for the answer to `{command}`: none within {waited:?}; the agent is stopped or starved")]
    Late {
        /// The command.
        command: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The agent said that it could not.
    #[error("the agent could not carry out `{command}`: {text}")]
    Refused {
        /// The command.
        command: String,
        /// The agent's words.
        text: String,
    },
    /// A command with the same id is not answered yet, or the id was used twice in one command.
    #[error("send `{command}`: its id is in use; give every command an id of its own")]
    IdInUse {
        /// The command.
        command: String,
    },
    /// More specs than one command may hold.
    #[error("send {count} probes at once: more than {MAX_SPECS}; split them")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// What a `probe` command gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Probed {
    /// The attempts by probe id, in the order of the specs.
    pub attempts: Vec<(String, Attempt)>,
    /// The probes that told nothing before the deadline, each with the reason if there is one. They count as not tried.
    pub missing: Vec<(String, String)>,
}

/// A flow that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFlow {
    /// The socket's own address.
    pub local: Option<SocketAddr>,
}

/// A hammer that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HammerRunning {
    /// Its first attempt, in nanoseconds of CLOCK_REALTIME.
    pub at_ns: u64,
    /// Its sockets' own addresses.
    pub local: Vec<SocketAddr>,
}

/// A listener that is bound.
#[derive(Debug)]
pub struct Listening {
    /// The bound addresses, one a socket.
    pub local: Vec<SocketAddr>,
    /// What arrives, until the listener ends.
    pub received: mpsc::Receiver<Received>,
}

/// The loopback checks.
#[derive(Debug, Clone, PartialEq)]
pub struct LoopbackResult {
    /// Whether no check failed and one passed.
    pub ok: bool,
    /// The failed checks, in words.
    pub detail: String,
    /// All checks.
    pub checks: Vec<LoopbackCheck>,
}

/// What resolving a neighbour gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighbourResult {
    /// Whether it became reachable.
    pub ok: bool,
    /// Its link-layer address.
    pub mac: Option<MacAddress>,
    /// What happened, in words.
    pub detail: String,
}

/// What asking for a lease gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpResult {
    /// Whether the question was handed to the kernel.
    pub tried: bool,
    /// The address offered.
    pub offered: Option<IpAddr>,
    /// Who offered it.
    pub server: Option<IpAddr>,
    /// What happened, in words.
    pub detail: String,
}

/// The engine's handle on one agent. Methods take `&self` and may be called at the same time; a call that is dropped leaves
/// nothing behind here, and the agent's late answer goes to the observer alone.
pub struct AgentClient {
    shared: Arc<Shared>,
    writer: tokio::sync::Mutex<Box<dyn AsyncWrite + Unpin + Send>>,
    reader: JoinHandle<()>,
    next_id: AtomicU64,
}

impl AgentClient {
    /// Talks to an agent whose standard output is `output` and whose standard input is `input`. `observer` sees every event
    /// first, in order. Must be called inside a tokio runtime with its time driver on.
    pub fn new(
        output: impl AsyncRead + Unpin + Send + 'static,
        input: impl AsyncWrite + Unpin + Send + 'static,
        observer: impl FnMut(&Event) + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let reader = tokio::spawn(read(BufReader::new(output), Arc::clone(&shared), observer));
        Self { shared, writer: tokio::sync::Mutex::new(Box::new(input)), reader, next_id: AtomicU64::new(1) }
    }

    /// Whether the agent is there; gives its process id in its own namespace and its user.
    ///
    /// # Errors
    /// [`ClientError`]; for this and every other method.
    pub async fn ping(&self) -> Result<(u32, u32), ClientError> {
        let id = self.fresh_id();
        match self.call(Command::Ping { id: id.clone() }, Key::new(Kind::Ping, &id), GRACE).await? {
            Event::Pong { pid, uid, .. } => Ok((pid, uid)),
            other => Err(unexpected("ping", &other)),
        }
    }

    /// Makes attempts, all at the same time.
    pub async fn probe(&self, specs: Vec<ProbeSpec>) -> Result<Probed, ClientError> {
        if specs.len() > MAX_SPECS {
            return Err(ClientError::TooMany { count: specs.len() });
        }
        let longest = specs.iter().map(|spec| spec.timeout_ms).max().unwrap_or(0);
        let deadline = Instant::now() + Duration::from_millis(longest) + GRACE;
        let ids: Vec<_> = specs.iter().map(|spec| spec.id.clone()).collect();
        let mut waiting = Vec::with_capacity(ids.len());
        for id in ids {
            waiting.push((self.shared.expect(Key::new(Kind::Probe, &id), &format!("probe {id}"))?, id));
        }
        self.write(&Command::Probe { specs }, "probe").await?;
        let mut probed = Probed::default();
        for (mut pending, id) in waiting {
            match timeout_at(deadline, &mut pending.answer).await {
                Ok(Ok(Event::Probe { attempt, .. })) => probed.attempts.push((id, attempt)),
                Ok(Ok(Event::Error { text, .. })) => probed.missing.push((id, text)),
                Ok(Ok(other)) => probed.missing.push((id, format!("another event came: {other:?}"))),
                Ok(Err(_)) => probed.missing.push((id, "the agent has ended".into())),
                Err(_) => probed.missing.push((id, "nothing came before the deadline".into())),
            }
        }
        Ok(probed)
    }

    /// Opens a flow and has its first query answered.
    pub async fn open(&self, spec: OpenSpec) -> Result<OpenFlow, ClientError> {
        let (what, limit) = (format!("open {}", spec.socket), Duration::from_millis(spec.timeout_ms) + GRACE);
        let key = Key::new(Kind::Open, &spec.socket);
        match self.call(Command::Open(spec), key, limit).await? {
            Event::Opened { ok: true, local, .. } => Ok(OpenFlow { local }),
            Event::Opened { error, .. } => Err(ClientError::Refused { command: what, text: error.unwrap_or_default() }),
            other => Err(unexpected(&what, &other)),
        }
    }

    /// Closes a flow; tells whether there was one.
    pub async fn close(&self, socket: &str) -> Result<bool, ClientError> {
        let command = Command::Close { socket: socket.to_owned() };
        match self.call(command, Key::new(Kind::Close, socket), GRACE).await? {
            Event::Closed { existed, .. } => Ok(existed),
            other => Err(unexpected("close", &other)),
        }
    }

    /// Starts a hammer; returns when it runs.
    pub async fn hammer_start(&self, spec: HammerSpec) -> Result<HammerRunning, ClientError> {
        let key = Key::new(Kind::HammerStart, &spec.id);
        match self.call(Command::HammerStart(spec), key, GRACE).await? {
            Event::HammerStarted { at_ns, local, .. } => Ok(HammerRunning { at_ns, local }),
            other => Err(unexpected("hammer_start", &other)),
        }
    }

    /// Stops a hammer.
    pub async fn hammer_stop(&self, id: &str) -> Result<HammerReport, ClientError> {
        let command = Command::HammerStop { id: id.to_owned() };
        match self.call(command, Key::new(Kind::HammerStop, id), GRACE).await? {
            Event::HammerReport(report) => Ok(*report),
            other => Err(unexpected("hammer_stop", &other)),
        }
    }

    /// Starts a listener; returns when it is bound.
    pub async fn listen(&self, spec: ListenSpec) -> Result<Listening, ClientError> {
        let id = spec.id.clone();
        let (sender, received) = mpsc::channel(RECEIVED);
        self.shared.lock().listeners.insert(id.clone(), sender);
        match self.call(Command::Listen(spec), Key::new(Kind::Listen, &id), GRACE).await {
            Ok(Event::Listening { local, .. }) => Ok(Listening { local, received }),
            other => {
                self.shared.lock().listeners.remove(&id);
                Err(other.map_or_else(|error| error, |event| unexpected("listen", &event)))
            }
        }
    }

    /// Ends a listener; its receiver gives what is left and then ends.
    pub async fn unlisten(&self, id: &str) -> Result<(), ClientError> {
        let command = Command::Unlisten { id: id.to_owned() };
        self.call(command, Key::new(Kind::Unlisten, id), GRACE).await.map(drop)
    }

    /// Checks loopback.
    pub async fn loopback(&self) -> Result<LoopbackResult, ClientError> {
        let id = self.fresh_id();
        // Eight checks of half a second.
        let limit = Duration::from_secs(4) + GRACE;
        match self.call(Command::Loopback { id: id.clone() }, Key::new(Kind::Loopback, &id), limit).await? {
            Event::Loopback { ok, detail, checks, .. } => Ok(LoopbackResult { ok, detail, checks }),
            other => Err(unexpected("loopback", &other)),
        }
    }

    /// Resolves a neighbour afresh.
    pub async fn neighbour(&self, address: IpAddr, interface: &str) -> Result<NeighbourResult, ClientError> {
        let id = self.fresh_id();
        let command = Command::Neighbour { id: id.clone(), address, interface: interface.to_owned() };
        match self.call(command, Key::new(Kind::Neighbour, &id), Duration::from_secs(2) + GRACE).await? {
            Event::Neighbour { ok, mac, detail, .. } => Ok(NeighbourResult { ok, mac, detail }),
            other => Err(unexpected("neighbour", &other)),
        }
    }

    /// Asks for a lease offer.
    pub async fn dhcp(
        &self,
        interface: &str,
        version: DhcpVersion,
        timeout: Duration,
    ) -> Result<DhcpResult, ClientError> {
        let id = self.fresh_id();
        let timeout_ms = timeout.as_millis() as u64;
        let command = Command::Dhcp { id: id.clone(), interface: interface.to_owned(), version, timeout_ms };
        match self.call(command, Key::new(Kind::Dhcp, &id), timeout + GRACE).await? {
            Event::Dhcp { tried, offered, server, detail, .. } => Ok(DhcpResult { tried, offered, server, detail }),
            other => Err(unexpected("dhcp", &other)),
        }
    }

    /// How many received packets were dropped because the engine did not take them.
    pub fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }

    /// Closes the agent's standard input, which ends it.
    pub async fn shutdown(&self) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        let result = writer.shutdown().await;
        // For a pipe only dropping it is end-of-file.
        *writer = Box::new(tokio::io::sink());
        result
    }

    fn fresh_id(&self) -> String {
        format!("~{}", self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    async fn call(&self, command: Command, key: Key, limit: Duration) -> Result<Event, ClientError> {
        let what = format!("{:?} {}", key.kind, key.id).to_lowercase();
        let mut pending = self.shared.expect(key, &what)?;
        self.write(&command, &what).await?;
        match timeout_at(Instant::now() + limit, &mut pending.answer).await {
            Ok(Ok(Event::Error { text, .. })) => Err(ClientError::Refused { command: what, text }),
            Ok(Ok(event)) => Ok(event),
            Ok(Err(_)) => Err(ClientError::Ended { command: what }),
            Err(_) => Err(ClientError::Late { command: what, waited: limit }),
        }
    }

    async fn write(&self, command: &Command, what: &str) -> Result<(), ClientError> {
        let failed = |source| ClientError::Write { command: what.to_owned(), source };
        let mut line = serde_json::to_vec(command).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        let mut writer = self.writer.lock().await;
        writer.write_all(&line).await.map_err(failed)?;
        writer.flush().await.map_err(failed)
    }
}

impl Drop for AgentClient {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn unexpected(command: &str, event: &Event) -> ClientError {
    ClientError::Refused { command: command.to_owned(), text: format!("another event came: {event:?}") }
}

/// Which command an event answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Ping,
    Probe,
    Open,
    Close,
    HammerStart,
    HammerStop,
    Listen,
    Unlisten,
    Loopback,
    Neighbour,
    Dhcp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: Kind,
    id: String,
}

impl Key {
    fn new(kind: Kind, id: &str) -> Self {
        Self { kind, id: id.to_owned() }
    }
}

#[derive(Default)]
struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    ended: bool,
    pending: HashMap<Key, oneshot::Sender<Event>>,
    listeners: HashMap<String, mpsc::Sender<Received>>,
    dropped: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(self: &Arc<Self>, key: Key, what: &str) -> Result<Pending, ClientError> {
        let mut state = self.lock();
        if state.ended {
            return Err(ClientError::Ended { command: what.to_owned() });
        }
        if state.pending.contains_key(&key) {
            return Err(ClientError::IdInUse { command: what.to_owned() });
        }
        let (sender, answer) = oneshot::channel();
        state.pending.insert(key.clone(), sender);
        Ok(Pending { shared: Arc::clone(self), key, answer })
    }

    fn dispatch(&self, event: Event) {
        let mut state = self.lock();
        let key = match &event {
            Event::Sending { .. } => return,
            Event::Received(received) => {
                let taken = state.listeners.get(&received.id).is_some_and(|to| to.try_send(received.clone()).is_ok());
                state.dropped += u64::from(!taken);
                return;
            }
            Event::Error { about, .. } => {
                // The agent knows the id alone; ids are unique among the commands under way, so that is enough.
                let Some(about) = about else { return };
                let key = state.pending.keys().find(|key| key.id == *about).cloned();
                let Some(key) = key else { return };
                key
            }
            Event::Pong { id, .. } => Key::new(Kind::Ping, id),
            Event::Probe { id, .. } => Key::new(Kind::Probe, id),
            Event::Opened { socket, .. } => Key::new(Kind::Open, socket),
            Event::Closed { socket, .. } => Key::new(Kind::Close, socket),
            Event::HammerStarted { id, .. } => Key::new(Kind::HammerStart, id),
            Event::HammerReport(report) => Key::new(Kind::HammerStop, &report.id),
            Event::Listening { id, .. } => Key::new(Kind::Listen, id),
            Event::Unlistened { id } => {
                state.listeners.remove(id);
                Key::new(Kind::Unlisten, id)
            }
            Event::Loopback { id, .. } => Key::new(Kind::Loopback, id),
            Event::Neighbour { id, .. } => Key::new(Kind::Neighbour, id),
            Event::Dhcp { id, .. } => Key::new(Kind::Dhcp, id),
        };
        if let Some(sender) = state.pending.remove(&key) {
            // The call may have been given up meanwhile.
            let _ = sender.send(event);
        }
    }
}

/// A command under way; dropping it forgets the command.
struct Pending {
    shared: Arc<Shared>,
    key: Key,
    answer: oneshot::Receiver<Event>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        // A command that came later may have taken the id.
        self.answer.close();
        let mut state = self.shared.lock();
        if state.pending.get(&self.key).is_some_and(oneshot::Sender::is_closed) {
            state.pending.remove(&self.key);
        }
    }
}

async fn read(
    mut output: impl AsyncBufReadExt + Unpin,
    shared: Arc<Shared>,
    mut observer: impl FnMut(&Event) + Send + 'static,
) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match output.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let event = serde_json::from_slice(&line).unwrap_or_else(|error| {
            let shown: String = String::from_utf8_lossy(&line).chars().take(200).collect();
            Event::Error { about: None, text: format!("understand an event of the agent: {error}: {shown}") }
        });
        observer(&event);
        shared.dispatch(event);
    }
    let mut state = shared.lock();
    state.ended = true;
    state.pending.clear();
    state.listeners.clear();
}
