//! Tries what cases need, one thing a process, for `watertight doctor`; and the smoke check of an adapter.
//!
//! Each runs isolated like a case, so that nothing of the machine is touched.

use crate::{
    capture::{Ring, RingConfig},
    case::{prepare_client, settings},
    sandbox::{Client, Isolation, isolate},
    scenario::{Original, Profile, SettingsPatch},
    subject::{Subject, SubjectCommand, SubjectEvent, smoke},
    testbed::{Topology, plan::UPLINK},
};
use std::{
    error::Error,
    io::{self, Read},
    os::fd::AsFd,
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use watertight_protocol::{InitializeParams, PROTOCOL_VERSION, method};

/// What cases need of this machine, by name: what was found, or what is wrong and what to do. Each thing is tried, in a process
/// of its own: the calling program has the entries of [`crate::entry`].
pub fn needed() -> Vec<(&'static str, Result<String, String>)> {
    vec![
        ("operating system", operating_system()),
        ("namespaces", probe("namespaces")),
        ("TUN (/dev/net/tun)", probe("tun")),
        ("nf_tables", probe("nftables")),
        ("packet capture ring", probe("ring")),
        ("private root (overlay)", probe("root")),
    ]
}

/// Why this machine cannot run cases, a line each; empty if it can.
pub fn missing() -> Vec<String> {
    needed().into_iter().filter_map(|(name, result)| Some(format!("{name}: {}", result.err()?))).collect()
}

fn operating_system() -> Result<String, String> {
    if !cfg!(target_os = "linux") {
        return Err("cases in namespaces run on Linux only".into());
    }
    let name = nix::sys::utsname::uname().map_err(|error| error.to_string())?;
    Ok(format!("Linux {}", name.release().to_string_lossy()))
}

fn probe(what: &str) -> Result<String, String> {
    let output = Command::new("/proc/self/exe")
        .args(["@check", what])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("this program could not be started again: {error}"))?;
    let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(words) } else { Err(words) }
}

/// The program's entry for `@check WHAT`: prints what was found, or what is wrong and what to do.
pub fn check_main(what: &str) -> ExitCode {
    match check(what) {
        Ok(found) => {
            println!("{found}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            println!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn check(what: &str) -> Result<String, Box<dyn Error>> {
    let (lifeline, _held) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // The lifeline's other end is held by this very process: it ends by itself.
    let isolation = isolate(lifeline)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match what {
            "namespaces" => Ok(if isolation.rootless {
                "user, mount, PID, network, UTS and IPC namespaces, as an ordinary user".into()
            } else {
                "mount, PID, network, UTS and IPC namespaces, as root".into()
            }),
            "tun" => tun(),
            "nftables" => nftables().await,
            "ring" => {
                Ring::open(RingConfig::quiet("lo"))?;
                Ok("TPACKET_V3".into())
            }
            "root" => {
                Client::start(isolation.rootless, &[])?;
                Ok("an overlay on /".into())
            }
            other => Err(format!("there is no check '{other}'").into()),
        }
    })
}

fn tun() -> Result<String, Box<dyn Error>> {
    let device = "/dev/net/tun";
    let opened = std::fs::File::options().read(true).write(true).open(device);
    match opened {
        Ok(_) => Ok(device.into()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(format!(
            "{device}: {error}; let ordinary users open it (`chmod 0666 {device}`, as udev does on most distributions), or run as root"
        )
        .into()),
        Err(error) => Err(format!("{device}: {error}; load the module (`modprobe tun`) or use a kernel with CONFIG_TUN").into()),
    }
}

async fn nftables() -> Result<String, Box<dyn Error>> {
    use nlink::{Connection, Nftables, netlink::nftables::Family};
    let advice =
        "use a kernel with CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET and CONFIG_NF_TABLES_NETDEV (`modprobe nf_tables`)";
    let connection = Connection::<Nftables>::new().map_err(|error| format!("{error}; {advice}"))?;
    for family in [Family::Inet, Family::Netdev] {
        connection.add_table("watertight_check", family).await.map_err(|error| format!("{error}; {advice}"))?;
    }
    Ok("tables of the families inet and netdev".into())
}

/// Why there is no smoke check's blessing; the words are for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SmokeError {
    /// The adapter does not keep the protocol.
    #[error("{0}")]
    Adapter(String),
    /// The check itself failed.
    #[error("the smoke check could not be made: {0}; `watertight doctor` tells what this machine lacks")]
    Machine(String),
}

/// How the process of the smoke check says that it was not the adapter (sysexits.h, EX_SOFTWARE).
const EX_SOFTWARE: u8 = 70;

/// Smoke-checks a subject in a client of its own.
pub fn smoke_check(subject: &SubjectCommand) -> Result<String, SmokeError> {
    let machine = |error: &dyn std::fmt::Display| SmokeError::Machine(error.to_string());
    let spec = serde_json::to_string(subject).map_err(|error| machine(&error))?;
    let mut child = Command::new("/proc/self/exe")
        .args(["@smoke", &spec])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| machine(&error))?;
    let _lifeline = child.stdin.take();
    let output = child.wait_with_output().map_err(|error| machine(&error))?;
    let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(words),
        Some(1) => Err(SmokeError::Adapter(words)),
        _ => Err(machine(&format!("{}: {words}", output.status))),
    }
}

/// The program's entry for `@smoke SUBJECT`.
pub fn smoke_main(spec: &str) -> ExitCode {
    match smoke_in_isolation(spec) {
        Ok(Ok(words)) => {
            println!("{words}");
            ExitCode::SUCCESS
        }
        Ok(Err(words)) => {
            println!("{words}");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("{error}");
            ExitCode::from(EX_SOFTWARE)
        }
    }
}

/// The inner result is about the adapter.
fn smoke_in_isolation(spec: &str) -> Result<Result<String, String>, Box<dyn Error>> {
    let command: SubjectCommand = serde_json::from_str(spec)?;
    let lifeline = io::stdin().as_fd().try_clone_to_owned()?;
    let isolation = isolate(lifeline)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, smoke_subject(command, isolation))
}

async fn smoke_subject(
    command: SubjectCommand,
    isolation: Isolation,
) -> Result<Result<String, String>, Box<dyn Error>> {
    let (client, topology) = Topology::build(isolation.rootless, Vec::new(), false).await?;
    topology.start().await?;
    prepare_client(&topology.client, Profile::StaticFile, Original::Plain).await?;
    let events: Arc<Mutex<Vec<SubjectEvent>>> = Arc::default();
    let seen = events.clone();
    let log = tempfile_in_tmp()?;
    let mut subject = Subject::start(
        &client,
        &command,
        Path::new(&log),
        Arc::new(move |event| seen.lock().expect("no holder panics").push(event)),
    )
    .await?;
    let params = InitializeParams {
        protocol: PROTOCOL_VERSION,
        state_dir: crate::case::STATE_DIR.into(),
        uplink: UPLINK.into(),
    };
    // Any key will do: nothing is connected to.
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let checked = smoke(&mut subject, &params, &settings(&SettingsPatch::default(), key, key)).await;
    let events = events.lock().expect("no holder panics").clone();
    let violation = events.iter().find_map(|event| match event {
        SubjectEvent::Violation(what) => Some(what.clone()),
        SubjectEvent::Ended(how) => Some(format!("its process ended: {how:?}")),
        SubjectEvent::State(_) | SubjectEvent::Answered => None,
    });
    let words = |text: String| {
        let mut said = String::new();
        let _ = std::fs::File::open(&log).and_then(|file| file.take(2000).read_to_string(&mut said));
        if said.trim().is_empty() { text } else { format!("{text}\nits log says:\n{}", said.trim_end()) }
    };
    let result = match (checked, violation) {
        (Err(failure), Some(violation)) => return Ok(Err(words(format!("{failure}; the adapter: {violation}")))),
        (Err(failure), None) => return Ok(Err(words(failure.to_string()))),
        (Ok(_), Some(violation)) => return Ok(Err(words(format!("smoke check: the adapter: {violation}")))),
        (Ok(result), None) => result,
    };
    if let Err(error) = subject.call(method::SHUTDOWN, serde_json::json!({}), Duration::from_secs(30)).await {
        return Ok(Err(words(format!("smoke check: {error}"))));
    }
    Ok(Ok(format!(
        "{} {} speaks the adapter protocol, version {}; capabilities: {}; DNS methods: {}",
        result.name,
        result.version,
        result.protocol,
        result.capabilities.join(", "),
        result.dns_methods.join(", ")
    )))
}

/// A log on a private tmpfs: this process's mount namespace is its own.
fn tempfile_in_tmp() -> io::Result<String> {
    nix::mount::mount(Some("tmpfs"), "/tmp", Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=16m"))?;
    Ok("/tmp/subject.log".into())
}
