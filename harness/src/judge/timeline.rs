//! Which policies hold when: intervals between barriers, and within them the moment from which a transition counts.
//!
//! Windows are cut in the recording itself: a frame belongs to the interval between the two barriers that are around it
//! in its own link's capture. Within an interval the clock is used only where the design says that a transition runs
//! from the first configuration event that belongs to the next state.

use super::{
    policy::{Mode, Policy},
    recording::Recording,
};
use crate::{
    history::{Cause, Event, MarkerKind, Record},
    scenario::{Fault, RelayMode, Step},
};
use watertight_protocol::{Settings, State};

/// How late a notification of a configuration event may be read after the event, in nanoseconds.
const NOTICE: u64 = 50_000_000;
/// The longest that a transition may count before its notification, in nanoseconds.
const TRANSITION: u64 = 1_000_000_000;

/// The stretch between two barriers.
#[derive(Debug, Clone)]
pub struct Interval {
    /// The barrier at its start; 0 for what is before the first.
    pub barrier: u64,
    /// Where in the history it begins and ends.
    pub records: std::ops::Range<usize>,
    /// When it begins and ends, by the history.
    pub time: (u64, u64),
    /// Policies of which any may explain a frame.
    pub policies: Vec<Policy>,
    /// Policies that may explain a frame too, each from this time on.
    pub next: Vec<(u64, Policy)>,
    /// What the subject's process is.
    pub life: Life,
    /// The last reported state.
    pub state: Option<State>,
    /// The step that is carried out, or was carried out last.
    pub step: Option<usize>,
    /// Whether the step is still being carried out.
    pub in_step: bool,
    /// The window's number, while its probes are made.
    pub window: Option<usize>,
    /// Whether the tunnel interface was taken away before.
    pub tunnel_removed: bool,
    /// Whether the relay was silent at some time since the last connect.
    pub relay_silent: bool,
}

/// What the subject's process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Not started yet.
    Before,
    /// Running.
    Running,
    /// Stopped by SIGSTOP.
    Frozen,
    /// Killed, or ended by itself.
    Dead,
    /// Ended in order.
    Stopped,
}

/// A case's intervals.
#[derive(Debug)]
pub struct Timeline {
    /// In order; the first is what is before the first barrier.
    pub intervals: Vec<Interval>,
}

impl Timeline {
    /// The intervals of a recording.
    pub fn of(recording: &Recording) -> Self {
        Walk::new(recording).run()
    }

    /// The interval that begins at a barrier.
    pub fn at(&self, barrier: u64) -> Option<&Interval> {
        self.intervals.iter().find(|interval| interval.barrier == barrier)
    }

    /// The interval in which a place of the history lies.
    pub fn at_record(&self, index: usize) -> &Interval {
        self.intervals
            .iter()
            .find(|interval| interval.records.contains(&index))
            .unwrap_or_else(|| self.intervals.last().expect("there is always one"))
    }
}

impl Interval {
    /// The policies that may explain a frame at `t`.
    pub fn policies_at(&self, t: u64) -> Vec<&Policy> {
        let mut policies: Vec<&Policy> = self.policies.iter().collect();
        policies.extend(self.next.iter().filter(|(from, _)| t >= *from).map(|(_, policy)| policy));
        policies
    }

    /// Whether a transition is under way at `t`: more than one policy holds.
    pub fn is_transition_at(&self, t: u64) -> bool {
        let policies = self.policies_at(t);
        policies.windows(2).any(|pair| pair[0] != pair[1])
    }

    /// Whether nothing may leave but what a protecting policy permits.
    pub fn protects_at(&self, t: u64) -> bool {
        self.policies_at(t).iter().all(|policy| policy.protects())
    }

    /// In words, for findings.
    pub fn label(&self, steps: &[Step], t: u64) -> String {
        let mut names: Vec<&str> = self.policies_at(t).iter().map(|policy| policy.name()).collect();
        names.dedup();
        let mut label = names.join(" → ");
        label.push_str(match self.life {
            Life::Before => ", before the subject",
            Life::Running => "",
            Life::Frozen => ", subject frozen",
            Life::Dead => ", subject dead",
            Life::Stopped => ", after the subject",
        });
        match self.step {
            Some(index) => {
                let step = steps.get(index).and_then(|step| toml::to_string(step).ok());
                let step = step.as_deref().map_or("shutdown", str::trim).replace('\n', ", ");
                label.push_str(&format!(" ({} step {}: {step})", if self.in_step { "in" } else { "after" }, index + 1));
            }
            None => label.push_str(" (at the start)"),
        }
        label
    }
}

struct Barrier {
    id: u64,
    cause: Cause,
    at: usize,
    t: u64,
}

struct Walk<'a> {
    recording: &'a Recording,
    barriers: Vec<Barrier>,
    policies: Vec<Policy>,
    settings: Option<Settings>,
    state: Option<State>,
    life: Life,
    step: Option<usize>,
    in_step: bool,
    window: usize,
    probing: bool,
    tunnel_removed: bool,
    relay_silent: bool,
    ending: bool,
    /// What the calls that are under way lead to.
    heading: Vec<State>,
    /// Restarted after a crash in a protected state, it says `disconnected` and has not been told to disconnect.
    untold: bool,
    /// Whether a connection was ever asked for.
    asked_to_connect: bool,
    /// How many reports of `disconnected` were asked for and have not come yet.
    openings: usize,
}

impl<'a> Walk<'a> {
    fn new(recording: &'a Recording) -> Self {
        let barriers = recording
            .records
            .iter()
            .enumerate()
            .filter_map(|(at, record)| match &record.event {
                Event::Marker { id, marker: MarkerKind::Barrier, cause, .. } => {
                    // The wire's own clock where the barrier was seen: it is the clock of the frames.
                    let t = recording
                        .links
                        .get("uplink")
                        .and_then(|link| link.barriers.get(id))
                        .copied()
                        .unwrap_or(record.t);
                    Some(Barrier { id: *id, cause: cause.clone(), at, t })
                }
                _ => None,
            })
            .collect();
        Self {
            recording,
            barriers,
            policies: vec![Policy::open()],
            settings: None,
            state: None,
            life: Life::Before,
            step: None,
            in_step: false,
            window: 0,
            probing: false,
            tunnel_removed: false,
            relay_silent: false,
            ending: false,
            heading: Vec::new(),
            untold: false,
            asked_to_connect: false,
            openings: 0,
        }
    }

    fn run(mut self) -> Timeline {
        let count = self.recording.records.len();
        let first = self.barriers.first().map_or(count, |barrier| barrier.at);
        let end_of_time = self.recording.records.last().map_or(0, |record| record.t);
        let mut intervals =
            vec![self.interval(0, 0..first, (0, self.barriers.first().map_or(end_of_time, |b| b.t)), Vec::new())];
        for index in 0..self.barriers.len() {
            let (id, at, t) = (self.barriers[index].id, self.barriers[index].at, self.barriers[index].t);
            self.enter(index);
            let (end, end_t) = self.barriers.get(index + 1).map_or((count, end_of_time), |next| (next.at, next.t));
            let before = self.policies.clone();
            self.take_events(at..end);
            let after = std::mem::replace(&mut self.policies, before);
            // New settings count from the moment they are given, the old ones until they are in force.
            let mut interval = self.interval(id, at..end, (t, end_t), self.next_policies(index));
            for policy in &after {
                if !interval.policies.contains(policy) {
                    interval.policies.push(policy.clone());
                }
            }
            self.policies = after;
            intervals.push(interval);
        }
        Timeline { intervals }
    }

    fn interval(
        &self,
        barrier: u64,
        records: std::ops::Range<usize>,
        time: (u64, u64),
        next: Vec<(u64, Policy)>,
    ) -> Interval {
        Interval {
            barrier,
            records,
            time,
            policies: self.policies.clone(),
            next,
            life: self.life,
            state: self.state,
            step: self.step,
            in_step: self.in_step,
            window: self.probing.then_some(self.window),
            tunnel_removed: self.tunnel_removed,
            relay_silent: self.relay_silent,
        }
    }

    /// What a barrier changes.
    fn enter(&mut self, index: usize) {
        match self.barriers[index].cause.clone() {
            Cause::Baseline | Cause::End => {}
            Cause::Start => self.life = Life::Running,
            Cause::Step { index } => {
                self.step = Some(index);
                self.in_step = true;
                self.begin_step(index);
            }
            Cause::StepDone { .. } => self.in_step = false,
            Cause::State { state } => {
                self.state = Some(state);
                self.untold = false;
                self.policies = vec![self.reported(state, self.openings, self.settings.as_ref())];
                if state == State::Disconnected {
                    self.openings = self.openings.saturating_sub(1);
                }
                if state == State::Connected {
                    // A tunnel that was just made works.
                    self.relay_silent = false;
                }
                if matches!(state, State::Connected | State::Error | State::Disconnected) {
                    self.heading.clear();
                }
            }
            Cause::Restarted { state } => {
                self.life = Life::Running;
                self.heading.clear();
                // After a crash in a protected state the subject blocks until it is told, whatever it calls its state. With
                // lockdown alone there was nothing to crash.
                let protected = |policy: &Policy| policy.protects() && policy.mode != Mode::Lockdown;
                self.untold = state == State::Disconnected && self.policies.iter().all(protected);
                self.state = Some(if self.untold { State::Error } else { state });
                self.policies = self.state.map(|state| Policy::of(state, self.settings.as_ref())).into_iter().collect();
            }
            Cause::Ended => {
                if self.ending {
                    self.life = Life::Stopped;
                    self.state = None;
                    self.policies = vec![Policy::of(State::Disconnected, self.settings.as_ref())];
                } else {
                    self.life = Life::Dead;
                    // What a call had begun may be in force, in part or whole.
                    for state in std::mem::take(&mut self.heading) {
                        self.policies.push(Policy::of(state, self.settings.as_ref()));
                    }
                }
            }
            Cause::ProbesBegin => {
                self.window += 1;
                self.probing = true;
            }
            Cause::ProbesEnd => self.probing = false,
        }
    }

    /// The policy of a reported state. A subject that was connected opens when it is told to, and only then: if it reports
    /// `disconnected` unasked, it has to block all the same.
    fn reported(&self, state: State, openings: usize, settings: Option<&Settings>) -> Policy {
        let unasked = state == State::Disconnected && self.asked_to_connect && openings == 0 && !self.ending;
        Policy::of(if unasked { State::Error } else { state }, settings)
    }

    fn begin_step(&mut self, index: usize) {
        // What was sent without waiting may still be carried out in the next step.
        if !self.follows_a_send(index) {
            self.openings = 0;
        }
        match self.recording.header.definition.steps.get(index) {
            None | Some(Step::Shutdown(_) | Step::Fault(Fault::Terminate | Fault::EndOfFile)) => self.ending = true,
            Some(Step::Fault(Fault::Stop)) => self.life = Life::Frozen,
            Some(Step::Fault(Fault::Continue)) => self.life = Life::Running,
            Some(Step::Restart(_)) => self.ending = false,
            Some(Step::Link(_)) => self.tunnel_removed = true,
            Some(Step::Connect(_)) => self.tunnel_removed = false,
            Some(Step::Relay(RelayMode::Silent)) => self.relay_silent = true,
            Some(_) => {}
        }
    }

    /// What the events of an interval change.
    fn take_events(&mut self, records: std::ops::Range<usize>) {
        for record in &self.recording.records[records] {
            match &record.event {
                Event::Settings(settings) => {
                    self.settings = Some(settings.clone());
                    if let Some(state) = self.state {
                        self.policies = vec![Policy::of(state, self.settings.as_ref())];
                    }
                }
                Event::Request { method, .. } => {
                    self.asked_to_connect |= method == "connect";
                    self.openings += usize::from(method == "disconnect");
                    if let Some(states) = heading_of(method) {
                        self.heading = states;
                    }
                }
                Event::Answer { method, error: None, .. } if method == "disconnect" && self.untold => {
                    self.untold = false;
                    self.state = Some(State::Disconnected);
                    self.policies = vec![Policy::of(State::Disconnected, self.settings.as_ref())];
                }
                _ => {}
            }
        }
    }

    /// The policies of the states that are reported before the next step, and from when each counts.
    fn next_policies(&self, index: usize) -> Vec<(u64, Policy)> {
        let records = &self.recording.records;
        let mut settings = self.settings.clone();
        let mut taken = self.barriers[index].at;
        // What the harness or the subject said before: a transition begins after it.
        let mut previous = self.barriers[..=index]
            .iter()
            .rfind(|barrier| match barrier.cause {
                Cause::Step { .. } | Cause::Restarted { .. } => true,
                // Notifications of one step may come late: what it led to may be in force before they are read.
                Cause::State { .. } => !self.in_step,
                _ => false,
            })
            .map(|barrier| (barrier.t, matches!(barrier.cause, Cause::Step { .. })))
            .unwrap_or_default();
        let mut openings = self.openings;
        let mut heading = self.heading.clone();
        let mut policies = Vec::new();
        for target in &self.barriers[index + 1..] {
            for record in &records[taken..target.at] {
                match &record.event {
                    Event::Settings(new) => settings = Some(new.clone()),
                    Event::Request { method, .. } => {
                        openings += usize::from(method == "disconnect");
                        if let Some(states) = heading_of(method) {
                            heading = states;
                        }
                    }
                    _ => {}
                }
            }
            taken = target.at;
            let state = match &target.cause {
                // What was sent without waiting may be reported in the next step, and in force before it begins.
                Cause::Step { index } if self.follows_a_send(*index) => continue,
                Cause::Step { .. } | Cause::Start => break,
                Cause::State { state } | Cause::Restarted { state } => *state,
                Cause::Ended if self.ending => State::Disconnected,
                Cause::Ended => {
                    // What a call had begun may be in force already, or come into force by a helper that outlives it.
                    let from = self.transition_start(since_of(previous), target.t);
                    policies.extend(
                        heading.drain(..).map(|state| (from, self.reported(state, openings, settings.as_ref()))),
                    );
                    continue;
                }
                _ => continue,
            };
            let from = self.transition_start(since_of(previous), target.t);
            policies.push((from, self.reported(state, openings, settings.as_ref())));
            if state == State::Disconnected {
                openings = openings.saturating_sub(1);
            }
            // Notifications of one step may come late and close together: its transitions begin with it at the earliest.
            if !previous.1 {
                previous = (target.t, false);
            }
        }
        policies
    }

    /// Whether the step before this one sent a request and did not wait, or waited for a part of what it leads to.
    fn follows_a_send(&self, index: usize) -> bool {
        let steps = &self.recording.header.definition.steps;
        let before = index.checked_sub(1).and_then(|before| steps.get(before));
        before.is_some_and(|step| matches!(step, Step::Send(_) | Step::Await(_)))
    }

    /// When a transition that was over at `end` began: with the first configuration event after `since`. One that was noticed after
    /// the end may have happened before it.
    fn transition_start(&self, since: u64, end: u64) -> u64 {
        let changes = self.recording.records.iter().filter(|record| {
            record.t >= since
                && record.earliest() <= end
                && matches!(
                    record.event,
                    Event::Generation { .. }
                        | Event::Network { .. }
                        | Event::Resolver { .. }
                        | Event::File { by_harness: false, .. }
                )
        });
        match changes.map(Record::earliest).min() {
            Some(change) => change.saturating_sub(NOTICE).max(since).max(end.saturating_sub(TRANSITION)),
            None => end.saturating_sub(NOTICE).max(since),
        }
    }
}

/// A step is told before it begins; a notification is noticed after it was sent.
fn since_of((told, by_step): (u64, bool)) -> u64 {
    if by_step { told } else { told.saturating_sub(NOTICE) }
}

/// The states that a call leads through.
fn heading_of(method: &str) -> Option<Vec<State>> {
    match method {
        "connect" => Some(vec![State::Connecting, State::Connected]),
        "disconnect" => Some(vec![State::Disconnecting, State::Disconnected]),
        "block" => Some(vec![State::Error]),
        _ => None,
    }
}
