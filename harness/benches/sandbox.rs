//! How long a case's sandbox takes to make: by this library, and the same links, addresses and routes by the `ip` program.
//!
//! ```text
//! cargo bench -p watertight --bench sandbox
//! ```
//!
//! The library makes the client machine (namespaces, private root), the nodes and everything between them, as each case does;
//! `ip` makes network namespaces only, once with a call for each thing and once with a batch for each namespace. All of it
//! happens in namespaces of the benchmark's own, in turn, so that each method meets the same machine. The exit status is 1 if
//! the library's median is above 10 ms, 2 if the machine does not let the benchmark run. WATERTIGHT_BENCH_ROUNDS sets the
//! number of rounds (40). Needs root, or user namespaces; without root, `ip` is left out.

use std::{
    error::Error,
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use nix::mount::{MsFlags, mount};
use watertight::{
    sandbox::{Client, client_init_main, isolate},
    testbed::Topology,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

const ROUNDS: usize = 40;
/// What the median of the library may be at most.
const LIMIT: Duration = Duration::from_millis(10);
/// Where `ip netns` keeps its names (ip-netns(8)).
const NAMES: &str = "/run/netns";

/// Network namespaces, in the order of the links between them.
const NODES: [&str; 4] = ["client", "router", "internet", "relay"];
/// Links: a node and its interface, and the other node's.
const LINKS: [[&str; 4]; 3] = [
    ["client", "eth0", "router", "lan0"],
    ["router", "wan0", "internet", "isp0"],
    ["internet", "dc0", "relay", "net0"],
];
/// Addresses of each interface, as in the testbed's plan.
const ADDRESSES: [(&str, &str, &[&str]); 6] = [
    ("client", "eth0", &["192.168.1.50/24", "2001:db8:1::50/64", "fd00:1::50/64"]),
    (
        "router",
        "lan0",
        &["192.168.1.1/24", "192.168.1.2/24", "192.168.1.99/24", "2001:db8:1::1/64", "fd00:1::1/64", "fe80::1/64"],
    ),
    ("router", "wan0", &["198.51.100.1/24", "2001:db8:100::1/64"]),
    (
        "internet",
        "isp0",
        &[
            "198.51.100.254/24",
            "2001:db8:100::fe/64",
            "198.51.100.53/24",
            "2001:db8:100::53/64",
            "198.51.100.99/24",
            "2001:db8:100::99/64",
        ],
    ),
    ("internet", "dc0", &["203.0.113.1/24", "2001:db8:203::1/64"]),
    ("relay", "net0", &["203.0.113.10/24", "2001:db8:203::10/64", "203.0.113.20/24"]),
];
/// Routes of each node.
const ROUTES: [(&str, &[&str]); 4] = [
    ("client", &["default via 192.168.1.1 dev eth0", "default via fe80::1 dev eth0"]),
    ("router", &["default via 198.51.100.254 dev wan0", "default via 2001:db8:100::fe dev wan0"]),
    (
        "internet",
        &[
            "192.168.1.0/24 via 198.51.100.1 dev isp0",
            "172.30.0.0/24 via 198.51.100.1 dev isp0",
            "2001:db8:1::/64 via 2001:db8:100::1 dev isp0",
            "fd00:1::/64 via 2001:db8:100::1 dev isp0",
            "fd00:1e::/64 via 2001:db8:100::1 dev isp0",
            "local default dev lo",
            "local ::/0 dev lo",
        ],
    ),
    ("relay", &["default via 203.0.113.1 dev net0", "default via 2001:db8:203::1 dev net0"]),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // The library starts the program again for the client machine's first process.
        [_, "@client-init", root] => return client_init_main(*root == "rootless", &[]),
        [_, "@isolated"] => {}
        // A process of one thread, that may leave its namespaces: its standard input is its lifeline.
        _ => return start_isolated(),
    }
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the benchmark could not run: {error}");
            ExitCode::from(2)
        }
    }
}

fn start_isolated() -> ExitCode {
    let isolated =
        Command::new("/proc/self/exe").arg("@isolated").stdin(Stdio::piped()).spawn().and_then(|mut child| {
            let lifeline = child.stdin.take();
            let status = child.wait();
            drop(lifeline);
            status
        });
    match isolated {
        Ok(status) => ExitCode::from(status.code().map_or(2, |code| code as u8)),
        Err(error) => {
            eprintln!("the benchmark could not start itself again: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether the library is as quick as it must be.
fn measure() -> Outcome<bool> {
    let rounds = match std::env::var("WATERTIGHT_BENCH_ROUNDS") {
        Ok(text) => {
            text.parse().ok().filter(|rounds| *rounds > 0).ok_or("WATERTIGHT_BENCH_ROUNDS is not a number of rounds")?
        }
        Err(_) => ROUNDS,
    };
    let isolation = isolate(io::stdin().as_fd().try_clone_to_owned()?)?;
    let ip = if isolation.rootless { None } else { find_program("ip") };
    if ip.is_some() {
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let [mut machine, mut library, mut calls, mut batches] = [const { Vec::new() }; 4];
    // The first round warms up what is the same for everybody: modules, caches, the program's pages.
    for round in 0..=rounds {
        let made = runtime.block_on(by_library(isolation.rootless))?;
        let root = root_only(isolation.rootless)?;
        let by_ip = ip.as_deref().map(|ip| Outcome::Ok((by_calls(ip)?, by_batches(ip)?))).transpose()?;
        if round > 0 {
            machine.push(root);
            library.push(made);
            if let Some((one, other)) = by_ip {
                calls.push(one);
                batches.push(other);
            }
        }
    }

    let ours = median(&mut library);
    println!("{} network namespaces, {} links, {rounds} rounds\n", NODES.len(), LINKS.len());
    println!("| method | median ms | worst ms | times the library |");
    println!("| --- | ---: | ---: | ---: |");
    row("the library: client machine and network", &mut library, ours);
    row("the client machine (private root) alone", &mut machine, ours);
    match ip {
        Some(_) => {
            row(&format!("ip, {} calls", commands().len()), &mut calls, ours);
            row(&format!("ip -batch, {} calls", 2 * NODES.len() + LINKS.len()), &mut batches, ours);
        }
        None if isolation.rootless => println!("\n`ip netns` needs root and was left out"),
        None => println!("\n`ip` is not on PATH and was left out"),
    }
    if ours > LIMIT {
        println!(
            "\nFAILED: the library's median is {:.1} ms, at most {} ms is wanted",
            milliseconds(ours),
            LIMIT.as_millis()
        );
    }
    Ok(ours <= LIMIT)
}

/// As each case does it. Taking it down is not measured: the kernel does that in the background.
async fn by_library(rootless: bool) -> Outcome<Duration> {
    let start = Instant::now();
    let (_client, topology) = Topology::build(rootless, Vec::new(), false).await?;
    topology.start().await?;
    Ok(start.elapsed())
}

/// The client machine alone; in the library's row it is made while the other nodes are.
fn root_only(rootless: bool) -> Outcome<Duration> {
    let start = Instant::now();
    let _client = Client::start(rootless, &[])?;
    Ok(start.elapsed())
}

/// The arguments of every call, in an order that works.
fn commands() -> Vec<String> {
    let mut commands: Vec<String> = NODES.iter().map(|node| format!("netns add {node}")).collect();
    for [node, interface, other, far] in LINKS {
        commands.push(format!("-n {node} link add {interface} type veth peer name {far} netns {other}"));
    }
    for node in NODES {
        commands.extend(inside(node).into_iter().map(|command| format!("-n {node} {command}")));
    }
    commands
}

/// What is to be done within a namespace.
fn inside(node: &str) -> Vec<String> {
    let mut commands = vec!["link set lo up".to_owned()];
    let interfaces = ADDRESSES.iter().filter(|(of, ..)| *of == node);
    for (_, interface, addresses) in interfaces {
        commands.push(format!("link set {interface} up"));
        commands.extend(addresses.iter().map(|address| {
            let at_once = if address.contains(':') { " nodad" } else { "" };
            format!("address add {address} dev {interface}{at_once}")
        }));
    }
    let routes = ROUTES.iter().filter(|(of, _)| *of == node).flat_map(|(_, routes)| routes.iter());
    commands.extend(routes.map(|route| format!("route add {route}")));
    commands
}

fn by_calls(ip: &Path) -> Outcome<Duration> {
    let start = Instant::now();
    for command in commands() {
        call(ip, &command.split(' ').collect::<Vec<_>>())?;
    }
    let taken = start.elapsed();
    take_down(ip)?;
    Ok(taken)
}

fn by_batches(ip: &Path) -> Outcome<Duration> {
    let folder = tempfile::tempdir_in("/run")?;
    let mut files = Vec::new();
    for node in NODES {
        let file = folder.path().join(node);
        fs::write(&file, inside(node).join("\n"))?;
        files.push((node, file.display().to_string()));
    }
    let start = Instant::now();
    for command in commands().iter().take(NODES.len() + LINKS.len()) {
        call(ip, &command.split(' ').collect::<Vec<_>>())?;
    }
    for (node, file) in &files {
        call(ip, &["-n", node, "-batch", file])?;
    }
    let taken = start.elapsed();
    take_down(ip)?;
    Ok(taken)
}

fn take_down(ip: &Path) -> Outcome<()> {
    for node in NODES {
        call(ip, &["netns", "delete", node])?;
    }
    match fs::read_dir(NAMES)?.count() {
        0 => Ok(()),
        left => Err(format!("{left} namespaces are left in {NAMES}").into()),
    }
}

fn call(ip: &Path, arguments: &[&str]) -> Outcome<()> {
    let output = Command::new(ip).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {} ended with {}: {}", arguments.join(" "), output.status, said.trim()).into())
}

fn row(method: &str, times: &mut [Duration], ours: Duration) {
    let (middle, worst) = (median(times), times.iter().max().copied().unwrap_or_default());
    let ratio = middle.as_secs_f64() / ours.as_secs_f64();
    println!("| {method} | {:.2} | {:.2} | {ratio:.1} |", milliseconds(middle), milliseconds(worst));
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|program| program.is_file())
}
