//! Starts a process inside the client machine.
//!
//! A small process in between (`@enter`) joins the machine's namespaces, starts the program as its child and tells the
//! case the child's id and, later, how it ended. It holds none of the program's pipes.

use super::{Client, SandboxError, client::join, io_error};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, setgid, setgroups, setuid},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::CString,
    io::{self, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    process::{ExitCode, Stdio},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::unix::pipe,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::watch,
};

/// The descriptor on which `@enter` reports.
const REPORT_FD: i32 = 3;

/// What to start, and as whom.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spawn {
    /// The program's path inside the machine, or `@self` for this program, whose file the machine need not see.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
    /// User and group; `None` is root.
    pub user: Option<(u32, u32)>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessEnd {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// A process inside the client machine.
#[derive(Debug)]
pub struct Process {
    /// Its id in the case's PID namespace.
    pub pid: Pid,
    /// Its standard input.
    pub stdin: Option<ChildStdin>,
    /// Its standard output.
    pub stdout: Option<ChildStdout>,
    /// Its standard error.
    pub stderr: Option<ChildStderr>,
    end: watch::Receiver<Option<ProcessEnd>>,
    _enter: Child,
}

impl Spawn {
    /// Starts the process; returns when it has its id, which is before its first instruction.
    pub async fn start(&self, client: &Client) -> Result<Process, SandboxError> {
        let (report_in, report_out) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(io_error)
            .map_err(SandboxError::system("make a pipe"))?;
        let spec = serde_json::to_string(self).expect("a plain structure");
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("@enter")
            .arg(client.init_pid().to_string())
            .arg(spec)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let report_raw = report_out.as_raw_fd();
        // SAFETY: dup2 and fcntl are async-signal-safe and touch descriptors only.
        unsafe {
            command.pre_exec(move || {
                if report_raw == REPORT_FD {
                    if libc::fcntl(REPORT_FD, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                } else if libc::dup2(report_raw, REPORT_FD) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut enter = command.spawn().map_err(SandboxError::system("start a process in the client machine"))?;
        drop(report_out);
        let report = pipe::Receiver::from_owned_fd(report_in).map_err(SandboxError::system("watch a pipe"))?;
        let mut lines = BufReader::new(report).lines();
        let first = lines.next_line().await.map_err(SandboxError::system("hear from a new process"))?;
        let pid = match first.as_deref().and_then(|line| line.strip_prefix("pid ")).and_then(|pid| pid.parse().ok()) {
            Some(pid) => Pid::from_raw(pid),
            None => {
                return Err(SandboxError::System {
                    action: format!("start '{}' in the client machine", self.program),
                    source: io::Error::other(first.unwrap_or_else(|| "it ended without a word".into())),
                });
            }
        };
        let (tell, end) = watch::channel(None);
        tokio::spawn(async move {
            let line = lines.next_line().await.ok().flatten().unwrap_or_default();
            let end = match line.split_once(' ') {
                Some(("exit", code)) => code.parse().ok().map(ProcessEnd::Exited),
                Some(("signal", number)) => number.parse().ok().map(ProcessEnd::Killed),
                _ => None,
            };
            let _ = tell.send(Some(end.unwrap_or(ProcessEnd::Killed(libc::SIGKILL))));
        });
        Ok(Process {
            pid,
            stdin: enter.stdin.take(),
            stdout: enter.stdout.take(),
            stderr: enter.stderr.take(),
            end,
            _enter: enter,
        })
    }
}

impl Process {
    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        kill(self.pid, signal).map_err(io_error)
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Option<ProcessEnd> {
        *self.end.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> ProcessEnd {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.expect("waited for it"),
            Err(_) => ProcessEnd::Killed(libc::SIGKILL),
        }
    }

    /// A receiver that tells its end.
    pub fn end(&self) -> watch::Receiver<Option<ProcessEnd>> {
        self.end.clone()
    }
}

/// The process in between: `@enter PID SPEC`.
pub fn enter_main(client_init: i32, spec: &str) -> ExitCode {
    // SAFETY: the case put the report pipe there before the program started, and nothing else owns it.
    let mut report = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(REPORT_FD) });
    match enter(Pid::from_raw(client_init), spec, &mut report) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(report, "error {error}");
            ExitCode::from(71)
        }
    }
}

fn enter(client_init: Pid, spec: &str, report: &mut std::fs::File) -> Result<ExitCode, SandboxError> {
    let spec: Spawn =
        serde_json::from_str(spec).map_err(io::Error::other).map_err(SandboxError::system("read what to start"))?;
    let own = (spec.program == "@self")
        .then(|| std::fs::File::open("/proc/self/exe").map_err(SandboxError::system("open this program")))
        .transpose()?;
    // The program must not keep the pipe: its end would never be seen.
    // SAFETY: the descriptor is open and ours.
    unsafe { libc::fcntl(report.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    join(client_init, &["net", "uts", "ipc", "pid", "mnt"])?;
    std::env::set_current_dir("/").map_err(SandboxError::system("enter the client's root"))?;
    // The child waits for a byte, so that its id is known before its first instruction.
    let (go_in, go_out) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(io_error)
        .map_err(SandboxError::system("make a pipe"))?;
    // SAFETY: this process has one thread, so the child may do anything after the fork.
    match unsafe { fork() }.map_err(io_error).map_err(SandboxError::system("fork"))? {
        ForkResult::Child => {
            drop(go_out);
            let _ = nix::unistd::read(&go_in, &mut [0u8; 1]);
            let error = become_program(&spec, own.as_ref());
            eprintln!("failed to start '{}': {error}", spec.program);
            // SAFETY: ends the process at once; nothing of the parent's is to be run.
            unsafe { libc::_exit(127) }
        }
        ForkResult::Parent { child } => {
            // The program's pipes are the program's alone.
            for descriptor in 0..3 {
                // SAFETY: closing our own standard descriptors; nothing here uses them any more.
                unsafe { libc::close(descriptor) };
            }
            let _ = writeln!(report, "pid {child}");
            let _ = nix::unistd::write(&go_out, b"g");
            drop(go_out);
            loop {
                let line = match waitpid(child, None) {
                    Ok(WaitStatus::Exited(_, code)) => format!("exit {code}"),
                    Ok(WaitStatus::Signaled(_, signal, _)) => format!("signal {}", signal as i32),
                    Err(nix::errno::Errno::EINTR) | Ok(_) => continue,
                    Err(errno) => format!("error {errno}"),
                };
                let _ = writeln!(report, "{line}");
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Does not come back unless it failed.
fn become_program(spec: &Spawn, own: Option<&std::fs::File>) -> io::Error {
    let text = |text: &str| CString::new(std::ffi::OsString::from(text).into_vec());
    let attempt = || -> io::Result<std::convert::Infallible> {
        if let Some((uid, gid)) = spec.user {
            setgroups(&[]).map_err(io_error)?;
            setgid(gid.into()).map_err(io_error)?;
            setuid(uid.into()).map_err(io_error)?;
        }
        let mut argv = vec![text(if own.is_some() { "watertight" } else { &spec.program })?];
        for argument in &spec.arguments {
            argv.push(text(argument)?);
        }
        let mut envp = Vec::new();
        for (name, value) in &spec.environment {
            envp.push(text(&format!("{name}={value}"))?);
        }
        match own {
            Some(file) => nix::unistd::fexecve(file, &argv, &envp),
            None => nix::unistd::execve(&text(&spec.program)?, &argv, &envp),
        }
        .map_err(io_error)
    };
    match attempt() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}
