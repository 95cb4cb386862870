//! Flows that stay open from one probe to the next ("old flows"): connected sockets whose first query was answered, so that the
//! kernel's connection tracking knows them.

use super::{
    message::Question,
    sockets, tcp,
    trial::Trial,
    udp,
    wire::{Event, OpenSpec, Outcome, Protocol, Qtype},
};
use socket2::Socket;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The most open flows.
const MAX_FLOWS: usize = 128;
/// Longest wait for the first answer.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// The open flows, by name.
#[derive(Default)]
pub(super) struct Flows(Mutex<HashMap<String, Slot>>);

enum Slot {
    Idle(Flow),
    /// A probe is using it. When the slot is gone by the time the probe ends, the flow was closed meanwhile.
    Busy,
}

struct Flow {
    protocol: Protocol,
    socket: Socket,
    server: SocketAddr,
}

impl Flows {
    /// Opens a flow and waits for its first answer.
    pub(super) fn open(&self, spec: OpenSpec) -> Event {
        let result = self.try_open(&spec);
        let socket = spec.socket;
        match result {
            Ok(local) => Event::Opened { socket, ok: true, local, error: None },
            Err(error) => Event::Opened { socket, ok: false, local: None, error: Some(error) },
        }
    }

    fn try_open(&self, spec: &OpenSpec) -> Result<Option<SocketAddr>, String> {
        {
            let flows = self.lock();
            if flows.contains_key(&spec.socket) {
                return Err(format!("open {}: there is a flow of that name; close it first", spec.socket));
            }
            if flows.len() >= MAX_FLOWS {
                return Err(format!("open {}: {MAX_FLOWS} flows are open; close some", spec.socket));
            }
        }
        let question = Question::new(&spec.name, Qtype::A)?;
        let timeout = Duration::from_millis(spec.timeout_ms).min(MAX_TIMEOUT);
        let mut trial = Trial::new(None, timeout);
        let (socket, server, outcome) = match spec.protocol {
            Protocol::Udp => {
                let server = spec.server.resolve().map_err(|error| error.to_string())?;
                let socket = udp::connected(&mut trial, server, &spec.bind, None).map_err(in_words)?;
                let outcome = udp::exchange(&mut trial, &socket, server, &question);
                (socket, server, outcome)
            }
            Protocol::Tcp => {
                let (socket, server, _) =
                    tcp::connected(&mut trial, &spec.server, &spec.bind, None, None).map_err(in_words)?;
                let outcome = tcp::probe_open(&mut trial, &socket, server, &question);
                (socket, server, outcome)
            }
        };
        if !matches!(outcome, Outcome::Answered { .. }) {
            return Err(in_words(outcome));
        }
        let local = sockets::local(&socket);
        let flow = Flow { protocol: spec.protocol, socket, server };
        self.lock().insert(spec.socket.clone(), Slot::Idle(flow));
        Ok(local)
    }

    /// Closes a flow; tells whether there was one.
    pub(super) fn close(&self, name: &str) -> bool {
        let slot = self.lock().remove(name);
        let existed = slot.is_some();
        if let Some(Slot::Idle(Flow { protocol: Protocol::Udp, socket, .. })) = slot {
            udp::keep_quiet(socket);
        }
        existed
    }

    /// One attempt on an open UDP flow, which stays open.
    pub(super) fn probe_udp(&self, trial: &mut Trial, name: &str, question: &Question) -> Outcome {
        self.with(name, Protocol::Udp, |flow| {
            trial.announce(sockets::local(&flow.socket));
            (udp::exchange(trial, &flow.socket, flow.server, question), true)
        })
    }

    /// One attempt on an open TCP flow, which stays open only if it is answered.
    pub(super) fn probe_tcp(&self, trial: &mut Trial, name: &str, question: &Question) -> Outcome {
        self.with(name, Protocol::Tcp, |flow| {
            trial.announce(sockets::local(&flow.socket));
            let outcome = tcp::probe_open(trial, &flow.socket, flow.server, question);
            let answered = matches!(outcome, Outcome::Answered { .. });
            (outcome, answered)
        })
    }

    /// Takes a flow out, uses it, and puts it back if it is to be kept.
    fn with(&self, name: &str, protocol: Protocol, use_it: impl FnOnce(&Flow) -> (Outcome, bool)) -> Outcome {
        let flow = match self.take(name, protocol) {
            Ok(flow) => flow,
            Err(reason) => return Outcome::NotPossible { reason },
        };
        let (outcome, keep) = use_it(&flow);
        let mut flows = self.lock();
        if matches!(flows.get(name), Some(Slot::Busy)) {
            if keep {
                flows.insert(name.to_owned(), Slot::Idle(flow));
            } else {
                flows.remove(name);
            }
        }
        outcome
    }

    fn take(&self, name: &str, protocol: Protocol) -> Result<Flow, String> {
        let mut flows = self.lock();
        match flows.get_mut(name) {
            None => Err(format!("no flow named {name}; open it first (an unanswered TCP flow is gone)")),
            Some(Slot::Busy) => Err(format!("flow {name} is in use by another probe")),
            Some(Slot::Idle(flow)) if flow.protocol != protocol => {
                Err(format!("flow {name} is {:?}, not {protocol:?}", flow.protocol))
            }
            Some(slot) => match std::mem::replace(slot, Slot::Busy) {
                Slot::Idle(flow) => Ok(flow),
                Slot::Busy => Err(format!("flow {name} is in use by another probe")),
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_words(outcome: Outcome) -> String {
    match outcome {
        Outcome::Answered { .. } => "answered".into(),
        Outcome::NoAnswer { waited_ms, stage } => format!("no answer within {waited_ms} ms (waiting for: {stage:?})"),
        Outcome::SendFailed { text, .. } => text,
        Outcome::Refused(refusal) => format!("{} ({})", refusal.text, refusal.how),
        Outcome::ResolverError { code, text } => format!("{code}: {text}"),
        Outcome::NotPossible { reason } => reason,
    }
}
