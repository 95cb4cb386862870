//! What this machine lets tests do. A test that needs more is skipped with the reason, or fails where CI says that it must run.

use libtest_mimic::{Failed, Trial};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::Uid,
};
use std::{
    fs::File,
    io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

/// What a test needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// What cases need: namespaces of their own and a TUN device.
    Cases,
    /// To be root, for what it does around the program.
    Root,
}

/// Whether a skip is a failure: `WATERTIGHT_REQUIRE_PRIVILEGES=1`, as CI sets it.
pub fn required() -> bool {
    std::env::var_os("WATERTIGHT_REQUIRE_PRIVILEGES").is_some_and(|value| value == "1")
}

/// Why a test with these needs cannot run here; `None` if it can.
pub fn missing(needs: Needs) -> Option<String> {
    let root = Uid::effective().is_root();
    if needs == Needs::Root && !root {
        return Some("needs root".into());
    }
    if let Err(error) = namespaces(root) {
        return Some(format!("no namespaces: {error}; run as root, or allow user namespaces"));
    }
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    tun.err().map(|error| format!("/dev/net/tun: {error}"))
}

/// For tests of the standard harness: `true` if the test must return at once, the reason being printed.
///
/// # Panics
///
/// If a reason exists and skips are failures.
pub fn skip(reason: Option<String>) -> bool {
    let Some(reason) = reason else { return false };
    assert!(!required(), "must not be skipped here: {reason}");
    println!("skipped: {reason}");
    true
}

/// A trial that is ignored, with the reason in its name, where `reason` says that it cannot run; where CI says that it must,
/// it fails.
pub fn trial(name: &str, reason: Option<&str>, test: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    match reason {
        None => Trial::test(name, test),
        Some(reason) if required() => {
            let reason = reason.to_owned();
            Trial::test(name, move || Err(format!("must not be skipped here: {reason}").into()))
        }
        Some(reason) => Trial::test(format!("{name} (skipped: {reason})"), test).with_ignored_flag(true),
    }
}

/// Tries to have the namespaces that a case has, in a process that ends at once.
fn namespaces(root: bool) -> io::Result<()> {
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    if !root {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg("--help").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: unshare is a bare system call, and the child has one thread.
    unsafe { command.pre_exec(move || unshare(flags).map_err(io::Error::from)) };
    command.status().map(drop)
}
