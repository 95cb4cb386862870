//! One daemon of a profile: a process in the client machine, its log in the bundle.

use crate::{
    layer::Layer,
    sandbox::{Client, Process, SandboxError, Spawn},
};
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};

/// How long a daemon may take to be ready.
pub(super) const READY: Duration = Duration::from_secs(20);

/// A daemon that could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The process.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A file of the daemon's configuration or its log.
    #[error("failed to {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
    /// It did not come up.
    #[error("{name} was not ready: {reason}; its log is {}", log.display())]
    NotReady {
        /// The daemon.
        name: &'static str,
        /// Why.
        reason: String,
        /// Its log.
        log: PathBuf,
    },
    /// The uplink could not be handed over.
    #[error("failed to remove the uplink's addresses: {source}")]
    Uplink {
        /// The kernel's words.
        source: nlink::Error,
    },
    /// It did not do what it was asked on the bus.
    #[error("{service} did not answer as it should: {source}")]
    Bus {
        /// Its name on the bus.
        service: &'static str,
        /// The bus's words.
        source: zbus::Error,
    },
}

/// A program that a profile started, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The daemon.
    pub name: String,
    /// The program's file, in the client.
    pub program: String,
    /// The package's version, as the distribution writes it; `unknown` where there is no list of packages.
    pub version: String,
    /// Its process id in the client.
    pub pid: u32,
    /// Its command line, as the kernel has it (proc_pid_cmdline(5)).
    pub command_line: Vec<String>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Service {
    /// What was started.
    pub started: Started,
    /// Its log.
    pub log: PathBuf,
    pub(super) process: Process,
}

/// What to start.
pub(super) struct Program {
    pub name: &'static str,
    pub package: &'static str,
    pub layer: &'static Layer,
    pub path: &'static str,
    pub arguments: &'static [&'static str],
    pub environment: &'static [(&'static str, &'static str)],
}

impl Service {
    /// Starts a daemon. Whether it is ready is for the caller to see.
    pub(super) async fn start(program: &Program, client: &Client, folder: &Path) -> Result<Self, ServiceError> {
        let logs = folder.join("services");
        // One that is started again has a log of its own.
        let first = logs.join(format!("{}.log", program.name));
        let log = match first.exists() {
            true => logs.join(format!("{}-again.log", program.name)),
            false => first,
        };
        let file = fs::create_dir_all(&logs).and_then(|()| fs::File::create(&log));
        let file = file.map_err(|source| ServiceError::File { action: "make", path: log.clone(), source })?;
        let mut environment: Vec<(String, String)> = vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())];
        environment.extend(program.environment.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        let spawn = Spawn {
            program: program.path.into(),
            arguments: program.arguments.iter().map(|argument| (*argument).into()).collect(),
            environment,
            user: None,
        };
        let mut process = spawn.start(client).await?;
        if let Some(stderr) = process.stderr.take() {
            keep(stderr, file);
        }
        let pid = process.pid;
        let started = Started {
            name: program.name.into(),
            program: program.path.into(),
            version: version(program.package, program.layer),
            pid: crate::case::inner_pid(pid.as_raw()).unwrap_or_default(),
            command_line: std::iter::once(program.path)
                .chain(program.arguments.iter().copied())
                .map(str::to_owned)
                .collect(),
        };
        Ok(Self { started, log, process })
    }

    /// Asks it to end, and waits until it has.
    pub(super) async fn stop(self) -> Result<(), ServiceError> {
        let failed = |reason: String| ServiceError::NotReady { name: "the daemon", reason, log: self.log.clone() };
        self.process.signal(nix::sys::signal::Signal::SIGTERM).map_err(|error| failed(error.to_string()))?;
        let ended = tokio::time::timeout(READY, self.process.wait()).await;
        ended.map(drop).map_err(|_| failed(format!("{} did not end in time", self.started.name)))
    }

    /// The system bus.
    pub(super) async fn bus(client: &Client, folder: &Path) -> Result<Self, ServiceError> {
        let program = Program {
            name: "dbus-daemon",
            package: "dbus-daemon",
            layer: &crate::layer::SYSTEMD_RESOLVED,
            path: "/usr/bin/dbus-daemon",
            arguments: &["--system", "--nofork", "--nopidfile", "--nosyslog", "--print-address"],
            environment: &[],
        };
        let mut service = Self::start(&program, client, folder).await?;
        // It writes its address when it listens.
        let stdout = service.process.stdout.take();
        let line = async {
            match stdout {
                Some(stdout) => BufReader::new(stdout).lines().next_line().await,
                None => Ok(None),
            }
        };
        match tokio::time::timeout(READY, line).await {
            Ok(Ok(Some(_))) => Ok(service),
            Ok(Ok(None)) => Err(service.not_ready("dbus-daemon", "it ended").await),
            Ok(Err(error)) => Err(service.not_ready("dbus-daemon", &error.to_string()).await),
            Err(_) => Err(service.not_ready("dbus-daemon", "it wrote no address in time").await),
        }
    }

    /// The error of a daemon that is not ready, with the last that it said.
    pub(super) async fn not_ready(&self, name: &'static str, reason: &str) -> ServiceError {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let mut reason = reason.to_owned();
        if let Some(last) = said.lines().rfind(|line| !line.trim().is_empty()) {
            let _ = write!(reason, ": {last}");
        }
        ServiceError::NotReady { name, reason, log: self.log.clone() }
    }
}

/// Copies what a daemon says into its log, until it ends.
fn keep(mut from: impl AsyncRead + Unpin + Send + 'static, file: fs::File) {
    let mut file = tokio::fs::File::from_std(file);
    tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from, &mut file).await;
        let _ = file.flush().await;
    });
}

/// A package's version: from the layer's list, or from the machine's own (dpkg).
pub(super) fn version(package: &str, layer: &Layer) -> String {
    let kept = layer.contents().unwrap_or_default().into_iter().find(|kept| kept.name == package);
    kept.map(|kept| kept.version).or_else(|| installed(package)).unwrap_or_else(|| "unknown".into())
}

fn installed(package: &str) -> Option<String> {
    let status = fs::read_to_string("/var/lib/dpkg/status").ok()?;
    let entry = status.split("\n\n").find(|entry| entry.starts_with(&format!("Package: {package}\n")))?;
    entry.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned)
}

/// Users that the daemons run as, where the machine has none: what their packages' installation would have made. To be
/// called inside the client.
pub(super) fn prepare_users() -> Result<(), ServiceError> {
    const USERS: [(&str, u32); 3] = [("messagebus", 901), ("systemd-resolve", 902), ("systemd-network", 903)];
    for (path, line) in [("/etc/passwd", "{name}:x:{id}:{id}::/:/usr/sbin/nologin"), ("/etc/group", "{name}:x:{id}:")] {
        let failed = |action| move |source| ServiceError::File { action, path: path.into(), source };
        let mut text = fs::read_to_string(path).map_err(failed("read"))?;
        for (name, id) in USERS {
            if !text.lines().any(|line| line.split(':').next() == Some(name)) {
                if !text.ends_with('\n') {
                    text.push('\n');
                }
                text.push_str(&line.replace("{name}", name).replace("{id}", &id.to_string()));
                text.push('\n');
            }
        }
        fs::write(path, text).map_err(failed("write"))?;
    }
    for (folder, user) in [("/run/dbus", None), ("/run/systemd/resolve", Some("systemd-resolve"))] {
        let failed = |action| move |source| ServiceError::File { action, path: folder.into(), source };
        fs::create_dir_all(folder).map_err(failed("make"))?;
        if let Some(user) = user {
            let passwd = fs::read_to_string("/etc/passwd").map_err(failed("find the owner of"))?;
            let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|line| line[0] == user);
            let number = |at: usize| fields.as_ref().and_then(|fields| fields.get(at)?.parse::<u32>().ok());
            std::os::unix::fs::chown(folder, number(2), number(3)).map_err(failed("give away"))?;
        }
    }
    Ok(())
}
