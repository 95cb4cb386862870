//! Files, processes, sockets, mounts and settings on a real overlay.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::super::{Daemon, Occasion, Severity, Tolerance, compare, tolerated_remains};
use super::{ORIGINAL, isolated};

#[test]
fn nothing_changed_is_no_difference() {
    isolated(|client| {
        let before = client.take();
        let mut times = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            let after = client.take();
            times.push(start.elapsed());
            assert_eq!(compare(&before, &after, &Tolerance::default()), []);
            assert_eq!(before, after);
        }
        times.sort();
        println!("median {:?}, sysctl {} lines", times[10], before.topics["sysctl"].lines().count());
        assert!(times[10].as_millis() < 100, "a snapshot takes {:?}", times[10]);
        // Reading is not changing.
        assert!(
            before.topics["files"].is_empty() || !before.topics["files"].contains("/etc"),
            "{}",
            before.topics["files"]
        );
    });
}

#[test]
fn a_copied_up_file_that_is_as_below_is_no_difference() {
    isolated(|client| {
        let before = client.take();
        for path in ["/etc/hosts", "/usr/program", "/usr/sbin/resolvconf", "/etc/sub/one"] {
            let mode = fs::metadata(client.path(path)).expect("a file").permissions();
            fs::set_permissions(client.path(path), Permissions::from_mode(0o600)).expect("a mode");
            fs::set_permissions(client.path(path), mode).expect("a mode");
            assert!(client.upper.join(&path[1..]).exists(), "{path} was copied up");
        }
        // And one that was deleted and written again.
        client.remove("/etc/sub/two");
        client.write("/etc/sub/two", b"two\n");
        client.expect(&before, &[]);
    });
}

#[test]
fn each_change_to_a_file_is_found() {
    isolated(|client| {
        let before = client.take();
        let summary = |topics: &[&str]| client.expect(&before, topics).remove(0).summary;

        client.write("/etc/resolv.conf.bak", ORIGINAL.as_bytes());
        let change = client.expect(&before, &["etc"]).remove(0);
        assert_eq!((change.class, change.requirement, change.severity), ("X01", "RST-1", Severity::Must));
        assert_eq!(change.summary, "files: 1 left over: `/etc/resolv.conf.bak`");
        assert!(change.diff.contains("+    | nameserver 192.168.1.1\n"), "{}", change.diff);
        client.remove("/etc/resolv.conf.bak");
        client.expect(&before, &[]);

        fs::set_permissions(client.path("/etc/hosts"), Permissions::from_mode(0o600)).expect("a mode");
        assert_eq!(summary(&["etc"]), "files: 1 changed: `/etc/hosts`");
        fs::set_permissions(client.path("/etc/hosts"), Permissions::from_mode(0o644)).expect("a mode");

        nix::unistd::chown(&client.path("/etc/hosts"), Some(1.into()), None).expect("an owner");
        assert_eq!(summary(&["etc"]), "files: 1 changed: `/etc/hosts`");
        nix::unistd::chown(&client.path("/etc/hosts"), Some(0.into()), None).expect("an owner");

        xattr::set(client.path("/etc/hosts"), "user.mark", b"x").expect("an attribute");
        assert_eq!(summary(&["etc"]), "files: 1 changed: `/etc/hosts`");
        xattr::remove(client.path("/etc/hosts"), "user.mark").expect("an attribute");

        client.remove("/etc/hosts");
        assert_eq!(summary(&["etc"]), "files: 1 missing: `/etc/hosts`");
        client.write("/etc/hosts", b"127.0.0.1 localhost\n");

        client.remove("/usr/sbin/resolvconf");
        symlink("resolvectl", client.path("/usr/sbin/resolvconf")).expect("a link");
        assert_eq!(summary(&["files"]), "files: 1 changed: `/usr/sbin/resolvconf`");
        client.remove("/usr/sbin/resolvconf");
        client.write("/usr/sbin/resolvconf", b"a program of the profile\n");

        // A directory that was removed and made again hides what was in it.
        fs::remove_dir_all(client.path("/etc/sub")).expect("a directory");
        fs::create_dir(client.path("/etc/sub")).expect("a directory");
        client.write("/etc/sub/one", b"one\n");
        assert_eq!(summary(&["files"]), "files: 1 missing: `/etc/sub/two`");
        client.write("/etc/sub/two", b"two\n");

        client.write("/run/left.pid", b"1\n");
        assert_eq!(summary(&["files"]), "files: 1 left over: `/run/left.pid`");
        client.remove("/run/left.pid");
        client.expect(&before, &[]);
    });
}

#[test]
fn without_an_overlay_the_directory_itself_is_compared() {
    isolated(|mut client| {
        client.scope.upper = None;
        let before = client.take();
        client.write("/etc/nsswitch.conf", b"hosts: dns\n");
        client.write("/etc/.resolv.conf.swp", b"");
        let change = client.expect(&before, &["etc"]).remove(0);
        assert_eq!(change.summary, "files: 1 left over: `/etc/.resolv.conf.swp`; 1 changed: `/etc/nsswitch.conf`");
        for part in ["-    | hosts: files dns\n", "+    | hosts: dns\n", "+/etc/.resolv.conf.swp file 0644 0:0 size 0 "]
        {
            assert!(change.diff.contains(part), "{part:?} is not in\n{}", change.diff);
        }
    });
}

#[test]
fn what_services_keep_is_a_class_of_its_own() {
    isolated(|client| {
        let before = client.take();
        fs::create_dir_all(client.path("/run/NetworkManager/system-connections")).expect("a directory");
        client.write("/run/NetworkManager/system-connections/wt0.nmconnection", b"[connection]\n");
        client.write("/run/other", b"");
        let changes = client.expect(&before, &["files", "files", "files"]);
        let classes: Vec<&str> = changes.iter().map(|change| change.class).collect();
        assert_eq!(classes, ["X01", "X04", "X05"]);
    });
}

#[test]
fn a_backup_in_the_state_directory_is_found() {
    isolated(|client| {
        let before = client.take();
        client.write("/var/lib/subject/state.json", b"{\"state\": \"disconnected\"}");
        client.expect(&before, &[]);
        client.write("/var/lib/subject/resolv.conf.backup", ORIGINAL.as_bytes());
        let change = client.expect(&before, &["state_dir"]).remove(0);
        assert_eq!((change.class, change.requirement), ("X01", "RST-1"));
        assert!(
            change.summary.starts_with("backup left behind: /var/lib/subject/resolv.conf.backup "),
            "{}",
            change.summary
        );
        assert!(change.diff.contains("+    | nameserver 192.168.1.1"), "{}", change.diff);
        let crash = Tolerance { occasion: Occasion::Crash, ..Tolerance::default() };
        let change = compare(&before, &client.take(), &crash).remove(0);
        assert_eq!((change.class, change.requirement), ("X02", "RST-2"));
    });
}

#[test]
fn tolerated_remains_are_named_and_are_no_difference() {
    isolated(|client| {
        let before = client.take();
        fs::create_dir(client.path("/run/wireguard")).expect("a directory");
        client.expect(&before, &[]);
        let remains = tolerated_remains(&before, &client.take());
        assert_eq!(remains.iter().map(|remain| remain.path).collect::<Vec<_>>(), ["/run/wireguard"]);
        client.write("/run/wireguard/wt0.sock", b"");
        client.expect(&before, &["files"]);
        assert_eq!(tolerated_remains(&before, &client.take()), [] as [&_; 0]);
    });
}

#[test]
fn paths_of_the_harness_are_left_out() {
    isolated(|mut client| {
        client.scope.ignore_paths = vec!["/run/harness".into()];
        let before = client.take();
        fs::create_dir(client.path("/run/harness")).expect("a directory");
        client.write("/run/harness/file", b"x");
        client.expect(&before, &[]);
        client.write("/run/harness.log", b"x");
        client.expect(&before, &["files"]);
        let tolerance = Tolerance { ignore_paths: vec!["/run/harness.log".into()], ..Tolerance::default() };
        assert_eq!(compare(&before, &client.take(), &tolerance), []);
    });
}

#[test]
fn processes_sockets_and_mounts_that_are_left_are_found() {
    isolated(|mut client| {
        let before = client.take();
        let mut cat = Command::new("/bin/cat");
        let mut child = cat.arg("-u").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        // The kernel sets the command line last in execve(2), after the descriptor that spawn() waits for is closed;
        // what cat copies shows that it runs.
        child.stdin.as_mut().expect("a pipe").write_all(b"?").expect("a byte");
        child.stdout.take().expect("a pipe").read_exact(&mut [0]).expect("the byte");
        let change = client.expect(&before, &["processes"]).remove(0);
        assert!(change.summary.ends_with("1 left over: `uid 0 /bin/cat -u`"), "{}", change.summary);
        client.scope.ignore_pids = vec![child.id()];
        client.expect(&before, &[]);
        client.scope.ignore_pids = Vec::new();
        // A daemon that somebody has started again is the same daemon, unless it has a place already.
        let cat = |pid| Daemon { pid, command: b"/bin/cat\0-u\0".to_vec() };
        client.scope.services = vec![cat(child.id())];
        client.expect(&before, &[]);
        client.scope.services = vec![cat(child.id() - 1)];
        client.expect(&before, &[]);
        client.scope.services = vec![Daemon { pid: child.id(), command: b"/bin/dog\0".to_vec() }];
        client.expect(&before, &["processes"]);
        client.scope.services = Vec::new();
        drop(child.stdin.take());
        child.wait().expect("it ends");
        client.expect(&before, &[]);

        // The snapshot's own process has sockets of the harness, which do not count; another process's do.
        let route = client.connect(nlink::Connection::<nlink::Route>::new);
        client.runtime.block_on(route.set_link_up("lo")).expect("loopback up");
        let before = client.take();
        let own =
            (UdpSocket::bind("127.0.0.1:53").expect("a socket"), TcpListener::bind("127.0.0.1:53").expect("a socket"));
        client.expect(&before, &[]);
        let mut command = Command::new("/bin/cat");
        command.stdin(Stdio::piped()).stdout(std::os::fd::OwnedFd::from(own.0));
        let mut child = command.spawn().expect("a process");
        drop(command);
        client.scope.ignore_pids = Vec::new();
        let changes = client.expect(&before, &["processes", "sockets"]);
        assert_eq!(changes[1].summary, "sockets: 1 left over: `udp 127.0.0.1 53 uid 0`");
        drop(child.stdin.take());
        child.wait().expect("it ends");
        drop(own.1);
        client.expect(&before, &[]);

        let none: Option<&str> = None;
        let (from, to) = (client.path("/etc/nsswitch.conf"), client.path("/etc/hosts"));
        nix::mount::mount(Some(&from), &to, none, nix::mount::MsFlags::MS_BIND, none).expect("a mount");
        let change = client.expect(&before, &["etc", "mounts"]).remove(1);
        assert_eq!((change.class, change.requirement), ("X04", "RST-1"));
        nix::mount::umount(&to).expect("no mount");
        client.expect(&before, &[]);
    });
}

#[test]
fn a_kernel_setting_that_is_left_is_found() {
    isolated(|client| {
        let before = client.take();
        let path = Path::new("/proc/sys/net/ipv4/conf/all/rp_filter");
        let value = fs::read_to_string(path).expect("a setting");
        fs::write(path, "2").expect("a setting");
        let change = client.expect(&before, &["sysctl"]).remove(0);
        assert_eq!((change.class, change.requirement), ("X04", "FWL-16"));
        assert!(change.diff.contains("+ipv4/conf/all/rp_filter = 2\n"), "{}", change.diff);
        fs::write(path, value).expect("a setting");
        client.expect(&before, &[]);
    });
}
