//! Builds everything a case needs, runs the scenario, takes everything down in order.

use super::{
    CaseError, CasePlan, Sabotage, SharedTables,
    links::{self, WatchedLink},
    machine::{self, RESOLV_CONF, STATE_DIR},
    markers::Markers,
    settings,
};
use crate::{
    agent::AgentClient,
    capture::{MarkerSender, quiet_veth},
    history::{CaseHeader, Cause, Event, FORMAT, Noticed, Recorder},
    profile::Services,
    sandbox::{Client, Isolation, Node, Process, Spawn},
    scenario::{Expected, Family, SettingsPatch, Step, Tamper},
    snapshot::{self, Daemon, Scope},
    subject::{Subject, SubjectEvent},
    testbed::{FarSide, Topology, plan::*},
    watch::{Changes, Version, Watch},
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;
use watertight_protocol::{Capability, InitializeResult, State};

/// An ordinary user's and group's number ("nobody").
const ORDINARY: u32 = 65534;

/// What is known of the subject while it runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Notifications so far.
    pub(super) notifications: u64,
    /// The last state that it reported or was asked for.
    pub(super) state: Option<State>,
    /// Whether its process ended.
    pub(super) ended: bool,
    /// Whether it was started again and has not answered `initialize` yet: it has nothing to report before.
    pub(super) initializing: bool,
}

/// A running case.
pub(super) struct Engine {
    pub(super) plan: CasePlan,
    pub(super) recorder: Recorder,
    pub(super) client: Client,
    pub(super) topology: Topology,
    pub(super) far: Arc<FarSide>,
    pub(super) markers: Arc<Markers>,
    pub(super) links: Vec<WatchedLink>,
    pub(super) watch: Watch,
    pub(super) root: Agent,
    pub(super) user: Option<Agent>,
    pub(super) guest: Option<Agent>,
    pub(super) lan: Agent,
    pub(super) scope: Scope,
    pub(super) tables: SharedTables,
    pub(super) services: Services,
    pub(super) subject: Option<Subject>,
    pub(super) initialized: Option<InitializeResult>,
    pub(super) known: watch::Sender<Known>,
    pub(super) expected_end: Arc<Mutex<bool>>,
    pub(super) patch: SettingsPatch,
    pub(super) killed: bool,
    pub(super) frozen: bool,
    /// Answers to what was sent without waiting.
    pub(super) sent: Vec<tokio::task::JoinHandle<()>>,
    /// Answers to `connect` that the state came before.
    pub(super) overtaken: Vec<tokio::task::JoinHandle<()>>,
    pub(super) window: usize,
    /// Kinds of probes that were answered in the first window.
    pub(super) answered: BTreeSet<String>,
    pub(super) runs: u32,
    pub(super) outsider: Option<Version>,
    /// What the watchers had seen when a request was sent without waiting.
    pub(super) changes_before: Changes,
    /// The resolver file cannot be written, by the scenario's doing.
    pub(super) unwritable: bool,
    /// What puts right again what was done to services.
    pub(super) unmended: Vec<crate::scenario::ServiceChange>,
    pub(super) last_error: std::cell::RefCell<Option<String>>,
}

/// A probe agent and its process.
pub(super) struct Agent {
    pub(super) client: AgentClient,
    _process: AgentProcess,
}

#[expect(dead_code, reason = "held so that the process lives as long as its client")]
enum AgentProcess {
    Inside(Process),
    Beside(tokio::process::Child),
}

impl Engine {
    /// Runs the whole case. The history is finished even when something of the harness failed, and says so.
    pub(super) async fn run(plan: CasePlan, isolation: Isolation, tables: SharedTables) -> Result<(), CaseError> {
        let recorder = Recorder::create(&plan.folder.join("history.jsonl"))
            .map_err(|source| CaseError::File { action: "start the history".into(), source })?;
        let missing = plan.axes.profile.folders().err().map(|layer| layer.missing());
        let users = plan.axes.profile.needs_users().filter(|_| isolation.rootless).map(str::to_owned);
        if let Some(reason) = missing.or(users) {
            recorder.record(Event::Case(header(&plan, None)));
            recorder.record(Event::NoSoftware { reason });
            return recorder.finish().map_err(|source| CaseError::File { action: "finish the history".into(), source });
        }
        let result = Self::run_recorded(plan, isolation, tables, recorder.clone()).await;
        if let Err(error) = &result {
            recorder.record(Event::Harness { problem: error.to_string() });
        }
        recorder.finish().map_err(|source| CaseError::File { action: "finish the history".into(), source })?;
        result
    }

    async fn run_recorded(
        plan: CasePlan,
        isolation: Isolation,
        tables: SharedTables,
        recorder: Recorder,
    ) -> Result<(), CaseError> {
        let mut engine = Self::build(plan, isolation, tables, recorder).await?;
        let walked = engine.walk().await;
        let finished = engine.finish().await;
        walked.and(finished)
    }

    async fn build(
        plan: CasePlan,
        isolation: Isolation,
        tables: SharedTables,
        recorder: Recorder,
    ) -> Result<Self, CaseError> {
        let no_user = isolation
            .rootless
            .then(|| "the user namespace has one user: probes of an ordinary user cannot be made here, and every file has the same owner".to_owned());
        recorder.record(Event::Case(header(&plan, no_user.clone())));
        let profile = plan.axes.profile;
        let layers = profile.folders().map_err(|layer| CaseError::Layer(layer.missing()))?;
        let (client, topology) = Topology::build(isolation.rootless, layers, plan.definition.testbed.guest).await?;
        let late = plan.sabotage == Some(Sabotage::LateCapture);
        if late {
            topology.start().await?;
        }
        let near = Topology::UPLINK.near;
        topology.client.run(move || async move { quiet_veth(near).await }).await??;
        let uplink = links::watch(
            &topology.router,
            "uplink",
            Topology::UPLINK.far,
            &plan.folder,
            plan.nonce,
            true,
            plan.sabotage,
        )
        .await?;
        if !late {
            topology.start().await?;
        }
        let markers = Arc::new(Markers::new(
            recorder.clone(),
            plan.nonce,
            if plan.sabotage == Some(Sabotage::LostCanary) { 1 } else { 0 },
        ));
        let nonce = plan.nonce;
        let sender = topology.client.run(move || async move { MarkerSender::open(near, nonce) }).await??;
        markers.add("uplink", sender);
        let far = Arc::new(FarSide::start(&topology, recorder.clone(), profile.has_lease()).await?);
        let tunnel =
            links::watch(&topology.relay, "tunnel", RELAY_TUNNEL, &plan.folder, plan.nonce, false, plan.sabotage)
                .await?;
        markers.add_tunnel(far.clone());
        machine::prepare(&topology.client, profile, plan.axes.original).await?;
        let checks = plan.definition.testbed.connectivity_check;
        if checks {
            topology.client.run(move || async move { machine::connectivity_check(profile) }).await??;
        }
        let services = Services::start(profile, &client, &topology.client, &plan.folder, &recorder).await?;
        if plan.definition.testbed.search_domain {
            topology.client.run(move || async move { machine::search_domain(profile).await }).await??;
        }

        if checks {
            services.wait_until_online(&topology.client, &plan.folder).await?;
        }

        let root = start_agent(&client, None).await?;
        let user = match no_user {
            None => Some(start_agent(&client, Some((ORDINARY, ORDINARY))).await?),
            Some(_) => None,
        };
        let guest = match &topology.guest {
            Some(node) => Some(start_agent_beside(node).await?),
            None => None,
        };
        let lan = start_agent_beside(&topology.router).await?;
        let watchers =
            [client.node("watch").await?, client.node("watch-bus").await?, client.node("watch-services").await?];
        let watch = Watch::start(watchers, recorder.clone(), RESOLV_CONF.into(), profile).await?;
        let mut ignore_pids = vec![1, root.client.ping().await?.0];
        let daemons = daemons(&topology.client, services.pids()).await?;
        if let Some(user) = &user {
            ignore_pids.push(user.client.ping().await?.0);
        }
        let (upper, lower) = match client.overlay() {
            Some((upper, lower)) => (Some(upper), lower),
            None => (None, Vec::new()),
        };
        let scope = Scope {
            root: PathBuf::from("/"),
            upper,
            lower,
            extra_trees: client.own_folders(),
            ignore_pids,
            services: daemons,
            ignore_paths: profile.bookkeeping().iter().map(PathBuf::from).collect(),
            state_dir: Some(STATE_DIR.into()),
            profile,
        };
        let axes = &plan.axes;
        let patch = plan.definition.settings.with(&SettingsPatch {
            dns: axes.dns,
            family: axes.family,
            relay_port: axes.relay_port,
            ..SettingsPatch::default()
        });
        let (known, _) = watch::channel(Known::default());
        Ok(Self {
            recorder,
            client,
            topology,
            far,
            markers,
            links: vec![uplink, tunnel],
            watch,
            root,
            user,
            guest,
            lan,
            scope,
            tables,
            services,
            subject: None,
            initialized: None,
            known,
            expected_end: Arc::default(),
            patch,
            killed: false,
            frozen: false,
            sent: Vec::new(),
            window: 0,
            answered: BTreeSet::new(),
            runs: 0,
            outsider: None,
            changes_before: Changes::default(),
            overtaken: Vec::new(),
            unwritable: false,
            unmended: Vec::new(),
            last_error: Default::default(),
            plan,
        })
    }

    /// Baseline, the scenario's steps, a clean stop, the last comparison.
    async fn walk(&mut self) -> Result<(), CaseError> {
        self.snapshot("before", None).await?;
        self.markers.barrier(Cause::Baseline);
        self.open_old_flows().await?;
        self.probe_window().await?;
        if self.plan.sabotage == Some(Sabotage::FrozenReader) {
            self.links[0].freeze()?;
        }
        if self.plan.sabotage == Some(Sabotage::CutLog) {
            self.far.cut_log();
        }
        if !self.start_subject(true).await? {
            return self.stop_and_compare().await;
        }
        if !self.has_all_needs() {
            return self.stop_and_compare().await;
        }
        let settings = self.settings();
        self.configure(&settings).await?;
        self.probe_window().await?;
        let steps = self.plan.definition.steps.clone();
        for (index, step) in steps.iter().enumerate() {
            let go_on = self.step(index, step).await?;
            if !go_on {
                break;
            }
        }
        self.stop_and_compare().await
    }

    /// Whether the subject has the capabilities that the scenario needs; the judge draws the conclusion.
    fn has_all_needs(&self) -> bool {
        let Some(initialized) = &self.initialized else { return false };
        let (capabilities, methods) = (&initialized.capabilities, &initialized.dns_methods);
        self.plan.definition.lacking(&self.plan.axes, capabilities, methods).is_none()
    }

    /// Ends the subject if it still runs; afterwards everything must be as before.
    async fn stop_and_compare(&mut self) -> Result<(), CaseError> {
        let index = self.plan.definition.steps.len();
        let running = self.subject.is_some() && !self.known.borrow().ended;
        // A scenario that was broken off has not put it right itself.
        if self.unwritable {
            self.watch.tamper(Tamper::Mutable).await?;
            self.unwritable = false;
        }
        for change in std::mem::take(&mut self.unmended) {
            self.change_service(change).await?;
        }
        if running {
            self.step(index, &Step::Shutdown(Default::default())).await?;
        }
        // A subject that was killed and not started again restores nothing, and nobody expects it to.
        let compared = match (self.killed, self.outsider.is_some()) {
            (true, _) => None,
            (false, true) => Some(Expected::RestoredOutsider),
            (false, false) => Some(Expected::Restored),
        };
        self.snapshot("after", compared).await?;
        if running { Ok(()) } else { self.probe_window().await }
    }

    async fn finish(mut self) -> Result<(), CaseError> {
        for answer in &self.overtaken {
            answer.abort();
        }
        let last = self.markers.barrier(Cause::End);
        self.watch.close_bus();
        let links = std::mem::take(&mut self.links).into_iter().map(|link| {
            let (node, near) = match link.name {
                "uplink" => (&self.topology.router, Some((&self.topology.client, Topology::UPLINK.near))),
                _ => (&self.topology.relay, None),
            };
            link.finish(node, last, near, &self.recorder)
        });
        futures::future::try_join_all(links).await?;
        let (counted, written, problems) = self.far.account();
        for problem in problems {
            self.recorder.record(Event::Harness { problem: format!("the far side: {problem}") });
        }
        self.recorder.record(Event::QueriesEnd { counted, written });
        for problem in self.tables.problems() {
            self.recorder.record(Event::Harness { problem });
        }
        self.topology.end_connections().await?;
        Ok(())
    }

    /// Writes a snapshot into the bundle.
    pub(super) async fn snapshot(&mut self, folder: &str, compared: Option<Expected>) -> Result<(), CaseError> {
        let mut scope = self.scope.clone();
        if let Some(subject) = self.subject.as_ref().filter(|subject| subject.process().ended().is_none()) {
            scope.ignore_pids.extend(inner_pid(subject.process().pid.as_raw()));
        }
        self.watch.look().await?;
        let snapshot = self.topology.client.run(move || async move { snapshot::take(&scope).await }).await??;
        snapshot.write_to(&self.plan.folder.join(folder))?;
        // The file at this very moment: the watcher may still be on its way to the last version.
        let version = self
            .topology
            .client
            .run(|| async { Version::read(Path::new(RESOLV_CONF)) })
            .await?
            .map_err(|source| CaseError::File { action: format!("read {RESOLV_CONF}"), source })?;
        self.recorder.record(Event::File {
            path: version.path,
            cause: "snapshot".into(),
            by_harness: false,
            hash: version.hash,
            content: version.content,
            changed: version.changed,
        });
        self.recorder.record(Event::Snapshot { folder: folder.into(), compared });
        Ok(())
    }

    /// The settings as they are now.
    /// Whether the subject claims a capability; one that has not spoken yet is believed to.
    pub(super) fn claims(&self, capability: Capability) -> bool {
        self.initialized
            .as_ref()
            .is_none_or(|initialized| initialized.known_capabilities().any(|known| known == capability))
    }

    pub(super) fn settings(&self) -> watertight_protocol::Settings {
        let all = if self.claims(Capability::Ipv6) { Family::Both } else { Family::Ipv4 };
        let patch = SettingsPatch { family: self.patch.family.or(Some(all)), ..self.patch.clone() };
        settings(&patch, &self.far.client_private_key, &self.far.relay_public_key)
    }

    /// Called from the subject's reading task: a barrier follows each notification at once.
    pub(super) fn on_event(&self) -> Arc<dyn Fn(SubjectEvent) + Send + Sync> {
        let (recorder, markers, known, expected) =
            (self.recorder.clone(), self.markers.clone(), self.known.clone(), self.expected_end.clone());
        Arc::new(move |event| match event {
            SubjectEvent::State(state) => {
                if known.borrow().initializing {
                    let what = format!("state_changed '{state:?}' before the answer to initialize");
                    recorder.record(Event::Violation { what });
                }
                // A repeated notification is no transition.
                if known.borrow().state != Some(state) {
                    recorder.record_noticed(Noticed::now(), Event::State { state });
                    markers.barrier(Cause::State { state });
                }
                known.send_modify(|known| {
                    known.notifications += 1;
                    known.state = Some(state);
                });
            }
            SubjectEvent::Answered => {
                if known.borrow().initializing {
                    known.send_modify(|known| known.initializing = false);
                }
            }
            SubjectEvent::Violation(what) => {
                recorder.record(Event::Violation { what });
            }
            SubjectEvent::Ended(how) => {
                let expected = *expected.lock().expect("no holder panics");
                recorder.record(Event::Ended { how: format!("{how:?}"), expected });
                markers.barrier(Cause::Ended);
                known.send_modify(|known| known.ended = true);
            }
        })
    }
}

fn header(plan: &CasePlan, no_user: Option<String>) -> CaseHeader {
    let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    CaseHeader {
        format: FORMAT,
        scenario: plan.scenario.clone(),
        case: plan.axes.id(),
        definition: plan.definition.clone(),
        axes: plan.axes.clone(),
        subject: plan.subject.name.clone(),
        nonce: plan.nonce,
        tag: tag(plan.nonce),
        replay: plan.replay.clone(),
        no_user,
        links: vec![("uplink".into(), Topology::UPLINK.far.into()), ("tunnel".into(), RELAY_TUNNEL.into())],
        client_mac: CLIENT_MAC,
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: kernel.unwrap_or_default(),
    }
}

/// The part of names that nobody else uses.
pub(super) fn tag(nonce: u64) -> String {
    format!("wt{:08x}", nonce as u32)
}

async fn start_agent(client: &Client, user: Option<(u32, u32)>) -> Result<Agent, CaseError> {
    let spawn = Spawn {
        program: "@self".into(),
        arguments: vec!["@agent".into()],
        environment: vec![
            ("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            ("RES_OPTIONS".into(), "timeout:1 attempts:1".into()),
        ],
        user,
    };
    let mut process = spawn.start(client).await?;
    let (output, input) = (process.stdout.take().expect("piped"), process.stdin.take().expect("piped"));
    drain(process.stderr.take().expect("piped"));
    Ok(Agent { client: AgentClient::new(output, input, |_| {}), _process: AgentProcess::Inside(process) })
}

/// An agent in a node's network namespace, with the harness's own files.
async fn start_agent_beside(node: &crate::sandbox::Node) -> Result<Agent, CaseError> {
    // A child gets the namespaces of the thread that starts it.
    let mut child = node
        .run(|| async {
            tokio::process::Command::new("/proc/self/exe")
                .arg("@agent")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
        })
        .await?
        .map_err(|source| CaseError::File { action: "start a probe agent".into(), source })?;
    let (output, input) = (child.stdout.take().expect("piped"), child.stdin.take().expect("piped"));
    Ok(Agent { client: AgentClient::new(output, input, |_| {}), _process: AgentProcess::Beside(child) })
}

/// The daemons of these numbers, as the client's own /proc has them.
pub(super) async fn daemons(client: &Node, pids: Vec<u32>) -> Result<Vec<Daemon>, CaseError> {
    let command = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Ok(client
        .run(move || async move { pids.into_iter().map(|pid| Daemon { pid, command: command(pid) }).collect() })
        .await?)
}

fn drain(mut stderr: tokio::process::ChildStderr) {
    tokio::spawn(async move {
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::stderr()).await;
    });
}

/// A process's number in the client's own PID namespace (proc_pid_status(5), NSpid).
pub(crate) fn inner_pid(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// How long anything of the subject may take unless the protocol says otherwise.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
