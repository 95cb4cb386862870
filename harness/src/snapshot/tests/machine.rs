//! What a machine has beside files and the network: its names, its devices, and what outlives processes in its IPC namespace.
//! Each change is made and taken back, with root privileges and without.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{mkfifo, sethostname};

use super::super::{Severity, Snapshot};
use super::{Client, isolated, rootless};

#[test]
fn changed_names_of_the_machine_are_found() {
    isolated(|client| names(&client));
}

#[test]
fn changed_names_of_the_machine_are_found_without_root() {
    rootless(|client| names(&client));
}

fn names(client: &Client) {
    sethostname("client").expect("a host name");
    let before = client.take();
    let topic = &before.topics["hostname"];
    assert!(topic.starts_with("hostname client\ndomainname "), "{topic}");
    sethostname("client.tunnel example").expect("a host name");
    let change = client.expect(&before, &["hostname"]).remove(0);
    assert_eq!((change.class, change.requirement, change.severity), ("X04", "RST-1", Severity::Must));
    assert!(change.diff.contains("-hostname client\n+hostname client.tunnel\\x20example\n"), "{}", change.diff);
    sethostname("client").expect("a host name");
    client.expect(&before, &[]);

    let domain = nix::sys::utsname::uname().expect("uname").domainname().to_owned();
    let set = |domain: &str| {
        // SAFETY: the name is `len` bytes that are read during the call.
        Errno::result(unsafe { libc::setdomainname(domain.as_ptr().cast(), domain.len()) }).expect("a domain name");
    };
    set("tunnel.example");
    let change = client.expect(&before, &["hostname"]).remove(0);
    assert!(change.diff.contains("+domainname tunnel.example\n"), "{}", change.diff);
    set(domain.to_str().expect("a name in UTF-8"));
    client.expect(&before, &[]);
}

#[test]
fn changed_devices_and_files_in_dev_are_found() {
    isolated(|client| {
        let before = client.take();
        let tun = client.path("/dev/tun");
        mknod(&tun, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(10, 200)).expect("a device node");
        let change = client.expect(&before, &["dev"]).remove(0);
        assert_eq!((change.class, change.requirement, change.severity), ("X01", "RST-1", Severity::Must));
        assert_eq!(change.summary, "files: 1 left over: `/dev/tun`");
        assert!(change.diff.contains("+/dev/tun char-device 0600 0:0 device 10:200\n"), "{}", change.diff);
        // Another device under the same name.
        let with = client.take();
        client.remove("/dev/tun");
        mknod(&tun, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 3)).expect("a device node");
        assert_eq!(client.expect(&with, &["dev"]).remove(0).summary, "files: 1 changed: `/dev/tun`");
        client.remove("/dev/tun");
        client.expect(&before, &[]);

        nix::unistd::chown(&client.path("/dev/shm"), Some(1.into()), None).expect("an owner");
        assert_eq!(client.expect(&before, &["dev"]).remove(0).summary, "files: 1 changed: `/dev/shm`");
        nix::unistd::chown(&client.path("/dev/shm"), Some(0.into()), None).expect("an owner");
        client.expect(&before, &[]);
        files(&client, &before);
    });
}

#[test]
fn changed_files_in_dev_are_found_without_root() {
    rootless(|client| {
        let before = client.take();
        files(&client, &before);
    });
}

fn files(client: &Client, before: &Snapshot) {
    assert!(before.topics["dev"].contains("/dev/null char-device 0666 "), "{}", before.topics["dev"]);
    let summary = || client.expect(before, &["dev"]).remove(0).summary;
    client.write("/dev/shm/sem.subject", b"\0\0\0\0");
    assert_eq!(summary(), "files: 1 left over: `/dev/shm/sem.subject`");
    let with = client.take();
    client.write("/dev/shm/sem.subject", b"\0\0\0\x01");
    assert_eq!(client.expect(&with, &["dev"]).remove(0).summary, "files: 1 changed: `/dev/shm/sem.subject`");
    client.remove("/dev/shm/sem.subject");
    client.expect(before, &[]);

    mkfifo(&client.path("/dev/initctl"), Mode::from_bits_truncate(0o600)).expect("a fifo");
    assert_eq!(summary(), "files: 1 left over: `/dev/initctl`");
    client.remove("/dev/initctl");
    fs::set_permissions(client.path("/dev/shm"), Permissions::from_mode(0o700)).expect("a mode");
    assert_eq!(summary(), "files: 1 changed: `/dev/shm`");
    fs::set_permissions(client.path("/dev/shm"), Permissions::from_mode(0o755)).expect("a mode");
    fs::remove_dir(client.path("/dev/shm")).expect("a directory to remove");
    assert_eq!(summary(), "files: 1 missing: `/dev/shm`");
    fs::create_dir(client.path("/dev/shm")).expect("a directory");
    client.expect(before, &[]);

    // A filesystem of its own on /dev/shm is looked into; its mount is a difference of its own.
    let none: Option<&str> = None;
    mount(Some("tmpfs"), &client.path("/dev/shm"), Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("a tmpfs");
    let mounted = client.take();
    client.expect(before, &["mounts"]);
    client.write("/dev/shm/left", b"x");
    assert_eq!(client.expect(&mounted, &["dev"]).remove(0).summary, "files: 1 left over: `/dev/shm/left`");
    umount(&client.path("/dev/shm")).expect("no mount");
    // What comes and goes by itself is not: terminals.
    let pts = client.path("/dev/pts");
    fs::create_dir(&pts).expect("a directory");
    mount(Some("devpts"), &pts, Some("devpts"), MsFlags::empty(), none).expect("a devpts");
    let mounted = client.take();
    assert!(mounted.topics["dev"].contains("/dev/pts mount\n"), "{}", mounted.topics["dev"]);
    let terminal = fs::OpenOptions::new().read(true).write(true).open(pts.join("ptmx"));
    client.expect(&mounted, &[]);
    drop(terminal);
    umount(&pts).expect("no mount");
    fs::remove_dir(&pts).expect("a directory to remove");
    client.expect(before, &[]);
}

#[test]
fn what_is_left_in_the_ipc_namespace_is_found() {
    isolated(|client| ipc(&client));
}

#[test]
fn what_is_left_in_the_ipc_namespace_is_found_without_root() {
    rootless(|client| ipc(&client));
}

fn ipc(client: &Client) {
    let before = client.take();
    assert_eq!(before.topics["ipc"], "");
    let name = CString::new("/subject").expect("a name");
    let attributes = std::ptr::null::<libc::mq_attr>();
    // SAFETY: name and attributes are read during the call; the descriptor is closed below.
    let queue = Errno::result(unsafe { libc::mq_open(name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600, attributes) });
    // SAFETY: the descriptor is the one above and is used no more.
    Errno::result(unsafe { libc::mq_close(queue.expect("a message queue")) }).expect("a closed queue");
    let change = client.expect(&before, &["ipc"]).remove(0);
    assert_eq!((change.class, change.requirement), ("X04", "RST-1"));
    assert!(change.diff.contains("+mqueue /subject mode 0600 0:0\n"), "{}", change.diff);
    // SAFETY: the name is read during the call.
    Errno::result(unsafe { libc::mq_unlink(name.as_ptr()) }).expect("no message queue");
    client.expect(&before, &[]);

    // SAFETY: the calls take numbers alone, and memory is not attached.
    unsafe {
        let shared = Errno::result(libc::shmget(0x77, 4096, libc::IPC_CREAT | 0o600)).expect("shared memory");
        let change = client.expect(&before, &["ipc"]).remove(0);
        assert!(change.diff.contains("+shm key 119 perms 600 size 4096 uid 0 "), "{}", change.diff);
        Errno::result(libc::shmctl(shared, libc::IPC_RMID, std::ptr::null_mut())).expect("no shared memory");
        client.expect(&before, &[]);

        let semaphores = Errno::result(libc::semget(libc::IPC_PRIVATE, 3, 0o600)).expect("semaphores");
        let change = client.expect(&before, &["ipc"]).remove(0);
        assert!(change.diff.contains("+sem key 0 perms 600 nsems 3 uid 0 "), "{}", change.diff);
        Errno::result(libc::semctl(semaphores, 0, libc::IPC_RMID)).expect("no semaphores");

        let messages = Errno::result(libc::msgget(0x78, libc::IPC_CREAT | 0o640)).expect("a queue");
        let change = client.expect(&before, &["ipc"]).remove(0);
        assert!(change.diff.contains("+msg key 120 perms 640 uid 0 "), "{}", change.diff);
        Errno::result(libc::msgctl(messages, libc::IPC_RMID, std::ptr::null_mut())).expect("no queue");
    }
    client.expect(&before, &[]);
}
