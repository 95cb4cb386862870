//! resolv.conf in all its shapes.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::super::{Occasion, ResolvConf, Severity, Tolerance, compare};
use super::{Client, isolated, set_mtime, target};

/// The one difference that `change` makes, and none once `undo` has been done; the time of modification is put back.
#[track_caller]
fn found(client: &Client, shape: &str, change: impl FnOnce(&Client), part: &str) {
    let before = client.take();
    change(client);
    let changes = client.changes(&before);
    assert_eq!(changes.len(), 1, "{shape}: {changes:#?}");
    let found = &changes[0];
    assert_eq!((found.topic.as_str(), found.class, found.severity), ("resolv.conf", "X01", Severity::Must), "{shape}");
    assert!(found.diff.contains(part), "{shape}: {part:?} is not in\n{}", found.diff);
}

const FILE: &str = "/etc/resolv.conf";

#[test]
fn every_byte_counts_and_is_visible() {
    isolated(|client| {
        for (shape, was, is, part) in [
            (
                "another server",
                "nameserver 1.1.1.1\n",
                "nameserver 8.8.8.8\n",
                "-    | nameserver 1.1.1.1\n+    | nameserver 8.8.8.8\n",
            ),
            ("no final newline", "nameserver 1.1.1.1\n", "nameserver 1.1.1.1", "+    \\ no newline at the end\n"),
            ("CRLF", "nameserver 1.1.1.1\n", "nameserver 1.1.1.1\r\n", "+    | nameserver 1.1.1.1\\r\n"),
            ("blank at the end", "nameserver 1.1.1.1\n", "nameserver 1.1.1.1 \n", "+    | nameserver 1.1.1.1\\x20\n"),
            ("tab for blank", "nameserver 1.1.1.1\n", "nameserver\t1.1.1.1\n", "+    | nameserver\\t1.1.1.1\n"),
            ("emptied", "nameserver 1.1.1.1\n", "", "+    (empty)\n"),
            ("one empty line", "", "\n", "-    (empty)\n+    | \n"),
            (
                "order",
                "search a\nsearch b\n",
                "search b\nsearch a\n",
                "+    | search b\n     | search a\n-    | search b\n",
            ),
        ] {
            client.write(FILE, was.as_bytes());
            found(&client, shape, |client| client.write(FILE, is.as_bytes()), part);
        }
        client.write(FILE, b"# caf\xc3\xa9\n");
        found(&client, "not UTF-8", |client| client.write(FILE, b"# caf\xe9\n"), "-    | # café\n+    | # caf\\xe9\n");
    });
}

#[test]
fn type_target_mode_owner_and_attributes_count() {
    isolated(|client| {
        let restore = |client: &Client| {
            let _ = fs::remove_file(client.path(FILE));
            client.write(FILE, b"nameserver 1.1.1.1\n");
        };
        restore(&client);
        found(&client, "missing", |client| client.remove(FILE), "+type: missing\n");
        found(&client, "there again", restore, "-type: missing\n");
        let mode =
            |mode| move |client: &Client| fs::set_permissions(client.path(FILE), Permissions::from_mode(mode)).unwrap();
        found(&client, "mode", mode(0o640), "-mode: 0644\n+mode: 0640\n");
        mode(0o644)(&client);
        let owner = |client: &Client| nix::unistd::chown(&client.path(FILE), Some(7.into()), Some(8.into())).unwrap();
        found(&client, "owner", owner, "-owner: 0:0\n+owner: 7:8\n");
        let attribute = |client: &Client| xattr::set(client.path(FILE), "user.origin", b"by \"hand\"\n").unwrap();
        found(&client, "attribute", attribute, "+attribute: user.origin = \"by \\x22hand\\x22\\n\"\n");

        let link = |to: &'static str| {
            move |client: &Client| {
                client.remove(FILE);
                symlink(to, client.path(FILE)).unwrap();
            }
        };
        restore(&client);
        fs::create_dir_all(client.path("/run/a/b")).unwrap();
        client.write("/run/a/stub", b"nameserver 127.0.0.53\n");
        client.write("/run/a/other", b"nameserver 127.0.0.53\n");
        found(&client, "link", link("../run/a/stub"), "+path: /run/a/stub\n");
        found(&client, "another target", link("/run/a/other"), "+target: /run/a/other\n");
        found(&client, "dangling", link("/run/a/none"), "+type: missing\n");
        found(
            &client,
            "same target, written otherwise",
            link("../run/a/none"),
            "-target: /run/a/none\n+target: ../run/a/none\n",
        );
        link("/run/a/stub")(&client);
        let rewrite = |client: &Client| client.write("/run/a/stub", b"nameserver 10.64.0.1\n");
        found(&client, "content behind a link", rewrite, "+    | nameserver 10.64.0.1\n");
        // A chain of links, one in a parent, absolute ones inside the client's root.
        symlink("/run/a/b", client.path("/etc/through")).unwrap();
        symlink("../stub", client.path("/run/a/b/last")).unwrap();
        link("through/last")(&client);
        let text = client.take().topics["resolv.conf"].clone();
        assert_eq!(target(&client.path(FILE)), b"through/last");
        assert!(text.contains("\npath: /run/a/b/last\n") && text.contains("\npath: /run/a/stub\n"), "{text}");
        link("resolv.conf")(&client);
        assert!(client.take().topics["resolv.conf"].ends_with("type: a loop of links\n"));
    });
}

#[test]
fn only_the_time_is_a_should() {
    isolated(|client| {
        client.write(FILE, b"nameserver 1.1.1.1\n");
        set_mtime(&client.path(FILE), 1_000_000_000);
        let before = client.take();
        client.write(FILE, b"nameserver 1.1.1.1\n");
        let change = client.expect(&before, &["resolv.conf"]).remove(0);
        assert_eq!((change.requirement, change.severity), ("RST-7", Severity::Should));
        assert!(change.diff.contains("-mtime: 1000000000.000000000\n"), "{}", change.diff);
        set_mtime(&client.path(FILE), 1_000_000_000);
        client.expect(&before, &[]);
        // A resolver service may write its own file again.
        client.write("/run/stub", b"nameserver 127.0.0.53\n");
        client.remove(FILE);
        symlink("/run/stub", client.path(FILE)).unwrap();
        set_mtime(&client.path(FILE), 1_000_000_000);
        let before = client.take();
        set_mtime(&client.path("/run/stub"), 1_000_000_000);
        client.expect(&before, &[]);
    });
}

#[test]
fn an_immutable_file_is_told_from_one_that_is_not() {
    use std::os::fd::AsRawFd;
    nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);
    isolated(|client| {
        client.write(FILE, b"nameserver 1.1.1.1\n");
        let before = client.take();
        let set = |flags: libc::c_long| {
            let file = fs::File::open(client.path(FILE)).unwrap();
            // SAFETY: FS_IOC_SETFLAGS reads an int from the long it is given (ioctl_iflags(2)).
            unsafe { set_flags(file.as_raw_fd(), &raw const flags) }
        };
        if let Err(errno) = set(0x10) {
            println!("skipped: this filesystem has no inode flags: {errno}");
            return;
        }
        let changes = client.expect(&before, &["resolv.conf"]);
        set(0).unwrap();
        assert!(changes[0].diff.contains("-flags: none\n+flags: immutable\n"), "{}", changes[0].diff);
        assert_eq!(changes[0].requirement, "RST-1");
        client.expect(&before, &[]);
    });
}

#[test]
fn what_somebody_else_left_is_what_must_be_there() {
    isolated(|client| {
        let tolerance = Tolerance { occasion: Occasion::Edit, ..Tolerance::default() };
        let mut expected = client.take();
        let edit = |bytes: &[u8]| ResolvConf::File { bytes: bytes.to_vec(), mode: Some(0o644), owner: None };
        expected.expect_resolv_conf(&edit(b"nameserver 9.9.9.9\n"));
        let stale = compare(&expected, &client.take(), &tolerance);
        assert_eq!(stale.len(), 1, "{stale:#?}");
        assert_eq!((stale[0].class, stale[0].requirement), ("X03", "RST-4"));
        client.write(FILE, b"nameserver 9.9.9.9\n");
        xattr::set(client.path(FILE), "user.unknown", b"to the editor").unwrap();
        assert_eq!(compare(&expected, &client.take(), &tolerance), []);
        fs::set_permissions(client.path(FILE), Permissions::from_mode(0o600)).unwrap();
        assert_eq!(compare(&expected, &client.take(), &tolerance).len(), 1);

        expected.expect_resolv_conf(&ResolvConf::Missing);
        assert_eq!(compare(&expected, &client.take(), &tolerance).len(), 1);
        client.remove(FILE);
        assert_eq!(compare(&expected, &client.take(), &tolerance), []);

        expected.expect_resolv_conf(&ResolvConf::Symlink { target: b"../usr/program".to_vec() });
        assert_eq!(compare(&expected, &client.take(), &tolerance).len(), 1);
        symlink("../usr/program", client.path(FILE)).unwrap();
        assert_eq!(compare(&expected, &client.take(), &tolerance), []);
    });
}
