//! What needs no kernel: escaping, storing, comparing stored text.

use proptest::prelude::*;

use super::super::escape::{block, line, quoted, unblock, unescape, word};
use super::super::{Snapshot, Tolerance, compare};

proptest! {
    #[test]
    fn escaping_loses_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(unescape(&line(&bytes)).unwrap(), bytes.clone());
        prop_assert_eq!(unescape(&word(&bytes)).unwrap(), bytes.clone());
        prop_assert_eq!(unescape(quoted(&bytes).strip_prefix('"').unwrap().strip_suffix('"').unwrap()).unwrap(), bytes.clone());
        prop_assert!(!line(&bytes).contains('\n') && !word(&bytes).contains([' ', '\n']));
        prop_assert_eq!(unblock(&block(&bytes)).unwrap(), bytes);
    }

    #[test]
    fn escaping_text_loses_nothing(text in "[ -~\\n\\r\\t\\\\\"é漢\u{202e}\u{a0}|]{0,60}") {
        prop_assert_eq!(unescape(&line(text.as_bytes())).unwrap(), text.as_bytes());
        let shown = block(text.as_bytes());
        prop_assert!(shown.lines().all(|line| line.starts_with("    ") && (line.ends_with("| ") || !line.ends_with(' '))));
        let invisible = shown.contains(['\u{202e}', '\u{a0}', '\r', '\t']);
        prop_assert!(!invisible);
        prop_assert_eq!(unblock(&shown).unwrap(), text.as_bytes());
    }

    #[test]
    fn different_bytes_are_different_text(one in "[a\\n\\\\ ]{0,6}", other in "[a\\n\\\\ ]{0,6}") {
        prop_assert_eq!(one == other, block(one.as_bytes()) == block(other.as_bytes()));
    }
}

fn snapshot(topics: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (topic, text) in topics {
        snapshot.topics.insert((*topic).into(), (*text).into());
    }
    snapshot
}

#[test]
fn what_is_stored_is_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("before");
    let one = snapshot(&[("resolv.conf", "path: /etc/resolv.conf\n"), ("routes", ""), ("links", "é\\x00\n")]);
    one.write_to(&dir).unwrap();
    assert_eq!(Snapshot::read_from(&dir).unwrap(), one);
    // An earlier snapshot leaves nothing in a later one.
    let other = snapshot(&[("rules", "v4 0: from all lookup local\n")]);
    other.write_to(&dir).unwrap();
    assert_eq!(Snapshot::read_from(&dir).unwrap(), other);
}

#[test]
fn what_is_no_snapshot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let message = Snapshot::read_from(dir.path()).unwrap_err().to_string();
    assert!(message.contains("it has no topics"), "{message}");
    assert!(Snapshot::read_from(&dir.path().join("none")).is_err());
    std::fs::write(dir.path().join("links.txt"), b"\xff").unwrap();
    assert!(Snapshot::read_from(dir.path()).unwrap_err().to_string().contains("not UTF-8"));
}

#[test]
fn a_topic_that_was_not_recorded_is_no_pass() {
    let (with, without) = (snapshot(&[("links", "lo\n"), ("rules", "")]), snapshot(&[("links", "lo\n")]));
    assert_eq!(compare(&with, &with, &Tolerance::default()), []);
    assert_eq!(compare(&with, &without, &Tolerance::default())[0].topic, "rules");
    assert_eq!(compare(&without, &with, &Tolerance::default())[0].topic, "rules");
}

/// Bundles of versions that did not know a topic yet are judged by what they have.
#[test]
fn a_topic_that_neither_has_is_no_difference() {
    let old = [("links", "lo\n"), ("rules", "")];
    let new = [("dev", ""), ("hostname", ""), ("ipc", ""), ("neighbours", ""), ("xfrm", ""), ("mptcp", "")];
    assert_eq!(compare(&snapshot(&old), &snapshot(&old), &Tolerance::default()), []);
    let changes = compare(&snapshot(&old), &snapshot(&[&old[..], &new].concat()), &Tolerance::default());
    assert_eq!(changes.len(), new.len());
    assert!(changes.iter().all(|change| change.summary.contains("was not recorded before")), "{changes:?}");
}

/// What the kernel cannot have is not there; what could not be read is not known.
#[test]
fn a_topic_of_a_kernel_without_it_is_empty_and_an_unreadable_one_is_not() {
    let with = |text: &'static str| snapshot(&[("xfrm", text)]);
    let none = with("none: this kernel has no XFRM\n");
    assert_eq!(compare(&none, &with(""), &Tolerance::default()), []);
    assert_eq!(compare(&none, &with("policy out action block\n"), &Tolerance::default()).len(), 1);
    let unreadable = with("not readable: list the IPsec policies: Operation not permitted\n");
    assert_eq!(compare(&none, &unreadable, &Tolerance::default()).len(), 1);
}

#[test]
fn settings_that_come_and_go_with_interfaces_and_modules_are_no_difference() {
    let before = snapshot(&[("sysctl", "ipv4/conf/all/rp_filter = 0\nipv4/conf/wt0/rp_filter = 0\n")]);
    let after = snapshot(&[("sysctl", "ipv4/conf/all/rp_filter = 0\nnetfilter/new = 1\n")]);
    assert_eq!(compare(&before, &after, &Tolerance::default()), []);
}

#[test]
fn interfaces_of_others_can_be_left_out() {
    let before = snapshot(&[("links", "eth0 up\n"), ("routes", "")]);
    let after = snapshot(&[("links", "eth0 up\neth1 up\n"), ("routes", "v4 table main unicast default dev eth1\n")]);
    assert_eq!(compare(&before, &after, &Tolerance::default()).len(), 2);
    let tolerance = Tolerance { ignore_links: vec!["eth1".into()], ..Tolerance::default() };
    assert_eq!(compare(&before, &after, &tolerance), []);
    let tolerance = Tolerance { ignore_links: vec!["eth".into()], ..Tolerance::default() };
    assert_eq!(compare(&before, &after, &tolerance).len(), 2);
}

#[test]
fn the_same_line_twice_counts_twice() {
    let (one, two) = (snapshot(&[("processes", "uid 0 a\n")]), snapshot(&[("processes", "uid 0 a\nuid 0 a\n")]));
    let changes = compare(&one, &two, &Tolerance::default());
    assert_eq!(changes[0].summary, "processes: 1 left over: `uid 0 a`");
}

#[test]
fn what_resolver_services_keep_is_a_difference_of_its_requirement() {
    let nm = "global ConnectivityCheckEnabled true\nglobal GlobalDnsConfiguration \nservers link eth0 priority 100 192.168.1.1 domains \n\
              applied eth0 ip4config.DnsPriority 100\nprofile /etc/x.nmconnection unsaved false flags 0\n";
    let off = nm.replace("Enabled true", "Enabled false");
    let global = nm.replace("Configuration \n", "Configuration domains {\"*\": ...}\n");
    let applied = nm.replace("DnsPriority 100", "DnsPriority -1");
    let profile = format!("{nm}profile /etc/wt0.nmconnection unsaved false flags 0\n");
    let (one, two) = ("record eth0\n    | a\nrecord wt0\n    | b\n", "record wt0\n    | b\nrecord eth0\n    | a\n");
    for (topic, before, after, requirement) in [
        ("network-manager", nm, off.as_str(), "NMG-3"),
        ("network-manager", nm, &global, "NMG-2"),
        ("network-manager", nm, &applied, "NMG-2"),
        ("network-manager", nm, &profile, "NMG-2"),
        ("network-manager", nm, "absent\n", "NMG-3"),
        ("resolvconf", "record eth0\n    | a\n", one, "RCF-2"),
        ("resolvconf", one, two, "RCF-2"),
        ("bus-names", "org.freedesktop.DBus\n", "net.example.Vpn\norg.freedesktop.DBus\n", "RST-1"),
        ("forwarder", "forward 192.168.1.1\n", "forward 10.64.0.1\n", "RST-1"),
    ] {
        let found = compare(&snapshot(&[(topic, before)]), &snapshot(&[(topic, after)]), &Tolerance::default());
        assert!(
            found.iter().any(|found| found.requirement == requirement && found.class == "X05"),
            "{after}: {found:?}"
        );
        let same = compare(&snapshot(&[(topic, before)]), &snapshot(&[(topic, before)]), &Tolerance::default());
        assert!(same.is_empty(), "{same:?}");
    }
}
