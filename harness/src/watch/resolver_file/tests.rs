//! What is mounted over the resolver file, by the kernel's own mounts in a namespace of the test's.

use super::*;
use crate::history;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use std::time::Duration;

const NONE: Option<&str> = None;

/// A folder with files, the watched one among them, in a mount namespace of the test's own.
struct Machine {
    folder: tempfile::TempDir,
    versions: watch::Receiver<Version>,
    _tamper: mpsc::UnboundedSender<Tampering>,
    recorder: Recorder,
}

impl Machine {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn bind(&self, source: &str, target: &str) {
        mount(Some(&self.path(source)), &self.path(target), NONE, MsFlags::MS_BIND, NONE).expect("mounted");
    }

    fn detach(&self, target: &str) {
        umount2(&self.path(target), MntFlags::MNT_DETACH).expect("unmounted");
    }

    /// Waits until a reader's version ends like this.
    async fn sees(&mut self, text: &str) {
        let seen = self.versions.wait_for(|version| version.content.ends_with(text));
        let seen = tokio::time::timeout(Duration::from_secs(5), seen).await.map(|seen| seen.map(drop));
        seen.unwrap_or_else(|_| panic!("{text:?} was not seen: {:?}", self.history())).expect("it is watched");
    }

    /// Cause and last line of each version, and the harness's troubles.
    fn history(&self) -> Vec<String> {
        self.recorder.finish().expect("a history");
        let records = history::read(&self.path("history")).expect("readable");
        let events = records.into_iter().filter_map(|record| match record.event {
            Event::File { cause, content, changed, .. } => {
                assert_eq!(changed.is_none(), cause == "mount", "{content}");
                Some(format!("{cause} {}", content.lines().last().unwrap_or_default()))
            }
            Event::Harness { problem } => Some(problem),
            _ => None,
        });
        events.collect()
    }
}

/// Runs the body on a thread in a mount namespace of its own, where `resolv.conf` (or what it leads to) says `one`.
fn watched(link: bool, body: impl AsyncFnOnce(&mut Machine) + Send + 'static) {
    let run = move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
            assert!(std::env::var_os("WATERTIGHT_REQUIRE_PRIVILEGES").is_none(), "a mount namespace: {error}");
            println!("skipped: a mount namespace: {error}");
            return;
        }
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("private mounts");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("resolv.conf");
        fs::create_dir(folder.path().join("run")).expect("a folder");
        fs::create_dir(folder.path().join("elsewhere")).expect("a folder");
        fs::write(if link { folder.path().join("run/target") } else { path.clone() }, "one\n").expect("a file");
        if link {
            std::os::unix::fs::symlink("run/target", &path).expect("a link");
        }
        fs::write(folder.path().join("elsewhere/other"), "two\n").expect("a file");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async move {
            let recorder = Recorder::create(&folder.path().join("history")).expect("a history");
            let file = ResolverFile::open(path).expect("watched");
            let (tell, versions) = watch::channel(file.version().expect("a version"));
            let (counted, _) = watch::channel(Changes::default());
            let (tamper, tamperings) = mpsc::unbounded_channel();
            tokio::task::spawn_local(file.follow(recorder.clone(), tell, counted, tamperings));
            // It has started, and waits.
            tokio::task::yield_now().await;
            body(&mut Machine { folder, versions, _tamper: tamper, recorder }).await;
        });
    };
    std::thread::spawn(run).join().expect("the body's assertions hold");
}

#[test]
fn what_is_mounted_over_the_file_is_a_version() {
    watched(false, async |machine| {
        machine.bind("elsewhere/other", "resolv.conf");
        machine.sees("two\n").await;
        // Where it came from is no watched folder.
        fs::File::options()
            .append(true)
            .open(machine.path("elsewhere/other"))
            .and_then(|mut file| io::Write::write_all(&mut file, b"three\n"))
            .expect("written");
        machine.sees("three\n").await;
        machine.detach("resolv.conf");
        machine.sees("one\n").await;
        // Nobody's resolver file any more.
        machine.write("elsewhere/other", "four\n");
        // As before.
        machine.write("beside", "five\n");
        fs::rename(machine.path("beside"), machine.path("resolv.conf")).expect("renamed");
        machine.sees("five\n").await;
        let history = machine.history();
        let seen = ["mount two", "modify three", "close-write three", "mount one", "moved-to five"];
        assert_eq!(history, seen);
    });
}

#[test]
fn what_is_mounted_over_a_links_target_is_a_version() {
    watched(true, async |machine| {
        machine.bind("elsewhere/other", "run/target");
        machine.sees("two\n").await;
        fs::File::options()
            .append(true)
            .open(machine.path("run/target"))
            .and_then(|mut file| io::Write::write_all(&mut file, b"three\n"))
            .expect("written");
        machine.sees("three\n").await;
        machine.detach("run/target");
        machine.sees("one\n").await;
        assert_eq!(machine.history(), ["mount two", "target modify three", "target close-write three", "mount one"]);
    });
}

#[test]
fn a_folder_that_is_mounted_over_the_files_is_watched() {
    watched(true, async |machine| {
        machine.write("elsewhere/target", "two\n");
        machine.bind("elsewhere", "run");
        machine.sees("two\n").await;
        machine.write("beside", "three\n");
        fs::rename(machine.path("beside"), machine.path("elsewhere/target")).expect("renamed");
        machine.sees("three\n").await;
        machine.detach("run");
        machine.sees("one\n").await;
        assert_eq!(machine.history(), ["mount two", "target moved-to three", "mount one"]);
    });
}

#[test]
fn what_is_mounted_elsewhere_is_no_version() {
    watched(false, async |machine| {
        machine.bind("elsewhere/other", "elsewhere/other");
        machine.detach("elsewhere/other");
        machine.bind("resolv.conf", "resolv.conf");
        machine.detach("resolv.conf");
        machine.write("beside", "two\n");
        fs::rename(machine.path("beside"), machine.path("resolv.conf")).expect("renamed");
        machine.sees("two\n").await;
        assert_eq!(machine.history(), ["moved-to two"]);
    });
}

#[test]
fn what_is_written_by_another_name_in_another_folder_is_a_version() {
    watched(false, async |machine| {
        fs::hard_link(machine.path("resolv.conf"), machine.path("elsewhere/name")).expect("another name");
        machine.write("elsewhere/name", "two\n");
        machine.sees("two\n").await;
        machine.write("beside", "three\n");
        fs::rename(machine.path("beside"), machine.path("resolv.conf")).expect("renamed");
        machine.sees("three\n").await;
        // The node is nobody's resolver file any more.
        machine.write("elsewhere/name", "four\n");
        fs::remove_file(machine.path("elsewhere/name")).expect("removed");
        machine.write("resolv.conf", "five\n");
        machine.sees("five\n").await;
        let history = machine.history();
        assert!(history.iter().any(|version| version == "modify two"), "{history:?}");
        assert!(history.iter().all(|version| !version.ends_with("four")), "{history:?}");
    });
}
