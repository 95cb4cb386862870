//! The five conditions of a `PASS`. Each is figures first; a condition without figures would hold by itself.

use super::{
    explain::{Rule, on_uplink},
    recording::{Recording, probe_socket},
    stimulus::{stimulus, windows},
    timeline::Timeline,
    verdict::{Accounting, Condition},
    wire::is_imitation,
};
use crate::history::{Event, MarkerKind};
use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

/// How far the two clocks may drift apart within a case before it counts as a step, in nanoseconds.
const CLOCK_STEP: u64 = 20_000_000;

/// The account of a recording.
pub fn account(recording: &Recording, timeline: &Timeline) -> Accounting {
    let conditions = vec![
        positive_control(recording),
        liveness(recording),
        accounting(recording),
        stimulus(recording, timeline),
        agreement(recording),
        harness(recording),
    ];
    let links = recording
        .records
        .iter()
        .filter_map(|record| match &record.event {
            Event::Capture(account) => Some(account.into()),
            _ => None,
        })
        .collect();
    Accounting { conditions, links }
}

pub(super) fn condition(name: &str, problems: Vec<String>, figures: String) -> Condition {
    let holds = problems.is_empty();
    let shown = problems.len().min(4);
    let more = if problems.len() > shown { format!(" (and {} more)", problems.len() - shown) } else { String::new() };
    let figures = if holds { figures } else { format!("{}{more} [{figures}]", problems[..shown].join("; ")) };
    Condition { name: name.into(), holds, figures }
}

/// Each kind of probe was seen to leave when nothing protected.
fn positive_control(recording: &Recording) -> Condition {
    let name = "positive control";
    let windows = windows(recording);
    let Some(baseline) = windows.first() else {
        return condition(
            name,
            vec!["there was no baseline: no probe was made before the subject started".into()],
            "0 kinds".into(),
        );
    };
    let empty = Vec::new();
    let frames = recording.links.get("uplink").map_or(&empty, |link| &link.frames);
    let seen: BTreeSet<&str> = frames
        .iter()
        .flat_map(|frame| frame.decoded.dns.iter().flat_map(|dns| dns.questions.iter()))
        .filter_map(|(name, _)| baseline.names.get(name.as_str()).copied())
        .collect();
    // Connections that carry no readable DNS are told by their socket.
    // Connections to different servers may share a local port.
    let mut sockets: HashMap<(IpAddr, u16, bool), Vec<&str>> = HashMap::new();
    for record in &recording.records {
        if let Event::Probe { id, attempt } = &record.event
            && let (Some(kind), Some(local)) = (baseline.kinds.get(id.as_str()), attempt.local)
        {
            sockets.entry(probe_socket(kind, local)).or_default().push(kind);
        }
    }
    let by_socket: BTreeSet<&str> = frames
        .iter()
        .filter_map(|frame| sockets.get(&frame.sender()?))
        .flatten()
        .copied()
        // Only where the frame cannot be read as DNS: TLS, and connections that nobody accepts.
        .filter(|kind| kind.starts_with("dot") || kind.starts_with("tcp"))
        .collect();
    let needed: BTreeSet<String> =
        windows.iter().flat_map(|window| window.kinds.values()).map(|kind| control_of(kind)).collect();
    let missing: Vec<String> = needed
        .iter()
        .filter(|kind| !seen.contains(kind.as_str()) && !by_socket.contains(kind.as_str()))
        .filter(|kind| system_has_servers(recording, kind))
        .map(|kind| format!("{kind} was not seen to leave before the subject started"))
        .collect();
    let figures = format!("{} of {} kinds seen to leave unprotected", needed.len() - missing.len(), needed.len());
    let mut missing = missing;
    // Unsolicited packets reach a socket of the client when nothing protects it.
    let first_inbound = recording.records.iter().filter_map(|record| match &record.event {
        Event::Inbound { id, received, .. } => Some((id.as_str(), *received)),
        _ => None,
    });
    let mut once = BTreeSet::new();
    let unheard = first_inbound
        .take_while(|(id, _)| once.insert(*id))
        .filter(|(id, received)| !id.starts_with("tunnel-address") && !received);
    missing.extend(
        unheard.map(|(id, _)| format!("the unsolicited packet '{id}' did not arrive before the subject started")),
    );
    condition(name, missing, figures)
}

/// The kind that stands for another in the baseline, as [`Kind::control`](crate::probe::Kind::control) has it.
fn control_of(kind: &str) -> String {
    if !is_imitation(kind) && !kind.ends_with("-tunnel-root") {
        return kind.to_owned();
    }
    let server = if kind.contains("-lan-") { "lan" } else { "public" };
    let way = ["tcp4", "tcp6", "udp6"].into_iter().find(|way| kind.contains(&format!("{way}-"))).unwrap_or("udp4");
    format!("{way}-{server}-root")
}

/// Without a server in the original file, or without one that glibc can read there, the system's resolver asks this very
/// machine, and nothing leaves; the probes that ask servers themselves are the control then.
fn system_has_servers(recording: &Recording, kind: &str) -> bool {
    use crate::scenario::Original;
    let original = recording.header.axes.original;
    match kind {
        "system-root" | "system-user" | "kept-root" | "kept-user"
            if matches!(original, Original::Empty | Original::Missing | Original::Dangling | Original::Crlf) =>
        {
            false
        }
        "system-user" | "kept-user" if original == Original::Mode0640 => false,
        _ => true,
    }
}

/// Every marker that was sent on a link is in its capture; canaries are around every window.
fn liveness(recording: &Recording) -> Condition {
    let mut problems = Vec::new();
    let (mut sent, mut canaries_around) = (0, 0);
    for (link, frames) in &recording.links {
        if let Some(problem) = &frames.problem {
            problems.push(format!("the capture of {link} cannot be read: {problem}"));
        }
    }
    let mut open_window: Option<(u64, u32)> = None;
    for record in &recording.records {
        let Event::Marker { id, marker, cause, links } = &record.event else { continue };
        for link in links {
            sent += 1;
            let frames = recording.links.get(link);
            let seen = frames.is_some_and(|frames| match marker {
                MarkerKind::Barrier => frames.barriers.contains_key(id),
                MarkerKind::Canary => frames.canaries.contains_key(id),
            });
            if !seen {
                problems.push(format!("{marker:?} {id} was sent on {link} and is not in its capture"));
            }
        }
        use crate::history::Cause;
        match (marker, cause) {
            (MarkerKind::Barrier, Cause::ProbesBegin) => open_window = Some((*id, 0)),
            (MarkerKind::Canary, Cause::ProbesBegin | Cause::ProbesEnd) => {
                if let Some((_, canaries)) = &mut open_window {
                    *canaries += 1;
                    canaries_around += 1;
                }
            }
            (MarkerKind::Barrier, Cause::ProbesEnd) => {
                if let Some((id, canaries)) = open_window.take()
                    && canaries < 2
                {
                    problems.push(format!("the window after barrier {id} has {canaries} canaries instead of 2"));
                }
            }
            _ => {}
        }
    }
    if sent == 0 {
        problems.push("no marker was sent".into());
    }
    if !matches!(recording.records.last().map(|record| &record.event), Some(Event::End)) {
        problems.push("the history was cut: its last event is missing".into());
    }
    for (expected, record) in recording.records.iter().enumerate() {
        if record.seq != expected as u64 {
            problems.push(format!("the history has a gap at event {expected}"));
            break;
        }
    }
    let offsets: Vec<u64> = recording
        .records
        .iter()
        .filter(|record| matches!(record.event, Event::Marker { .. }))
        .map(|record| record.t.wrapping_sub(record.mono))
        .collect();
    if let (Some(least), Some(most)) = (offsets.iter().min(), offsets.iter().max())
        && most - least > CLOCK_STEP
    {
        problems.push(format!("the wall clock was stepped by {} ms during the case", (most - least) / 1_000_000));
    }
    condition("liveness", problems, format!("{sent} markers sent on links, {canaries_around} canaries around windows"))
}

/// Captured + dropped = counted by the interface = counted by nftables, and dropped = 0.
fn accounting(recording: &Recording) -> Condition {
    let mut problems = Vec::new();
    let mut figures = Vec::new();
    let mut accounted = BTreeSet::new();
    for record in &recording.records {
        let Event::Capture(account) = &record.event else { continue };
        accounted.insert(account.link.as_str());
        let in_file = recording.links.get(&account.link).map_or(0, |link| link.frames.len() as u64);
        figures.push(format!(
            "{}: {} in the file, {} captured, {} dropped, {} on the interface, {} counted by nftables",
            account.link, in_file, account.captured, account.dropped, account.interface, account.counter
        ));
        if account.dropped != 0 {
            problems.push(format!("{}: the kernel dropped {} frames", account.link, account.dropped));
        }
        if account.captured + account.dropped != account.interface {
            problems.push(format!(
                "{}: {} captured and {} dropped are not the interface's {}",
                account.link, account.captured, account.dropped, account.interface
            ));
        }
        if account.captured != in_file {
            problems.push(format!("{}: {} captured, {in_file} in the file", account.link, account.captured));
        }
    }
    for link in recording.links.keys().filter(|link| !accounted.contains(link.as_str())) {
        problems.push(format!("{link}: its capture gave no account"));
    }
    condition("accounting", problems, figures.join("; "))
}

/// Wire, counter and far logs tell the same story.
fn agreement(recording: &Recording) -> Condition {
    let mut problems = Vec::new();
    // What the API got is written down by itself, and counted by nobody else.
    let is_counted = |event: &Event| matches!(event, Event::Query { server, .. } if server != "api");
    let until_counted = recording.records.iter().take_while(|record| !matches!(record.event, Event::QueriesEnd { .. }));
    let in_log = until_counted.filter(|record| is_counted(&record.event)).count() as u64;
    for record in &recording.records {
        match &record.event {
            Event::Capture(account) if account.counter != account.captured + account.dropped => problems.push(format!(
                "{}: the nftables counter saw {} frames, the capture {}",
                account.link,
                account.counter,
                account.captured + account.dropped
            )),
            Event::Capture(account) => {
                if let Some(sent) = account.sent
                    && sent != account.interface
                {
                    problems.push(format!(
                        "{}: the near end sent {sent} frames, the far end received {}",
                        account.link, account.interface
                    ));
                }
            }
            Event::QueriesEnd { counted, .. } if *counted != in_log => {
                problems.push(format!("the far resolvers counted {counted} queries and {in_log} are in the log"));
            }
            _ => {}
        }
    }
    if !recording.records.iter().any(|record| matches!(record.event, Event::QueriesEnd { .. })) {
        problems.push("the far resolvers gave no account".into());
    }
    let tag = format!("{}-", recording.header.tag);
    // Unsolicited packets from the LAN are no queries of the client's, wherever it forwards them.
    let unsolicited = format!("{tag}in-");
    let is_ours = |name: &str| name.starts_with(&tag) && !name.starts_with(&unsolicited);
    // What a resolver received over UDP and TCP must be on the wire, and the reverse.
    let mut on_wire: BTreeSet<(&str, String)> = BTreeSet::new();
    for link in recording.links.values() {
        for frame in &link.frames {
            let (Some(dns), Some(ip)) = (&frame.decoded.dns, &frame.decoded.ip) else { continue };
            if dns.is_response {
                continue;
            }
            // Where nobody listens for DNS, nobody logs it.
            let heard = frame.decoded.ports().is_some_and(|(_, to)| matches!(to, 53 | 51820));
            for (name, _) in dns.questions.iter().filter(|(name, _)| heard && is_ours(name)) {
                on_wire.insert((name.as_str(), ip.dst.to_string()));
            }
        }
    }
    let mut logged: BTreeSet<(&str, String)> = BTreeSet::new();
    for record in &recording.records {
        if let Event::Query { name, transport, local, .. } = &record.event
            && is_ours(name)
        {
            let address = local.parse::<SocketAddr>().map_or_else(|_| local.clone(), |local| local.ip().to_string());
            if transport != "tls" && !on_wire.contains(&(name.as_str(), address.clone())) {
                problems.push(format!("a far resolver received {name} at {address}, and no capture has it"));
            }
            logged.insert((name, address));
        }
    }
    // The sinks swallow everything, and nobody listens for datagrams at the API.
    let silent: BTreeSet<String> = {
        use crate::testbed::plan::{API, LAN_SINK_V4, SINK_V4, SINK_V6};
        [SINK_V4.to_string(), SINK_V6.to_string(), LAN_SINK_V4.to_string(), API.ip().to_string()].into()
    };
    let mut compared = 0;
    for (name, address) in &on_wire {
        if silent.contains(address) {
            continue;
        }
        compared += 1;
        if !logged.contains(&(*name, address.clone())) {
            problems.push(format!("{name} went to {address} on the wire and is in no far log"));
        }
    }
    if logged.is_empty() {
        problems.push("the far resolvers' logs are empty".into());
    }
    condition(
        "agreement",
        problems,
        format!("{} queries in the far logs, {compared} on the wire to them", logged.len()),
    )
}

/// The harness itself had no trouble.
fn harness(recording: &Recording) -> Condition {
    let problems: Vec<String> = recording
        .records
        .iter()
        .filter_map(|record| match &record.event {
            Event::Harness { problem } => Some(problem.clone()),
            _ => None,
        })
        .chain(recording.snapshots.iter().filter_map(|(name, snapshot)| {
            snapshot.as_ref().err().map(|error| format!("the snapshot {name} cannot be read: {error}"))
        }))
        .chain(
            ["before", "after"]
                .into_iter()
                .filter(|name| !recording.snapshots.contains_key(*name))
                .map(|name| format!("the snapshot {name} was not taken")),
        )
        .chain(unwatched_version(recording))
        .collect();
    let markers = recording.markers().count();
    let explained = recording.links.get("uplink").map_or(0, |link| {
        link.frames
            .iter()
            .filter(|frame| on_uplink(frame, &super::policy::Policy::open(), "") == Some(Rule::Marker))
            .count()
    });
    condition(
        "harness",
        problems,
        format!("no trouble; {markers} markers sent, {explained} marker frames on the uplink"),
    )
}

/// A version of the resolver file that a snapshot saw and the watcher, which sees every version, did not.
fn unwatched_version(recording: &Recording) -> Option<String> {
    let files = recording.records.iter().filter_map(|record| match &record.event {
        Event::File { cause, hash, .. } => Some((cause == "snapshot", hash)),
        _ => None,
    });
    let (by_snapshot, by_watcher): (Vec<_>, Vec<_>) = files.partition(|(by_snapshot, _)| *by_snapshot);
    // The first version is the original, which was there before the watcher.
    let original = by_snapshot.first()?;
    let missed =
        by_snapshot.iter().filter(|seen| *seen != original && !by_watcher.iter().any(|(_, hash)| *hash == seen.1));
    let missed = missed.count();
    (missed > 0).then(|| format!("{missed} snapshots saw a version of the resolver file that its watcher did not"))
}
