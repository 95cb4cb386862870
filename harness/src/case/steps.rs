//! Carries out the steps of a scenario.

use super::{
    CaseError, Sabotage,
    engine::{ANSWER, Engine},
    machine::STATE_DIR,
};
use crate::{
    history::{Cause, Event},
    scenario::{Call, Change, Expected, LinkChange, RelayMode, Step, Tamper},
    subject::{CallError, Pending, Subject, SubjectEvent},
    testbed::plan::*,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use watertight_protocol::{InitializeParams, InitializeResult, PROTOCOL_VERSION, Settings, State, StateResult, method};

/// A first handshake that was lost is tried again after 5 s.
const TO_CONNECTED: Duration = Duration::from_secs(20);
/// How often a subject that reports no states is asked.
const ASKING: Duration = Duration::from_millis(20);
/// A correction of the resolver file is awaited for longer than it may take, so that the figure is known.
pub(super) const TO_CORRECTION: Duration = Duration::from_secs(4);
/// A removed interface is told by the kernel at once.
pub(super) const TO_NOTICE: Duration = Duration::from_secs(3);
/// For so long the watchers of [`Sabotage::LateNotice`] learn nothing: longer than a subject takes to disconnect.
const LATE: Duration = Duration::from_millis(200);

impl Engine {
    /// Carries out one step. `false` when the subject is in no condition to go on.
    pub(super) async fn step(&mut self, index: usize, step: &Step) -> Result<bool, CaseError> {
        self.recorder.record(Event::Step { index, step: step.clone() });
        let hammered = step.is_transition();
        let hammer = if hammered { Some(self.start_hammer(index).await?) } else { None };
        self.markers.barrier(Cause::Step { index });
        let go_on = self.act(index, step).await?;
        self.markers.barrier(Cause::StepDone { index });
        if let Some(hammer) = hammer {
            self.stop_hammer(hammer).await?;
        }
        if step.leads_to_a_window() {
            self.probe_window().await?;
        }
        Ok(go_on)
    }

    async fn act(&mut self, index: usize, step: &Step) -> Result<bool, CaseError> {
        let is_late = matches!(step, Step::Connect(_) | Step::Disconnect(_));
        if is_late && self.plan.sabotage == Some(Sabotage::LateNotice) {
            self.watch.hold(LATE).await;
        }
        match step {
            Step::Connect(target) => self.call_and_wait(method::CONNECT, json!({}), *target).await,
            Step::Disconnect(target) => self.call_and_wait(method::DISCONNECT, json!({}), *target).await,
            Step::Block(target) => {
                self.call_and_wait(method::BLOCK, json!({"reason": "asked by the scenario"}), *target).await
            }
            Step::Send(call) => {
                let (name, params) = match call {
                    Call::Connect => (method::CONNECT, json!({})),
                    Call::Disconnect => (method::DISCONNECT, json!({})),
                    Call::Block => (method::BLOCK, json!({"reason": "asked by the scenario"})),
                };
                self.changes_before = *self.watch.changes().borrow();
                self.send(name, params);
                Ok(true)
            }
            Step::Wait(target) => {
                // What was sent without waiting is carried out first.
                for answer in std::mem::take(&mut self.sent) {
                    let _ = answer.await;
                }
                Ok(self.wait_for(*target, 0, wait_limit(*target)).await)
            }
            Step::Await(change) => self.wait_for_change(*change).await,
            Step::Configure(patch) => {
                self.patch = self.patch.with(patch);
                let settings = self.settings();
                let before = self.known.borrow().notifications;
                self.configure(&settings).await?;
                // A changed tunnel goes by connecting to connected again, after the answer or before.
                if self.known.borrow().state == Some(State::Connecting) {
                    return Ok(self.wait_for(State::Connected, before, TO_CONNECTED).await);
                }
                Ok(!self.known.borrow().ended)
            }
            Step::Fault(fault) => self.fault(*fault).await,
            Step::Restart(_) => self.restart().await,
            Step::Shutdown(_) => self.shut_down().await,
            Step::Relay(mode) => {
                self.far.relay.set_silent(*mode == RelayMode::Silent);
                Ok(true)
            }
            Step::Tamper(how) => self.tamper(*how).await,
            Step::Link(LinkChange::RemoveTunnel) => self.remove_tunnel().await,
            Step::Routes(routes) => match super::routes::push(&self.topology, *routes).await {
                Ok(()) => Ok(true),
                Err(error) => {
                    self.recorder.record(Event::Harness { problem: error.to_string() });
                    Ok(false)
                }
            },
            Step::Service(change) => self.change_service(*change).await,
            Step::Probe(_) => Ok(true),
            Step::Expect(expected) => self.expect(index, *expected).await,
        }
    }

    async fn wait_for_change(&mut self, change: Change) -> Result<bool, CaseError> {
        let (before, mut changes) = (self.changes_before, self.watch.changes());
        let (requirement, what) = match change {
            Change::Ruleset => ("FWL-3", "a change of the ruleset"),
            Change::ResolverFile => ("DNS-1", "a change of the resolver file"),
            Change::Network => ("DNS-7", "a change of links, addresses, routes or rules"),
        };
        let happened = changes.wait_for(|now| now.of(change) > before.of(change));
        if timeout(ANSWER, happened).await.is_ok() {
            return Ok(true);
        }
        self.recorder.record(Event::TimedOut {
            what: what.into(),
            after_ms: ANSWER.as_millis() as u64,
            requirement: requirement.into(),
        });
        Ok(false)
    }

    async fn call_and_wait(&mut self, name: &str, params: Value, target: State) -> Result<bool, CaseError> {
        let before = self.known.borrow().notifications;
        let already = self.reports_states() && self.known.borrow().state == Some(target) && name != method::CONNECT;
        let pending = self.send_recorded(name, params);
        let Some((pending, started)) = pending else { return Ok(false) };
        let limit = wait_limit(target);
        let id = pending.id;
        // The answer and the notification may come in either order.
        let mut answer = Box::pin(pending.within(ANSWER));
        let reached = if already {
            true
        } else {
            let waiting = self.wait_for(target, before, limit);
            tokio::pin!(waiting);
            tokio::select! {
                biased;
                reached = &mut waiting => reached,
                result = &mut answer => {
                    self.record_answer(id, name, &result, started);
                    if matches!(result, Err(CallError::Refused { .. })) && target != State::Error {
                        // What was refused may still end in a state, and the judge wants to know which.
                        return Ok(true);
                    }
                    return Ok(waiting.await);
                }
            }
        };
        // `connect` may be answered when it is done, which a silent relay never lets it be: the state is what is waited for.
        if reached && name == method::CONNECT && target == State::Connecting {
            let (recorder, name) = (self.recorder.clone(), name.to_owned());
            self.overtaken.push(tokio::spawn(async move {
                let result = answer.await;
                if matches!(result, Ok(_) | Err(CallError::Refused { .. })) {
                    recorder.record(answer_event(id, &name, &result, started));
                }
            }));
            return Ok(true);
        }
        let result = answer.await;
        self.record_answer(id, name, &result, started);
        Ok(reached && !matches!(result, Err(CallError::TimedOut { .. } | CallError::Gone { .. })))
    }

    fn send_recorded(&mut self, name: &str, params: Value) -> Option<(Pending, Instant)> {
        let subject = self.subject.as_ref()?;
        let pending = subject.send(name, params);
        self.recorder.record(Event::Request { id: pending.id, method: name.into() });
        Some((pending, Instant::now()))
    }

    /// Sends without waiting; the answer is written down when it comes.
    fn send(&mut self, name: &str, params: Value) {
        let Some((pending, started)) = self.send_recorded(name, params) else { return };
        let (recorder, name, id) = (self.recorder.clone(), name.to_owned(), pending.id);
        self.sent.push(tokio::spawn(async move {
            let result = pending.within(ANSWER).await;
            recorder.record(answer_event(id, &name, &result, started));
        }));
    }

    fn record_answer(&self, id: u64, name: &str, result: &Result<Value, CallError>, started: Instant) {
        self.last_error.replace(result.as_ref().err().map(ToString::to_string));
        self.recorder.record(answer_event(id, name, result, started));
    }

    /// Whether there is nobody to answer: no process, or one that is frozen.
    pub(super) fn is_idle(&self) -> bool {
        self.subject.is_none() || self.frozen || self.known.borrow().ended
    }

    pub(super) async fn call(&mut self, name: &str, params: Value, within: Duration) -> Result<Value, CallError> {
        let Some((pending, started)) = self.send_recorded(name, params) else {
            return Err(CallError::Gone { method: name.into() });
        };
        let id = pending.id;
        let result = pending.within(within).await;
        self.record_answer(id, name, &result, started);
        result
    }

    /// Gives the settings; `false` if they were not taken.
    pub(super) async fn configure(&mut self, settings: &Settings) -> Result<bool, CaseError> {
        self.recorder.record(Event::Settings(settings.clone()));
        Ok(self.call(method::CONFIGURE, serde_json::to_value(settings).expect("plain"), ANSWER).await.is_ok())
    }

    /// Waits for a state: one that is reported after `since` notifications, or that holds already.
    async fn wait_for(&self, target: State, since: u64, limit: Duration) -> bool {
        let began = Instant::now();
        let reached = if self.reports_states() {
            let mut known = self.known.subscribe();
            let reached =
                known.wait_for(|known| known.ended || (known.state == Some(target) && known.notifications > since));
            timeout(limit, reached).await.is_ok_and(|known| known.is_ok_and(|known| !known.ended))
        } else {
            timeout(limit, self.ask_until(target)).await.is_ok_and(|reached| reached)
        };
        if reached {
            return true;
        }
        let state = self.known.borrow().state;
        self.recorder.record(Event::TimedOut {
            what: format!(
                "the state {target} (it is {}{})",
                state.map_or("unknown".into(), |state| state.to_string()),
                if self.known.borrow().ended { ", and the subject's process has ended" } else { "" }
            ),
            after_ms: began.elapsed().as_millis() as u64,
            requirement: requirement_of(target).into(),
        });
        false
    }

    /// Asks a subject that reports no states until it is in this one. `false` if it ended.
    async fn ask_until(&self, target: State) -> bool {
        let tell = self.on_event();
        let mut ticks = tokio::time::interval(ASKING);
        loop {
            ticks.tick().await;
            let Some(subject) = self.subject.as_ref().filter(|_| !self.known.borrow().ended) else { return false };
            let answer = subject.call(method::STATE, json!({}), ANSWER).await;
            if let Ok(Ok(answer)) = answer.map(serde_json::from_value::<StateResult>) {
                // What it is now, it is from now on: the same as a notification.
                tell(SubjectEvent::State(answer.state));
                if answer.state == target {
                    return true;
                }
            }
        }
    }

    pub(super) fn reports_states(&self) -> bool {
        self.initialized.as_ref().is_some_and(|initialized| {
            initialized.known_capabilities().any(|known| known == watertight_protocol::Capability::ReportsStates)
        })
    }

    /// Starts the subject's process and initializes it.
    pub(super) async fn start_subject(&mut self, first: bool) -> Result<bool, CaseError> {
        if first {
            self.markers.barrier(Cause::Start);
        }
        self.runs += 1;
        self.killed = false;
        *self.expected_end.lock().expect("no holder panics") = false;
        self.known.send_modify(|known| known.ended = false);
        let mut command = self.plan.subject.clone();
        command.environment.extend(self.plan.definition.environment.clone());
        let log = self.plan.folder.join("subject.log");
        self.recorder.record(Event::Started { run: self.runs });
        let subject = Subject::start(&self.client, &command, &log, self.on_event()).await?;
        self.subject = Some(subject);
        let params =
            InitializeParams { protocol: PROTOCOL_VERSION, state_dir: STATE_DIR.into(), uplink: UPLINK.into() };
        let before = self.known.borrow().notifications;
        self.known.send_modify(|known| known.initializing = !first);
        let answer = self.call(method::INITIALIZE, serde_json::to_value(&params).expect("plain"), ANSWER).await;
        let initialized: InitializeResult = match answer.map(serde_json::from_value) {
            Ok(Ok(initialized)) => initialized,
            Ok(Err(error)) => {
                self.recorder.record(Event::Violation { what: format!("the answer to initialize: {error}") });
                return Ok(false);
            }
            Err(_) => return Ok(false),
        };
        self.recorder.record(Event::Initialized {
            name: initialized.name.clone(),
            version: initialized.version.clone(),
            capabilities: initialized.capabilities.clone(),
            dns_methods: initialized.dns_methods.clone(),
        });
        self.initialized = Some(initialized);
        if first {
            self.known.send_modify(|known| known.state = Some(State::Disconnected));
            self.recorder.record(Event::State { state: State::Disconnected });
            self.markers.barrier(Cause::State { state: State::Disconnected });
            return Ok(true);
        }
        // After the remains of a crash a notification follows the answer. `state` is answered behind it.
        let asked = self.call(method::STATE, json!({}), ANSWER).await;
        let state = match asked.map(serde_json::from_value::<StateResult>) {
            Ok(Ok(answer)) => answer.state,
            _ => return Ok(false),
        };
        if self.known.borrow().notifications == before {
            self.known.send_modify(|known| known.state = Some(state));
        }
        self.markers.barrier(Cause::Restarted { state });
        if state != State::Disconnected && self.reports_states() {
            let mut known = self.known.subscribe();
            let told = known.wait_for(|known| known.ended || known.notifications > before);
            if timeout(TO_NOTICE, told).await.is_err() {
                self.recorder.record(Event::TimedOut {
                    what: format!("a notification of '{state:?}' after the start that found the remains of a crash"),
                    after_ms: TO_NOTICE.as_millis() as u64,
                    requirement: "RST-2".into(),
                });
            }
        }
        Ok(true)
    }

    async fn restart(&mut self) -> Result<bool, CaseError> {
        if self.subject.as_ref().is_some_and(|subject| subject.process().ended().is_none()) {
            self.recorder.record(Event::Harness { problem: "the scenario restarts a subject that still runs".into() });
            return Ok(false);
        }
        if !self.start_subject(false).await? {
            return Ok(false);
        }
        let settings = self.settings();
        self.configure(&settings).await
    }

    async fn tamper(&mut self, how: Tamper) -> Result<bool, CaseError> {
        let mut versions = self.watch.versions();
        let left = self.watch.tamper(how).await?;
        if matches!(how, Tamper::Immutable | Tamper::Mutable) {
            self.unwritable = how == Tamper::Immutable;
            return Ok(true);
        }
        let connected = self.known.borrow().state == Some(State::Connected) && !self.known.borrow().ended;
        self.outsider = Some(left.clone());
        if !connected {
            return Ok(true);
        }
        // Noticed and corrected within 1 s, says STA-5; the judge measures, this only waits until it is done.
        let corrected = versions.wait_for(|version| {
            let servers = version.nameservers();
            version.hash != left.hash && !servers.is_empty() && servers != crate::watch::nameservers(&left.content)
        });
        let began = Instant::now();
        if timeout(TO_CORRECTION, corrected).await.is_err() {
            self.recorder.record(Event::TimedOut {
                what: "the correction of the resolver file".into(),
                after_ms: began.elapsed().as_millis() as u64,
                requirement: "STA-5".into(),
            });
        }
        Ok(true)
    }

    async fn expect(&mut self, index: usize, expected: Expected) -> Result<bool, CaseError> {
        match expected {
            Expected::Restored
            | Expected::RestoredOutsider
            | Expected::ResolverRestored
            | Expected::Approved
            | Expected::UplinkKept => {
                self.snapshot(&format!("step-{index}"), Some(expected)).await?;
            }
            Expected::Error => {
                let error = self.last_error.borrow().clone();
                self.recorder.record(Event::Service {
                    service: "error-answer".into(),
                    works: error.is_some(),
                    detail: error.unwrap_or_else(|| "the last call succeeded".into()),
                });
            }
        }
        Ok(true)
    }
}

fn answer_event(id: u64, name: &str, result: &Result<Value, CallError>, started: Instant) -> Event {
    let error = match result {
        Ok(_) => None,
        Err(CallError::Refused { error, .. }) => Some((error.code, error.message.clone())),
        Err(other) => Some((0, other.to_string())),
    };
    Event::Answer { id, method: name.into(), error, after_ms: started.elapsed().as_millis() as u64 }
}

fn wait_limit(target: State) -> Duration {
    if target == State::Connected { TO_CONNECTED } else { ANSWER }
}

/// Which requirement says that a state is reached.
fn requirement_of(target: State) -> &'static str {
    match target {
        State::Connected => "DNS-7",
        State::Connecting => "FWL-3",
        State::Error => "TRN-5",
        State::Disconnecting | State::Disconnected => "TRN-3",
    }
}

impl Step {
    /// Whether the subject's state may change: a hammer runs through it.
    fn is_transition(&self) -> bool {
        !matches!(self, Step::Probe(_) | Step::Expect(_) | Step::Await(_))
    }

    /// Whether the state is held afterwards, so that it is probed.
    fn leads_to_a_window(&self) -> bool {
        !matches!(self, Step::Send(_) | Step::Await(_) | Step::Expect(_) | Step::Relay(_))
    }
}
