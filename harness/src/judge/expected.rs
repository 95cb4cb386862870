//! What must work: findings about things that did not happen. They are believed only where the evidence is complete.

use super::{
    answers::{is_refused_by_policy, is_slow, must_answer, words},
    policy::{Mode, Policy},
    recording::Recording,
    services,
    timeline::{Interval, Life, Timeline},
    verdict::{Finding, Verdict},
    wire,
};
use crate::{
    agent::wire::{Attempt, Outcome},
    history::{Cause, Event, MarkerKind},
    probe::{self, How, Identity, Kind, Present},
    scenario::{Fault, Step},
};
use std::collections::{BTreeMap, BTreeSet};
use watertight_protocol::State;

/// What happens later than this after an answer was not done when it was given, in nanoseconds: more than any delay of pipes.
const SETTLED: u64 = 100_000_000;

/// What the subject did not do.
#[derive(Debug, Default)]
pub struct Unmet {
    /// Seen by itself: words, ends and deadlines of the subject.
    pub certain: Vec<Finding>,
    /// Known by what was not seen: believed only where the evidence is complete.
    pub by_absence: Vec<Finding>,
    /// No findings.
    pub notes: Vec<String>,
}

/// Everything that must work and did not.
pub fn findings(recording: &Recording, timeline: &Timeline) -> Unmet {
    let mut certain = Vec::new();
    let mut found = Vec::new();
    let mut notes = Vec::new();
    if let Some(reason) = &recording.header.no_user {
        notes.push(reason.clone());
    }
    for (rule, count) in wire::listed(recording, timeline) {
        notes.push(format!("{count} frames permitted and listed: {rule:?}"));
    }
    let steps = &recording.header.definition.steps;
    let kinds = kinds(recording);
    let mut planned: BTreeMap<&str, &str> = BTreeMap::new();
    let mut baseline: BTreeMap<&str, bool> = BTreeMap::new();
    let mut slow: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for (at, record) in recording.records.iter().enumerate() {
        let interval = timeline.at_record(at);
        match &record.event {
            Event::Planned { probes } => {
                planned.extend(probes.iter().map(|probe| (probe.id.as_str(), probe.kind.as_str())))
            }
            Event::Probe { id, attempt } => {
                let Some(kind) = planned.get(id.as_str()).copied() else { continue };
                let answered = matches!(attempt.outcome, Outcome::Answered { .. });
                if interval.life == Life::Before {
                    baseline.insert(kind, answered);
                    continue;
                }
                let Some(definition) = kinds.get(kind) else { continue };
                // A state that changes while it is probed promises nothing in particular.
                let Some(policy) = the_one_policy(interval, record.t) else { continue };
                let edited = recording.records[..at]
                    .iter()
                    .any(|record| matches!(&record.event, Event::File { cause, .. } if cause == "outsider"));
                let must = must_answer(interval, policy, definition, &baseline)
                    // What an outsider left is restored, whether or not it works.
                    .filter(|_| {
                        let not_its_doing = edited || services::is_away(recording, at);
                        let by_system = matches!(definition.how, How::System | How::Search | How::Kept);
                        !(not_its_doing && policy.mode == Mode::Open && by_system)
                    })
                    // A cache may remember for a while that a name could not be had (RFC 9520, section 3.2), which is not
                    // blocking, as long as others can.
                    .filter(|_| {
                        policy.mode != Mode::Open
                            || definition.how != How::Kept
                            || !has_new_names(recording, interval, definition.who, &kinds)
                    });
                if let Some((requirement, why)) = &must
                    && !answered
                {
                    found.push(finding(
                        requirement,
                        if definition.how == How::Search { "R05" } else { "X06" },
                        if policy.mode == Mode::Connected { Verdict::Failed } else { Verdict::Overblock },
                        interval.label(steps, record.t),
                        format!("expected an answer ({why}); {}: {}", definition.target(), words(attempt)),
                    ));
                }
                if must.is_none()
                    && policy.protects()
                    && interval.life == Life::Running
                    && is_refused_by_policy(definition, policy)
                    && is_slow(attempt)
                {
                    let entry = slow.entry(policy.name().into()).or_insert((0, String::new()));
                    entry.0 += 1;
                    entry.1 = format!("{}: {}", definition.target(), words(attempt));
                }
            }
            Event::Service { service, works: true, detail }
                if service == "api" && !api_was_talked_to(recording, interval) =>
            {
                found.push(finding(
                    "FWL-8",
                    "X06",
                    Verdict::Failed,
                    interval.label(steps, record.t),
                    format!("expected the subject to talk to its API; {detail}, and no packet went there"),
                ));
            }
            Event::Service { service, works, detail } => {
                found.extend(service_finding(service, *works, detail, interval, steps, record.t));
            }
            Event::Inbound { id, to, received, control } => {
                found.extend(inbound_finding(id, to, *received, *control, interval, steps, record.t));
            }
            Event::TimedOut { what, after_ms, requirement } => {
                let requirement = asked_for(recording, at, requirement);
                certain.push(finding(
                    requirement,
                    class_of_requirement(requirement),
                    Verdict::Failed,
                    interval.label(steps, record.t),
                    format!("expected {what} in time; it did not come within {} s", after_ms.div_ceil(1000)),
                ));
            }
            Event::Violation { what } => certain.push(finding(
                "RST-6",
                "R10",
                Verdict::Failed,
                interval.label(steps, record.t),
                format!("expected the adapter protocol to be kept; the adapter sent {what}"),
            )),
            Event::Ended { how, expected: true }
                if how.starts_with("Killed") && !is_signal_expected(how, interval, steps) =>
            {
                certain.push(finding(
                    "RST-5",
                    "X02",
                    Verdict::Failed,
                    interval.label(steps, record.t),
                    format!("expected the subject to end in order; its process ended: {how}"),
                ));
            }
            Event::Answer { id, method, error: None, .. } if method == "disconnect" || method == "shutdown" => {
                if let Some(late) = carried_out_after(recording, at, *id) {
                    certain.push(finding(
                        if method == "shutdown" { "RST-5" } else { "RST-1" },
                        "X06",
                        Verdict::Failed,
                        interval.label(steps, record.t),
                        format!("expected '{method}' to be answered when it is done; {late}"),
                    ));
                }
            }
            Event::Marker {
                marker: MarkerKind::Barrier,
                cause: Cause::Restarted { state: State::Disconnected },
                ..
            } if interval.state == Some(State::Error) => {
                certain.push(finding(
                    "RST-2",
                    "X06",
                    Verdict::Failed,
                    interval.label(steps, record.t),
                    "expected 'error' or 'connecting' after a crash in a protected state, until it is told; it says 'disconnected'"
                        .into(),
                ));
            }
            Event::Ended { how, expected: false } => certain.push(finding(
                "TRN-6",
                "T07",
                Verdict::Failed,
                interval.label(steps, record.t),
                format!("expected the subject to go on; its process ended: {how}"),
            )),
            Event::Answer { method, error: Some((code, text)), .. }
                if !is_error_expected(method, *code, interval, steps) =>
            {
                let requirement = if method == "shutdown" { "RST-5" } else { "RST-6" };
                certain.push(finding(
                    requirement,
                    "R10",
                    Verdict::Failed,
                    interval.label(steps, record.t),
                    format!("expected '{method}' to succeed; the adapter answered {code}: {text}"),
                ));
            }
            _ => {}
        }
    }
    for (mode, (count, example)) in slow {
        found.push(Finding {
            count,
            ..finding(
                "FWL-12",
                "X06",
                Verdict::Failed,
                mode,
                format!("expected blocked DNS to be refused at once; {count} attempts were left waiting, for example {example}"),
            )
        });
    }
    Unmet { certain: merge(certain), by_absence: merge(found), notes }
}

/// Whether somebody's system resolver finds names in this interval that nobody asked for before.
fn has_new_names(recording: &Recording, interval: &Interval, who: probe::Who, kinds: &BTreeMap<String, Kind>) -> bool {
    let records = || recording.records.get(interval.records.clone()).into_iter().flatten();
    let planned = |id: &str| {
        records().find_map(|record| match &record.event {
            Event::Planned { probes } => {
                probes.iter().find(|probe| probe.id == id).and_then(|probe| kinds.get(&probe.kind))
            }
            _ => None,
        })
    };
    records().any(|record| match &record.event {
        Event::Probe { id, attempt: Attempt { outcome: Outcome::Answered { .. }, .. } } => {
            planned(id).is_some_and(|kind| kind.how == How::System && kind.who == who)
        }
        _ => false,
    })
}

/// Every kind of probe that the case may have, by id.
pub(super) fn kinds(recording: &Recording) -> BTreeMap<String, Kind> {
    let identities: BTreeSet<Identity> = recording
        .records
        .iter()
        .filter_map(|record| match &record.event {
            Event::Identities { identities } => Some(identities.iter().copied()),
            _ => None,
        })
        .flatten()
        .collect();
    let present = Present {
        user: true,
        guest: true,
        search: true,
        tunnel: true,
        identities: identities.into_iter().collect(),
        forwarder: recording.header.axes.profile.answers_locally(),
    };
    [crate::testbed::plan::RELAY_PORT, 53]
        .into_iter()
        .flat_map(|port| probe::catalogue(&present, port))
        .map(|kind| (kind.id.clone(), kind))
        .collect()
}

/// The requirement that says that an error state must be reached: where a failure of DNS is brought about, that of its method.
fn asked_for<'a>(recording: &Recording, at: usize, requirement: &'a str) -> &'a str {
    if requirement != "TRN-5" {
        requirement
    } else if services::is_broken(recording, at) {
        "RCF-3"
    } else if recording.header.definition.environment.contains_key("WATERTIGHT_DNS_METHOD") {
        "SEL-2"
    } else {
        requirement
    }
}

/// What of a `disconnect` or a `shutdown` came after its answer, if nothing else was asked for meanwhile.
fn carried_out_after(recording: &Recording, answer: usize, id: u64) -> Option<String> {
    let (before, after) = recording.records.split_at(answer);
    let last = before.iter().rev().find_map(|record| match &record.event {
        Event::Request { id, .. } => Some(*id),
        _ => None,
    });
    if last != Some(id) {
        return None;
    }
    let answered = after.first()?.t;
    let after_it = |t: u64| format!("{:.1} ms after the answer", (t - answered) as f64 / 1e6);
    after
        .iter()
        .take_while(|record| {
            !matches!(record.event, Event::Request { .. } | Event::Step { .. } | Event::Ended { .. } | Event::End)
        })
        .find_map(|record| match &record.event {
            Event::File { by_harness: false, cause, changed: Some(changed), .. } if cause != "snapshot" => {
                (*changed > answered + SETTLED).then(|| format!("the resolver file was changed {}", after_it(*changed)))
            }
            Event::Generation { id, .. } if record.earliest() > answered + SETTLED => {
                Some(format!("the firewall was changed {} (generation {id})", after_it(record.earliest())))
            }
            Event::Bus { message, link: Some(link), service: None, member, .. }
                if message == "call"
                    && record.earliest() > answered + SETTLED
                    && (member.starts_with("Set") || member.starts_with("Revert")) =>
            {
                Some(format!("{link} was told {member} {}", after_it(record.earliest())))
            }
            _ => None,
        })
}

/// A process that is told to stop by a signal may end by it.
fn is_signal_expected(how: &str, interval: &Interval, steps: &[Step]) -> bool {
    let step = interval.step.and_then(|index| steps.get(index));
    match step {
        Some(Step::Fault(Fault::Kill)) => true,
        Some(Step::Fault(Fault::Terminate)) => how == format!("Killed({})", libc::SIGTERM),
        _ => false,
    }
}

fn finding(requirement: &str, class: &str, verdict: Verdict, window: String, summary: String) -> Finding {
    Finding {
        requirement: requirement.into(),
        class: class.into(),
        verdict,
        window,
        summary,
        count: 1,
        evidence: None,
        detail: None,
    }
}

/// One finding for each requirement, class and window; the others are counted.
fn merge(found: Vec<Finding>) -> Vec<Finding> {
    let mut merged: Vec<Finding> = Vec::new();
    for finding in found {
        match merged.iter_mut().find(|known| {
            (&known.requirement, &known.class, known.verdict, &known.window)
                == (&finding.requirement, &finding.class, finding.verdict, &finding.window)
        }) {
            Some(known) => known.count += finding.count,
            None => merged.push(finding),
        }
    }
    merged
}

/// The policy, if only one can hold at this time and the subject is there to keep it.
pub(super) fn the_one_policy(interval: &Interval, t: u64) -> Option<&Policy> {
    let mut policies = interval.policies_at(t);
    policies.dedup();
    match policies.as_slice() {
        [policy] => Some(policy),
        _ => None,
    }
}

fn service_finding(
    service: &str,
    works: bool,
    detail: &str,
    interval: &Interval,
    steps: &[Step],
    t: u64,
) -> Option<Finding> {
    if works {
        return None;
    }
    let (requirement, what) = match service {
        "error-answer" => {
            let text = format!("expected the call to fail with words that help; {detail}");
            return Some(finding("SEL-2", "X06", Verdict::Failed, interval.label(steps, t), text));
        }
        "api" => ("FWL-8", "the API endpoint"),
        "loopback" => ("FWL-11", "loopback"),
        "neighbour4" => ("FWL-11", "ARP"),
        "neighbour6" => ("FWL-11", "neighbour discovery"),
        "dhcp4" => ("FWL-11", "DHCPv4"),
        _ => ("FWL-11", "DHCPv6"),
    };
    let text = format!("expected {what} to work in every state; {detail}");
    Some(finding(requirement, "X06", Verdict::Overblock, interval.label(steps, t), text))
}

/// Whether the API's address was sent anything in this interval.
fn api_was_talked_to(recording: &Recording, interval: &Interval) -> bool {
    let api = crate::testbed::plan::API.ip();
    recording.links.get("uplink").is_some_and(|link| {
        link.frames.iter().any(|frame| {
            frame.after_barrier == interval.barrier && frame.decoded.ip.as_ref().is_some_and(|ip| ip.dst == api)
        })
    })
}

fn inbound_finding(
    id: &str,
    to: &str,
    received: bool,
    control: bool,
    interval: &Interval,
    steps: &[Step],
    t: u64,
) -> Option<Finding> {
    if control || !received || interval.life != Life::Running {
        return None;
    }
    let policy = the_one_policy(interval, t)?;
    if policy.mode != Mode::Connected {
        return None;
    }
    let text =
        format!("expected a packet to {to} that arrives unasked on the uplink to be dropped; a socket received it");
    match id {
        "tunnel-address" | "tunnel-address6" => {
            Some(finding("FWL-15", "F03", Verdict::Leak, interval.label(steps, t), text))
        }
        "from-port-53" if !policy.approved().lan.is_empty() && !policy.allows_lan() => {
            Some(finding("FWL-7", "F05", Verdict::Leak, interval.label(steps, t), text))
        }
        _ => None,
    }
}

/// Whether an error answer is what the scenario is about.
fn is_error_expected(method: &str, code: i64, interval: &Interval, steps: &[Step]) -> bool {
    // Unknown methods are how a subject says that it cannot.
    if code == watertight_protocol::code::METHOD_NOT_FOUND {
        return true;
    }
    // Nothing else is going on when it is asked to stop; an end without an answer is no answer.
    if method == "shutdown" {
        return false;
    }
    let at = |later: usize| interval.step.and_then(|index| steps.get(index + later));
    let wants_error = |step: &Step| {
        matches!(
            step,
            Step::Connect(watertight_protocol::State::Error) | Step::Expect(crate::scenario::Expected::Error)
        )
    };
    let here = at(0).is_some_and(wants_error) || at(1).is_some_and(wants_error);
    let killed = matches!(at(0), Some(Step::Fault(Fault::Kill)));
    // A call that another one overtook may say so; `connect` may be answered as late as when it is done.
    let asked = matches!(at(0), Some(Step::Connect(_)));
    let overtaken = method == "connect" && (!asked || steps.iter().any(|step| matches!(step, Step::Send(_))));
    here || killed || overtaken || matches!(interval.life, Life::Dead | Life::Stopped)
}

fn class_of_requirement(requirement: &str) -> &'static str {
    match requirement {
        "STA-5" => "P01",
        "SEL-2" | "RCF-3" => "R06",
        "TRN-3" | "RST-5" => "X02",
        "TRN-6" => "T08",
        _ => "X06",
    }
}
