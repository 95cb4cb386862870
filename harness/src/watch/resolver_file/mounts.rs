//! The mount table of the client: the kernel tells when it changes, and it says over which paths something is mounted.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::File,
    io::{self, Read, Seek},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Where the table of the calling thread's mount namespace is. A thread that joined the client's is in another PID namespace than
/// the /proc that it sees, and has no entry there; what it joined is the mount namespace of PID 1.
const TABLES: [&str; 2] = ["/proc/thread-self/mountinfo", "/proc/1/mountinfo"];

/// The table of the namespace that the opening thread is in; changes count from here on.
#[derive(Debug)]
pub(super) struct MountTable(AsyncFd<File>);

impl MountTable {
    /// Starts listening.
    pub(super) fn open() -> io::Result<Self> {
        let [own, init] = TABLES;
        let file = match File::open(own) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::open(init),
            opened => opened,
        }
        .map_err(|error| io::Error::new(error.kind(), format!("the mount table cannot be opened: {error}")))?;
        // Registered at once: the kernel tells of a change once, and what came before would be told to the registration.
        // SAFETY: the file owns its descriptor, and nobody can take it out of there or close it while it is registered.
        let registered = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        Ok(Self(registered?))
    }

    /// Returns when something was mounted, moved or unmounted since it returned last (proc_pid_mounts(5)).
    pub(super) async fn changed(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }

    /// Paths over which something is mounted now.
    pub(super) fn points(&self) -> io::Result<HashSet<PathBuf>> {
        let mut table = self.0.get_ref();
        table.rewind()?;
        let mut bytes = Vec::new();
        table.read_to_end(&mut bytes)?;
        Ok(points(&bytes))
    }
}

/// The fifth word of each line (proc_pid_mountinfo(5)).
fn points(table: &[u8]) -> HashSet<PathBuf> {
    const POINT: usize = 4;
    let lines = table.split(|byte| *byte == b'\n');
    lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(POINT)).map(unescaped).collect()
}

/// Space, tab, newline and backslash are octal numbers behind a backslash.
fn unescaped(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let number = after.first_chunk::<3>().filter(|_| *first == b'\\');
        let number = number.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(number.unwrap_or(*first));
        rest = if number.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_they_are_called() {
        let table = b"22 1 0:20 / / rw - overlay overlay rw\n\
                      99 22 0:31 /sub/file /etc/resolv.conf ro,relatime master:1 - tmpfs tmpfs rw\n\
                      100 22 0:32 / /a\\040b\\134c rw - tmpfs tmpfs rw\n";
        let expected = ["/", "/etc/resolv.conf", "/a b\\c"].map(PathBuf::from);
        assert_eq!(points(table), HashSet::from(expected));
    }
}
