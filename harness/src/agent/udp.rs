//! A query in one datagram of a connected socket, sent once.

use super::{
    endpoint::Endpoint,
    message::Question,
    sockets,
    trial::{self, Trial},
    wire::{Bind, Outcome, Stage},
};
use nix::poll::PollFlags;
use socket2::{Protocol, SockAddr, Socket, Type};
use std::{
    collections::VecDeque,
    io::{self, Read},
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long the message of an nftables `reject` may take to come back over loopback, after the send has failed.
const REJECT_WAIT: Duration = Duration::from_millis(5);

/// One attempt with a fresh socket.
pub(super) fn probe(
    trial: &mut Trial,
    server: &Endpoint,
    bind: &Bind,
    mark: Option<u32>,
    question: &Question,
) -> Outcome {
    let server = match server.resolve() {
        Ok(server) => server,
        Err(error) => return Outcome::NotPossible { reason: error.to_string() },
    };
    match connected(trial, server, bind, mark) {
        Ok(socket) => {
            let outcome = exchange(trial, &socket, server, question);
            if matches!(outcome, Outcome::NoAnswer { .. }) {
                keep_quiet(socket);
            }
            outcome
        }
        Err(outcome) => outcome,
    }
}

/// A connected socket, told about.
pub(super) fn connected(
    trial: &mut Trial,
    server: SocketAddr,
    bind: &Bind,
    mark: Option<u32>,
) -> Result<Socket, Outcome> {
    let socket = sockets::towards(server, Type::DGRAM, Protocol::UDP, bind, mark)
        .and_then(|socket| sockets::want_errors(&socket, server).map(|()| socket))
        .map_err(|reason| Outcome::NotPossible { reason })?;
    // Without this the kernel refuses broadcast servers itself, and a firewall would get the credit.
    let _ = socket.set_broadcast(true);
    trial.tried = true;
    socket
        .connect(&SockAddr::from(server))
        .map_err(|error| trial::failed_at_once(&error, &format!("connect to {server}/udp"), None))?;
    trial.announce(sockets::local(&socket));
    Ok(socket)
}

/// Sends the query once and waits for the answer.
pub(super) fn exchange(trial: &mut Trial, socket: &Socket, server: SocketAddr, question: &Question) -> Outcome {
    // Errors of earlier sends on an old flow are not this attempt's.
    while sockets::queued_error(socket).is_some() {}
    let _ = socket.take_error();

    trial.tried = true;
    if let Err(error) = socket.send(&question.bytes) {
        let until = (Instant::now() + REJECT_WAIT).min(trial.deadline);
        let _ = sockets::wait(socket, PollFlags::empty(), until);
        return trial::failed_at_once(&error, &format!("send to {server}/udp"), sockets::queued_error(socket));
    }
    trial.sent();
    await_answer(trial, socket, server, question)
}

fn await_answer(trial: &Trial, socket: &Socket, server: SocketAddr, question: &Question) -> Outcome {
    let mut buffer = vec![0; 65_535];
    let what = format!("wait for {server}/udp");
    loop {
        match sockets::wait(socket, PollFlags::POLLIN, trial.deadline) {
            Err(error) => return trial::failed_at_once(&error, &what, None),
            Ok(ready) if ready.is_empty() => return trial.no_answer(Stage::Answer),
            Ok(_) => {}
        }
        if let Some(refusal) = sockets::queued_error(socket) {
            return Outcome::Refused(refusal);
        }
        let mut reader = socket;
        match reader.read(&mut buffer) {
            Ok(length) => {
                if let Some(answer) = question.answer(&buffer[..length]) {
                    return answer.outcome(Some(server), trial.since_sent());
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                return sockets::queued_error(socket)
                    .map_or_else(|| trial::refused_later(&error, &what), Outcome::Refused);
            }
        }
    }
}

/// How many silent sockets stay open.
const QUIET: usize = 64;
static QUIET_SOCKETS: Mutex<VecDeque<Socket>> = Mutex::new(VecDeque::new());

/// Keeps an unanswered socket open for a while: a late answer to a closed port would make the client's kernel send an ICMP
/// message, a frame that no probe accounts for.
pub(super) fn keep_quiet(socket: Socket) {
    let mut sockets = QUIET_SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    sockets.push_back(socket);
    if sockets.len() > QUIET {
        sockets.pop_front();
    }
}
