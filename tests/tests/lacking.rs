//! A machine that lacks what cases need says what is missing and what to do, ends with 69, and leaves nothing behind.
//!
//! Each lack is made for one process alone: by namespaces, or by a filter on its system calls.

use libtest_mimic::{Arguments, Failed};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{Uid, getegid, geteuid},
};
use std::{
    fs, io,
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
};
use watertight_tests::{Needs, missing, program, trial};

/// A machine without something, and what must be said of it.
struct Lack {
    name: &'static str,
    words: &'static [&'static str],
    make: fn() -> io::Result<()>,
}

const LACKS: [Lack; 3] = [
    Lack {
        name: "user-namespaces",
        words: &[
            "this machine cannot run cases: namespaces: ",
            "user.max_user_namespaces",
            "apparmor_restrict_unprivileged_userns",
        ],
        make: no_user_namespaces,
    },
    Lack {
        name: "tun",
        words: &["this machine cannot run cases: TUN", "/dev/net/tun", "modprobe tun", "CONFIG_TUN"],
        make: no_tun,
    },
    Lack {
        name: "nf-tables",
        words: &["this machine cannot run cases: nf_tables: ", "CONFIG_NF_TABLES", "modprobe nf_tables"],
        make: no_nf_tables,
    },
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, entry, lack, rest @ ..] = words.as_slice()
        && entry == "@lacking"
    {
        let lack = LACKS.iter().find(|known| known.name == lack).expect("the test names its own");
        let problem = (lack.make)().map_or_else(|error| error, |()| Command::new(&rest[0]).args(&rest[1..]).exec());
        eprintln!("failed to make a machine without {}: {problem}", lack.name);
        return ExitCode::from(71);
    }
    let arguments = Arguments::from_args();
    let reason = missing(Needs::Cases).or_else(|| missing(Needs::Root));
    let trials = LACKS.iter().flat_map(|lack| {
        [
            trial(&format!("without::{}", lack.name), reason.as_deref(), || refused(lack)),
            trial(&format!("backends::without::{}", lack.name), reason.as_deref(), || ignored(lack)),
        ]
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn refused(lack: &Lack) -> Result<(), Failed> {
    let folder = tempfile::Builder::new().prefix("watertight-test-").tempdir()?;
    let bundle = folder.path().join("bundle");
    let lacking = || {
        let mut command = Command::new("/proc/self/exe");
        command.args(["@lacking", lack.name]).arg(program()).stdin(Stdio::null());
        command
    };
    let run = lacking().args(["run", "--scenario", "states/disconnected", "--bundle"]).arg(&bundle).output()?;
    let doctor = lacking().arg("doctor").output()?;
    let said = String::from_utf8_lossy(&run.stderr);
    if run.status.code() != Some(69) || doctor.status.code() != Some(69) {
        let told = String::from_utf8_lossy(&doctor.stdout);
        return Err(format!(
            "expected exit code 69; run ended with {}:\n{said}\ndoctor with {}:\n{told}",
            run.status, doctor.status
        )
        .into());
    }
    if let Some(words) = lack.words.iter().find(|words| !said.contains(*words)) {
        return Err(format!("expected '{words}' in\n{said}").into());
    }
    if bundle.exists() {
        return Err("a bundle was begun although nothing could be run".into());
    }
    Ok(())
}

/// A backend's tests are ignored with the same words, and fail where they must not be.
fn ignored(lack: &Lack) -> Result<(), Failed> {
    let folder = tempfile::Builder::new().prefix("watertight-test-").tempdir()?;
    for (required, code, outcome) in [("0", 0, "ignored (this machine"), ("1", 101, "FAILED")] {
        let run = Command::new("/proc/self/exe")
            .args(["@lacking", lack.name, env!("CARGO_BIN_EXE_example-conformance"), "states/disconnected"])
            .env("WATERTIGHT_REQUIRE_PRIVILEGES", required)
            .env("WATERTIGHT_BUNDLE", folder.path())
            .env_remove("NEXTEST")
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&run.stdout);
        let result = format!("test states/disconnected [static-file] ... {outcome}");
        if run.status.code() != Some(code) || !said.contains(&result) {
            return Err(
                format!("expected exit code {code} and '{result}'; it ended with {}:\n{said}", run.status).into()
            );
        }
        if let Some(words) = lack.words.iter().find(|words| !said.contains(*words)) {
            return Err(format!("expected '{words}' in\n{said}").into());
        }
    }
    Ok(())
}

/// In a user namespace in which there can be no other, as a user who is not root there.
fn no_user_namespaces() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("1000 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("1000 {gid} 1"))?;
    assert!(!Uid::effective().is_root(), "an ordinary user in there");
    fs::write("/proc/sys/user/max_user_namespaces", "0")
}

/// In a mount namespace in which the device's folder is covered by an empty one.
fn no_tun() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), "/dev/net", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    Ok(())
}

/// With a filter that answers as a kernel without netfilter does: `socket(AF_NETLINK, …, NETLINK_NETFILTER)` fails.
fn no_nf_tables() -> io::Result<()> {
    // Offsets in struct seccomp_data (seccomp(2)); of the arguments, the lower half.
    let (number, argument) = (0, |index: u32| 16 + 8 * index + if cfg!(target_endian = "big") { 4 } else { 0 });
    let load = |offset| libc::sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: offset,
    };
    let unless = |value: i64, skip: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: skip,
        k: value as u32,
    };
    let end = |what: u32| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: what };
    let mut filter = [
        load(number),
        unless(libc::SYS_socket, 5),
        load(argument(0)),
        unless(libc::AF_NETLINK.into(), 3),
        load(argument(2)),
        unless(libc::NETLINK_NETFILTER.into(), 1),
        end(libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: prctl reads the program and the filter it points to, which both outlive the call.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if set { Ok(()) } else { Err(io::Error::last_os_error()) }
}
