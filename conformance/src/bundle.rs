//! The folder that cases are kept in, which several processes may use at a time: nextest starts one a test.

use crate::options::Options;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// The folder, in use by this process.
#[derive(Debug)]
pub(crate) struct Bundle {
    folder: PathBuf,
    /// Whether other processes may use it too.
    named: bool,
    /// Shared while cases are made in it, so that nobody removes a folder that is just being used.
    lock: File,
}

impl Bundle {
    /// Makes it, if it is not there.
    pub(crate) fn open(options: &Options) -> io::Result<Self> {
        fs::create_dir_all(&options.bundle)?;
        let lock = File::open(&options.bundle)?;
        lock.lock_shared()?;
        Ok(Self { folder: options.bundle.clone(), named: options.named, lock })
    }

    /// Removes what is empty in it, unless another process is using it: that one does so when it ends.
    pub(crate) fn sweep(self) -> io::Result<()> {
        match self.lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let empty = remove_empty_below(&self.folder)?;
        // One that has a name may be waited for.
        if empty && !self.named { fs::remove_dir(&self.folder) } else { Ok(()) }
    }
}

/// True if nothing is left in it.
fn remove_empty_below(folder: &Path) -> io::Result<bool> {
    let mut empty = true;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && remove_empty_below(&entry.path())? {
            fs::remove_dir(entry.path())?;
        } else {
            empty = false;
        }
    }
    Ok(empty)
}
