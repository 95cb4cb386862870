//! The topic "ipc": what outlives the process that made it in the IPC namespace of the calling thread: message queues of POSIX
//! and of System V, semaphores and shared memory of System V. POSIX semaphores and shared memory are files in /dev/shm, which
//! the topic "dev" has. No identifiers, times or contents.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstatat};

use super::Error;
use super::escape::{line, word};

/// What is shown of each list in /proc/sysvipc (proc_sysvipc(5)): the columns that only somebody's doing changes.
const LISTS: [(&str, &[&str]); 3] = [
    ("msg", &["key", "perms", "uid", "gid", "cuid", "cgid"]),
    ("sem", &["key", "perms", "nsems", "uid", "gid", "cuid", "cgid"]),
    ("shm", &["key", "perms", "size", "uid", "gid", "cuid", "cgid"]),
];

/// The topic.
pub fn ipc(root: &Path) -> Result<String, Error> {
    let mut lines = Vec::new();
    for (list, columns) in LISTS {
        let path = root.join("proc/sysvipc").join(list);
        match fs::read_to_string(&path) {
            Ok(text) => lines.extend(objects(list, columns, &text)),
            // A kernel without System V's.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                lines.push(format!("{list} is not readable: {}\n", error.kind()));
            }
            Err(source) => return Err(Error::io("read", &path, source)),
        }
    }
    match queues() {
        Ok(queues) => lines.extend(queues),
        // A kernel without queues, or without a way to look at them, which is the same both times.
        Err(errno) => lines.push(format!("message-queues are not readable: {}\n", errno.desc())),
    }
    lines.sort();
    Ok(lines.concat())
}

fn objects(list: &str, columns: &[&str], text: &str) -> Vec<String> {
    let mut rows = text.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let names = rows.next().unwrap_or_default();
    let object = |row: Vec<&str>| {
        let value = |name: &&str| {
            let at = names.iter().position(|other| other == name)?;
            Some(format!(" {name} {}", line(row.get(at)?.as_bytes())))
        };
        format!("{list}{}\n", columns.iter().filter_map(value).collect::<String>())
    };
    rows.map(object).collect()
}

/// POSIX message queues exist whether or not they are mounted anywhere, so a mount that nobody else sees shows them.
fn queues() -> Result<Vec<String>, Errno> {
    let mount = mount_of_queues()?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut lines = Vec::new();
    let mut names = Vec::new();
    for entry in Dir::openat(&mount, c".", flags, Mode::empty())?.iter() {
        names.push(entry?.file_name().to_owned());
    }
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        match fstatat(&mount, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(queue) => {
                let (name, mode) = (word(name.to_bytes()), queue.st_mode & 0o7777);
                lines.push(format!("mqueue /{name} mode {mode:04o} {}:{}\n", queue.st_uid, queue.st_gid));
            }
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(lines)
}

/// mq_overview(7), fsopen(2), fsmount(2).
fn mount_of_queues() -> Result<OwnedFd, Errno> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    const FSMOUNT_CLOEXEC: libc::c_uint = 1;
    const KIND: &CStr = c"mqueue";
    let none = std::ptr::null::<libc::c_void>();
    let own = |result: libc::c_long| -> Result<OwnedFd, Errno> {
        let fd = Errno::result(result)?;
        // SAFETY: the kernel has just given this descriptor to the caller, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    // SAFETY: the name is a C string that outlives the call.
    let context = own(unsafe { libc::syscall(libc::SYS_fsopen, KIND.as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: this command takes neither a key nor a value.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0 as libc::c_int)
    })?;
    // SAFETY: the call takes numbers alone.
    own(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0 as libc::c_uint) })
}
