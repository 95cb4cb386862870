//! The VPN client of a case: the reference daemon with the author's backend in the place of its DNS manager.

use crate::{Backend, Capability, Error};
use async_trait::async_trait;
use nix::unistd::{dup, dup2_stdout};
use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::net::unix::pipe;
use watertight_dns_manager::{self as dns, DnsManager, Recovery, ResolvedDns};
use watertight_reference::{Context, Identity, Parts, default_parts, run_as};

/// The test program's entry for this process.
pub(crate) const ENTRY: &str = "@backend";

/// What the method is called in the daemon's words.
const METHOD: &str = "backend";

/// What the daemon can do whatever its backend is.
const DAEMONS: [Capability; 6] = [
    Capability::ReportsStates,
    Capability::Lockdown,
    Capability::AllowLan,
    Capability::ErrorState,
    Capability::RestoresOnSigterm,
    Capability::ApiCheck,
];

/// What depends on the backend.
const BACKENDS: [Capability; 5] = [
    Capability::CustomDns,
    Capability::LanDns,
    Capability::CrashRecovery,
    Capability::WatchesChanges,
    Capability::Ipv6,
];

/// What a daemon with this backend can do.
pub(crate) fn capabilities(backend: &dyn Backend) -> Vec<Capability> {
    let claimed = backend.capabilities();
    DAEMONS.into_iter().chain(BACKENDS.into_iter().filter(|known| claimed.contains(known))).collect()
}

/// The daemon's process.
pub(crate) fn main(backend: impl Backend) -> ExitCode {
    let identity = Identity {
        name: backend.name().into(),
        version: env!("CARGO_PKG_VERSION").into(),
        capabilities: capabilities(&backend),
        dns_methods: Vec::new(),
    };
    let protocol = match take_standard_output() {
        Ok(protocol) => protocol,
        Err(error) => {
            eprintln!("failed to keep standard output for the protocol: {error}");
            return ExitCode::FAILURE;
        }
    };
    let name: Arc<str> = backend.name().into();
    let backend: Arc<Mutex<dyn Backend>> = Arc::new(Mutex::new(backend));
    let make = Box::new(move |context: &Context| {
        let state_dir = context.state_dir.join(METHOD);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&state_dir);
        made.map_err(|source| watertight_reference::Error::StateDir { path: state_dir.clone(), source })?;
        let dns = Manager { name: name.clone(), backend: backend.clone(), state_dir };
        Ok(Parts { dns: Box::new(dns), ..default_parts(context)? })
    });
    run_as(identity, make, move || pipe::Sender::from_owned_fd(protocol).expect("the case gives the daemon a pipe"))
}

/// A backend may print: what it says goes to the log, and the protocol has the pipe for itself.
fn take_standard_output() -> io::Result<OwnedFd> {
    let protocol = dup(io::stdout())?;
    dup2_stdout(io::stderr())?;
    Ok(protocol)
}

/// A backend as the daemon knows DNS managers.
struct Manager {
    name: Arc<str>,
    backend: Arc<Mutex<dyn Backend>>,
    state_dir: PathBuf,
}

impl Manager {
    /// Calls the backend on a thread where it may block. What was begun is finished even if nobody waits for it any more.
    async fn call(
        &self,
        action: &'static str,
        call: impl FnOnce(&mut dyn Backend, &std::path::Path) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), dns::Error> {
        let (backend, state_dir) = (self.backend.clone(), self.state_dir.clone());
        let called = tokio::task::spawn_blocking(move || {
            // After a panic the next call is as welcome as it would be in a new process.
            let mut backend = backend.lock().unwrap_or_else(PoisonError::into_inner);
            call(&mut *backend, &state_dir)
        });
        let reason = match called.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Err(dns::Error::Foreign { name: self.name.to_string(), action, reason })
    }
}

#[async_trait]
impl DnsManager for Manager {
    async fn set(&mut self, interface: &str, dns: &ResolvedDns, _: &str) -> Result<(), dns::Error> {
        let (interface, dns) = (interface.to_owned(), dns.clone());
        self.call("set dns", move |backend, state_dir| backend.set(state_dir, &interface, &dns)).await
    }

    async fn reset(&mut self) -> Result<(), dns::Error> {
        self.call("reset dns", |backend, state_dir| backend.reset(state_dir)).await
    }

    async fn reset_before_interface_removal(&mut self) -> Result<(), dns::Error> {
        self.reset().await
    }

    async fn recover(&mut self) -> Result<Recovery, dns::Error> {
        self.call("recover dns", |backend, state_dir| backend.recover(state_dir)).await?;
        Ok(Recovery::Nothing)
    }
}
