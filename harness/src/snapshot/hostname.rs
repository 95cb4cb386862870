//! The topic "hostname": the names of the machine in the UTS namespace of the calling thread, which are in no file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::utsname::uname;

use super::Error;
use super::escape::word;

/// The topic.
pub fn hostname() -> Result<String, Error> {
    let names = uname().map_err(|errno| Error::io("read with uname(2)", Path::new("the host name"), errno.into()))?;
    let shown = |name: &OsStr| word(name.as_bytes());
    Ok(format!("hostname {}\ndomainname {}\n", shown(names.nodename()), shown(names.domainname())))
}
