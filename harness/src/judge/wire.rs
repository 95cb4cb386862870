//! Findings on the wire: frames that no rule explains.

use super::{
    explain::{Rule, in_tunnel, on_uplink},
    policy::{Mode, Policy},
    recording::{Recording, SeenFrame, probe_socket},
    timeline::{Interval, Life, Timeline},
    verdict::{Evidence, Finding, Verdict},
};
use crate::{
    capture::{Transport, names_in},
    history::Event,
    scenario::Step,
    testbed::plan::*,
};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

/// Packets that the client had sent into the tunnel may come out of it this much later, in nanoseconds.
const TUNNEL_DELAY: u64 = 500_000_000;

/// A probe's kind and window, found by its name or its socket.
struct Probes<'a> {
    by_name: HashMap<&'a str, &'a str>,
    by_socket: HashMap<(IpAddr, u16, bool), &'a str>,
    tag: &'a str,
}

impl<'a> Probes<'a> {
    fn of(recording: &'a Recording) -> Self {
        let mut kinds = HashMap::new();
        let (mut by_name, mut by_socket) = (HashMap::new(), HashMap::new());
        for record in &recording.records {
            match &record.event {
                Event::Planned { probes } => {
                    for probe in probes {
                        kinds.insert(probe.id.as_str(), probe.kind.as_str());
                        by_name.insert(probe.name.as_str(), probe.kind.as_str());
                    }
                }
                Event::Probe { id, attempt } => {
                    if let (Some(local), Some(kind)) = (attempt.local, kinds.get(id.as_str())) {
                        by_socket.insert(probe_socket(kind, local), *kind);
                    }
                }
                _ => {}
            }
        }
        Self { by_name, by_socket, tag: &recording.header.tag }
    }

    /// The kind of the probe that a frame belongs to; `hammer` for the hammer's.
    fn kind(&self, frame: &SeenFrame) -> Option<&'a str> {
        let name = frame.decoded.dns.as_ref().and_then(|dns| dns.questions.first()).map(|(name, _)| name.as_str());
        if let Some(kind) = name.and_then(|name| self.by_name.get(name)) {
            return Some(kind);
        }
        if name.is_some_and(|name| name.starts_with(&format!("{}-h", self.tag))) {
            return Some("hammer");
        }
        self.by_socket.get(&frame.sender()?).copied()
    }
}

/// Everything that left and may not have.
pub fn findings(recording: &Recording, timeline: &Timeline) -> Vec<Finding> {
    let probes = Probes::of(recording);
    let steps = &recording.header.definition.steps;
    let mut found: BTreeMap<(String, String, String, String), Finding> = BTreeMap::new();
    for (link, frames) in &recording.links {
        for frame in &frames.frames {
            let Some(interval) = timeline.at(frame.after_barrier) else { continue };
            let policies = interval.policies_at(frame.t);
            let explained = if link == "tunnel" {
                let late = timeline
                    .intervals
                    .iter()
                    .filter(|other| other.time.0 <= frame.t && frame.t <= other.time.1.saturating_add(TUNNEL_DELAY));
                policies.iter().any(|policy| in_tunnel(frame, policy).is_some())
                    || late
                        .flat_map(|other| other.policies.iter().chain(other.next.iter().map(|(_, policy)| policy)))
                        .any(|policy| in_tunnel(frame, policy).is_some())
            } else {
                policies.iter().any(|policy| on_uplink(frame, policy, &recording.header.tag).is_some())
            };
            if explained {
                continue;
            }
            let kind = probes.kind(frame);
            let requirement = requirement(link, frame, interval, &policies, kind, steps);
            let class = class(link, frame, kind, interval);
            let window = interval.label(steps, frame.t);
            let to = frame.decoded.ip.as_ref().map(|ip| ip.dst.to_string()).unwrap_or_default();
            let key = (requirement.to_owned(), class.to_owned(), window.clone(), to);
            let finding = found.entry(key).or_insert_with(|| Finding {
                requirement: requirement.into(),
                class: class.into(),
                verdict: Verdict::Leak,
                window: window.clone(),
                summary: format!(
                    "expected nothing on the {link} but what {} permits; {} left{}",
                    policies.first().map_or("the policy", |policy| policy.name()),
                    frame.decoded.summary(&frame.bytes),
                    kind.map(|kind| format!(" (probe {kind})")).unwrap_or_default(),
                ),
                count: 0,
                evidence: Some(Evidence { link: link.clone(), frame: frame.sequence }),
                detail: None,
            });
            finding.count += 1;
        }
    }
    found.into_values().collect()
}

/// Chatter that is permitted and listed: rule and number of frames in protected windows.
pub fn listed(recording: &Recording, timeline: &Timeline) -> BTreeMap<Rule, u64> {
    let mut counts = BTreeMap::new();
    let Some(uplink) = recording.links.get("uplink") else { return counts };
    for frame in &uplink.frames {
        let Some(interval) = timeline.at(frame.after_barrier) else { continue };
        if !interval.protects_at(frame.t) {
            continue;
        }
        let rule =
            interval.policies_at(frame.t).iter().find_map(|policy| on_uplink(frame, policy, &recording.header.tag));
        if let Some(rule @ (Rule::Multicast | Rule::Lan)) = rule {
            *counts.entry(rule).or_insert(0) += 1;
        }
    }
    counts
}

fn requirement(
    link: &str,
    frame: &SeenFrame,
    interval: &Interval,
    policies: &[&Policy],
    kind: Option<&str>,
    steps: &[Step],
) -> &'static str {
    let kind = kind.unwrap_or_default();
    if kind.starts_with("packet") {
        return "FWL-17";
    }
    if is_imitation(kind) {
        return "SPL-1";
    }
    if kind.ends_with("-guest") {
        return "FWL-13";
    }
    match interval.life {
        Life::Dead => return "RST-3",
        Life::Frozen => return "TRN-6",
        _ => {}
    }
    if interval.is_transition_at(frame.t) {
        let modes: Vec<&Mode> = policies.iter().map(|policy| &policy.mode).collect();
        let tunnel = |mode: &&Mode| matches!(mode, Mode::Connecting | Mode::Connected);
        return if interval.tunnel_removed {
            "TRN-6"
        } else if modes.iter().all(tunnel) && was_connected(interval, steps) {
            "TRN-4"
        } else {
            "TRN-1"
        };
    }
    if interval.tunnel_removed {
        return "TRN-6";
    }
    if kind.starts_with("old-") {
        return "FWL-14";
    }
    let policy = policies.first();
    // The system's DNS service is no process that could be excluded.
    if is_forwarded(kind) && policy.is_some_and(|policy| matches!(policy.mode, Mode::Connected)) {
        return "SPL-1";
    }
    let mode_requirement = policy.map_or("FWL-1", |policy| policy.requirement());
    let destination = frame.decoded.ip.as_ref().map(|ip| ip.dst);
    if link == "tunnel" {
        let lan = policy.map(|policy| policy.approved().lan).unwrap_or_default();
        let beside = lan.iter().any(|server| Some(server.address) == destination);
        return if beside { "DNS-5" } else { mode_requirement };
    }
    let to_relay = policy.and_then(|policy| policy.settings.as_ref()).is_some_and(|settings| {
        destination == Some(settings.tunnel.endpoint.ip()) && settings.tunnel.endpoint.port() == 53
    });
    if to_relay && policy.is_some_and(|policy| matches!(policy.mode, Mode::Connecting)) {
        return "FWL-4";
    }
    let lan = destination.is_some_and(super::policy::is_private);
    if lan && policy.is_some_and(|policy| policy.allows_lan()) {
        return "FWL-10";
    }
    mode_requirement
}

/// Whether a kind of probe asks a forwarder on the client itself.
fn is_forwarded(kind: &str) -> bool {
    kind.starts_with("local-")
}

/// Whether a kind of probe pretends to be the daemon.
pub(super) fn is_imitation(kind: &str) -> bool {
    ["mark-", "uid-", "gid-"].iter().any(|prefix| kind.starts_with(prefix))
}

/// Reconnecting or changing settings: the step began in a tunnel state.
fn was_connected(interval: &Interval, steps: &[Step]) -> bool {
    interval.step.and_then(|index| steps.get(index)).is_some_and(|step| matches!(step, Step::Configure(_)))
        || interval.state == Some(watertight_protocol::State::Connected)
}

fn class(link: &str, frame: &SeenFrame, kind: Option<&str>, interval: &Interval) -> &'static str {
    let kind = kind.unwrap_or_default();
    let decoded = &frame.decoded;
    let destination = decoded.ip.as_ref().map(|ip| ip.dst);
    let fragment = decoded.ip.as_ref().is_some_and(|ip| ip.fragment.is_some());
    if link == "tunnel" {
        return "W16";
    }
    match kind {
        _ if kind.starts_with("packet") => return "K01",
        _ if is_imitation(kind) => return "B02",
        _ if kind.ends_with("-guest") => return "F01",
        _ if kind.starts_with("old-") => return "K04",
        _ if is_forwarded(kind) => return "R09",
        _ => {}
    }
    if interval.life == Life::Dead {
        return "T07";
    }
    if fragment {
        return "K02";
    }
    let port = decoded.ports().map(|(_, to)| to);
    let tcp = matches!(decoded.transport, Some(Transport::Tcp(_)));
    let v6 = destination.is_some_and(|address| address.is_ipv6());
    match (port, destination) {
        (_, Some(to)) if to == IpAddr::from(RELAY_V4) || to == IpAddr::from(RELAY_V6) => "B02",
        (Some(53), Some(to)) if to == IpAddr::from(GATEWAY_V4) || to == IpAddr::from(GATEWAY_V6) => "W15",
        (Some(53), _) if tcp => "W04",
        (Some(53), Some(IpAddr::V6(to))) if to.is_unicast_link_local() => "W03",
        (Some(53), _) if v6 => "W02",
        (Some(53), _) => "W01",
        (Some(853), _) if tcp => "W06",
        (Some(853), _) => "W07",
        (Some(443), _) => "W08",
        (Some(5353), Some(to)) if super::policy::is_local_group(to) => "W11",
        (Some(5355), _) => "W12",
        (Some(137), _) => "W13",
        (Some(1900), _) => "W14",
        _ if decoded.dns.is_some() || names_in(&frame.bytes, "watertight") => "W09",
        (None, _) if decoded.arp.is_some() => "K07",
        _ => "W14",
    }
}
