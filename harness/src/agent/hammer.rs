//! The hammer: one thread that sends queries as fast as the kernel takes them, so that a hole of microseconds is hit, and that
//! measures its own gaps, so that what it could not see is known.

use super::{
    endpoint::Endpoint,
    message::Question,
    outbox::{Outbox, now_ns},
    sockets,
    trial::errno_name,
    wire::{Bind, Event, Gaps, HammerReport, HammerSpec, HammerTarget, Qtype, Run},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The most hammers at a time: each keeps a processor busy.
const MAX_HAMMERS: usize = 4;
/// The digits of the number in the name.
const DIGITS: usize = 10;
/// The buckets of the gap histogram; the last begins at about 67 s.
const BUCKETS: usize = 28;
/// Runs kept at each end.
const RUNS: usize = 500;
const SEND_BUFFER: usize = 8 << 20;

/// The part of the budget that is sent at full speed: one in so many.
const FULL_SPEED: u64 = 10;
/// The pause after a send that succeeded, when that part is spent.
const PACE: Duration = Duration::from_micros(100);

/// The running hammers, by name.
#[derive(Default)]
pub(super) struct Hammers {
    running: Mutex<HashMap<String, Running>>,
    /// Sockets of hammers that have ended: an answer to a closed port would be answered with an ICMP message.
    quiet: Arc<Mutex<VecDeque<Sockets>>>,
}

struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Hammers {
    /// Starts a hammer, which tells when it runs.
    pub(super) fn start(&self, spec: HammerSpec, outbox: &Outbox) {
        let id = spec.id.clone();
        if let Err(text) = self.try_start(spec, outbox) {
            outbox.error(Some(id), text);
        }
    }

    fn try_start(&self, spec: HammerSpec, outbox: &Outbox) -> Result<(), String> {
        let mut running = self.lock();
        if running.contains_key(&spec.id) {
            return Err(format!("start hammer {}: there is one of that name; stop it first", spec.id));
        }
        if running.len() >= MAX_HAMMERS {
            return Err(format!("start hammer {}: {MAX_HAMMERS} are running; stop one", spec.id));
        }
        let id = spec.id.clone();
        let hammer = Hammer::new(spec)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (quiet, outbox, stopped) = (Arc::clone(&self.quiet), outbox.clone(), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("hammer".into())
            .spawn(move || {
                let (report, sockets) = hammer.run(&stopped, &outbox);
                let mut quiet = quiet.lock().unwrap_or_else(PoisonError::into_inner);
                quiet.push_back(sockets);
                if quiet.len() > 2 * MAX_HAMMERS {
                    quiet.pop_front();
                }
                drop(quiet);
                outbox.send(&Event::HammerReport(Box::new(report)));
            })
            .map_err(|error| format!("start a thread for hammer {id}: {error}"))?;
        running.insert(id, Running { stop, thread });
        Ok(())
    }

    /// Stops a hammer; its thread sends the report.
    pub(super) fn stop(&self, id: &str, outbox: &Outbox) {
        match self.lock().remove(id) {
            Some(Running { stop, thread }) => {
                stop.store(true, Ordering::Relaxed);
                thread.thread().unpark();
            }
            None => outbox.error(Some(id.to_owned()), format!("stop hammer {id}: no such hammer is running")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One socket a family, unconnected.
struct Sockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
}

impl Sockets {
    fn local(&self) -> Vec<SocketAddr> {
        [&self.v4, &self.v6].into_iter().flatten().filter_map(sockets::local).collect()
    }

    fn of(&self, domain: Domain) -> Option<&Socket> {
        if domain == Domain::IPV4 { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

struct Hammer {
    spec: HammerSpec,
    sockets: Sockets,
    targets: Vec<SockAddr>,
    query: Vec<u8>,
    /// Where the digits are in the query.
    digits: usize,
}

impl Hammer {
    fn new(spec: HammerSpec) -> Result<Self, String> {
        let addresses = spec.targets.iter().map(Endpoint::resolve).collect::<io::Result<Vec<_>>>();
        let addresses = addresses.map_err(|error| format!("start hammer {}: {error}", spec.id))?;
        if addresses.is_empty() {
            return Err(format!("start hammer {}: no targets", spec.id));
        }
        if spec.name_prefix.contains('.') {
            return Err(format!("start hammer {}: `{}` has a dot; put it into the zone", spec.id, spec.name_prefix));
        }
        let name = format!("{}{:0DIGITS$x}.{}", spec.name_prefix, 0, spec.zone);
        let question = Question::new(&name, Qtype::A)?;
        let open = |v4: bool| {
            let wanted = addresses.iter().any(|address| address.is_ipv4() == v4);
            wanted.then(|| open(v4, spec.interface.as_deref())).transpose()
        };
        let sockets = Sockets { v4: open(true)?, v6: open(false)? };
        Ok(Self {
            // The header has 12 bytes, the first label one for its length (RFC 1035, section 4.1).
            digits: 12 + 1 + spec.name_prefix.len(),
            query: question.bytes,
            sockets,
            targets: addresses.into_iter().map(SockAddr::from).collect(),
            spec,
        })
    }

    fn run(mut self, stop: &AtomicBool, outbox: &Outbox) -> (HammerReport, Sockets) {
        let mut record = Record::new(&self.spec, self.sockets.local());
        let mut before = None;
        let mut turn = 0;
        while !stop.load(Ordering::Relaxed) {
            if record.report.sent_ok >= self.spec.max_sent {
                record.report.budget_spent_at.get_or_insert_with(now_ns);
                // Woken by `Hammers::stop`; a wake-up for no reason does no harm.
                thread::park();
                continue;
            }
            write_digits(&mut self.query[self.digits..self.digits + DIGITS], record.report.attempts);
            let target = &self.targets[turn];
            let (at, at_ns) = (Instant::now(), now_ns());
            let result = match self.sockets.of(target.domain()) {
                Some(socket) => socket.send_to(&self.query, target),
                None => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
            };
            if let Some(before) = before.replace(at) {
                record.gap(at.duration_since(before), at_ns);
            }
            if record.report.attempts == 0 {
                let id = self.spec.id.clone();
                outbox.send(&Event::HammerStarted { id, at_ns, local: self.sockets.local() });
            }
            let sent = result.is_ok();
            record.attempt(turn, at_ns, result.err());
            if record.report.sent_ok >= self.spec.max_sent {
                record.report.budget_spent_at.get_or_insert_with(now_ns);
            } else if sent && record.report.sent_ok > self.spec.max_sent / FULL_SPEED {
                // Where everything passes there is nothing to find: what is left of the budget has to last until it does not.
                thread::park_timeout(PACE);
            }
            turn = (turn + 1) % self.targets.len();
        }
        (record.finish(), self.sockets)
    }
}

fn open(v4: bool, interface: Option<&str>) -> Result<Socket, String> {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = sockets::open(domain, Type::DGRAM, Protocol::UDP)?;
    if !v4 {
        socket.set_only_v6(true).map_err(|error| format!("set IPV6_V6ONLY: {error}"))?;
    }
    // More than the limit is only for root; less is no reason not to hammer.
    let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBufForce, &SEND_BUFFER)
        .or_else(|_| nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBuf, &SEND_BUFFER));
    let _ = socket.set_broadcast(true);
    if let Some(interface) = interface {
        sockets::bind_to(&socket, &Bind::Device(interface.to_owned()))?;
    }
    let any = if v4 { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0_u16; 8], 0)) };
    sockets::bind_address(&socket, any)?;
    Ok(socket)
}

fn write_digits(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number % 16) as usize];
        number /= 16;
    }
}

/// The report while it is being made.
struct Record {
    report: HammerReport,
    errors: BTreeMap<i32, u64>,
    /// The run under way, by target.
    current: Vec<Option<OpenRun>>,
    late: VecDeque<Run>,
}

struct OpenRun {
    from_ns: u64,
    to_ns: u64,
    errno: Option<i32>,
    count: u64,
}

impl Record {
    fn new(spec: &HammerSpec, local: Vec<SocketAddr>) -> Self {
        let targets: Vec<_> = spec
            .targets
            .iter()
            .map(|target| HammerTarget { target: target.clone(), attempts: 0, sent_ok: 0 })
            .collect();
        Self {
            current: targets.iter().map(|_| None).collect(),
            report: HammerReport {
                id: spec.id.clone(),
                local,
                targets,
                gaps: Gaps { log2_us: vec![0; BUCKETS], ..Gaps::default() },
                ..HammerReport::default()
            },
            errors: BTreeMap::new(),
            late: VecDeque::new(),
        }
    }

    fn gap(&mut self, gap: Duration, at_ns: u64) {
        let gaps = &mut self.report.gaps;
        let ns = gap.as_nanos() as u64;
        gaps.count += 1;
        gaps.total_ns += ns;
        gaps.over_5us += u64::from(ns > 5_000);
        if ns > gaps.max_ns {
            (gaps.max_ns, gaps.max_at_ns) = (ns, at_ns);
        }
        gaps.log2_us[bucket(ns)] += 1;
    }

    fn attempt(&mut self, turn: usize, at_ns: u64, error: Option<io::Error>) {
        let report = &mut self.report;
        if report.attempts == 0 {
            report.first_ns = at_ns;
        }
        report.last_ns = at_ns;
        report.attempts += 1;
        report.targets[turn].attempts += 1;
        let errno = match error {
            None => {
                report.sent_ok += 1;
                report.targets[turn].sent_ok += 1;
                None
            }
            Some(error) if error.kind() == io::ErrorKind::WouldBlock => {
                report.busy += 1;
                return;
            }
            Some(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                *self.errors.entry(errno).or_default() += 1;
                Some(errno)
            }
        };
        match &mut self.current[turn] {
            Some(run) if run.errno == errno => {
                run.to_ns = at_ns;
                run.count += 1;
            }
            current => {
                let ended = current.replace(OpenRun { from_ns: at_ns, to_ns: at_ns, errno, count: 1 });
                if let Some(ended) = ended {
                    self.keep(turn, &ended);
                }
            }
        }
    }

    fn keep(&mut self, target: usize, run: &OpenRun) {
        let OpenRun { from_ns, to_ns, errno, count } = *run;
        let run = Run { target, from_ns, to_ns, error: errno.map(errno_name), count };
        if self.report.runs.len() < RUNS {
            self.report.runs.push(run);
        } else {
            self.late.push_back(run);
            if self.late.len() > RUNS {
                self.late.pop_front();
                self.report.runs_dropped += 1;
            }
        }
    }

    fn finish(mut self) -> HammerReport {
        for (target, run) in std::mem::take(&mut self.current).into_iter().enumerate() {
            if let Some(run) = run {
                self.keep(target, &run);
            }
        }
        self.report.errors = self.errors.into_iter().map(|(errno, count)| (errno_name(errno), count)).collect();
        self.report.runs.extend(self.late);
        self.report
    }
}

fn bucket(ns: u64) -> usize {
    (64 - (ns / 1000).leading_zeros() as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let buckets = [0, 999, 1_000, 1_999, 2_000, 3_999, 4_000, u64::MAX].map(bucket);
        assert_eq!(buckets, [0, 0, 1, 1, 2, 2, 3, BUCKETS - 1]);
    }

    #[test]
    fn digits_have_a_fixed_width() {
        let mut digits = *b"??????????";
        write_digits(&mut digits, 0xab_c012);
        assert_eq!(&digits, b"0000abc012");
    }

    #[test]
    fn runs_are_kept_by_target_and_bounded() {
        let spec = HammerSpec {
            id: "h".into(),
            targets: vec![Endpoint::new([192, 0, 2, 1], 53), Endpoint::new([192, 0, 2, 2], 53)],
            name_prefix: "h".into(),
            zone: "test".into(),
            interface: None,
            max_sent: u64::MAX,
        };
        let denied = || Some(io::Error::from_raw_os_error(libc::EPERM));
        let full = || Some(io::Error::from_raw_os_error(libc::EAGAIN));
        let mut record = Record::new(&spec, Vec::new());
        for round in 0..10 {
            record.attempt(0, 100 + round, None);
            record.attempt(1, 200 + round, denied());
            record.attempt(1, 200 + round, full());
        }
        let report = record.finish();
        let run = |target, from_ns, to_ns, error: Option<&str>| Run {
            target,
            from_ns,
            to_ns,
            error: error.map(str::to_owned),
            count: 10,
        };
        assert_eq!(report.runs, [run(0, 100, 109, None), run(1, 200, 209, Some("EPERM"))]);
        assert_eq!((report.attempts, report.sent_ok, report.busy, report.errors["EPERM"]), (30, 10, 10, 10));

        let mut record = Record::new(&spec, Vec::new());
        for at in 0..3000 {
            record.attempt(0, at, if at % 2 == 0 { None } else { denied() });
        }
        let report = record.finish();
        assert_eq!((report.runs.len(), report.runs_dropped), (2 * RUNS, 3000 - 2 * RUNS as u64));
        assert_eq!((report.runs[RUNS - 1].from_ns, report.runs[RUNS].from_ns), (499, 2500));
    }
}
