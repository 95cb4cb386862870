//! What holds once it was reached: the state that a step asked for, and, while connected, what the resolver service on the machine
//! asks.

use super::{
    effective::{Effective, effective},
    order::is_approved,
    policy::{Mode, approved},
    recording::Recording,
    services::{LinkCall, link_calls},
    timeline::{Interval, Life, Timeline},
    verdict::{Finding, Verdict},
};
use crate::{
    history::{Cause, Event, MarkerKind},
    scenario::{ServiceChange, Step},
    watch::nameservers,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use watertight_protocol::{Settings, State};

/// Other servers than the approved ones are asked at least this long, in nanoseconds, to count: a service is looked at after it was
/// told, and what it was just before may be read once more.
const MOMENT: u64 = 100_000_000;

/// All findings about it.
pub fn findings(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let mut found = states_left(recording, timeline);
    found.extend(others_asked(recording, timeline));
    found.extend(tunnel_link_told(recording, timeline));
    found
}

fn finding(requirement: &str, class: &str, window: String, summary: String) -> Finding {
    Finding {
        requirement: requirement.into(),
        class: class.into(),
        verdict: Verdict::Failed,
        window,
        summary,
        count: 1,
        evidence: None,
        detail: None,
    }
}

/// A state that was reached still holds in its window, and when the next step begins. A subject that leaves it unasked would not be
/// tested in it.
fn states_left(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let mut found: Vec<Finding> = Vec::new();
    let mut begun: Option<(usize, usize)> = None;
    for (at, record) in recording.records.iter().enumerate() {
        let looks = match &record.event {
            Event::Marker { marker: MarkerKind::Canary, cause: Cause::ProbesEnd, .. } => begun,
            Event::Step { index, .. } => begun.replace((*index, at)),
            _ => None,
        };
        let Some((step, since)) = looks else { continue };
        let Some(Step::Connect(wanted) | Step::Disconnect(wanted) | Step::Block(wanted) | Step::Wait(wanted)) =
            steps.get(step)
        else {
            continue;
        };
        // Of the records before this one: with the next step begins another interval.
        let interval = timeline.at_record(at.saturating_sub(1));
        let (Some(state), Life::Running) = (interval.state, interval.life) else { continue };
        // Whether a handshake without an answer is given up, and when, is the subject's affair.
        if state == *wanted || *wanted == State::Connecting {
            continue;
        }
        // One that was not reached is another finding.
        let reached = recording.records[since..at].iter().all(|record| !matches!(record.event, Event::TimedOut { .. }));
        let summary = format!(
            "expected the state {wanted} to last until something else is asked for; the subject left it for {state} by itself"
        );
        let requirement = match wanted {
            State::Connected => "DNS-7",
            State::Error => "TRN-5",
            _ => "TRN-7",
        };
        let window = format!("{state} (after step {}: {})", step + 1, words(&steps[step]));
        if reached && found.iter().all(|known| (&known.summary, &known.window) != (&summary, &window)) {
            found.push(finding(requirement, "T03", window, summary));
        }
    }
    found
}

/// A step as its file has it.
fn words(step: &Step) -> String {
    toml::to_string(step).unwrap_or_default().trim().replace('\n', ", ")
}

/// Whether only the connected state's policy holds.
fn is_connected(interval: &Interval, t: u64) -> bool {
    interval.life == Life::Running
        && interval.state == Some(State::Connected)
        && interval.policies_at(t).iter().all(|policy| policy.mode == Mode::Connected)
}

fn settings_at(recording: &Recording, at: usize) -> impl Iterator<Item = &Settings> {
    recording.records[..at].iter().rev().filter_map(|record| match &record.event {
        Event::Settings(settings) => Some(settings),
        _ => None,
    })
}

/// While connected a resolver service asks approved servers alone, and no others between two lists of them.
fn others_asked(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let profile = recording.header.axes.profile;
    let steps = &recording.header.definition.steps;
    let versions = effective(recording);
    let is_changing = |interval: &Interval| {
        interval.in_step
            && interval.step.and_then(|index| steps.get(index)).is_some_and(|step| matches!(step, Step::Configure(_)))
    };
    let mut found: Vec<Finding> = Vec::new();
    for (index, version) in versions.iter().enumerate().filter(|(_, version)| version.cause == "service") {
        // What others do, and when it has to be put right, is a matter of its own.
        let disturbed = recording.records[..version.at].iter().any(|record| match &record.event {
            Event::ServiceChanged { .. } | Event::LeaseRenewed { .. } => true,
            Event::File { cause, .. } => cause == "outsider",
            _ => false,
        });
        let known: Vec<&Settings> = settings_at(recording, version.at).take(2).collect();
        let Some(settings) = known.first().filter(|_| !disturbed) else { continue };
        if nameservers(&version.content).is_empty() || is_approved(&version.content, settings) {
            continue;
        }
        let was_approved = known.iter().any(|settings| is_approved(&version.content, settings));
        let until = versions.get(index + 1).map_or(u64::MAX, Effective::earliest);
        let steady = timeline.intervals.iter().find(|interval| {
            let (begin, end) = interval.time;
            let overlap = until.min(end).saturating_sub(version.record.t.max(begin));
            let holds = !interval.in_step && interval.next.is_empty() || is_changing(interval) && !was_approved;
            holds && is_connected(interval, begin) && overlap >= MOMENT
        });
        let Some(interval) = steady else { continue };
        let requirement = match profile {
            _ if interval.in_step => "TRN-4",
            _ if profile.has_resolved() => "RSD-1",
            _ if profile.has_network_manager() => "NMG-1",
            _ => "DNS-7",
        };
        let summary = format!(
            "expected the resolver service to ask approved servers alone while connected; for a while it asked {:?}",
            nameservers(&version.content)
        );
        if found.iter().all(|known| known.summary != summary) {
            found.push(finding(requirement, "R01", interval.label(steps, version.record.t), summary));
        }
    }
    found
}

/// RSD-1 and TRN-4: while connected the tunnel's link is told approved servers, and keeps the domain that claims all names, also
/// between the old servers and the new ones.
fn tunnel_link_told(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let steps = &recording.header.definition.steps;
    let mut found: Vec<Finding> = Vec::new();
    for call in link_calls(recording) {
        let interval = timeline.at_record(call.at);
        let step = interval.step.filter(|_| interval.in_step).and_then(|index| steps.get(index));
        let changing = match step {
            None => false,
            Some(Step::Configure(_)) => true,
            // On the way out of the state, or the harness's own doing.
            Some(Step::Service(ServiceChange::WipeTunnelLink)) if call.member.starts_with("Revert") => continue,
            Some(Step::Service(_) | Step::Expect(_) | Step::Tamper(_) | Step::Routes(_)) => false,
            Some(_) => continue,
        };
        let known: Vec<&Settings> = settings_at(recording, call.at).take(2).collect();
        let Some(settings) = known.first().filter(|settings| settings.tunnel.interface == call.link) else { continue };
        // Without a tunnel server there is nothing to be asked over that link.
        if !is_connected(interval, call.record.t) || known.iter().any(|settings| approved(settings).tunnel.is_empty()) {
            continue;
        }
        let Some(wrong) = wrong(&call, &known) else { continue };
        let summary = format!(
            "expected the link {} to have approved servers and the domain ~. in systemd-resolved as long as the state is connected; it was told {} {}, {wrong}",
            settings.tunnel.interface, call.member, call.body
        );
        if found.iter().all(|known| known.summary != summary) {
            let (requirement, class) = if changing { ("TRN-4", "T10") } else { ("RSD-1", "R01") };
            found.push(finding(requirement, class, interval.label(steps, call.record.t), summary));
        }
    }
    found
}

/// Whether the tunnel's link, in this connection, was told what is approved and then, before this place in the history, what leaves
/// names to others, and is told nothing else by then. A service that is asked afterwards tells the last of all that it was told.
pub(super) fn link_told_away(recording: &Recording, at: usize, settings: &Settings, until: u64) -> bool {
    let since = recording.records[..at]
        .iter()
        .rposition(|record| matches!(record.event, Event::State { state: State::Connecting }));
    let calls = link_calls(recording);
    let of_connection =
        |call: &&LinkCall<'_>| since.is_some_and(|since| call.at > since) && call.link == settings.tunnel.interface;
    !approved(settings).tunnel.is_empty()
        && [&["SetDNS", "SetDNSEx"][..], &["SetDomains"]].iter().any(|members| {
            let is_one = |call: &&LinkCall<'_>| {
                of_connection(call)
                    && (call.member.starts_with("Revert")
                        || members.contains(&&*call.member.replacen("SetLink", "Set", 1)))
            };
            let is_wrong = |call: &LinkCall<'_>| wrong(call, &[settings]).is_some();
            let (before, after): (Vec<&LinkCall<'_>>, Vec<&LinkCall<'_>>) =
                calls.iter().filter(is_one).partition(|call| call.at < at);
            before.iter().any(|call| !is_wrong(call))
                && before.last().is_some_and(|call| is_wrong(call))
                && after.iter().all(|call| call.record.earliest() > until)
        })
}

/// What is wrong with what a link is told, under settings that are in force or were just before.
fn wrong(call: &LinkCall<'_>, settings: &[&Settings]) -> Option<&'static str> {
    let member = call.member.replacen("SetLink", "Set", 1);
    if member.starts_with("Revert") {
        return Some("which leaves it none");
    }
    if member == "SetDomains" {
        return (!call.body.contains("(\".\", true)")).then_some("which leaves names to other links");
    }
    if member != "SetDNS" && member != "SetDNSEx" {
        return None;
    }
    let servers = addresses(call.body);
    let is_approved = |server: &IpAddr| settings.iter().any(|settings| approved(settings).tunnel.contains(server));
    match servers {
        _ if servers.is_empty() => Some("which leaves it none"),
        _ if servers.iter().all(is_approved) => None,
        _ => Some("which is not approved"),
    }
}

/// The addresses in the readable body of a call: each a family and an array of bytes, `(2, [byte 0x0a, 0x40, 0x00, 0x01])`. The
/// type is named in the first array alone.
fn addresses(body: &str) -> Vec<IpAddr> {
    let arrays = body.split('[').filter_map(|rest| rest.split_once(']'));
    arrays
        .filter_map(|(bytes, _)| {
            let bytes: Option<Vec<u8>> = bytes
                .trim_start_matches("byte ")
                .split(", ")
                .map(|byte| u8::from_str_radix(byte.trim().strip_prefix("0x")?, 16).ok())
                .collect();
            let bytes = bytes?;
            let v4 = <[u8; 4]>::try_from(&*bytes).map(|bytes| Ipv4Addr::from(bytes).into());
            v4.or_else(|_| <[u8; 16]>::try_from(&*bytes).map(|bytes| Ipv6Addr::from(bytes).into())).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::addresses;

    #[test]
    fn addresses_are_read_from_the_body_of_a_call() {
        let one = "(3, [(2, [byte 0x0a, 0x40, 0x00, 0x01])])";
        assert_eq!(addresses(one), ["10.64.0.1".parse::<std::net::IpAddr>().unwrap()]);
        let v6 = "[0xfd, 0x64, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01]";
        let two = format!("(3, [(2, [byte 0x08, 0x08, 0x08, 0x08], 53, \"\"), (10, {v6}, 0, \"\")])");
        assert_eq!(addresses(&two).iter().map(ToString::to_string).collect::<Vec<_>>(), ["8.8.8.8", "fd64::1"]);
        assert!(addresses("(3, @a(iay) [])").is_empty());
    }
}
