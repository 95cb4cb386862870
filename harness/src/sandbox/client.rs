//! The client machine: mount, PID, network, UTS and IPC namespaces inside the case's, with a private root.
//!
//! Its PID 1 is an entry of this program that builds the root, adopts orphans and waits. The subject and the probes are
//! started inside by [`super::Spawn`]; threads of the case reach it by [`Client::node`].

use super::{Node, SandboxError, io_error, root};
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::wait::waitpid,
    unistd::{ForkResult, Pid, fork, sethostname},
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
};

/// Where the client's PID 1 keeps the tmpfs with all that was written, as seen from inside.
const STAGE_FD: i32 = 9;
/// Where it keeps the host's root, read-only.
const HOST_FD: i32 = 8;

/// A running client machine.
#[derive(Debug)]
pub struct Client {
    init: Pid,
    rootless: bool,
    // Dropped with the client: its standard input's end of file stops the machine.
    _outer: Child,
}

impl Client {
    /// Starts the machine, with the software of `layers` above its own, and waits until its root is ready.
    pub fn start(rootless: bool, layers: &[PathBuf]) -> Result<Self, SandboxError> {
        let mut outer = Command::new("/proc/self/exe")
            .arg("@client-init")
            .arg(if rootless { "rootless" } else { "root" })
            .args(layers)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(SandboxError::system("start the client machine's first process"))?;
        let mut lines = BufReader::new(outer.stdout.take().expect("its output is piped")).lines();
        let mut line = || -> Result<String, SandboxError> {
            match lines.next() {
                Some(Ok(line)) => Ok(line),
                Some(Err(error)) => Err(SandboxError::Client(error.to_string())),
                None => Err(SandboxError::Client("its first process ended without a word".into())),
            }
        };
        // The two lines come from two processes, in any order.
        let (mut init, mut ready) = (None, false);
        loop {
            if let (Some(init), true) = (init, ready) {
                return Ok(Self { init, rootless, _outer: outer });
            }
            let text = line()?;
            match text.split_once(' ') {
                Some(("pid", pid)) => init = pid.parse().ok().map(Pid::from_raw),
                Some(("error", message)) => return Err(SandboxError::Client(message.into())),
                _ if text == "ready" => ready = true,
                _ => return Err(SandboxError::Client(format!("unexpected words: {text}"))),
            }
        }
    }

    /// The id of the machine's PID 1, in the case's PID namespace.
    pub fn init_pid(&self) -> Pid {
        self.init
    }

    /// The machine's network namespace.
    pub fn network_namespace(&self) -> Result<OwnedFd, SandboxError> {
        let path = format!("/proc/{}/ns/net", self.init);
        std::fs::File::open(&path).map(Into::into).map_err(SandboxError::system(format!("open {path}")))
    }

    /// A thread inside the machine's mount, network, UTS and IPC namespaces. It sees the machine's files and /proc.
    pub async fn node(&self, name: &str) -> Result<Node, SandboxError> {
        let pid = self.init;
        Node::start(name, move || {
            unshare(CloneFlags::CLONE_FS)
                .map_err(io_error)
                .map_err(SandboxError::system("unshare the folder state"))?;
            join(pid, &["net", "uts", "ipc", "mnt"])
        })
        .await
    }

    /// The tmpfs that holds everything written to the private root, as a path inside the machine: `upper`, `run`,
    /// `tmp`, `var`.
    pub fn stage(&self) -> PathBuf {
        PathBuf::from(format!("/proc/1/fd/{STAGE_FD}"))
    }

    /// The overlay of the private root as paths inside the machine: its upper folder, and the layers below it. Without
    /// root privileges the root is no overlay.
    pub fn overlay(&self) -> Option<(PathBuf, Vec<PathBuf>)> {
        let host = PathBuf::from(format!("/proc/1/fd/{HOST_FD}"));
        (!self.rootless).then(|| (self.stage().join("upper"), vec![host]))
    }

    /// Folders of the machine of which everything is its own.
    pub fn own_folders(&self) -> Vec<PathBuf> {
        let fresh = ["/run", "/tmp", "/var"].map(PathBuf::from);
        let copied = self.rootless.then(|| ["/etc", "/root"].map(PathBuf::from)).into_iter().flatten();
        fresh.into_iter().chain(copied).collect()
    }
}

/// Joins namespaces of a process; the mount namespace must be the last, since it takes /proc away.
pub(super) fn join(pid: Pid, kinds: &[&str]) -> Result<(), SandboxError> {
    for kind in kinds {
        let path = format!("/proc/{pid}/ns/{kind}");
        let file = std::fs::File::open(&path).map_err(SandboxError::system(format!("open {path}")))?;
        setns(&file, CloneFlags::empty()).map_err(io_error).map_err(SandboxError::system(format!("join {path}")))?;
    }
    Ok(())
}

/// The client machine's first process: `@client-init root|rootless [LAYER]...`.
pub fn client_init_main(rootless: bool, layers: &[PathBuf]) -> ExitCode {
    match client_init(rootless, layers) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error {error}");
            ExitCode::FAILURE
        }
    }
}

fn client_init(rootless: bool, layers: &[PathBuf]) -> Result<(), SandboxError> {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(flags).map_err(|errno| SandboxError::Namespaces {
        what: "the client machine's",
        hint: "the limits in /proc/sys/user/max_*_namespaces may be reached",
        source: io_error(errno),
    })?;
    // SAFETY: this process has one thread, so the child may do anything after the fork.
    match unsafe { fork() }.map_err(io_error).map_err(SandboxError::system("fork the client's PID 1"))? {
        ForkResult::Parent { child } => {
            println!("pid {child}");
            let _ = waitpid(child, None);
            Ok(())
        }
        ForkResult::Child => {
            sethostname("client").map_err(io_error).map_err(SandboxError::system("set the host name"))?;
            let (stage, host) = root::enter_private_root(rootless, layers)?;
            // Moved out of the way first: either may have the number that the other is to get.
            for (folder, number) in [(stage, STAGE_FD), (host, HOST_FD)] {
                // SAFETY: both descriptors are this process's own and open; the copies live until the process ends.
                let kept = unsafe {
                    let high = libc::fcntl(folder.as_raw_fd(), libc::F_DUPFD, 32);
                    std::mem::forget(folder);
                    libc::dup2(high, number)
                };
                if kept < 0 {
                    return Err(
                        SandboxError::system("keep the private root's layers")(std::io::Error::last_os_error()),
                    );
                }
            }
            adopt_orphans();
            println!("ready");
            let _ = std::io::stdout().flush();
            // End of file: the case is over, and so is the machine.
            let _ = std::io::stdin().read(&mut [0u8; 1]);
            Ok(())
        }
    }
}

/// Children whose parents ended become this process's; ignoring SIGCHLD lets the kernel reap them (wait(2)).
fn adopt_orphans() {
    // SAFETY: SIG_IGN installs no handler of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}
