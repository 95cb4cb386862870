//! Findings about the way into `connected` (TRN-2): the firewall blocks first, and DNS is set before it is reported.

use super::{
    effective::{Effective, effective},
    explain::on_uplink,
    held::link_told_away,
    order::{NOTICE, TICK, finding, is_approved, settings_at, states},
    policy::Policy,
    recording::Recording,
    timeline::Timeline,
    verdict::{Evidence, Finding, Verdict},
};
use crate::{
    history::{Event, Record},
    scenario::Step,
    watch::nameservers,
};
use watertight_protocol::State;

/// All findings about it.
pub fn findings(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let mut found = changed_before_blocked(recording, timeline);
    found.extend(reported_before_set(recording, timeline, &effective(recording)));
    found
}

/// TRN-2: on connect, the firewall blocks before anything else changes.
fn changed_before_blocked(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let Some(uplink) = recording.links.get("uplink") else { return Vec::new() };
    let mut found = Vec::new();
    for interval in &timeline.intervals {
        let connecting = interval.in_step
            && interval.state == Some(State::Disconnected)
            && interval.step.and_then(|index| steps.get(index)).is_some_and(|step| matches!(step, Step::Connect(_)));
        if !connecting {
            continue;
        }
        let Some(settings) = settings_at(recording, interval.records.end) else { continue };
        let changed = recording.records[interval.records.clone()].iter().find_map(|record| match &record.event {
            Event::File { by_harness: false, path, .. } => Some((record.t, format!("{} changed", path.display()))),
            Event::Network { change } => Some((record.t, change.chars().take(60).collect())),
            _ => None,
        });
        let Some((t, what)) = changed else { continue };
        let blocking = Policy::of(State::Connecting, Some(settings));
        let leaked = uplink.frames.iter().find(|frame| {
            frame.after_barrier == interval.barrier
                && frame.t > t + TICK
                && on_uplink(frame, &blocking, &recording.header.tag).is_none()
        });
        if let Some(frame) = leaked {
            found.push(Finding {
                evidence: Some(Evidence { link: "uplink".into(), frame: frame.sequence }),
                ..finding(
                    "TRN-2",
                    "T10",
                    Verdict::Leak,
                    interval.label(steps, frame.t),
                    format!(
                        "expected the firewall to block before anything else changes; {what}, and {:.1} ms later {} left",
                        (frame.t - t) as f64 / 1e6,
                        frame.decoded.summary(&frame.bytes)
                    ),
                )
            });
        }
    }
    found
}

/// TRN-2: DNS is set before connected is reported.
fn reported_before_set(recording: &Recording, timeline: &Timeline, versions: &[Effective<'_>]) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let mut found = Vec::new();
    for (at, _, state) in states(recording) {
        if state != State::Connected {
            continue;
        }
        let (Some(settings), t) = (settings_at(recording, at), recording.records[at].t) else { continue };
        // A notification may be read late, when the next call has begun to put things back: a version counts that was in force
        // when it can have been sent.
        let sent = recording.records[..at]
            .iter()
            .rfind(|record| matches!(record.event, Event::State { state: State::Connected }))
            .map_or(t, Record::earliest);
        let set = versions.iter().enumerate().any(|(index, version)| {
            let replaced = versions.get(index + 1).map_or(u64::MAX, |next| next.record.t);
            is_approved(&version.content, settings) && version.earliest() <= t + TICK && replaced + TICK >= sent
        });
        // Or it was there, and was taken away again just before: then it is missing for longer than anything is noticed late.
        let in_force = versions.iter().rfind(|version| version.at < at && version.record.t <= t);
        let asked = recording.records[..at].iter().rposition(|record| matches!(record.event, Event::Request { .. }));
        let nothing_else = !recording.records[at..]
            .iter()
            .take_while(|record| record.t <= t + NOTICE)
            .any(|record| matches!(record.event, Event::Request { .. } | Event::Ended { .. }))
            && asked.is_some_and(|asked| is_connecting(&recording.records[asked].event));
        let missing = nothing_else
            && in_force.is_some_and(|version| {
                let next = versions.iter().find(|next| next.at > version.at);
                !version.by_harness
                    && !nameservers(&version.content).is_empty()
                    && !is_approved(&version.content, settings)
                    && next.is_none_or(|next| next.earliest() > t + NOTICE)
            });
        let told_away = nothing_else && link_told_away(recording, at, settings, t + NOTICE);
        if !set || missing || told_away {
            let later = versions.iter().find(|version| version.at > at && is_approved(&version.content, settings));
            let after = match later {
                _ if told_away => "the tunnel's link was told of them, and then of none".to_owned(),
                Some(version) => {
                    format!("they were there {:.0} ms later", version.earliest().saturating_sub(t) as f64 / 1e6)
                }
                None => "they were never there in this case".to_owned(),
            };
            let interval = timeline.at_record(at);
            found.push(finding(
                "TRN-2",
                "R03",
                Verdict::Failed,
                interval.label(steps, t),
                format!("expected the approved servers in the resolver file before connected is reported; {after}"),
            ));
        }
    }
    found
}

/// A request that leads to `connected`.
fn is_connecting(event: &Event) -> bool {
    matches!(event, Event::Request { method, .. } if method == "connect")
}
