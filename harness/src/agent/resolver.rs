//! The system resolver: getaddrinfo(3) in a process of its own, so that nothing is remembered from one attempt to the next and
//! one that hangs can be abandoned.

use super::{
    sockets,
    trial::{self, Trial},
    wire::{Family, Outcome, ProbeSpec, Stage},
};
use nix::{
    poll::PollFlags,
    sys::{prctl, signal::Signal},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::{CStr, CString},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitCode, Stdio},
    ptr,
    time::{Duration, Instant},
};

/// The argument that makes the program run [`getaddrinfo_main`].
const ENTRY: &str = "@getaddrinfo";
/// One try of one second for each server of resolv.conf(5).
const RES_OPTIONS: &str = "timeout:1 attempts:1";
/// A process has started within this time.
const TO_START: Duration = Duration::from_secs(2);
/// More output than any answer has.
const MAX_OUTPUT: usize = 64 * 1024;

/// What the process tells, one a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
enum Said {
    /// The next thing it does is the call.
    Calling,
    Found {
        addresses: Vec<IpAddr>,
    },
    Failed {
        code: String,
        text: String,
    },
}

/// One attempt.
pub(super) fn probe(trial: &mut Trial, spec: &ProbeSpec, family: Family) -> Outcome {
    // The program may not be visible by path in the client; this link works all the same.
    let mut command = Command::new("/proc/self/exe");
    command
        .args([ENTRY, family_word(family), &spec.name])
        .env("RES_OPTIONS", RES_OPTIONS)
        .env_remove("LOCALDOMAIN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if let Some(gid) = spec.as_gid {
        command.gid(gid);
    }
    if let Some(uid) = spec.as_uid {
        command.uid(uid);
    }
    trial.announce(None);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Outcome::NotPossible { reason: format!("start /proc/self/exe {ENTRY}: {error}") },
    };
    let read = read_to_end(&mut child, trial);
    // Killing a process that has ended already is no error, and the wait below is short in either case.
    let killed = child.kill();
    let ended = child.wait();
    let (output, timed_out) = match read {
        Ok(read) => read,
        Err(error) => return Outcome::NotPossible { reason: format!("read from {ENTRY}: {error}") },
    };
    let mut last = None;
    for line in output.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Said::Calling) | Err(_) => {}
            Ok(said) => last = Some(said),
        }
    }
    match last {
        Some(Said::Found { addresses }) => {
            Outcome::Answered { rcode: 0, addresses, from: None, after_us: trial.since_sent().as_micros() as u64 }
        }
        Some(Said::Failed { code, text }) => Outcome::ResolverError { code, text },
        _ if timed_out && trial.tried => trial.no_answer(Stage::Answer),
        _ => Outcome::NotPossible { reason: format!("{ENTRY} told no result: ended {ended:?}, killed {killed:?}") },
    }
}

/// Reads what the process writes until it ends or its time is over; also tells whether it is over. The time of the call begins
/// when the process says that it calls: on a busy machine a process may be long in starting.
fn read_to_end(child: &mut Child, trial: &mut Trial) -> io::Result<(Vec<u8>, bool)> {
    let Some(mut stdout) = child.stdout.take() else { return Ok((Vec::new(), false)) };
    let to_start = Instant::now() + TO_START;
    let mut output = Vec::new();
    let mut chunk = [0; 4096];
    while output.len() < MAX_OUTPUT {
        let deadline = if trial.tried { trial.deadline } else { to_start };
        if sockets::wait(&stdout, PollFlags::POLLIN, deadline)?.is_empty() {
            return Ok((output, true));
        }
        match stdout.read(&mut chunk)? {
            0 => break,
            length => output.extend_from_slice(&chunk[..length]),
        }
        let first = output.split(|byte| *byte == b'\n').next().unwrap_or_default();
        if matches!(serde_json::from_slice(first), Ok(Said::Calling)) {
            trial.sent();
        }
    }
    Ok((output, false))
}

fn family_word(family: Family) -> &'static str {
    match family {
        Family::Any => "any",
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}

/// The main of the process that makes one getaddrinfo(3) call: `any|v4|v6 NAME`, the result on standard output.
///
/// The program's entry for the argument `@getaddrinfo`; only the agent starts it.
pub fn getaddrinfo_main(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    // When the agent ends, an abandoned call must not go on asking.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let mut arguments = arguments.into_iter();
    let family = match arguments.next().as_deref() {
        Some("any") => libc::AF_UNSPEC,
        Some("v4") => libc::AF_INET,
        Some("v6") => libc::AF_INET6,
        _ => return usage(),
    };
    let Some(name) = arguments.next().and_then(|name| CString::new(name).ok()) else { return usage() };
    if say(&Said::Calling).is_err() {
        return ExitCode::FAILURE;
    }
    match say(&look_up(&name, family)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: {ENTRY} any|v4|v6 NAME");
    ExitCode::from(64)
}

fn say(said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}

fn look_up(name: &CStr, family: libc::c_int) -> Said {
    let hints = libc::addrinfo {
        ai_flags: 0,
        ai_family: family,
        // One socket type, else each address comes three times.
        ai_socktype: libc::SOCK_STREAM,
        ai_protocol: 0,
        ai_addrlen: 0,
        ai_addr: ptr::null_mut(),
        ai_canonname: ptr::null_mut(),
        ai_next: ptr::null_mut(),
    };
    let mut list = ptr::null_mut();
    // SAFETY: `name` ends with a nul byte, `hints` is complete, and `list` is where the result goes.
    let code = unsafe { libc::getaddrinfo(name.as_ptr(), ptr::null(), &raw const hints, &raw mut list) };
    if code != 0 {
        let error = io::Error::last_os_error();
        return Said::Failed { code: eai_name(code, &error), text: eai_text(code, &error) };
    }
    let mut addresses = Vec::new();
    let mut entry = list;
    while !entry.is_null() {
        // SAFETY: `entry` is an element of the list that getaddrinfo returned and that is freed below.
        let info = unsafe { &*entry };
        addresses.extend(address(info));
        entry = info.ai_next;
    }
    // SAFETY: `list` came from getaddrinfo and is not used after this.
    unsafe { libc::freeaddrinfo(list) };
    Said::Found { addresses }
}

fn address(info: &libc::addrinfo) -> Option<IpAddr> {
    match info.ai_family {
        libc::AF_INET => {
            // SAFETY: the family says that the address is a `sockaddr_in`, which getaddrinfo has filled in.
            let address = unsafe { &*info.ai_addr.cast::<libc::sockaddr_in>() };
            Some(IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the address is a `sockaddr_in6`, which getaddrinfo has filled in.
            let address = unsafe { &*info.ai_addr.cast::<libc::sockaddr_in6>() };
            Some(IpAddr::from(address.sin6_addr.s6_addr))
        }
        _ => None,
    }
}

fn eai_name(code: libc::c_int, error: &io::Error) -> String {
    match code {
        libc::EAI_AGAIN => "EAI_AGAIN".into(),
        libc::EAI_FAIL => "EAI_FAIL".into(),
        libc::EAI_FAMILY => "EAI_FAMILY".into(),
        libc::EAI_MEMORY => "EAI_MEMORY".into(),
        libc::EAI_NODATA => "EAI_NODATA".into(),
        libc::EAI_NONAME => "EAI_NONAME".into(),
        libc::EAI_SYSTEM => format!("EAI_SYSTEM {}", trial::errno_name(error.raw_os_error().unwrap_or(0))),
        other => format!("EAI {other}"),
    }
}

fn eai_text(code: libc::c_int, error: &io::Error) -> String {
    if code == libc::EAI_SYSTEM {
        return error.to_string();
    }
    // SAFETY: gai_strerror returns a static string for every code.
    unsafe { CStr::from_ptr(libc::gai_strerror(code)) }.to_string_lossy().into_owned()
}
