//! Moves this process into a case's namespaces and makes it their PID 1.

use super::{SandboxError, io_error};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Uid, fork, getegid, geteuid, getppid},
};
use std::{io, os::fd::OwnedFd};

/// How a case was isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isolation {
    /// In a user namespace with a single user: nobody but "root" exists in it.
    pub rootless: bool,
}

/// Isolates the calling process, which must have one thread only. Returns in the new PID 1; the original process waits
/// for it inside this call and exits with its status.
///
/// `lifeline` is the read end of a pipe that the harness holds open: at its end of file PID 1 exits, and with it
/// everything in the case. A parent-death signal covers the moments before that is set up.
pub fn isolate(lifeline: OwnedFd) -> Result<Isolation, SandboxError> {
    let rootless = !geteuid().is_root();
    die_with_parent()?;
    unshare_namespaces(rootless)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(io_error)
        .map_err(SandboxError::system("make all mounts private"))?;
    // SAFETY: the process has one thread, so the child may do anything after the fork.
    match unsafe { fork() }.map_err(io_error).map_err(SandboxError::system("fork the case's first process"))? {
        ForkResult::Parent { child } => {
            drop(lifeline);
            let code = loop {
                match waitpid(child, None) {
                    Ok(WaitStatus::Exited(_, code)) => break code,
                    Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
                    Err(nix::errno::Errno::EINTR) | Ok(_) => {}
                    Err(_) => break 71,
                }
            };
            std::process::exit(code)
        }
        ForkResult::Child => {}
    }
    die_with_parent()?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)
        .map_err(io_error)
        .map_err(|source| SandboxError::Mount { what: "proc".into(), target: "/proc".into(), source })?;
    watch_lifeline(lifeline)?;
    Ok(Isolation { rootless })
}

fn unshare_namespaces(rootless: bool) -> Result<(), SandboxError> {
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    let (what, hint) = if rootless {
        flags |= CloneFlags::CLONE_NEWUSER;
        (
            "user, mount, PID, network, UTS and IPC",
            "run as root, or let ordinary users have user namespaces: `sysctl -w user.max_user_namespaces=10000`, \
             and on Ubuntu `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`; `watertight doctor` tells more",
        )
    } else {
        ("mount, PID, network, UTS and IPC", "CAP_SYS_ADMIN is needed; `watertight doctor` tells more")
    };
    unshare(flags).map_err(|errno| SandboxError::Namespaces { what, hint, source: io_error(errno) })?;
    if rootless {
        // user_namespaces(7): without CAP_SETGID outside, a gid map needs setgroups denied first.
        for (file, text) in
            [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
        {
            let path = format!("/proc/self/{file}");
            std::fs::write(&path, text).map_err(|source| SandboxError::Namespaces { what, hint, source })?;
        }
        debug_assert!(Uid::effective().is_root());
    }
    Ok(())
}

/// SIGKILL for this process when the thread that started it ends.
fn die_with_parent() -> Result<(), SandboxError> {
    // SAFETY: PR_SET_PDEATHSIG takes an integer and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(SandboxError::system("set the parent-death signal")(io::Error::last_os_error()));
    }
    // The parent may have ended before the call. Across a PID namespace's border its id is 0, which is right.
    if getppid().as_raw() == 1 && std::process::id() != 1 {
        std::process::exit(71);
    }
    Ok(())
}

fn watch_lifeline(lifeline: OwnedFd) -> Result<(), SandboxError> {
    std::thread::Builder::new()
        .name("lifeline".into())
        .spawn(move || {
            let mut byte = [0u8; 1];
            loop {
                match nix::unistd::read(&lifeline, &mut byte) {
                    Err(nix::errno::Errno::EINTR) => {}
                    Ok(0) | Err(_) => {
                        // PID 1 goes, and the kernel ends everything else in its namespace.
                        // SAFETY: `_exit` ends the process without running anything.
                        unsafe { libc::_exit(143) }
                    }
                    Ok(_) => {}
                }
            }
        })
        .map(drop)
        .map_err(SandboxError::system("start the lifeline's thread"))
}
