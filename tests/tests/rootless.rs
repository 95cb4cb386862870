//! An ordinary user without any right to be root gets the same verdicts, and is told what could not be tried.
//!
//! Run as root, this is done as the user 65534, with a TUN device that everybody may open, as udev makes it on most
//! distributions; it is bound over the machine's in a mount namespace of the test's own.

use libtest_mimic::{Arguments, Failed};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::{Gid, Uid, chown, setgid, setgroups, setuid},
};
use std::{
    fs, io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, ExitCode, Stdio},
};
use watertight::report::ReportFile;
use watertight_tests::{Needs, missing, program, trial};

/// An ordinary user's and group's number ("nobody").
const ORDINARY: u32 = 65534;
/// The misc device TUN (Documentation/admin-guide/devices.txt).
const TUN: (u64, u64) = (10, 200);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, entry, folder, rest @ ..] = words.as_slice()
        && entry == "@ordinary"
    {
        let problem = become_ordinary(Path::new(folder))
            .map_or_else(|error| error, |()| Command::new(&rest[0]).args(&rest[1..]).exec());
        eprintln!("failed to become an ordinary user: {problem}");
        return ExitCode::from(71);
    }
    let arguments = Arguments::from_args();
    let reason = missing(Needs::Cases).or_else(not_for_ordinary_users);
    let trials = vec![trial("an_ordinary_user_gets_the_same_verdict", reason.as_deref(), ordinary_user)];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn ordinary_user() -> Result<(), Failed> {
    let folder = tempfile::Builder::new().prefix("watertight-test-").tempdir()?;
    let (own, bundle) = (folder.path().join("watertight"), folder.path().join("bundle"));
    // Where the program was built need not be a place that everybody may enter.
    fs::copy(program(), &own)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    if Uid::effective().is_root() {
        chown(folder.path(), Some(ORDINARY.into()), Some(ORDINARY.into()))?;
    }
    let output = Command::new("/proc/self/exe")
        .arg("@ordinary")
        .args([folder.path(), &own])
        .args([
            "run",
            "--scenario",
            "states/connect-disconnect",
            "--case",
            "static-file+default",
            "--jobs",
            "1",
            "--bundle",
        ])
        .arg(&bundle)
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .env("CI", "1")
        .stdin(Stdio::null())
        .output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report: ReportFile = match fs::read(bundle.join("report.json")).map(|bytes| serde_json::from_slice(&bytes)) {
        Ok(Ok(report)) => report,
        _ => return Err(format!("no report; the program ended with {}:\n{said}", output.status).into()),
    };
    let result = &report.results[0];
    if result.verdict.as_str() != "PASS" || !output.status.success() {
        return Err(
            format!("expected PASS as an ordinary user; got {}: {}\n{said}", result.verdict, result.reason).into()
        );
    }
    let told = result.notes.iter().any(|note| note.contains("probes of an ordinary user cannot be made here"));
    if told {
        Ok(())
    } else {
        Err(format!("the report does not say what could not be tried: {:?}", result.notes).into())
    }
}

/// Why an ordinary user cannot run cases here, if so.
fn not_for_ordinary_users() -> Option<String> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--help").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the child has one thread, and these are bare system calls.
    unsafe {
        command.pre_exec(|| {
            if Uid::effective().is_root() {
                setuid(ORDINARY.into())?;
            }
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
        });
    }
    command.status().err().map(|error| format!("ordinary users have no user namespaces here: {error}"))
}

/// Nothing is to be done for somebody who is one.
fn become_ordinary(folder: &Path) -> io::Result<()> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let devices = folder.join("dev");
    fs::create_dir(&devices)?;
    mount(Some("tmpfs"), &devices, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    let tun = devices.join("tun");
    mknod(&tun, SFlag::S_IFCHR, Mode::empty(), makedev(TUN.0, TUN.1))?;
    fs::set_permissions(&tun, fs::Permissions::from_mode(0o666))?;
    mount(Some(&tun), "/dev/net/tun", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    setgroups(&[])?;
    setgid(Gid::from_raw(ORDINARY))?;
    setuid(Uid::from_raw(ORDINARY))?;
    Ok(())
}
