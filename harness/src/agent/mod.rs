//! The agent: a process inside the client that makes DNS attempts on command, one JSON line a command and an event.
//!
//! It is not a resolver and keeps no cache: each attempt has a socket of its own, or, for getaddrinfo, a process of its own. It
//! judges nothing; it tells what it tried and what the kernel said. Each job has a thread, because the identity of a sender
//! (filesystem uid and gid) belongs to a thread in Linux, and because a job that hangs must hold nobody else up.

pub mod client;
mod crafted;
mod dhcp;
mod endpoint;
mod flows;
mod hammer;
mod listen;
mod loopback;
mod message;
mod neighbour;
mod outbox;
mod resolver;
mod sockets;
mod tcp;
mod trial;
mod udp;
pub mod wire;

pub use client::{AgentClient, ClientError};
pub use endpoint::{Endpoint, MacAddress, ParseEndpointError, ParseMacAddressError};
pub use resolver::getaddrinfo_main;

use flows::Flows;
use hammer::Hammers;
use listen::Listeners;
use outbox::Outbox;
use std::{
    io::{BufRead, Read, Write},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use wire::{Attempt, Command, Event, MAX_SPECS, Outcome};

/// The longest command line, in bytes.
const MAX_LINE: usize = 1 << 20;
/// The most jobs at a time: two full `probe` commands and some room.
const MAX_JOBS: usize = 2 * MAX_SPECS + 64;
/// A stack for one job; a TLS handshake in a build without optimisation is what needs it.
const STACK: usize = 512 * 1024;

/// The agent's main: commands on standard input, events on standard output, until end-of-file.
///
/// The program's entry for the argument `@agent`. It starts itself again as `/proc/self/exe @getaddrinfo …`, so the program
/// must dispatch that argument to [`getaddrinfo_main`].
pub fn run() -> ExitCode {
    serve(std::io::stdin().lock(), std::io::stdout())
}

/// Serves commands until end-of-file. Split from [`run`] so that a thread can be an agent.
fn serve(mut input: impl BufRead, output: impl Write + Send + 'static) -> ExitCode {
    let agent = Agent {
        outbox: Outbox::new(output),
        jobs: Arc::default(),
        flows: Arc::default(),
        hammers: Hammers::default(),
        listeners: Listeners::default(),
    };
    loop {
        match read_line(&mut input) {
            Ok(Line::End) => return ExitCode::SUCCESS,
            Ok(Line::TooLong) => agent.outbox.error(None, format!("read a command: longer than {MAX_LINE} bytes")),
            Ok(Line::Text(line)) if line.trim_ascii().is_empty() => {}
            Ok(Line::Text(line)) => agent.line(&line),
            Err(error) => {
                agent.outbox.error(None, format!("read standard input: {error}; the agent ends"));
                return ExitCode::FAILURE;
            }
        }
    }
}

struct Agent {
    outbox: Outbox,
    jobs: Arc<AtomicUsize>,
    flows: Arc<Flows>,
    hammers: Hammers,
    listeners: Listeners,
}

impl Agent {
    fn line(&self, line: &[u8]) {
        match serde_json::from_slice::<Command>(line) {
            Ok(command) => self.command(command),
            Err(error) => {
                // The id is wanted all the same, so that the engine can tell which of its commands it was.
                let about = serde_json::from_slice::<serde_json::Value>(line)
                    .ok()
                    .and_then(|value| Some(value.get("id").or(value.get("socket"))?.as_str()?.to_owned()));
                self.outbox.error(about, format!("understand a command: {error}"));
            }
        }
    }

    fn command(&self, command: Command) {
        let outbox = self.outbox.clone();
        match command {
            Command::Ping { id } => {
                let uid = nix::unistd::geteuid().as_raw();
                outbox.send(&Event::Pong { id, pid: std::process::id(), uid });
            }
            Command::Probe { specs } => self.probe(specs),
            Command::Open(spec) => {
                let flows = Arc::clone(&self.flows);
                self.job(Some(spec.socket.clone()), move || outbox.send(&flows.open(spec)));
            }
            Command::Close { socket } => {
                let existed = self.flows.close(&socket);
                outbox.send(&Event::Closed { socket, existed });
            }
            Command::HammerStart(spec) => self.hammers.start(spec, &outbox),
            Command::HammerStop { id } => self.hammers.stop(&id, &outbox),
            Command::Listen(spec) => self.listeners.start(&spec, &outbox),
            Command::Unlisten { id } => self.listeners.stop(&id, &outbox),
            Command::Loopback { id } => self.job(Some(id.clone()), move || outbox.send(&loopback::check(id))),
            Command::Neighbour { id, address, interface } => {
                self.job(Some(id.clone()), move || outbox.send(&neighbour::resolve(id, address, &interface)));
            }
            Command::Dhcp { id, interface, version, timeout_ms } => {
                self.job(Some(id.clone()), move || outbox.send(&dhcp::ask(id, &interface, version, timeout_ms)));
            }
        }
    }

    fn probe(&self, specs: Vec<wire::ProbeSpec>) {
        if specs.len() > MAX_SPECS {
            let text = format!("probe: {} specs in one command; send at most {MAX_SPECS}", specs.len());
            return self.outbox.error(None, text);
        }
        for spec in specs {
            let (outbox, flows) = (self.outbox.clone(), Arc::clone(&self.flows));
            let id = spec.id.clone();
            let started = self.start(move || {
                let id = spec.id.clone();
                let attempt = trial::run(spec, &flows, &outbox);
                outbox.send(&Event::Probe { id, attempt });
            });
            if let Err(reason) = started {
                let attempt = Attempt {
                    started_ns: outbox::now_ns(),
                    tried: false,
                    sent_ns: None,
                    local: None,
                    dns_id: None,
                    outcome: Outcome::NotPossible { reason },
                };
                self.outbox.send(&Event::Probe { id, attempt });
            }
        }
    }

    fn job(&self, about: Option<String>, work: impl FnOnce() + Send + 'static) {
        if let Err(text) = self.start(work) {
            self.outbox.error(about, text);
        }
    }

    fn start(&self, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
        let slot = Slot::take(&self.jobs)
            .ok_or_else(|| format!("start a job: {MAX_JOBS} are running already; wait for their answers"))?;
        let work = move || {
            let _slot = slot;
            work();
        };
        thread::Builder::new()
            .stack_size(STACK)
            .spawn(work)
            .map(drop)
            .map_err(|error| format!("start a thread: {error}"))
    }
}

/// The right to run one job.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(jobs: &Arc<AtomicUsize>) -> Option<Self> {
        let slot = Self(Arc::clone(jobs));
        // On the way out `slot` gives back what this line took.
        (jobs.fetch_add(1, Ordering::Relaxed) < MAX_JOBS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

enum Line {
    Text(Vec<u8>),
    TooLong,
    End,
}

/// Reads a line of bounded length, without its end; a longer one is read to its end and dropped.
fn read_line(input: &mut impl BufRead) -> std::io::Result<Line> {
    let mut line = Vec::new();
    input.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Ok(Line::End),
        Some(b'\n') => {
            line.pop();
            Ok(Line::Text(line))
        }
        Some(_) if line.len() <= MAX_LINE => Ok(Line::Text(line)),
        Some(_) => {
            input.skip_until(b'\n')?;
            Ok(Line::TooLong)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_skipped_and_the_next_one_is_read() {
        let mut text = vec![b'x'; MAX_LINE + 10];
        text.extend_from_slice(b"\nnext\nlast");
        let mut input = std::io::BufReader::new(&text[..]);
        assert!(matches!(read_line(&mut input).unwrap(), Line::TooLong));
        assert!(matches!(read_line(&mut input).unwrap(), Line::Text(line) if line == b"next"));
        assert!(matches!(read_line(&mut input).unwrap(), Line::Text(line) if line == b"last"));
        assert!(matches!(read_line(&mut input).unwrap(), Line::End));
    }

    #[test]
    fn slots_run_out_and_come_back() {
        let jobs = Arc::default();
        let mut slots: Vec<_> = (0..MAX_JOBS).map(|_| Slot::take(&jobs).unwrap()).collect();
        assert!(Slot::take(&jobs).is_none());
        slots.pop();
        assert!(Slot::take(&jobs).is_some());
    }
}
