//! The machine that plays the host: mount, PID, network, UTS and IPC namespaces of its own, with folders for what changes by
//! itself. It goes with its first process, and its first process goes with the test.

use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// What the test itself writes is here, and is not compared.
pub const FOLDER: &str = "/tmp/test";
/// How long the kernel may take to end what a killed run had started.
const CLEANUP: Duration = Duration::from_secs(20);

/// The command that makes the machine and carries `what` out in it; the program comes with its standard input.
pub fn command(program: &Path, what: &str) -> io::Result<Command> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["@machine", what]).stdin(File::open(program)?).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// The entry `@machine`: makes the namespaces and becomes the parent of the first process in them.
pub fn start_first(what: &str) -> ExitCode {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    let started = die_with_parent().and_then(|()| unshare(flags).map_err(io::Error::from)).and_then(|()| {
        let mut first = Command::new("/proc/self/exe");
        first.args(["@first", what]);
        // SAFETY: prctl with two integers is a bare system call.
        unsafe { first.pre_exec(die_with_parent) };
        first.status()
    });
    match started {
        Ok(status) => ExitCode::from(status.code().map_or(70, |code| code as u8)),
        Err(error) => {
            eprintln!("failed to make the machine: {error}");
            ExitCode::from(71)
        }
    }
}

fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes an integer and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The first process's view of the machine.
pub struct First;

impl First {
    /// Makes the machine's mounts, and puts the program into [`FOLDER`].
    pub fn settle() -> Result<Self, String> {
        let settled = || -> io::Result<()> {
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)?;
            for folder in ["/tmp", "/run", "/dev/shm"].into_iter().filter(|folder| Path::new(folder).is_dir()) {
                mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("mode=1777"))?;
            }
            fs::create_dir(FOLDER)?;
            let program = Path::new(FOLDER).join("watertight");
            io::copy(&mut io::stdin().lock(), &mut File::create(&program)?)?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        };
        settled().map(|()| Self).map_err(|error| format!("failed to prepare the machine: {error}"))
    }

    /// Every other process of the machine, in whatever namespaces below it.
    pub fn others(&self) -> Result<Vec<i32>, String> {
        let entries = fs::read_dir("/proc").map_err(|error| error.to_string())?;
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(pids.filter(|pid| *pid != std::process::id() as i32).collect())
    }

    /// Waits until this process is the only one, and buries those that became its children.
    pub fn wait_until_alone(&self) -> Result<(), String> {
        let deadline = Instant::now() + CLEANUP;
        loop {
            while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
            let others = self.others()?;
            let Some(&other) = others.first() else { return Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let names: Vec<String> = others
                    .iter()
                    .map(|pid| {
                        fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
                    })
                    .collect();
                return Err(format!("{} processes are still there after {CLEANUP:?}: {names:?}", others.len()));
            }
            // One that is gone by now is no error: the next turn does not see it.
            if let Ok(pidfd) = pidfd(other) {
                let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], wait);
            }
        }
    }
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2)).
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and gives a new descriptor that nobody else owns.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
