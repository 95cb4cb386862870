//! Which way of capturing keeps up: the ring of `watertight::capture`, pnet's datalink as it comes, and tcpdump.
//!
//! ```text
//! cargo bench -p watertight --bench capture
//! ```
//!
//! One sender puts frames of 74 bytes on a veth as fast as it can, in a network namespace of the benchmark's own; each
//! method in turn reads the other end. The table says how fast frames came, how many were lost, and what a million of
//! them cost the reader. The exit status is 1 if the ring lost a frame or took more than a fifth of pnet's processor
//! time, 2 if the machine does not let the benchmark run. WATERTIGHT_BENCH_FRAMES sets the number of frames (a
//! million). Needs root, or CAP_SYS_ADMIN for the namespace and CAP_NET_RAW and CAP_NET_ADMIN in it.

use std::{
    error::Error,
    io::{self, BufRead, BufReader, Read},
    mem,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        resource::{UsageWho, getrusage},
        signal::{Signal, kill},
    },
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use nlink::{Connection, Route, netlink::link::VethLink};
use socket2::{Domain, Socket, Type};
use watertight::capture::{Capture, Frame, InterfaceCounters, Ring, RingConfig, Sink, quiet_veth};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const NEAR: &str = "near";
const FAR: &str = "far";
const FRAMES: u64 = 1_000_000;
const FRAME_SIZE: usize = 74;
/// IEEE 802 local experimental ethertype 2.
const ETHERTYPE: [u8; 2] = [0x88, 0xb6];
/// Frames handed to the kernel in one call.
const BATCH: usize = 64;
/// How long a reader waits for one more frame when the sender has ended.
const SILENCE: Duration = Duration::from_millis(300);
/// How long anything may take that should take a moment.
const DEADLINE: Duration = Duration::from_secs(20);
/// The ring may take at most this share of pnet's processor time.
const SHARE: f64 = 0.2;

/// What one method did.
struct Row {
    method: &'static str,
    sent: u64,
    received: u64,
    seconds: f64,
    cpu_seconds: f64,
}

impl Row {
    fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    fn cpu_per_million(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.received.max(1) as f64
    }
}

fn main() -> ExitCode {
    let frames = match std::env::var("WATERTIGHT_BENCH_FRAMES").map(|text| text.parse::<u64>()) {
        Ok(Ok(frames)) if frames > 0 => frames,
        Ok(_) => {
            eprintln!("WATERTIGHT_BENCH_FRAMES is not a number of frames");
            return ExitCode::from(2);
        }
        Err(_) => FRAMES,
    };
    // A thread of its own: it is in another network namespace for the rest of its life.
    let run = std::thread::spawn(move || in_namespace(frames));
    match run.join() {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("the benchmark could not run: {error}");
            ExitCode::from(2)
        }
        Err(_) => ExitCode::from(2),
    }
}

/// Runs all methods; returns whether the ring is as good as it must be.
fn in_namespace(frames: u64) -> Outcome<bool> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("make a network namespace: {errno}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let route = Connection::<Route>::new()?;
        route.add_link(VethLink::new(NEAR, FAR)).await?;
        quiet_veth(NEAR).await?;
        quiet_veth(FAR).await?;
        route.set_link_up(FAR).await?;
        // The end that comes up last can send at once.
        route.set_link_up(NEAR).await?;
        Outcome::Ok(())
    })?;
    let directory = tempfile::tempdir()?;

    let ring = ring("ring", Sink::nowhere(), frames)?;
    let written = self::ring("ring, pcapng file", Sink::file(directory.path().join("ring.pcapng")), frames)?;
    let pnet = pnet(frames)?;
    let tcpdump = find_program("tcpdump").map(|program| tcpdump(&program, directory.path(), frames)).transpose()?;

    println!("{frames} frames of {FRAME_SIZE} bytes each\n");
    println!("| method | frames/s | lost | reader CPU s per 1 M | times the ring |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for row in [&ring, &written, &pnet].into_iter().chain(&tcpdump) {
        println!(
            "| {} | {:.0} | {} | {:.3} | {:.1} |",
            row.method,
            row.sent as f64 / row.seconds,
            row.lost(),
            row.cpu_per_million(),
            row.cpu_per_million() / ring.cpu_per_million(),
        );
    }
    if tcpdump.is_none() {
        println!("\ntcpdump is not on PATH and was left out");
    }

    let mut good = true;
    for row in [&ring, &written] {
        if row.lost() != 0 {
            println!("\nFAILED: {} lost {} of {} frames", row.method, row.lost(), row.sent);
            good = false;
        }
    }
    let share = ring.cpu_per_million() / pnet.cpu_per_million();
    if share > SHARE {
        println!("\nFAILED: the ring took {share:.2} of pnet's processor time, at most {SHARE} is wanted");
        good = false;
    }
    Ok(good)
}

/// The ring of this project.
fn ring(method: &'static str, sink: Sink, frames: u64) -> Outcome<Row> {
    let received = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&received);
    let tap = Box::new(move |frame: &Frame| {
        if is_ours(&frame.bytes) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let capture = Capture::start(Ring::open(RingConfig::uplink(FAR))?, sink.tap(tap))?;
    let sender = start_sender(frames)?;
    let (sent, seconds) = sender.join().map_err(|_| "the sender panicked")??;
    let stats = capture.stop()?;
    let received = received.load(Ordering::Relaxed);
    Ok(Row { method, sent, received, seconds, cpu_seconds: stats.reader_cpu_ns as f64 / 1e9 })
}

/// pnet's datalink channel with its default configuration, but for a timeout, without which reading never ends.
fn pnet(frames: u64) -> Outcome<Row> {
    let interface = pnet::datalink::interfaces()
        .into_iter()
        .find(|interface| interface.name == FAR)
        .ok_or("pnet does not see the interface")?;
    let config = pnet::datalink::Config { read_timeout: Some(SILENCE), ..Default::default() };
    let pnet::datalink::Channel::Ethernet(_, mut receiver) = pnet::datalink::channel(&interface, config)? else {
        return Err("pnet opened a channel of another kind".into());
    };
    let done = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&done);
    let reader = std::thread::spawn(move || -> Outcome<(u64, f64)> {
        let start = cpu_time()?;
        let mut received = 0;
        loop {
            match receiver.next() {
                Ok(frame) => received += u64::from(is_ours(frame)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    if ended.load(Ordering::Acquire) {
                        break;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((received, (cpu_time()? - start).as_secs_f64()))
    });
    let sender = start_sender(frames)?;
    let (sent, seconds) = sender.join().map_err(|_| "the sender panicked")??;
    done.store(true, Ordering::Release);
    let (received, cpu_seconds) = reader.join().map_err(|_| "the reader panicked")??;
    Ok(Row { method: "pnet datalink", sent, received, seconds, cpu_seconds })
}

/// tcpdump with a buffer of 128 MiB, writing a file.
fn tcpdump(program: &Path, directory: &Path, frames: u64) -> Outcome<Row> {
    let file = directory.join("tcpdump.pcap");
    let cpu_before = children_cpu()?;
    let mut child = Command::new(program)
        .args(["-n", "-i", FAR, "-B", "131072", "-Z", "root", "-w"])
        .arg(&file)
        .args(["ether", "proto", "0x88b6"])
        .stderr(Stdio::piped())
        .spawn()?;
    let mut messages = BufReader::new(child.stderr.take().ok_or("tcpdump has no standard error")?);
    let mut line = String::new();
    while !line.contains("listening on") {
        line.clear();
        if messages.read_line(&mut line)? == 0 {
            return Err(format!("{} ended before it listened", program.display()).into());
        }
    }
    let sender = start_sender(frames)?;
    let (sent, seconds) = sender.join().map_err(|_| "the sender panicked")??;
    wait_until_it_stops_growing(&file)?;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    let mut rest = String::new();
    messages.read_to_string(&mut rest)?;
    child.wait()?;
    let received = rest
        .lines()
        .find_map(|line| line.strip_suffix(" packets captured"))
        .and_then(|count| count.trim().parse().ok())
        .ok_or_else(|| format!("tcpdump did not say how many packets it captured: {rest}"))?;
    let cpu_seconds = (children_cpu()? - cpu_before).as_secs_f64();
    Ok(Row { method: "tcpdump -B 131072", sent, received, seconds, cpu_seconds })
}

/// tcpdump tells nobody when it has read its last frame, so its file is looked at.
fn wait_until_it_stops_growing(file: &Path) -> Outcome<()> {
    let deadline = Instant::now() + DEADLINE;
    let mut size = None;
    while Instant::now() < deadline {
        let now = std::fs::metadata(file)?.len();
        if size == Some(now) {
            return Ok(());
        }
        size = Some(now);
        std::thread::sleep(SILENCE);
    }
    Err("tcpdump was still writing at the deadline".into())
}

type Sender = std::thread::JoinHandle<Outcome<(u64, f64)>>;

/// Starts to send; the result is the number of frames that went over the link, and how long that took.
fn start_sender(frames: u64) -> Outcome<Sender> {
    let index = nix::net::if_::if_nametoindex(NEAR)?;
    let mut counters = InterfaceCounters::open(NEAR)?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    Ok(std::thread::spawn(move || {
        let before = counters.read()?;
        let start = Instant::now();
        let handed_over = send(&socket, index, frames)?;
        let seconds = start.elapsed().as_secs_f64();
        // What the receiving end's backlog had no room for was never on the link.
        let dropped = counters.read()?.tx_dropped - before.tx_dropped;
        Ok((handed_over.saturating_sub(dropped), seconds))
    }))
}

fn send(socket: &Socket, index: u32, frames: u64) -> Outcome<u64> {
    let mut frame = [0_u8; FRAME_SIZE];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    let mut messages: Vec<libc::mmsghdr> = (0..BATCH)
        .map(|_| {
            // SAFETY: all zeros is a valid mmsghdr.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            message.msg_hdr.msg_name = (&raw mut address).cast();
            message.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            message.msg_hdr.msg_iov = &raw mut part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let mut sent = 0;
    while sent < frames {
        let batch = BATCH.min(usize::try_from(frames - sent)?);
        // SAFETY: the messages point to the address, the part and the frame, which all outlive the call.
        let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), batch as libc::c_uint, 0) };
        if result < 0 {
            return Err(io::Error::last_os_error().into());
        }
        sent += result as u64;
    }
    Ok(sent)
}

fn is_ours(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ETHERTYPE)
}

fn cpu_time() -> Outcome<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn children_cpu() -> Outcome<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let duration = |time: nix::sys::time::TimeVal| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1_000);
    Ok(duration(usage.user_time()) + duration(usage.system_time()))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|program| program.is_file())
}
