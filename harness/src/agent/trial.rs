//! One attempt from command to record: who it runs as, which way it goes, what is noted on the way.

use super::{
    crafted,
    flows::Flows,
    message::Question,
    outbox::{Outbox, now_ns},
    resolver, tcp, udp,
    wire::{Attempt, Event, Outcome, ProbeSpec, Refusal, RefusalOrigin, Stage, Via},
};
use nix::{
    errno::Errno,
    unistd::{Gid, Uid, setfsgid, setfsuid},
};
use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Longest wait for an answer that a command can ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes an attempt. Runs on a thread of its own, whose identity it may change for good.
pub(super) fn run(spec: ProbeSpec, flows: &Flows, outbox: &Outbox) -> Attempt {
    let timeout = Duration::from_millis(spec.timeout_ms).min(MAX_TIMEOUT);
    let mut trial = Trial::new(Some((&spec.id, outbox)), timeout);
    let outcome = match &spec.via {
        Via::GetAddrInfo { family } => resolver::probe(&mut trial, &spec, *family),
        via => match take_identity(spec.as_uid, spec.as_gid).and_then(|()| Question::new(&spec.name, spec.qtype)) {
            Ok(question) => probe(&mut trial, via, &question, flows),
            Err(reason) => Outcome::NotPossible { reason },
        },
    };
    trial.finish(outcome)
}

fn probe(trial: &mut Trial, via: &Via, question: &Question, flows: &Flows) -> Outcome {
    trial.dns_id = Some(question.id);
    match via {
        Via::GetAddrInfo { .. } => Outcome::NotPossible { reason: "getaddrinfo has no DNS message of its own".into() },
        Via::Udp { server, bind, mark } => udp::probe(trial, server, bind, *mark, question),
        Via::Tcp { server, bind, mark, fast_open } => tcp::probe(trial, server, bind, *mark, *fast_open, question),
        Via::Tls { server, bind, mark } => tcp::probe_tls(trial, server, bind, *mark, question),
        Via::UdpSocket { socket } => flows.probe_udp(trial, socket, question),
        Via::TcpSocket { socket } => flows.probe_tcp(trial, socket, question),
        Via::PacketSocket { interface, destination_mac, source, destination, shape } => {
            crafted::probe_packet(trial, interface, *destination_mac, *source, *destination, *shape, question)
        }
        Via::RawSocket { source, destination, bind, shape } => {
            crafted::probe_raw(trial, *source, *destination, bind, *shape, question)
        }
    }
}

/// Takes the filesystem identity of a user and group: what the kernel stamps on new sockets (`meta skuid`, `uidrange`).
/// Unlike the effective ids it leaves the network capabilities, so that a mark and a device can be set as well.
fn take_identity(uid: Option<u32>, gid: Option<u32>) -> Result<(), String> {
    // The group first: the right to change it goes with the user.
    if let Some(gid) = gid {
        setfsgid(Gid::from_raw(gid));
        if setfsgid(Gid::from_raw(gid)).as_raw() != gid {
            return Err(format!("take group {gid}: not permitted, or not mapped in this user namespace"));
        }
    }
    if let Some(uid) = uid {
        setfsuid(Uid::from_raw(uid));
        if setfsuid(Uid::from_raw(uid)).as_raw() != uid {
            return Err(format!("take user {uid}: not permitted, or not mapped in this user namespace"));
        }
    }
    Ok(())
}

/// An attempt under way.
pub(super) struct Trial<'a> {
    announce_to: Option<(&'a str, &'a Outbox)>,
    started_ns: u64,
    started: Instant,
    timeout: Duration,
    /// When to stop waiting: the whole time from the start until something was sent, and again from then on.
    pub(super) deadline: Instant,
    /// The stimulus was given.
    pub(super) tried: bool,
    sent: Option<(u64, Instant)>,
    local: Option<SocketAddr>,
    dns_id: Option<u16>,
}

impl<'a> Trial<'a> {
    pub(super) fn new(announce_to: Option<(&'a str, &'a Outbox)>, timeout: Duration) -> Self {
        let started = Instant::now();
        let deadline = started + timeout;
        Self {
            announce_to,
            started_ns: now_ns(),
            started,
            timeout,
            deadline,
            tried: false,
            sent: None,
            local: None,
            dns_id: None,
        }
    }

    /// Tells the socket's own address, before anything is sent from it.
    pub(super) fn announce(&mut self, local: Option<SocketAddr>) {
        self.local = local;
        if let Some((id, outbox)) = self.announce_to {
            let (id, dns_id) = (id.to_owned(), self.dns_id);
            outbox.send(&Event::Sending { id, at_ns: now_ns(), local, dns_id });
        }
    }

    /// Notes the socket's own address once the kernel has chosen all of it.
    pub(super) fn note_local(&mut self, local: Option<SocketAddr>) {
        self.local = local.or(self.local);
    }

    /// Notes that the kernel took the packet, or the call to connect. Only the first time counts.
    pub(super) fn sent(&mut self) {
        self.tried = true;
        if self.sent.is_none() {
            // A busy machine may need long to send; an answer has its whole time all the same.
            let now = Instant::now();
            self.sent = Some((now_ns(), now));
            self.deadline = now + self.timeout;
        }
    }

    /// The time since the send.
    pub(super) fn since_sent(&self) -> Duration {
        self.sent.map_or(self.started, |(_, at)| at).elapsed()
    }

    pub(super) fn no_answer(&self, stage: Stage) -> Outcome {
        Outcome::NoAnswer { waited_ms: self.since_sent().as_millis() as u64, stage }
    }

    fn finish(self, outcome: Outcome) -> Attempt {
        Attempt {
            started_ns: self.started_ns,
            tried: self.tried && !matches!(outcome, Outcome::NotPossible { .. }),
            sent_ns: self.sent.map(|(at, _)| at),
            local: self.local,
            dns_id: self.dns_id,
            outcome,
        }
    }
}

/// The name of an error number, such as `EPERM`.
pub(super) fn errno_name(errno: i32) -> String {
    format!("{:?}", Errno::from_raw(errno))
}

/// The outcome of a call that failed at once, before anything left.
pub(super) fn failed_at_once(error: &io::Error, what: &str, refusal: Option<Refusal>) -> Outcome {
    let errno = error.raw_os_error().unwrap_or(0);
    let text = format!("{what}: {error}");
    if refusal.is_none() && is_refusal(errno) {
        return Outcome::Refused(Refusal { how: errno_name(errno), text, origin: RefusalOrigin::Local });
    }
    Outcome::SendFailed { errno, name: errno_name(errno), text, refusal }
}

/// The outcome of an error that a connection reported after its first packet had left.
pub(super) fn refused_later(error: &io::Error, what: &str) -> Outcome {
    let how = error.raw_os_error().map_or_else(|| format!("{:?}", error.kind()), errno_name);
    Outcome::Refused(Refusal { how, text: format!("{what}: {error}"), origin: RefusalOrigin::Connection })
}

fn is_refusal(errno: i32) -> bool {
    [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ECONNRESET].contains(&errno)
}
