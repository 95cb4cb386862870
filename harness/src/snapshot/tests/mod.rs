//! Snapshots of a real client: namespaces, an overlay, nftables and routes of the kernel's, in a process of its own for each test.

mod files;
mod machine;
mod network;
mod nft;
mod paths;
mod pure;
mod resolv;
mod userns;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, fs, io, thread};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::{Builder, Runtime};

use super::{Difference, Scope, Snapshot, Tolerance, compare, take};

/// Set in the child that has namespaces of its own: an empty directory for its mounts.
const DIR: &str = "WATERTIGHT_SNAPSHOT_TEST_DIR";

/// Who the child is outside its namespaces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Privileges {
    /// Whoever runs the tests, who must be root.
    Root,
    /// An ordinary user, who is root in a user namespace in which nobody else exists.
    Rootless,
}

/// Runs the test's body in a child process with network, mount, PID, UTS and IPC namespaces of its own.
pub fn isolated<F: FnOnce(Client)>(body: F) {
    run(Privileges::Root, body);
}

/// [`isolated()`] without root privileges, in a user namespace.
pub fn rootless<F: FnOnce(Client)>(body: F) {
    run(Privileges::Rootless, body);
}

fn run<F: FnOnce(Client)>(privileges: Privileges, body: F) {
    if let Some(dir) = env::var_os(DIR) {
        body(Client::new(Path::new(&dir), privileges));
        return;
    }
    let name = std::any::type_name::<F>();
    let name = name.strip_suffix("::{{closure}}").unwrap_or(name);
    let name = name.split_once("::").map_or(name, |(_, name)| name).to_owned();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().to_owned();
    let (send, receive) = mpsc::channel();
    let (send_pid, receive_pid) = mpsc::channel();
    // The thread's namespaces are the child's; the thread ends with them.
    let thread = thread::spawn(move || {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(DIR, &path)
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let ready = match privileges {
            Privileges::Root => unshare(NAMESPACES),
            Privileges::Rootless => userns::prepare(&mut command, &path),
        };
        let child = ready.map_err(io::Error::from).and_then(|()| command.spawn());
        match child {
            Ok(child) => {
                let _ = send_pid.send(child.id());
                let _ = send.send(Ok(child.wait_with_output().expect("the child ends")));
            }
            Err(error) => drop(send.send(Err(error))),
        }
    });
    let output = match receive.recv_timeout(Duration::from_secs(60)) {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            assert!(env::var_os("WATERTIGHT_REQUIRE_PRIVILEGES").is_none(), "namespaces: {error}");
            println!("skipped: namespaces: {error}");
            return;
        }
        Err(_) => {
            if let Ok(pid) = receive_pid.try_recv() {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            panic!("the child was not done within a minute");
        }
    };
    thread.join().expect("the thread ends");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "in the child:\n{text}");
    print!("{text}");
}

/// What a client has of its own, as the product's has.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);

/// A client machine: an overlay with two layers below it (if it has root privileges), /run, /dev and /proc of its own.
pub struct Client {
    pub root: PathBuf,
    pub upper: PathBuf,
    pub scope: Scope,
    pub runtime: Runtime,
}

/// What resolv.conf holds at first.
pub const ORIGINAL: &str = "# by hand\nnameserver 192.168.1.1\noptions edns0\n";

impl Client {
    fn new(dir: &Path, privileges: Privileges) -> Self {
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
        let [root, upper, work, lower, layer] = ["root", "upper", "work", "lower", "layer"].map(|name| dir.join(name));
        for dir in [&root, &upper, &work, &lower, &layer] {
            fs::create_dir(dir).expect("a directory");
        }
        // Without root privileges the root is no overlay.
        let is_overlay = privileges == Privileges::Root;
        let (below, above) = if is_overlay { (&lower, &layer) } else { (&root, &root) };
        for dir in ["dev", "etc/sub", "run", "proc", "var/lib/subject", "usr"] {
            fs::create_dir_all(below.join(dir)).expect("a directory");
        }
        fs::create_dir_all(above.join("usr/sbin")).expect("a directory");
        fs::write(above.join("usr/sbin/resolvconf"), "a program of the profile\n").expect("a file");
        for (name, content) in [
            ("etc/resolv.conf", ORIGINAL),
            ("etc/hosts", "127.0.0.1 localhost\n"),
            ("etc/nsswitch.conf", "hosts: files dns\n"),
            ("etc/sub/one", "one\n"),
            ("etc/sub/two", "two\n"),
            ("usr/program", "a program\n"),
        ] {
            fs::write(below.join(name), content).expect("a file");
        }
        if is_overlay {
            let options = format!(
                "lowerdir={}:{},upperdir={},workdir={}",
                layer.display(),
                lower.display(),
                upper.display(),
                work.display()
            );
            mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
                .expect("an overlay");
        }
        for (name, kind) in [("run", "tmpfs"), ("dev", "tmpfs"), ("proc", "proc")] {
            mount(Some(kind), &root.join(name), Some(kind), MsFlags::empty(), none).expect("a filesystem");
        }
        // A device of the machine's, as the product gives it to the client.
        fs::create_dir(root.join("dev/shm")).expect("a directory");
        fs::write(root.join("dev/null"), "").expect("a file");
        mount(Some("/dev/null"), &root.join("dev/null"), none, MsFlags::MS_BIND, none).expect("a device");
        let own = if is_overlay { vec!["/run".into()] } else { vec!["/run".into(), "/etc".into()] };
        let scope = Scope {
            root: root.clone(),
            upper: is_overlay.then(|| upper.clone()),
            lower: if is_overlay { vec![layer, lower] } else { Vec::new() },
            extra_trees: own,
            ignore_pids: Vec::new(),
            services: Vec::new(),
            ignore_paths: Vec::new(),
            state_dir: Some("/var/lib/subject".into()),
            profile: crate::scenario::Profile::StaticFile,
        };
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { root, upper, scope, runtime }
    }

    pub fn take(&self) -> Snapshot {
        self.runtime.block_on(take(&self.scope)).expect("a snapshot")
    }

    /// A connection to the kernel in the client's network namespace.
    pub fn connect<C>(&self, new: impl FnOnce() -> nlink::Result<C>) -> C {
        let _runtime = self.runtime.enter();
        new().expect("a connection")
    }

    /// A path in the client as this process sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub fn write(&self, path: &str, content: &[u8]) {
        fs::write(self.path(path), content).expect("a file");
    }

    pub fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).expect("a file to remove");
    }

    /// What is different from `before` now.
    pub fn changes(&self, before: &Snapshot) -> Vec<Difference> {
        compare(before, &self.take(), &Tolerance::default())
    }

    /// Exactly these topics differ; gives the differences.
    #[track_caller]
    pub fn expect(&self, before: &Snapshot, topics: &[&str]) -> Vec<Difference> {
        let changes = self.changes(before);
        let found: Vec<&str> = changes.iter().map(|change| change.topic.as_str()).collect();
        assert_eq!(found, topics, "{changes:#?}");
        changes
    }
}

/// A time of modification, so that restoring can be exact.
pub fn set_mtime(path: &Path, seconds: i64) {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    let time = TimeSpec::new(seconds, 0);
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).expect("a time");
}

/// A link's target as bytes.
pub fn target(path: &Path) -> Vec<u8> {
    fs::read_link(path).expect("a link").as_os_str().as_bytes().to_vec()
}
