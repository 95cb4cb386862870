//! Which probes must be answered, and which must be refused at once.

use super::{
    policy::{Approved, Mode, Policy, approved},
    timeline::{Interval, Life},
};
use crate::{
    agent::wire::{Attempt, Outcome},
    probe::{self, How, Kind},
};
use std::{collections::BTreeMap, net::IpAddr};

/// A refusal that comes later than this after the attempt is no refusal at once (FWL-12), in milliseconds.
const AT_ONCE_MS: u64 = 400;

/// Whether a probe must be answered, by which requirement, and why.
pub(super) fn must_answer(
    interval: &Interval,
    policy: &Policy,
    kind: &Kind,
    baseline: &BTreeMap<&str, bool>,
) -> Option<(&'static str, String)> {
    let dead = matches!(interval.life, Life::Dead | Life::Frozen);
    match policy.mode {
        // Old flows are not opened again.
        Mode::Open => {
            let was = baseline.get(kind.id.as_str()).copied().unwrap_or(false);
            let steady = !matches!(kind.how, How::OldTcp(_) | How::OldUdp(_));
            (was && steady).then(|| ("FWL-1", "it was answered before the subject started".to_owned()))
        }
        Mode::Connected if !dead && !interval.tunnel_removed && !interval.relay_silent => {
            let settings = policy.settings.as_ref()?;
            let approved = approved(settings);
            let requirement = policy.requirement();
            match &kind.how {
                How::System | How::Search | How::Kept if kind.who != probe::Who::Guest => {
                    Some(("DNS-7", "connected, the system resolver works through the approved servers".into()))
                }
                How::Udp(server, probe::Binding::Free) | How::Tcp(server, probe::Binding::Free)
                    if kind.who != probe::Who::Guest && server.port() == 53 =>
                {
                    let via = is_approved(&approved, server.ip())?;
                    Some((requirement, format!("connected, {} is an approved {via} server", server.ip())))
                }
                How::LinkLocal => {
                    let address = IpAddr::from(crate::testbed::plan::LAN_LINK_LOCAL);
                    let via = is_approved(&approved, address)?;
                    Some((requirement, format!("connected, {address} is an approved {via} server")))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn is_approved(approved: &Approved, address: IpAddr) -> Option<&'static str> {
    if approved.tunnel.contains(&address) {
        Some("tunnel")
    } else if approved.lan.iter().any(|server| server.address == address) {
        Some("LAN")
    } else {
        None
    }
}

/// What must be refused at once: DNS of the client itself, to where somebody would answer, and which is not permitted
/// (an approved server behind a silent relay is).
pub(super) fn is_refused_by_policy(kind: &Kind, policy: &Policy) -> bool {
    use crate::testbed::plan::{API, RELAY_V4};
    let plain = matches!(kind.how, How::Udp(..) | How::Tcp(..) | How::LinkLocal | How::OldUdp(_));
    let silent = [IpAddr::from(RELAY_V4), API.ip()];
    let approved = policy.approved();
    let permitted =
        |address| approved.tunnel.contains(&address) || approved.lan.iter().any(|lan| lan.address == address);
    // A forwarder on this machine may be asked: it is refused, and what it makes of that is its own.
    let server = kind.server().filter(|server| !permitted(server.ip()) && !server.ip().is_loopback());
    plain
        && kind.who != probe::Who::Guest
        && server.is_some_and(|server| server.port() == 53 && !silent.contains(&server.ip()))
}

pub(super) fn is_slow(attempt: &Attempt) -> bool {
    matches!(attempt.outcome, Outcome::NoAnswer { waited_ms, .. } if waited_ms >= AT_ONCE_MS)
}

pub(super) fn words(attempt: &Attempt) -> String {
    match &attempt.outcome {
        Outcome::Answered { .. } => "answered".into(),
        Outcome::NoAnswer { waited_ms, stage } => format!("nothing came within {waited_ms} ms ({stage:?})"),
        Outcome::SendFailed { name, text, .. } => format!("{name}: {text}"),
        Outcome::Refused(refusal) => format!("refused, {}: {}", refusal.how, refusal.text),
        Outcome::ResolverError { code, text } => format!("{code}: {text}"),
        Outcome::NotPossible { reason } => format!("not possible: {reason}"),
    }
}
