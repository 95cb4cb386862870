//! A piece of memory shared with the kernel, unmapped when dropped. The rings built on it are elsewhere.

use std::{io, os::fd::AsRawFd, ptr::NonNull};

/// A readable and writable mapping.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached only through `&self`/`&mut self` of its owner.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes of `file` from `offset` on, shared with the kernel.
    pub(super) fn shared(file: &impl AsRawFd, length: usize, offset: libc::off_t) -> io::Result<Self> {
        Self::map(length, libc::MAP_SHARED | libc::MAP_POPULATE, file.as_raw_fd(), offset)
    }

    /// Maps `length` bytes of zeroed memory.
    pub(super) fn anonymous(length: usize) -> io::Result<Self> {
        Self::map(length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE, -1, 0)
    }

    /// Length in bytes.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Address of the byte at `offset`; panics beyond the end.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.length, "offset {offset} is beyond a mapping of {} bytes", self.length);
        // SAFETY: `offset` is within the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    fn map(length: usize, flags: libc::c_int, file: libc::c_int, offset: libc::off_t) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no memory of ours is replaced.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, file, offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Self { start, length }),
            None => Err(io::Error::other("the kernel mapped memory at address zero")),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is exactly what `map` got, and nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
