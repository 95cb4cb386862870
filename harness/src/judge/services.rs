//! Findings about resolver services: what others wiped is applied again in time, no other link's settings change, and what
//! is remembered of other servers is forgotten.

use super::{
    effective::{Effective, effective},
    expected::the_one_policy,
    order::is_approved,
    policy::Mode,
    recording::Recording,
    timeline::{Life, Timeline},
    verdict::{Finding, Verdict},
};
use crate::{
    history::{Cause, Event, Record},
    scenario::{Fault, Profile, ServiceChange, Step},
    testbed::plan::UPLINK,
    watch::nameservers,
};
use std::collections::{BTreeMap, BTreeSet};
use watertight_protocol::{Settings, State};

/// What others wiped is applied again within this time (RSD-4, as STA-5), in nanoseconds.
const CORRECTION: u64 = 1_000_000_000;

/// The interface of systemd-resolved itself (org.freedesktop.resolve1(5)).
const MANAGER: &str = "org.freedesktop.resolve1.Manager";

/// What a service was set to, at one moment.
struct View<'a> {
    at: usize,
    record: &'a Record,
    asked: &'a [String],
    settings: &'a str,
}

/// All findings about resolver services.
pub fn findings(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let views: Vec<View<'_>> = recording
        .records
        .iter()
        .enumerate()
        .filter_map(|(at, record)| match &record.event {
            Event::Resolver { service, asked, settings, .. } if service == "systemd-resolved" => {
                Some(View { at, record, asked, settings })
            }
            _ => None,
        })
        .collect();
    let mut found = match recording.header.axes.profile.has_network_manager() {
        true => applied_late(recording, timeline),
        false => corrected_late(recording, timeline, &views),
    };
    found.extend(others_changed(recording, timeline, &views));
    found.extend(others_told(recording, timeline));
    found.extend(not_flushed(recording, timeline));
    found.extend(checks_while_blocked(recording, timeline));
    found
}

/// NMG-3: in no window of a blocking state does NetworkManager check its connectivity, where it has something to check it with.
fn checks_while_blocked(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let mut checks = false;
    let mut found: Vec<Finding> = Vec::new();
    for (at, record) in recording.records.iter().enumerate() {
        match &record.event {
            Event::Resolver { service, settings, .. } if service == "NetworkManager" => {
                let has = |property: &str| settings.lines().any(|line| line == format!("global {property} true"));
                checks = has("ConnectivityCheckAvailable") && has("ConnectivityCheckEnabled");
            }
            Event::Marker { cause: Cause::ProbesEnd, .. } if checks => {
                let interval = timeline.at_record(at);
                let blocks = the_one_policy(interval, record.t)
                    .is_some_and(|policy| !matches!(policy.mode, Mode::Open | Mode::Connected));
                let window = interval.label(steps, record.t);
                if !blocks || found.iter().any(|known| known.window == window) {
                    continue;
                }
                found.push(Finding {
                    requirement: "NMG-3".into(),
                    class: "X05".into(),
                    verdict: Verdict::Failed,
                    window,
                    summary: "expected NetworkManager's connectivity check to be off while the network is blocked; ConnectivityCheckEnabled is true".into(),
                    count: 1,
                    evidence: None,
                    detail: None,
                });
            }
            _ => {}
        }
    }
    found
}

/// Whether a scenario's step has ended the resolver service, at one moment.
pub fn is_away(recording: &Recording, at: usize) -> bool {
    last_change(recording, at, &[ServiceChange::Stop, ServiceChange::Start, ServiceChange::Restart])
        == Some(ServiceChange::Stop)
}

/// Whether a scenario's step has resolvconf fail, at one moment.
pub fn is_broken(recording: &Recording, at: usize) -> bool {
    last_change(recording, at, &[ServiceChange::Break, ServiceChange::Mend]) == Some(ServiceChange::Break)
}

/// The last of these changes.
fn last_change(recording: &Recording, at: usize, of: &[ServiceChange]) -> Option<ServiceChange> {
    recording.records[..at].iter().rev().find_map(|record| match &record.event {
        Event::ServiceChanged { change } if of.contains(change) => Some(*change),
        _ => None,
    })
}

/// RSD-4: settings that were wiped, or went with the service, are in force again within 1 s.
fn corrected_late(recording: &Recording, timeline: &Timeline, views: &[View<'_>]) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let mut found = Vec::new();
    for (at, record) in recording.records.iter().enumerate() {
        let Event::ServiceChanged { change: change @ (ServiceChange::Restart | ServiceChange::WipeTunnelLink) } =
            &record.event
        else {
            continue;
        };
        let interval = timeline.at_record(at);
        let held = interval.life == Life::Running && interval.state == Some(State::Connected);
        let Some(settings) = settings_at(recording, at).filter(|_| held) else { continue };
        let until = end_of_step(recording, at);
        let mut wrong: Option<&View<'_>> = None;
        let mut longest = 0;
        for view in views.iter().filter(|view| view.at > at && view.at < until) {
            match (approved(view.asked, settings), wrong) {
                (false, None) => wrong = Some(view),
                (true, Some(since)) => {
                    longest = longest.max(view.record.earliest().saturating_sub(since.record.t));
                    wrong = None;
                }
                _ => {}
            }
        }
        if wrong.is_none() && longest <= CORRECTION {
            continue;
        }
        let when = match wrong {
            Some(view) => format!("never within the step; it asks {:?}", view.asked),
            None => format!("after {:.1} s", longest as f64 / 1e9),
        };
        found.push(Finding {
            requirement: "RSD-4".into(),
            class: "R01".into(),
            verdict: Verdict::Failed,
            window: interval.label(steps, record.t),
            summary: format!(
                "expected the approved settings in systemd-resolved within 1 s of {change:?}; they were there {when}"
            ),
            count: 1,
            evidence: None,
            detail: wrong.map(|view| view.settings.to_owned()),
        });
    }
    found
}

/// NMG-4: after whatever is done to NetworkManager, programs ask approved servers, or do again within 1 s of the moment at which
/// they would ask others. While nobody is asked there is nothing to correct.
fn applied_late(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let versions = effective(recording);
    let mut found = Vec::new();
    for (at, record) in recording.records.iter().enumerate() {
        let Event::ServiceChanged { change } = &record.event else { continue };
        let interval = timeline.at_record(at);
        let held = interval.life == Life::Running && interval.state == Some(State::Connected);
        let Some(settings) = settings_at(recording, at).filter(|_| held) else { continue };
        let until = end_of_step(recording, at);
        let mut wrong: Option<(u64, &str)> = None;
        let mut longest = (0, "");
        for version in versions.iter().filter(|version| version.at > at && version.at < until) {
            let (t, servers) = (version.record.t, nameservers(&version.content));
            match wrong {
                None if !servers.is_empty() && !is_approved(&version.content, settings) => {
                    wrong = Some((t, &version.content));
                }
                Some((since, content)) if servers.is_empty() || is_approved(&version.content, settings) => {
                    longest = longest.max((version.earliest().saturating_sub(since), content));
                    wrong = None;
                }
                _ => {}
            }
        }
        if wrong.is_none() && longest.0 <= CORRECTION {
            continue;
        }
        let (when, content) = match wrong {
            Some((_, content)) => ("never within the step".to_owned(), content),
            None => (format!("after {:.1} s", longest.0 as f64 / 1e9), longest.1),
        };
        found.push(Finding {
            requirement: "NMG-4".into(),
            class: if *change == ServiceChange::RenewLease { "P01" } else { "R06" }.into(),
            verdict: Verdict::Failed,
            window: interval.label(steps, record.t),
            summary: format!(
                "expected approved servers to be asked, or asked again within 1 s, after {change:?} of NetworkManager; {:?} were asked, and the approved ones {when}",
                nameservers(content)
            ),
            count: 1,
            evidence: None,
            detail: None,
        });
    }
    found
}

/// The place of the next step in the history.
fn end_of_step(recording: &Recording, at: usize) -> usize {
    let next = recording.records[at..].iter().position(|record| matches!(record.event, Event::Step { .. }));
    next.map_or(recording.records.len(), |offset| at + offset)
}

/// Whether approved servers, and no other, are asked.
fn approved(asked: &[String], settings: &Settings) -> bool {
    let lines: String = asked.iter().map(|server| format!("nameserver {server}\n")).collect();
    is_approved(&format!("service\n{lines}"), settings)
}

fn settings_at(recording: &Recording, at: usize) -> Option<&Settings> {
    recording.records[..at].iter().rev().find_map(|record| match &record.event {
        Event::Settings(settings) => Some(settings),
        _ => None,
    })
}

/// RSD-2: no other link's settings change, at any moment.
fn others_changed(recording: &Recording, timeline: &Timeline, views: &[View<'_>]) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let mut found: Vec<Finding> = Vec::new();
    for pair in views.windows(2) {
        let [before, after] = pair else { continue };
        let interval = timeline.at_record(after.at);
        // A lease that names other servers is the network's doing.
        let step = interval.step.filter(|_| interval.in_step).and_then(|index| steps.get(index));
        let renewed = matches!(step, Some(Step::Service(ServiceChange::RenewLease | ServiceChange::Reapply)));
        let counts = interval.life != Life::Before && !renewed;
        let Some(settings) = settings_at(recording, after.at).filter(|_| counts) else { continue };
        let (old, new) = (links(before.settings), links(after.settings));
        for (key, value) in &new {
            let (link, property) = key;
            // Whether a link gets the rest of the names follows from other settings and from its carrier.
            if *link == settings.tunnel.interface || *property == "DefaultRoute" {
                continue;
            }
            let told = *link == UPLINK && *property == "DNS" && uplink_is_told(recording, after.at);
            let Some(was) = old.get(key).filter(|was| *was != value && !told) else { continue };
            let finding = Finding {
                requirement: "RSD-2".into(),
                class: "R02".into(),
                verdict: Verdict::Failed,
                window: interval.label(steps, after.record.t),
                summary: format!(
                    "expected the settings of {link} in systemd-resolved untouched; {property} went from '{was}' to '{value}'"
                ),
                count: 1,
                evidence: None,
                detail: None,
            };
            if !found.iter().any(|known| known.summary == finding.summary) {
                found.push(finding);
            }
        }
    }
    found
}

/// Whether the step that is carried out tells the service of the uplink's servers.
fn uplink_is_told(recording: &Recording, at: usize) -> bool {
    let step = recording.records[..at].iter().rev().find_map(|record| match &record.event {
        Event::Step { step, .. } => Some(step),
        _ => None,
    });
    matches!(step, Some(Step::Service(ServiceChange::ChangeUplink | ServiceChange::RevertUplink)))
}

/// A call on the bus that changes a link's settings: not what asks, and not what failed.
pub(super) struct LinkCall<'a> {
    pub(super) record: &'a Record,
    pub(super) at: usize,
    pub(super) link: &'a str,
    pub(super) member: &'a str,
    pub(super) body: &'a str,
}

impl<'a> LinkCall<'a> {
    /// What is told, whichever way: a method of the manager has `Link` in its name and the link's number before all else, the
    /// link's own has neither.
    fn essence(&self) -> (String, &'a str) {
        let inside = self.body.trim_start_matches('(').trim_end_matches([')', ',']);
        let is_number = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
        match inside.split_once(", ").filter(|(first, _)| self.member.contains("Link") && is_number(first)) {
            Some((_, rest)) => (self.member.replacen("Link", "", 1), rest),
            None => (self.member.replacen("Link", "", 1), inside),
        }
    }
}

/// All of them.
pub(super) fn link_calls(recording: &Recording) -> Vec<LinkCall<'_>> {
    let refused = refused(recording);
    let mut calls = Vec::new();
    for (at, record) in recording.records.iter().enumerate() {
        if let Event::Bus { message, serial, sender, member, body, link: Some(link), service: None, .. } = &record.event
            && message == "call"
            && (member.starts_with("Set") || member.starts_with("Revert"))
            && !refused.contains(&(sender.as_str(), *serial))
        {
            calls.push(LinkCall { record, at, link, member, body });
        }
    }
    calls
}

/// Calls that were answered with an error: who sent them, and their numbers.
fn refused(recording: &Recording) -> BTreeSet<(&str, u32)> {
    let errors = recording.records.iter().filter_map(|record| match &record.event {
        Event::Bus { message, reply_to: Some(call), destination, .. } if message == "error" => {
            Some((destination.as_str(), *call))
        }
        _ => None,
    });
    errors.collect()
}

/// RSD-2: no other link is told anything else, not even for a moment that no look at its settings falls into.
fn others_told(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let mut told: BTreeMap<(&str, String), BTreeSet<&str>> = BTreeMap::new();
    let mut found: Vec<Finding> = Vec::new();
    for call in link_calls(recording) {
        let interval = timeline.at_record(call.at);
        let Some(settings) = settings_at(recording, call.at).filter(|_| interval.life != Life::Before) else {
            continue;
        };
        if call.link == settings.tunnel.interface || call.link == UPLINK && uplink_is_told(recording, call.at) {
            continue;
        }
        let (member, body) = call.essence();
        let bodies = told.entry((call.link, member.clone())).or_default();
        bodies.insert(body);
        // What is told once stays, and shows in the settings if it was another; what is told in two ways was changed. Whether a link
        // gets the rest of the names follows from other settings too, and does not show.
        let shows = member != "SetDefaultRoute" && !member.starts_with("Revert");
        if bodies.len() < 2 && shows {
            continue;
        }
        let summary = format!(
            "expected the settings of {} in systemd-resolved untouched; it was told {} {}",
            call.link, call.member, call.body
        );
        if found.iter().all(|known: &Finding| known.summary != summary) {
            found.push(Finding {
                requirement: "RSD-2".into(),
                class: "R02".into(),
                verdict: Verdict::Failed,
                window: interval.label(steps, call.record.t),
                summary,
                count: 1,
                evidence: None,
                detail: None,
            });
        }
    }
    found
}

/// RSD-5: a step after which other servers are asked than before has flushed the cache.
fn not_flushed(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let profile = recording.header.axes.profile;
    // Nor is it asked where the environment forces a method that writes the resolver file itself.
    let forced = recording.header.definition.environment.get("WATERTIGHT_DNS_METHOD");
    let is_asked = profile != Profile::SystemdResolvedForeign && forced.is_none_or(|forced| forced == "systemd");
    if !profile.has_resolved() || !is_asked {
        return Vec::new();
    }
    let steps = &recording.header.definition.steps;
    let versions = effective(recording);
    let (calls, refused) = (link_calls(recording), refused(recording));
    let mut begins: Vec<usize> = recording
        .records
        .iter()
        .enumerate()
        .filter_map(|(at, record)| matches!(record.event, Event::Step { .. }).then_some(at))
        .collect();
    begins.push(recording.records.len());
    let servers_before = |at: usize| versions.iter().take_while(|version| version.at < at).last().map(servers);
    let mut found = Vec::new();
    for pair in begins.windows(2) {
        let (Event::Step { step, .. }, during) = (&recording.records[pair[0]].event, pair[0]..pair[1]) else {
            continue;
        };
        let changes_servers = matches!(
            step,
            Step::Connect(_)
                | Step::Disconnect(_)
                | Step::Configure(_)
                | Step::Block(_)
                | Step::Shutdown(_)
                | Step::Restart(_)
                | Step::Fault(Fault::Terminate | Fault::EndOfFile)
        );
        let (before, after) = (servers_before(during.start), servers_before(during.end));
        // Without the service there is nothing to flush.
        if !changes_servers || before == after || is_away(recording, during.end) {
            continue;
        }
        // What is flushed before anything is told comes back with the next question.
        let told = calls.iter().map(|call| call.at).find(|at| during.contains(at)).unwrap_or(during.start);
        let flushed = recording.records[told..during.end].iter().any(|record| {
            matches!(
                &record.event,
                Event::Bus { message, member, interface, serial, sender, .. }
                    if message == "call"
                        && member == "FlushCaches"
                        && interface == MANAGER
                        && !refused.contains(&(sender.as_str(), *serial))
            )
        });
        if !flushed {
            let record = &recording.records[during.start];
            let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
            found.push(Finding {
                requirement: "RSD-5".into(),
                class: "R10".into(),
                verdict: Verdict::Failed,
                window: timeline.at_record(during.end - 1).label(steps, record.t),
                summary: format!(
                    "expected systemd-resolved's cache to be flushed (FlushCaches) when {after:?} are asked in place of {before:?}; it was not"
                ),
                count: 1,
                evidence: None,
                detail: None,
            });
        }
    }
    found
}

fn servers(version: &Effective<'_>) -> Vec<String> {
    nameservers(&version.content)
}

/// A view's settings by link and property.
fn links(settings: &str) -> BTreeMap<(&str, &str), &str> {
    let lines = settings.lines().filter_map(|line| line.strip_prefix("link "));
    lines
        .filter_map(|line| {
            let (link, rest) = line.split_once(' ')?;
            let (property, value) = rest.split_once(' ').unwrap_or((rest, ""));
            Some(((link, property), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Event;

    #[test]
    fn the_same_told_by_the_manager_and_by_the_link_is_the_same() {
        let record = Record { seq: 0, t: 0, mono: 0, since: None, event: Event::End };
        let essence = |member, body| LinkCall { record: &record, at: 0, link: "eth0", member, body }.essence();
        let servers = "[(2, [byte 0xc0, 0xa8, 0x01, 0x01])]";
        let (manager, link) = (format!("(2, {servers})"), format!("({servers},)"));
        assert_eq!(essence("SetLinkDNS", &manager), essence("SetDNS", &link));
        assert_eq!(essence("SetLinkDefaultRoute", "(2, false)"), ("SetDefaultRoute".to_owned(), "false"));
        assert_ne!(essence("SetLinkDNS", "(2, @a(iay) [])"), essence("SetDNS", &link));
        assert_eq!(essence("RevertLink", "(2,)").0, "Revert");
    }
}
