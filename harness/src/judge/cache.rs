//! FLU-1: an answer that another state's servers gave is not given again from a cache.
//!
//! One name is asked of the system's resolver in every window, and the far resolvers' answers may be kept. Each far resolver
//! answers with an address of its own, so that an answer tells whose it is: it must be one that is to be had in its window.

use super::{
    expected::{kinds, the_one_policy},
    policy::{Mode, Policy},
    recording::Recording,
    timeline::{Life, Timeline},
    verdict::{Finding, Verdict},
};
use crate::{
    agent::wire::Outcome,
    history::{Cause, Event},
    probe::{How, Kind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// An answer of the system's resolver that a cache may have given.
struct Kept<'a> {
    at: usize,
    kind: &'a Kind,
    addresses: &'a [IpAddr],
}

/// All answers that are another state's.
pub fn findings(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let kinds = kinds(recording);
    let steps = &recording.header.definition.steps;
    let mut found: Vec<Finding> = Vec::new();
    let mut planned: BTreeMap<&str, &Kind> = BTreeMap::new();
    let mut kept: Vec<Kept<'_>> = Vec::new();
    let mut to_be_had: BTreeSet<IpAddr> = BTreeSet::new();
    for (at, record) in recording.records.iter().enumerate() {
        match &record.event {
            Event::Planned { probes } => planned
                .extend(probes.iter().filter_map(|probe| Some((probe.id.as_str(), kinds.get(probe.kind.as_str())?)))),
            Event::Probe { id, attempt } => {
                let interval = timeline.at_record(at);
                let (Some(kind), Outcome::Answered { addresses, .. }) = (planned.get(id.as_str()), &attempt.outcome)
                else {
                    continue;
                };
                let Some(policy) = the_one_policy(interval, record.t).filter(|_| interval.life != Life::Before) else {
                    continue;
                };
                if kind.how == How::Kept {
                    kept.push(Kept { at, kind, addresses });
                } else if may_answer(kind, policy) {
                    to_be_had.extend(addresses);
                }
            }
            Event::Marker { cause: Cause::ProbesEnd, .. } => {
                for answer in kept.drain(..) {
                    let fresh = answer.addresses.iter().any(|address| to_be_had.contains(address));
                    if fresh || to_be_had.is_empty() {
                        continue;
                    }
                    let record = &recording.records[answer.at];
                    found.push(Finding {
                        requirement: "FLU-1".into(),
                        class: "R10".into(),
                        verdict: Verdict::Failed,
                        window: timeline.at_record(answer.at).label(steps, record.t),
                        summary: format!(
                            "expected an answer that is to be had in this state, {to_be_had:?}; {} was answered {:?}, from before",
                            answer.kind.target(),
                            answer.addresses
                        ),
                        count: 1,
                        evidence: None,
                        detail: None,
                    });
                }
                to_be_had.clear();
            }
            _ => {}
        }
    }
    found
}

/// Whether its answers are of this state: while connected those of approved servers, while nothing is restricted all.
fn may_answer(kind: &Kind, policy: &Policy) -> bool {
    let approved = policy.approved();
    match policy.mode {
        Mode::Open => true,
        Mode::Connected => match (&kind.how, kind.server()) {
            (How::System, _) => true,
            (_, Some(server)) => {
                let address = server.ip();
                approved.tunnel.contains(&address) || approved.lan.iter().any(|lan| lan.address == address)
            }
            _ => false,
        },
        _ => false,
    }
}
