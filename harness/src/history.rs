//! The history: the append-only recording of a case, one JSON object a line.
//!
//! Everything that the judge uses is here, in the captures or in the snapshots; nothing is decided while recording.
//! Times are nanoseconds: `t` of CLOCK_REALTIME (the clock of the capture's kernel timestamps), `mono` of
//! CLOCK_MONOTONIC, so that a step of the wall clock shows.

use crate::{agent, probe::Identity, scenario};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use watertight_protocol::{Settings, State};

/// The format of history and bundle; a judge refuses what it does not know.
pub const FORMAT: u32 = 1;

/// One line of a history.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// From 0, without gaps.
    pub seq: u64,
    /// CLOCK_REALTIME, nanoseconds.
    pub t: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub mono: u64,
    /// CLOCK_REALTIME, nanoseconds: when it can have happened at the earliest, where it was noticed by one who may be told late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// What happened.
    pub event: Event,
}

impl Record {
    /// When it can have happened at the earliest; `t` is when it had happened at the latest.
    pub fn earliest(&self) -> u64 {
        self.since.map_or(self.t, |since| since.min(self.t))
    }
}

/// What a history can hold.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "one case event a history")]
pub enum Event {
    /// First of all: what is run.
    Case(CaseHeader),
    /// The subject answered `initialize`.
    Initialized {
        /// Its name.
        name: String,
        /// Its version.
        version: String,
        /// Its capabilities.
        capabilities: Vec<String>,
        /// Its DNS methods.
        dns_methods: Vec<String>,
    },
    /// A marker frame is about to be sent on every link that is up.
    Marker {
        /// Unique in the case, rising.
        id: u64,
        /// Whether the frame cuts the stream or shows that the capture lives.
        marker: MarkerKind,
        /// Why.
        cause: Cause,
        /// Links on which it was sent.
        links: Vec<String>,
    },
    /// Settings are in force from the next barrier on.
    Settings(Settings),
    /// Old flows, probes and hammers: what was planned, and what came of it.
    Planned {
        /// Probes that must be tried before the next barrier.
        probes: Vec<PlannedProbe>,
    },
    /// One attempt, done.
    Probe {
        /// The probe's id, unique in the case.
        id: String,
        /// What came of it.
        attempt: agent::wire::Attempt,
    },
    /// The hammer was planned for the interval that begins.
    HammerPlanned {
        /// Its id.
        id: String,
        /// The prefix of its names.
        prefix: String,
    },
    /// The hammer's own account.
    Hammer {
        /// Its id.
        id: String,
        /// What it did.
        report: agent::wire::HammerReport,
    },
    /// A service that must work in blocking states too was tried.
    Service {
        /// `loopback`, `neighbour4`, `neighbour6`, `dhcp4`, `dhcp6`, `api`, `lan-echo`.
        service: String,
        /// Whether it works.
        works: bool,
        /// Details.
        detail: String,
    },
    /// An unsolicited packet that was sent to the client from outside.
    Inbound {
        /// Its id.
        id: String,
        /// Where it was sent to.
        to: String,
        /// Whether a socket of the client received it.
        received: bool,
        /// Whether it was the control, sent to an address at which it must arrive.
        control: bool,
    },
    /// A request to the subject.
    Request {
        /// Its id.
        id: u64,
        /// The method.
        method: String,
    },
    /// The subject's answer, or the lack of one.
    Answer {
        /// The request's id.
        id: u64,
        /// The method.
        method: String,
        /// The error's code and text.
        error: Option<(i64, String)>,
        /// Milliseconds.
        after_ms: u64,
    },
    /// The subject reported a state.
    State {
        /// Which.
        state: State,
    },
    /// The subject broke the protocol.
    Violation {
        /// How.
        what: String,
    },
    /// The subject's process started.
    Started {
        /// Its id in the client.
        run: u32,
    },
    /// The subject's process ended.
    Ended {
        /// How.
        how: String,
        /// Whether the harness had asked for it.
        expected: bool,
    },
    /// A step of the scenario begins.
    Step {
        /// From 0.
        index: usize,
        /// As in the scenario's file.
        step: scenario::Step,
    },
    /// A wait of a step did not come true in time.
    TimedOut {
        /// What was awaited.
        what: String,
        /// For how long.
        after_ms: u64,
        /// The requirement that says it must come true.
        requirement: String,
    },
    /// A new generation of the client's nftables ruleset.
    Generation {
        /// The kernel's number.
        id: u32,
        /// The process that made it, as the kernel says.
        process: Option<String>,
        /// Messages of the batch, readable.
        changes: Vec<String>,
        /// The resolver file at the moment the generation was noticed: the version's hash.
        resolver: Option<String>,
    },
    /// A link, address, route or rule of the client changed.
    Network {
        /// Readable.
        change: String,
    },
    /// What the ruleset and the routing rules may take for the daemon's own, found before a window's probes.
    Identities {
        /// Marks, users, groups.
        identities: Vec<Identity>,
    },
    /// A version of a resolver file, read after the kernel told of a change.
    File {
        /// Path in the client.
        path: PathBuf,
        /// What the kernel told: `moved-to`, `modify`, `delete` …
        cause: String,
        /// Who did it: the harness's own changes are marked.
        by_harness: bool,
        /// SHA-256 of type and content; equal hashes are equal versions.
        hash: String,
        /// Type and content, as in the snapshots; no more than 64 KiB.
        content: String,
        /// Time of the last change of the file's node (ctime), nanoseconds.
        changed: Option<u64>,
    },
    /// The machine does not have the profile's software; nothing was run.
    NoSoftware {
        /// What is missing, and how to get it.
        reason: String,
    },
    /// A daemon of the profile runs.
    ServiceStarted(crate::profile::Started),
    /// A message on the client's system bus.
    Bus {
        /// `call`, `return`, `error` or `signal`.
        message: String,
        /// Its number, unique for its sender.
        serial: u32,
        /// The call that it answers.
        reply_to: Option<u32>,
        /// Unique name of the sender.
        sender: String,
        /// Unique or well-known name of the receiver; empty for a signal.
        destination: String,
        /// The object.
        path: String,
        /// The interface.
        interface: String,
        /// The method or signal.
        member: String,
        /// The error's name.
        error: Option<String>,
        /// The arguments, readable; no more than 1000 characters.
        body: String,
        /// The link that a call to systemd-resolved or systemd-networkd is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link: Option<String>,
        /// The name of the service that sent it, if a service that configures links did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
    },
    /// What a resolver service is set to, read after something that may have changed it.
    Resolver {
        /// The service.
        service: String,
        /// After what.
        cause: String,
        /// The servers that a stranger's name is asked of.
        asked: Vec<String>,
        /// Where it answers on the machine itself; nowhere, if it has no resolver of its own. Empty in old histories, which
        /// know systemd-resolved alone.
        #[serde(default)]
        at: Vec<String>,
        /// All its settings, as in the snapshots.
        settings: String,
    },
    /// The harness is about to do something to a resolver service, or to what it was told, as an outsider would.
    ServiceChanged {
        /// What.
        change: scenario::ServiceChange,
    },
    /// The uplink's lease was renewed, with other servers.
    LeaseRenewed {
        /// Those that it had, in order.
        was: Vec<String>,
        /// Those that it has, each in the place of the one before.
        is: Vec<String>,
    },
    /// A far resolver received a query.
    Query {
        /// Which resolver.
        server: String,
        /// Name, lower case, no final dot.
        name: String,
        /// Query type.
        qtype: String,
        /// `udp`, `tcp` or `tls`.
        transport: String,
        /// Where it came from.
        client: String,
        /// The address that was asked.
        local: String,
    },
    /// A resolver's log is complete: all that it counted is above.
    QueriesEnd {
        /// Queries counted by the servers themselves.
        counted: u64,
        /// Queries written into this history.
        written: u64,
    },
    /// A snapshot was written.
    Snapshot {
        /// Folder in the bundle.
        folder: String,
        /// Whether it must equal `before`.
        compared: Option<scenario::Expected>,
    },
    /// A link's capture ended; everything on the link is accounted for, or not.
    Capture(CaptureAccount),
    /// Something the harness did wrong or could not do.
    Harness {
        /// In words; makes the case inconclusive.
        problem: String,
    },
    /// Last of all. A history without it was cut.
    End,
}

/// What a case is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaseHeader {
    /// [`FORMAT`].
    pub format: u32,
    /// The scenario's id.
    pub scenario: String,
    /// The case's id: the matrix, resolved.
    pub case: String,
    /// The scenario as it was run.
    pub definition: scenario::Scenario,
    /// The values of the matrix.
    pub axes: scenario::Axes,
    /// Name of the subject on the command line.
    pub subject: String,
    /// Marks the case's frames.
    pub nonce: u64,
    /// Makes names unique.
    pub tag: String,
    /// The command that runs this case again.
    #[serde(default)]
    pub replay: String,
    /// Without a second user, this is why.
    pub no_user: Option<String>,
    /// Links that are captured, with the interface that is watched.
    pub links: Vec<(String, String)>,
    /// The client's hardware address on the uplink.
    pub client_mac: [u8; 6],
    /// This program's version.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
}

/// The two kinds of marker frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkerKind {
    /// Cuts the stream into intervals.
    Barrier,
    /// Shows that the capture sees the link.
    Canary,
}

/// Why a marker was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Cause {
    /// Nothing protects yet: the positive control begins.
    Baseline,
    /// The subject's process is about to be started.
    Start,
    /// A step is about to be carried out.
    Step {
        /// Its index.
        index: usize,
    },
    /// A step was carried out.
    StepDone {
        /// Its index.
        index: usize,
    },
    /// The subject reported this state.
    State {
        /// Which.
        state: State,
    },
    /// The subject was started again, and answered.
    Restarted {
        /// What it said its state was.
        state: State,
    },
    /// The subject's process ended.
    Ended,
    /// A window's probes begin.
    ProbesBegin,
    /// A window's probes are done.
    ProbesEnd,
    /// All is over.
    End,
}

/// A probe that must be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedProbe {
    /// Unique in the case: kind and number.
    pub id: String,
    /// The kind: the same in every window.
    pub kind: String,
    /// The name it asks for.
    pub name: String,
    /// What it asks, where and how, for reports.
    pub target: String,
}

/// The account of one link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureAccount {
    /// The link.
    pub link: String,
    /// Frames in the capture's file.
    pub captured: u64,
    /// Frames that the kernel dropped for want of room.
    pub dropped: u64,
    /// Frames that the interface counted as received while captured.
    pub interface: u64,
    /// Frames that the second witness, an nftables counter, counted.
    pub counter: u64,
    /// Frames that the near end counted as sent, where it can be read.
    pub sent: Option<u64>,
}

/// When something was noticed, of CLOCK_REALTIME in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noticed {
    /// It had happened at the latest then.
    pub at: u64,
    /// It can have happened at the earliest then, where that is known.
    pub since: Option<u64>,
}

impl Noticed {
    /// At a time that is known.
    pub fn at(t: u64) -> Self {
        Self { at: t, since: None }
    }

    /// Now, by the calling thread.
    pub fn now() -> Self {
        Self { at: now(libc::CLOCK_REALTIME), since: crate::sandbox::earliest() }
    }

    /// What was read just now because of something that was noticed before: it is so since that can have happened at the earliest, and
    /// by now at the latest. Whoever is asked may be long in answering.
    pub fn read_now(self) -> Self {
        Self { at: now(libc::CLOCK_REALTIME), since: Some(self.since.unwrap_or(self.at)) }
    }
}

/// Writes a history.
#[derive(Debug, Clone)]
pub struct Recorder {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    next: u64,
    file: BufWriter<File>,
    failed: Option<String>,
}

impl Recorder {
    /// Starts a history in a new file.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Self {
            inner: Arc::new(Mutex::new(Inner { next: 0, file: BufWriter::with_capacity(1 << 16, file), failed: None })),
        })
    }

    /// Appends an event; its time is now.
    pub fn record(&self, event: Event) -> u64 {
        self.record_at(now(libc::CLOCK_REALTIME), event)
    }

    /// Appends an event that happened at `t`.
    pub fn record_at(&self, t: u64, event: Event) -> u64 {
        self.record_noticed(Noticed::at(t), event)
    }

    /// Appends an event that was noticed.
    pub fn record_noticed(&self, noticed: Noticed, event: Event) -> u64 {
        let mut inner = self.inner.lock().expect("no holder panics");
        let seq = inner.next;
        inner.next += 1;
        let Noticed { at: t, since } = noticed;
        let record = Record { seq, t, mono: now(libc::CLOCK_MONOTONIC), since, event };
        let written = serde_json::to_writer(&mut inner.file, &record)
            .map_err(io::Error::from)
            .and_then(|()| inner.file.write_all(b"\n"));
        if let Err(error) = written {
            inner.failed.get_or_insert(error.to_string());
        }
        seq
    }

    /// Ends the history: everything is on disk afterwards, or the error says what is not.
    pub fn finish(&self) -> io::Result<()> {
        self.record(Event::End);
        let mut inner = self.inner.lock().expect("no holder panics");
        inner.file.flush()?;
        match inner.failed.take() {
            Some(problem) => Err(io::Error::other(problem)),
            None => Ok(()),
        }
    }
}

/// A history that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read the history {}, line {line}: {problem}", path.display())]
pub struct HistoryError {
    path: PathBuf,
    line: usize,
    problem: String,
}

/// Reads a history. Whether it is whole is the judge's question.
pub fn read(path: &Path) -> Result<Vec<Record>, HistoryError> {
    let failed = |line: usize, problem: String| HistoryError { path: path.into(), line, problem };
    let file = File::open(path).map_err(|error| failed(0, error.to_string()))?;
    let mut records = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| failed(index + 1, error.to_string()))?;
        let record = serde_json::from_str(&line).map_err(|error| failed(index + 1, error.to_string()))?;
        records.push(record);
    }
    Ok(records)
}

/// A clock's reading in nanoseconds.
pub fn now(clock: libc::clockid_t) -> u64 {
    let time = nix::time::clock_gettime(clock.into()).expect("the clock is there");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}
