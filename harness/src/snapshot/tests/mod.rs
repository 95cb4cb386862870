//! Snapshots of a real client: namespaces, an overlay, nftables and routes of the kernel's, in a process of its own for each test.

mod files;
mod network;
mod nft;
mod pure;
mod resolv;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, fs, thread};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::{Builder, Runtime};

use super::{Difference, Scope, Snapshot, Tolerance, compare, take};

/// Set in the child that has namespaces of its own: an empty directory for its mounts.
const DIR: &str = "WATERTIGHT_SNAPSHOT_TEST_DIR";

/// Runs the test's body in a child process with network, mount and PID namespaces of its own.
pub fn isolated<F: FnOnce(Client)>(body: F) {
    if let Some(dir) = env::var_os(DIR) {
        body(Client::new(Path::new(&dir)));
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
        let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
        if let Err(errno) = unshare(flags) {
            let _ = send.send(Err(errno));
            return;
        }
        let child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(DIR, path)
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        let _ = send_pid.send(child.id());
        let _ = send.send(Ok(child.wait_with_output().expect("the child ends")));
    });
    let output = match receive.recv_timeout(Duration::from_secs(60)) {
        Ok(Ok(output)) => output,
        Ok(Err(errno)) => {
            assert!(env::var_os("WATERTIGHT_REQUIRE_PRIVILEGES").is_none(), "namespaces: {errno}");
            println!("skipped: namespaces: {errno}");
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

/// A client machine: an overlay with two layers below it, a /run and a /proc of its own.
pub struct Client {
    pub root: PathBuf,
    pub upper: PathBuf,
    pub scope: Scope,
    pub runtime: Runtime,
}

/// What resolv.conf holds at first.
pub const ORIGINAL: &str = "# by hand\nnameserver 192.168.1.1\noptions edns0\n";

impl Client {
    fn new(dir: &Path) -> Self {
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
        let [root, upper, work, lower, layer] = ["root", "upper", "work", "lower", "layer"].map(|name| dir.join(name));
        for dir in [&root, &upper, &work, &lower, &layer] {
            fs::create_dir(dir).expect("a directory");
        }
        for dir in ["etc/sub", "run", "proc", "var/lib/subject", "usr"] {
            fs::create_dir_all(lower.join(dir)).expect("a directory");
        }
        fs::create_dir_all(layer.join("usr/sbin")).expect("a directory");
        fs::write(layer.join("usr/sbin/resolvconf"), "a program of the profile\n").expect("a file");
        for (name, content) in [
            ("etc/resolv.conf", ORIGINAL),
            ("etc/hosts", "127.0.0.1 localhost\n"),
            ("etc/nsswitch.conf", "hosts: files dns\n"),
            ("etc/sub/one", "one\n"),
            ("etc/sub/two", "two\n"),
            ("usr/program", "a program\n"),
        ] {
            fs::write(lower.join(name), content).expect("a file");
        }
        let options = format!(
            "lowerdir={}:{},upperdir={},workdir={}",
            layer.display(),
            lower.display(),
            upper.display(),
            work.display()
        );
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str())).expect("an overlay");
        mount(Some("tmpfs"), &root.join("run"), Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
        mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), none).expect("a proc");
        let scope = Scope {
            root: root.clone(),
            upper: Some(upper.clone()),
            lower: vec![layer, lower],
            extra_trees: vec!["/run".into()],
            ignore_pids: Vec::new(),
            ignore_paths: Vec::new(),
            state_dir: Some("/var/lib/subject".into()),
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
