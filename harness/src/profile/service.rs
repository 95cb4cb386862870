//! One daemon of a profile: a process in the client machine, its log in the bundle.

use crate::{
    layer::Layer,
    sandbox::{Client, Node, Process, ProcessEnd, SandboxError, Spawn},
};
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    sync::watch,
};

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
        name: String,
        /// Why.
        reason: String,
        /// Its log.
        log: PathBuf,
    },
    /// The uplink could not be handed over.
    #[error("failed to {action} the uplink: {source}")]
    Uplink {
        /// What was tried.
        action: &'static str,
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
    /// What it says when it is ready, if that is how one knows.
    pub ready: Option<&'static str>,
}

impl Service {
    /// A program that this one has started itself, for the record. `None` if there is none of that name.
    pub(super) fn child(&self, program: &'static str, package: &str, layer: &Layer) -> Option<Started> {
        let pid = child_of(self.process.pid.as_raw(), program)?;
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = command_line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let command_line: Vec<String> = words.filter(|word| !word.is_empty()).collect();
        Some(Started {
            name: program.into(),
            program: command_line.first()?.clone(),
            version: version(package, layer),
            pid: crate::case::inner_pid(pid)?,
            command_line,
        })
    }

    /// Starts a daemon. Whether it is ready is for the caller to see.
    pub(super) async fn start(program: &Program, client: &Client, folder: &Path) -> Result<Self, ServiceError> {
        let logs = folder.join("services");
        // One that is started again has a log of its own.
        let mut log = logs.join(format!("{}.log", program.name));
        if log.exists() {
            log = logs.join(format!("{}-again.log", program.name));
        }
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
        let (tell, mut said) = watch::channel(program.ready.is_none());
        if let Some(stderr) = process.stderr.take() {
            keep(stderr, file, program.ready, tell);
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
        let service = Self { started, log, process };
        let mut end = service.process.end();
        let reason = tokio::select! {
            biased;
            ready = tokio::time::timeout(READY, said.wait_for(|said| *said)) => match ready {
                Ok(Ok(_)) => return Ok(service),
                Ok(Err(_)) => "it closed its standard error".to_owned(),
                Err(_) => format!("it did not say so within {} s", READY.as_secs()),
            },
            _ = end.wait_for(Option::is_some) => "it ended".to_owned(),
        };
        Err(service.not_ready(&reason).await)
    }

    /// Asks it to end, and waits until it has.
    pub(super) async fn stop(self) -> Result<(), ServiceError> {
        let failed =
            |reason: String| ServiceError::NotReady { name: self.started.name.clone(), reason, log: self.log.clone() };
        self.process.signal(nix::sys::signal::Signal::SIGTERM).map_err(|error| failed(error.to_string()))?;
        let ended = tokio::time::timeout(READY, self.process.wait()).await;
        ended.map(drop).map_err(|_| failed(format!("{} did not end in time", self.started.name)))
    }

    /// Ends it at once.
    pub(super) async fn kill(self) -> Result<(), ServiceError> {
        self.process.signal(nix::sys::signal::Signal::SIGKILL).map_err(|source| ServiceError::File {
            action: "end the process that writes",
            path: self.log.clone(),
            source,
        })?;
        self.process.wait().await;
        Ok(())
    }

    /// The system bus; with a configuration of its own where there is one user only.
    pub(super) async fn bus(client: &Client, folder: &Path, alone: bool) -> Result<Self, ServiceError> {
        const OWN_BUS: &str = "--config-file=/run/dbus/system.conf";
        let program = Program {
            name: "dbus-daemon",
            package: "dbus-daemon",
            layer: &crate::layer::SYSTEMD_RESOLVED,
            path: "/usr/bin/dbus-daemon",
            arguments: if alone {
                &[OWN_BUS, "--nofork", "--nopidfile", "--nosyslog", "--print-address"]
            } else {
                &["--system", "--nofork", "--nopidfile", "--nosyslog", "--print-address"]
            },
            environment: &[],
            ready: None,
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
            Ok(Ok(None)) => Err(service.not_ready("it ended").await),
            Ok(Err(error)) => Err(service.not_ready(&error.to_string()).await),
            Err(_) => Err(service.not_ready("it wrote no address in time").await),
        }
    }

    /// Waits until it is ready, as `ready` finds out inside the client; it may not end before.
    pub(super) async fn ready_when<F>(
        &self,
        node: &Node,
        ready: impl FnOnce() -> F + Send + 'static,
    ) -> Result<(), ServiceError>
    where
        F: Future<Output = Result<(), String>> + 'static,
    {
        let mut end = self.process.end();
        let reason = tokio::select! {
            ready = tokio::time::timeout(READY, node.run(ready)) => match ready {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(reason))) => reason,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => format!("it was not within {} s", READY.as_secs()),
            },
            _ = end.wait_for(Option::is_some) => "it ended".to_owned(),
        };
        Err(self.not_ready(&reason).await)
    }

    /// The error of a daemon that is not ready, with the last that it said.
    pub(super) async fn not_ready(&self, reason: &str) -> ServiceError {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let mut reason = reason.to_owned();
        if let Some(last) = said.lines().rfind(|line| !line.trim().is_empty()) {
            let _ = write!(reason, ": {last}");
        }
        ServiceError::NotReady { name: self.started.name.clone(), reason, log: self.log.clone() }
    }
}

/// Copies what a daemon says into its log, until it ends, and tells when it says that it is ready.
fn keep(
    from: impl AsyncRead + Unpin + Send + 'static,
    file: fs::File,
    ready: Option<&'static str>,
    tell: watch::Sender<bool>,
) {
    let mut file = tokio::fs::File::from_std(file);
    let mut from = BufReader::new(from);
    tokio::spawn(async move {
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).await.is_ok_and(|length| length > 0) {
            if ready.is_some_and(|ready| String::from_utf8_lossy(&line).contains(ready)) {
                tell.send_replace(true);
            }
            if file.write_all(&line).await.and(file.flush().await).is_err() {
                break;
            }
            line.clear();
        }
        // Whoever still waits learns that nothing more will be said; others have what they want.
        drop(tell);
    });
}

/// Runs a program in the client machine, to its end.
pub(super) async fn call(
    client: &Client,
    program: &'static str,
    arguments: &[&str],
    input: &str,
    folder: &Path,
) -> Result<(), ServiceError> {
    let spawn = Spawn {
        program: program.into(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        environment: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
        user: None,
    };
    let mut process = spawn.start(client).await?;
    let work = async {
        if let Some(mut stdin) = process.stdin.take() {
            // A program that does not read is judged by how it ends.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let mut said = String::new();
        if let Some(mut stderr) = process.stderr.take() {
            let _ = stderr.read_to_string(&mut said).await;
        }
        (process.wait().await, said)
    };
    let failed = |reason: String| ServiceError::NotReady { name: program.into(), reason, log: folder.into() };
    match tokio::time::timeout(READY, work).await {
        Ok((ProcessEnd::Exited(0), _)) => Ok(()),
        Ok((end, said)) => Err(failed(format!("`{program} {}` ended with {end:?}: {said}", arguments.join(" ")))),
        Err(_) => Err(failed(format!("`{program} {}` did not end in time", arguments.join(" ")))),
    }
}

/// A package's version: from the layer's list, or from the machine's own (dpkg).
/// A process whose parent is this one, by the name of its program. Ids are this machine's.
fn child_of(parent: i32, program: &str) -> Option<i32> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let has = |field: &str, value: &str| {
            status.lines().any(|line| line.strip_prefix(field).map(str::trim) == Some(value))
        };
        has("PPid:", &parent.to_string()) && has("Name:", program)
    })
}

pub(super) fn version(package: &str, layer: &Layer) -> String {
    let kept = layer.contents().unwrap_or_default().into_iter().find(|kept| kept.name == package);
    kept.map(|kept| kept.version).or_else(|| installed(package)).unwrap_or_else(|| "unknown".into())
}

fn installed(package: &str) -> Option<String> {
    let status = fs::read_to_string("/var/lib/dpkg/status").ok()?;
    let entry = status.split("\n\n").find(|entry| entry.starts_with(&format!("Package: {package}\n")))?;
    entry.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned)
}

/// Users that the daemons run as, where the machine has none: what their packages' installation would have made. In a user
/// namespace with one user they are all that one, which is root there. To be called inside the client; gives back whether it is
/// such a namespace.
pub(super) fn prepare_users() -> Result<bool, ServiceError> {
    let read = |path: &'static str| {
        fs::read_to_string(path).map_err(|source| ServiceError::File { action: "read", path: path.into(), source })
    };
    let alone = is_alone(&read("/proc/1/uid_map")?);
    for (path, fields) in [("/etc/passwd", "{id}:{id}::/:/usr/sbin/nologin"), ("/etc/group", "{id}:")] {
        let text = with_users(&read(path)?, fields, alone);
        fs::write(path, text).map_err(|source| ServiceError::File { action: "write", path: path.into(), source })?;
    }
    let passwd = read("/etc/passwd")?;
    for (folder, user) in [
        ("/run/dbus", "root"),
        ("/run/systemd/resolve", "systemd-resolve"),
        ("/run/systemd/netif", "systemd-network"),
        ("/run/systemd/netif/links", "systemd-network"),
        ("/run/systemd/netif/leases", "systemd-network"),
        ("/run/systemd/netif/lldp", "systemd-network"),
    ] {
        let failed = |action| move |source| ServiceError::File { action, path: folder.into(), source };
        fs::create_dir_all(folder).map_err(failed("make"))?;
        let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|line| line[0] == user);
        let number = |at: usize| fields.as_ref().and_then(|fields| fields.get(at)?.parse::<u32>().ok());
        std::os::unix::fs::chown(folder, number(2), number(3)).map_err(failed("give away"))?;
    }
    if alone && Path::new(BUS_CONFIGURATION).is_file() {
        let path = "/run/dbus/system.conf";
        let failed = |source| ServiceError::File { action: "write", path: path.into(), source };
        fs::write(path, as_who_it_is(&read(BUS_CONFIGURATION)?)).map_err(failed)?;
    }
    Ok(alone)
}

/// The system bus's configuration (dbus-daemon(1)).
const BUS_CONFIGURATION: &str = "/usr/share/dbus-1/system.conf";

/// The configuration without the user that the bus becomes, for another folder.
fn as_who_it_is(configuration: &str) -> String {
    let lines = configuration.lines().filter(|line| !line.trim().starts_with("<user>"));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    text.replace("<includedir>system.d<", "<includedir>/usr/share/dbus-1/system.d<")
}

/// The daemons' users, with a number that is used where the machine has no such user.
const USERS: [(&str, u32); 5] =
    [("messagebus", 901), ("systemd-resolve", 902), ("systemd-network", 903), ("dnsmasq", 904), ("unbound", 905)];

/// Whether a user namespace has one user only (user_namespaces(7), uid_map).
fn is_alone(map: &str) -> bool {
    let lengths = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    lengths.sum::<u64>() == 1
}

/// A list of users or groups with the daemons' in it; `fields` is what follows the password.
fn with_users(text: &str, fields: &str, alone: bool) -> String {
    let name_of = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let is_daemon = |line: &&str| USERS.iter().any(|(name, _)| *name == name_of(line));
    let mut all: String =
        text.lines().filter(|line| !(alone && is_daemon(line))).map(|line| format!("{line}\n")).collect();
    for (name, number) in USERS {
        if alone || !text.lines().any(|line| name_of(line) == name) {
            let number = if alone { 0 } else { number };
            all.push_str(&format!("{name}:x:{}\n", fields.replace("{id}", &number.to_string())));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_have_users_and_one_user_is_all_of_them() {
        let text = "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:101:102::/:/bin/false";
        let with = with_users(text, "{id}:{id}::/:/usr/sbin/nologin", false);
        assert!(with.starts_with(&format!("{text}\nsystemd-resolve:x:902:902::/:/usr/sbin/nologin\n")), "{with}");
        assert_eq!(with.matches("messagebus").count(), 1);
        let alone = with_users(text, "{id}:{id}::/:/usr/sbin/nologin", true);
        assert!(alone.contains("\nmessagebus:x:0:0::/:/usr/sbin/nologin\n") && !alone.contains(":101:"), "{alone}");
        let bus =
            "<busconfig>\n  <type>system</type>\n  <user>messagebus</user>\n  <includedir>system.d</includedir>\n";
        let own = "<busconfig>\n  <type>system</type>\n  <includedir>/usr/share/dbus-1/system.d</includedir>\n";
        assert_eq!(as_who_it_is(bus), own);
        assert!(is_alone("         0       1000          1\n"));
        assert!(!is_alone("         0          0 4294967295\n"));
        assert!(!is_alone("0 100000 65536\n"));
    }
}
