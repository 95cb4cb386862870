//! Findings about order: what had to be in force before what, and which versions of the resolver file may not exist.

use super::{
    effective::{Effective, effective},
    explain::on_uplink,
    policy::{Mode, Policy, approved},
    recording::Recording,
    timeline::{Life, Timeline},
    verdict::{Evidence, Finding, Verdict},
};
use crate::{
    history::{Cause, Event, MarkerKind},
    scenario::{Fault, Manager, Original, ServiceChange, Step, Tamper},
    watch::nameservers,
};
use std::net::IpAddr;
use watertight_protocol::{Settings, State};

/// A file's change is stamped by a clock that may be this much behind, in nanoseconds: one tick at 100 Hz.
pub(super) const TICK: u64 = 10_000_000;
/// Nothing is noticed later than this on a machine that is not overloaded, in nanoseconds; what is, says so itself.
pub(super) const NOTICE: u64 = 50_000_000;
/// External changes are corrected within this time (STA-5), in nanoseconds.
const CORRECTION: u64 = 1_000_000_000;

/// All findings about order.
pub fn findings(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let versions = effective(recording);
    let mut found = Vec::new();
    found.extend(opened_before_restored(recording, timeline, &versions));
    found.extend(written_in_place(recording, timeline, &versions));
    found.extend(original_between(recording, timeline, &versions));
    found.extend(corrected_late(recording, timeline, &versions));
    found
}

pub(super) fn finding(requirement: &str, class: &str, verdict: Verdict, window: String, summary: String) -> Finding {
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

/// Barriers that mark reported states: place in the history, id, state.
pub(super) fn states(recording: &Recording) -> Vec<(usize, u64, State)> {
    recording
        .records
        .iter()
        .enumerate()
        .filter_map(|(at, record)| match &record.event {
            Event::Marker { id, marker: MarkerKind::Barrier, cause: Cause::State { state }, .. } => {
                Some((at, *id, *state))
            }
            _ => None,
        })
        .collect()
}

/// The servers that the subject's resolver file may name.
fn approved_names(settings: &Settings) -> Vec<String> {
    let approved = approved(settings);
    let mut names: Vec<String> = approved.tunnel.iter().map(IpAddr::to_string).collect();
    names.extend(approved.lan.iter().map(ToString::to_string));
    names
}

/// Whether a version names approved servers and no other.
pub fn is_approved(content: &str, settings: &Settings) -> bool {
    let names = approved_names(settings);
    let servers = nameservers(content);
    let same =
        |a: &str, b: &str| a == b || matches!((a.parse::<IpAddr>(), b.parse::<IpAddr>()), (Ok(a), Ok(b)) if a == b);
    !servers.is_empty() && servers.iter().all(|server| names.iter().any(|name| same(name, server)))
}

pub(super) fn settings_at(recording: &Recording, at: usize) -> Option<&Settings> {
    recording.records[..at].iter().rev().find_map(|record| match &record.event {
        Event::Settings(settings) => Some(settings),
        _ => None,
    })
}

/// FWL-9 and TRN-3: nothing may leave while the resolver file is not the original again.
fn opened_before_restored(recording: &Recording, timeline: &Timeline, versions: &[Effective<'_>]) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let Some(uplink) = recording.links.get("uplink") else { return Vec::new() };
    let ends = states(recording)
        .into_iter()
        .filter(|(_, _, state)| *state == State::Disconnected)
        .map(|(at, id, _)| (at, id))
        .chain(recording.records.iter().enumerate().filter_map(|(at, record)| match &record.event {
            Event::Marker { id, marker: MarkerKind::Barrier, cause: Cause::Ended, .. } => Some((at, *id)),
            _ => None,
        }));
    let mut found: Vec<Finding> = Vec::new();
    for (at, id) in ends {
        let interval = timeline.intervals.iter().find(|interval| interval.records.end == at);
        let Some(interval) = interval.filter(|interval| interval.life == Life::Running) else { continue };
        let Some(settings) = settings_at(recording, at).filter(|settings| !settings.lockdown) else { continue };
        // From the last version that names this session's servers to the one that is not approved any more.
        let since = recording.records[..at]
            .iter()
            .rposition(|record| matches!(record.event, Event::State { state: State::Connecting }))
            .unwrap_or(0);
        let until = recording.records[at..]
            .iter()
            .position(|record| matches!(record.event, Event::Step { .. } | Event::Settings(_)))
            .map_or(recording.records.len(), |offset| at + offset);
        let mine = |version: &&Effective<'_>| (since..until).contains(&version.at) && !version.by_harness;
        let Some(last_own) = versions.iter().filter(mine).rfind(|version| is_approved(&version.content, settings))
        else {
            continue;
        };
        let restored = versions
            .iter()
            .find(|version| version.at > last_own.at && version.at < until && !is_approved(&version.content, settings));
        // Where the file is the subject's alone to write, it is restored when it is what it stays.
        let restored = restored.map(|first| {
            let later = versions.iter().filter(|version| version.at >= first.at && version.at < until);
            let later: Vec<&Effective<'_>> = later.filter(|version| version.cause != "service").collect();
            let alone = recording.header.axes.profile.manager() == Manager::Nobody && first.cause != "service";
            let last = later.last().filter(|_| alone).map(|last| &last.hash);
            let changed = later.iter().rposition(|version| Some(&version.hash) != last);
            match (last, changed.and_then(|at| later.get(at + 1))) {
                (Some(_), Some(settled)) => *settled,
                _ => first,
            }
        });
        // A forwarder tells nobody when it is told: it is asked after something else has changed, be it the firewall that opens.
        let noticed_late = |version: &&Effective<'_>| {
            version.cause == "service" && recording.header.axes.profile.forwarder().is_some()
        };
        let Some(restored) = restored.filter(|version| !noticed_late(version)) else { continue };
        let restored_at = restored.earliest();
        let blocking = Policy::of(State::Disconnecting, Some(settings));
        let first = timeline
            .intervals
            .iter()
            .rev()
            .skip_while(|other| other.barrier != interval.barrier)
            .find(|other| {
                matches!(other.state, Some(State::Connected | State::Connecting | State::Error)) && !other.in_step
            })
            .map_or(interval.barrier, |other| other.barrier);
        // Until it reports `disconnecting`, what it was before may still be in force.
        let reported = states(recording)
            .into_iter()
            .filter(|(place, ..)| (since..at).contains(place))
            .rfind(|(_, _, state)| *state == State::Disconnecting)
            .and_then(|(_, barrier, _)| uplink.barriers.get(&barrier).copied());
        let connected = Policy::of(State::Connected, Some(settings));
        let leaked = uplink.frames.iter().find(|frame| {
            frame.after_barrier > first
                && frame.after_barrier <= id
                && frame.t < restored_at
                && frame.t > last_own.record.t
                && on_uplink(frame, &blocking, &recording.header.tag).is_none()
                && (reported.is_some_and(|reported| frame.t > reported)
                    || on_uplink(frame, &connected, &recording.header.tag).is_none())
        });
        // The notification and the end of the process may both follow the same opening.
        let known = |link: &str, sequence: u64| {
            found.iter().filter_map(|known| known.evidence.as_ref()).any(|at| at.link == link && at.frame == sequence)
        };
        if leaked.is_some_and(|frame| known("uplink", frame.sequence)) {
            continue;
        }
        if let Some(frame) = leaked {
            found.push(Finding {
                evidence: Some(Evidence { link: "uplink".into(), frame: frame.sequence }),
                ..finding(
                    "FWL-9",
                    "T10",
                    Verdict::Leak,
                    interval.label(steps, frame.t),
                    format!(
                        "expected everything blocked until the original resolver configuration is back; {} left {:.1} ms before that",
                        frame.decoded.summary(&frame.bytes),
                        (restored_at - frame.t) as f64 / 1e6
                    ),
                )
            });
            continue;
        }
        // Without a packet in the gap: the generation that opened was read together with a file that was still the subject's.
        // The last one before the next step is the one that opened, however late it was noticed.
        let last_generation = recording.records[interval.records.start..until]
            .iter()
            .filter_map(|record| match &record.event {
                Event::Generation { id, resolver: Some(resolver), .. } => Some((*id, resolver.as_str(), record.t)),
                _ => None,
            })
            .max_by_key(|(_, _, t)| *t);
        // A process that is killed on the way opens nothing: what the service asks has changed because the tunnel's link went with it.
        let killed = matches!(interval.step.and_then(|index| steps.get(index)), Some(Step::Fault(Fault::Kill)));
        if let Some((generation, resolver, t)) = last_generation
            && resolver == last_own.hash
            && t < restored_at
            && !killed
        {
            found.push(finding(
                "TRN-3",
                "T10",
                Verdict::Failed,
                interval.label(steps, t),
                format!("expected DNS to be restored before the firewall opens; nftables generation {generation} came {:.1} ms before", (restored_at - t) as f64 / 1e6),
            ));
        }
    }
    found
}

/// STA-2: no reader ever sees an empty or partial file.
fn written_in_place(recording: &Recording, timeline: &Timeline, versions: &[Effective<'_>]) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let mut outsider: Option<&Effective<'_>> = None;
    for version in versions {
        if version.by_harness {
            outsider = Some(version);
            continue;
        }
        // What the outsider did is told again by the kernel, with whatever the file is by then.
        let interval = timeline.at_record(version.at);
        let tampering = interval.in_step
            && interval
                .step
                .and_then(|index| steps.get(index))
                .is_some_and(|step| matches!(step, Step::Tamper(_) | Step::Service(_)));
        if tampering || outsider.is_some_and(|outsider| outsider.hash == version.hash) || interval.life == Life::Before
        {
            continue;
        }
        // Where none was, none is restored.
        let none_before = match outsider {
            Some(outsider) => outsider.content.starts_with("missing"),
            None => recording.header.axes.original == Original::Missing,
        };
        let seen = match version.cause {
            // openresolv writes the file in place, whoever gives it a record: that is between it and its readers.
            "modify" | "target modify" if recording.header.axes.profile.manager() == Manager::Resolvconf => continue,
            "modify" | "target modify" => "it was written in place, so that readers see it empty or in part",
            // Exchanging two files (renameat2(2), RENAME_EXCHANGE) moves the file away too, and leaves no gap.
            "moved-from" if !version.content.starts_with("missing") => continue,
            "delete" | "moved-from" if !none_before => "it was removed, so that readers find none for a while",
            "target delete" | "target moved-from"
                if !none_before && version.content.ends_with("(nothing to read)\n") =>
            {
                "what it leads to was removed, so that readers find nothing for a while"
            }
            _ => continue,
        };
        return vec![finding(
            "STA-2",
            "T10",
            Verdict::Failed,
            interval.label(steps, version.record.t),
            format!("expected the resolver file to be replaced whole; {seen}"),
        )];
    }
    Vec::new()
}

/// STA-4 and TRN-4: between two approved lists the original is never visible.
fn original_between(recording: &Recording, timeline: &Timeline, versions: &[Effective<'_>]) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let mut found = Vec::new();
    for version in versions.iter().filter(|version| !version.by_harness) {
        let interval = timeline.at_record(version.at);
        let held = interval.life == Life::Running
            && interval.in_step
            && matches!(interval.state, Some(State::Connected | State::Connecting))
            // Requests that were sent without waiting may have it disconnected on the way.
            && interval
                .policies_at(version.record.t)
                .iter()
                .all(|policy| matches!(policy.mode, Mode::Connected | Mode::Connecting))
            && interval
                .step
                .and_then(|index| steps.get(index))
                .is_some_and(|step| matches!(step, Step::Configure(_) | Step::Connect(State::Connected)));
        // In this connection: before it the original was there.
        let was_connected = states(recording)
            .iter()
            .rev()
            .filter(|(at, _, _)| *at < version.at)
            .map(|(_, _, state)| *state)
            .take_while(|state| matches!(state, State::Connecting | State::Connected))
            .any(|state| state == State::Connected);
        let Some(settings) = settings_at(recording, version.at) else { continue };
        // The old list, until the new one was there.
        let since =
            recording.records[..version.at].iter().rposition(|record| matches!(record.event, Event::Settings(_)));
        let is_followed = versions.iter().any(|other| {
            since.is_some_and(|since| (since..version.at).contains(&other.at)) && is_approved(&other.content, settings)
        });
        let old = !is_followed
            && recording.records[..version.at]
                .iter()
                .filter_map(|record| match &record.event {
                    Event::Settings(settings) => Some(settings),
                    _ => None,
                })
                .any(|old| is_approved(&version.content, old));
        let ended_disconnected = states(recording)
            .iter()
            .rfind(|(at, _, _)| *at < version.at)
            .is_some_and(|(_, _, state)| matches!(state, State::Disconnected | State::Error | State::Disconnecting));
        let steady = interval.life == Life::Running
            && !interval.in_step
            && interval.next.is_empty()
            && interval.policies.iter().all(|policy| policy.mode == Mode::Connected)
            && !recording.records[..version.at]
                .iter()
                .any(|record| matches!(&record.event, Event::File { cause, .. } if cause == "outsider"));
        // Reading a file while it is being replaced is another finding's matter.
        // What a service asks changes with the tunnel's link, which a new connection may replace: then the firewall alone
        // stands between, and the wire shows whether it does.
        let written = version.cause == "modify" && (!steady || nameservers(&version.content).is_empty());
        let whole = !matches!(version.cause, "moved-from" | "create" | "service") && !written;
        if (held || steady)
            && was_connected
            && !ended_disconnected
            && whole
            && !is_approved(&version.content, settings)
            && !old
        {
            // Where the file is a service's, it is the connection that has a gap.
            let by_client = matches!(recording.header.axes.profile.manager(), Manager::Nobody);
            let finding = finding(
                if by_client { "STA-4" } else { "TRN-4" },
                "T10",
                Verdict::Failed,
                interval.label(steps, version.record.t),
                format!(
                    "expected the approved servers without interruption; for a moment the resolver file named {:?}",
                    nameservers(&version.content)
                ),
            );
            if !found.contains(&finding) {
                found.push(finding);
            }
        }
    }
    found
}

/// STA-5: external changes are corrected within 1 s.
fn corrected_late(recording: &Recording, timeline: &Timeline, versions: &[Effective<'_>]) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let mut found = Vec::new();
    let mut step_of_lease = None;
    for version in versions {
        let interval = timeline.at_record(version.at);
        let step = interval.step.and_then(|index| steps.get(index));
        let edited = match step {
            Some(Step::Tamper(
                Tamper::Rewrite | Tamper::Rename | Tamper::RenameTwice | Tamper::Delete | Tamper::Symlink,
            )) => version.cause == "outsider",
            // The first that is another's: what follows may be the same file, seen again while it is written.
            Some(Step::Service(ServiceChange::RenewLease)) => {
                let others = interval.in_step
                    && version.cause != "service"
                    && !nameservers(&version.content).is_empty()
                    && settings_at(recording, version.at)
                        .is_some_and(|settings| !is_approved(&version.content, settings));
                let first = others && step_of_lease != interval.step;
                step_of_lease = if others { interval.step } else { step_of_lease };
                first
            }
            _ => false,
        };
        let watched = interval.life == Life::Running && interval.state == Some(State::Connected) && edited;
        let Some(settings) = settings_at(recording, version.at).filter(|_| watched) else { continue };
        let corrected = versions.iter().find(|later| later.at > version.at && is_approved(&later.content, settings));
        let late = match corrected {
            Some(later) => later.earliest().saturating_sub(version.record.t) > CORRECTION,
            None => true,
        };
        if late {
            let when = corrected.map_or("never".to_owned(), |later| {
                format!("after {:.1} s", later.earliest().saturating_sub(version.record.t) as f64 / 1e9)
            });
            found.push(finding(
                "STA-5",
                "P01",
                Verdict::Failed,
                interval.label(steps, version.record.t),
                format!("expected an outsider's change of the resolver file to be corrected within 1 s; it was corrected {when}"),
            ));
        }
    }
    found
}
