//! Whether what a verdict is about was tried: planned probes, held states, transitions, expectations.

use super::{
    evidence::condition,
    recording::Recording,
    timeline::{Life, Timeline},
    verdict::Condition,
};
use crate::{
    agent::wire::Outcome,
    history::{Event, Record},
    scenario::{Expected, Step},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Windows with their planned probes and attempts: number, kind of each probe by id, attempts by id.
pub(super) struct Window<'a> {
    number: usize,
    at: usize,
    pub(super) kinds: BTreeMap<&'a str, &'a str>,
    pub(super) names: HashMap<&'a str, &'a str>,
    tried: BTreeSet<&'a str>,
    not_possible: Vec<String>,
}

pub(super) fn windows(recording: &Recording) -> Vec<Window<'_>> {
    let mut windows: Vec<Window<'_>> = Vec::new();
    for (at, record) in recording.records.iter().enumerate() {
        match &record.event {
            Event::Planned { probes } => windows.push(Window {
                number: windows.len() + 1,
                at,
                kinds: probes.iter().map(|probe| (probe.id.as_str(), probe.kind.as_str())).collect(),
                names: probes.iter().map(|probe| (probe.name.as_str(), probe.kind.as_str())).collect(),
                tried: BTreeSet::new(),
                not_possible: Vec::new(),
            }),
            Event::Probe { id, attempt } => {
                if let Some(window) = windows.last_mut() {
                    if attempt.tried {
                        window.tried.insert(id);
                    } else if let Outcome::NotPossible { reason } = &attempt.outcome {
                        window.not_possible.push(format!("{id}: {reason}"));
                    }
                }
            }
            _ => {}
        }
    }
    windows
}

/// Every planned probe was really tried; every state that was held was probed; every transition was hammered.
pub(super) fn stimulus(recording: &Recording, timeline: &Timeline) -> Condition {
    let mut problems = Vec::new();
    let windows = windows(recording);
    let (mut planned, mut tried) = (0, 0);
    let expected: BTreeSet<&str> =
        windows.first().map(|first| first.kinds.values().copied().collect()).unwrap_or_default();
    for window in &windows {
        planned += window.kinds.len();
        tried += window.tried.len();
        let kinds: BTreeSet<&str> = window.kinds.values().copied().collect();
        for kind in expected.difference(&kinds) {
            problems.push(format!("{kind} was not planned in window {}", window.number));
        }
        let interval = timeline.at_record(window.at);
        for (id, kind) in &window.kinds {
            // A connection from before can be over by its own means; that it could not be used is no stimulus, and none is needed.
            // So can a tunnel's interface.
            let over = (kind.starts_with("old-tcp") && interval.life != Life::Before) || kind.ends_with("-tunnel-root");
            if !window.tried.contains(id) && !over {
                let why = window.not_possible.iter().find(|text| text.starts_with(*id)).cloned();
                problems.push(why.unwrap_or_else(|| format!("{id} was not tried")));
            }
        }
    }
    if expected.is_empty() {
        problems.push("no probes were planned".into());
    }
    let (mut hammers, mut reports) = (0, 0);
    for record in &recording.records {
        match &record.event {
            Event::HammerPlanned { .. } => hammers += 1,
            Event::Hammer { id, report } => {
                reports += 1;
                if report.attempts == 0 {
                    problems.push(format!("the hammer of {id} made no attempt"));
                }
                let step = id.strip_prefix("step-").and_then(|index| index.parse::<usize>().ok());
                let blind = report.budget_spent_at.is_some_and(|spent| {
                    timeline.intervals.iter().any(|interval| {
                        interval.in_step
                            && interval.step == step
                            && interval.time.0 > spent
                            && interval.protects_at(interval.time.0)
                    })
                });
                if blind {
                    problems.push(format!("the hammer of {id} had sent all it may before the step began to protect"));
                }
            }
            _ => {}
        }
    }
    if hammers != reports {
        problems.push(format!("{hammers} hammers were planned and {reports} told what they did"));
    }
    let begun: BTreeSet<usize> = recording
        .records
        .iter()
        .filter_map(|record| match &record.event {
            Event::Step { index, .. } => Some(*index),
            _ => None,
        })
        .collect();
    let unsupported = super::missing_capabilities(recording).is_some();
    let skipped: Vec<String> = (0..recording.header.definition.steps.len())
        .filter(|index| !unsupported && !begun.contains(index))
        .map(|index| (index + 1).to_string())
        .collect();
    if !skipped.is_empty() {
        problems.push(format!("the scenario was not carried out to its end: step {} is missing", skipped.join(", ")));
    }
    let probed_steps = timeline.intervals.iter().filter(|interval| interval.window.is_some()).count();
    let wanted = recording
        .records
        .iter()
        .filter(|record| matches!(&record.event, Event::Step { step, .. } if !matches!(step, Step::Send(_) | Step::Await(_) | Step::Expect(_) | Step::Relay(_))))
        .count();
    if windows.len() < wanted + 1 {
        problems.push(format!("{} windows were probed, {} steps needed one", windows.len(), wanted + 1));
    }
    problems.extend(neglected_steps(recording));
    condition(
        "stimulus",
        problems,
        format!(
            "{tried} of {planned} probes tried in {} windows ({probed_steps} intervals), {reports} hammers",
            windows.len()
        ),
    )
}

/// Steps whose state was not probed, that nobody hammered, or whose expectation was not looked at.
fn neglected_steps(recording: &Recording) -> Vec<String> {
    let records = &recording.records;
    let mut problems = Vec::new();
    let mut begins: Vec<usize> =
        (0..records.len()).filter(|at| matches!(records[*at].event, Event::Step { .. })).collect();
    let first = begins.first().copied().unwrap_or(records.len());
    let windows =
        |records: &[Record]| records.iter().filter(|record| matches!(record.event, Event::Planned { .. })).count();
    // The baseline, and the state in which the subject is with its first settings.
    let configured = records[..first].iter().any(|record| matches!(record.event, Event::Settings(_)));
    if windows(&records[..first]) < 1 + usize::from(configured) {
        problems.push("no window was probed before the first step".into());
    }
    begins.push(records.len());
    for pair in begins.windows(2) {
        let during = &records[pair[0]..pair[1]];
        let Some(Event::Step { index, step }) = during.first().map(|record| &record.event) else { continue };
        let number = index + 1;
        if !matches!(step, Step::Send(_) | Step::Await(_) | Step::Expect(_) | Step::Relay(_)) && windows(during) == 0 {
            problems.push(format!("no window was probed after step {number}"));
        }
        let hammered = during.iter().any(|record| matches!(record.event, Event::HammerPlanned { .. }));
        if !matches!(step, Step::Probe(_) | Step::Expect(_) | Step::Await(_)) && !hammered {
            problems.push(format!("no hammer was planned for step {number}"));
        }
        let compared = during.iter().any(|record| matches!(record.event, Event::Snapshot { compared: Some(_), .. }));
        if matches!(step, Step::Expect(expected) if *expected != Expected::Error) && !compared {
            problems.push(format!("no snapshot was taken for the expectation of step {number}"));
        }
    }
    problems
}
