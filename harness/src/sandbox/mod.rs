//! Isolation: every case runs in user (when rootless), mount, PID, network, UTS and IPC namespaces of its own.
//!
//! The process that drives a case is PID 1 of the case's PID namespace, so whatever way it ends (also by SIGKILL of the
//! harness), the kernel ends everything that the case started and takes the namespaces down. The client machine is a
//! second set of namespaces inside, with a private root; see [`Client`]. Failing to get isolation is an error, never a
//! warning: a warning would edit the host's files. This module knows nothing of topologies or subjects.

mod client;
mod enter;
mod isolate;
mod node;
mod priority;
mod root;

pub use client::{Client, client_init_main};
pub use enter::{Process, ProcessEnd, Spawn, enter_main};
pub use isolate::{Isolation, isolate};
pub use node::Node;
pub(crate) use node::earliest;
pub(crate) use priority::be_prompt;

use std::{io, path::PathBuf};

/// Isolation that could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// A namespace could not be made.
    #[error("failed to make {what} namespaces: {source}; {hint}")]
    Namespaces {
        /// Which ones.
        what: &'static str,
        /// What to do.
        hint: &'static str,
        /// The kernel's words.
        source: io::Error,
    },
    /// A mount of the private root failed.
    #[error("failed to mount {what} on {}: {source}", target.display())]
    Mount {
        /// What was mounted.
        what: String,
        /// Where.
        target: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
    /// A system call failed.
    #[error("failed to {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// The kernel's words.
        source: io::Error,
    },
    /// The client machine's first process said what went wrong.
    #[error("failed to start the client machine: {0}")]
    Client(String),
    /// A node's thread is gone.
    #[error("node '{0}' is gone: its thread ended")]
    NodeGone(String),
}

impl SandboxError {
    pub(crate) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::System { action, source }
    }
}

/// `nix` errors as `io` errors.
pub(crate) fn io_error(errno: nix::errno::Errno) -> io::Error {
    io::Error::from_raw_os_error(errno as i32)
}
