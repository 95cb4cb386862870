//! Starts a child as an ordinary user who is root in a user namespace with one user, as the product does without root.

use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, chown, getegid, geteuid};

use super::NAMESPACES;

/// The user and group to whom the tests of root give up their privileges: nobody.
const NOBODY: u32 = 65534;

/// Makes `command` start in namespaces of its own, as PID 1, without any right outside them. `dir` becomes the user's.
pub fn prepare(command: &mut Command, dir: &Path) -> Result<(), Errno> {
    let (mut uid, mut gid) = (geteuid().as_raw(), getegid().as_raw());
    if uid == 0 {
        (uid, gid) = (NOBODY, NOBODY);
        command.uid(uid).gid(gid);
        chown(dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    // user_namespaces(7): without CAP_SETGID outside, a gid map needs setgroups denied first.
    let files = [("setgroups", "deny".into()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
        .map(|(file, text)| (CString::new(format!("/proc/self/{file}")).expect("a path"), text));
    // SAFETY: between fork and exec only system calls are made, on memory that was prepared before.
    unsafe { command.pre_exec(move || Ok(enter(&files)?)) };
    Ok(())
}

/// Returns in a child that is PID 1; the calling process waits for it and ends as it does.
fn enter(files: &[(CString, String)]) -> Result<(), Errno> {
    // SAFETY: the calls take numbers, or memory that lives until they return; this process has one thread.
    unsafe {
        // A change of the user hides /proc/self from the user itself (PR_SET_DUMPABLE(2const)).
        Errno::result(libc::prctl(libc::PR_SET_DUMPABLE, 1))?;
        unshare(CloneFlags::CLONE_NEWUSER)?;
        for (path, text) in files {
            let fd = Errno::result(libc::open(path.as_ptr(), libc::O_WRONLY))?;
            Errno::result(libc::write(fd, text.as_ptr().cast(), text.len()))?;
            Errno::result(libc::close(fd))?;
        }
        // Not before there is a root, to whom the files in /proc/net are to belong.
        unshare(NAMESPACES)?;
        match Errno::result(libc::fork())? {
            0 => Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)).map(drop),
            child => {
                // Else whoever waits for the exec would wait for this process, which does none.
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
                let mut status = 0;
                libc::waitpid(child, &raw mut status, 0);
                libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 1 })
            }
        }
    }
}
