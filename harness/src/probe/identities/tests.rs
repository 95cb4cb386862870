//! What a firewall's text tells of its identities; hex texts are the kernel's, as a snapshot shows them on a little-endian machine.

use super::identities_in;
use crate::probe::Identity::{self, Gid, Mark, Uid};

/// All of them, in an order of their own.
#[track_caller]
fn found(text: &str, all: &[Identity]) {
    let mut found = identities_in(text);
    found.sort_unstable();
    assert_eq!(found, all, "{text}");
}

#[test]
fn what_rules_and_routing_rules_name_is_found() {
    found("meta mark 0x6d76 udp dport 51820 accept", &[Mark(0x6d76)]);
    found("meta mark == 7 accept", &[Mark(7)]);
    found("100: from all not fwmark 0xca6c/0xffffffff lookup 51820", &[Mark(0xca6c)]);
    found("v4 9: from all fwmark 0x1 mask 0xff lookup 7 proto unspec", &[Mark(1)]);
    found("meta skuid { 998, 999 } accept\nmeta skgid 4242 accept", &[Uid(998), Uid(999), Gid(4242)]);
    found("from all uidrange 1000-1010 lookup 7", &[Uid(1000), Uid(1010)]);
    found("meta mark 0 accept", &[]);
}

#[test]
fn the_value_under_a_mask_is_imitated_and_not_the_mask() {
    found("meta mark and 0xff0000 == 0x80000 accept", &[Mark(0x80000)]);
    found("meta mark & 0x00ff0000 == 0x00080000 accept", &[Mark(0x80000)]);
    found("socket mark & 0xff ^ 0x3 == 0x5 accept", &[Mark(6)]);
    found("meta mark & 0x00ff0000 != 0x000a0000 drop", &[Mark(0xa0000), Mark(0xb0000)]);
    found("meta mark & 0x00100000 != 0x00000000 accept", &[Mark(0x10_0000)]);
}

#[test]
fn what_a_comparison_excepts_is_imitated_too() {
    found("meta mark != 0x5 drop", &[Mark(4), Mark(5), Mark(6)]);
    found("meta skgid != 5000-5010 accept", &[Gid(4999), Gid(5000), Gid(5011)]);
    found("meta skuid > 60000 meta skuid < 65000 accept", &[Uid(60000), Uid(60001), Uid(64999), Uid(65000)]);
    assert_eq!(
        identities_in("meta skuid > 60000 meta skuid < 65000 accept")[..2],
        [Uid(60001), Uid(64999)],
        "what it permits comes first"
    );
}

#[test]
fn elements_of_sets_and_maps_are_found() {
    found("meta skuid vmap { 123 : accept }", &[Uid(123)]);
    found("meta mark . meta l4proto { 0x77 . udp, 0x78 . tcp } accept", &[Mark(0x77), Mark(0x78)]);
    found("meta l4proto . meta mark { udp . 0x77 } accept", &[Mark(0x77)]);
    let sets = "table inet t {\n\tset ex {\n\t\ttype uid\n\t\telements = { 123,\n\t\t\t200-210 }\n\t}\n";
    found(&format!("{sets}\tchain c {{\n\t\tmeta skuid @ex accept"), &[Uid(123), Uid(200), Uid(210)]);
    found(&format!("{sets}\tchain c {{\n\t\tip daddr 1.1.1.1 accept"), &[]);
    found(&format!("{sets}}}\ntable inet other {{\n\tchain c {{\n\t\tmeta skuid @ex accept"), &[]);
}

#[test]
fn sets_of_a_snapshot_are_found() {
    let text = "table inet t\n  set __set0 anonymous constant key 24 length 4 description 08\n    element 7d000000\n\
        \x20 set exr interval key 24 length 4\n    element 00000000 end-of-interval\n    element 0000007b\n\
        \x20   element 0000007c end-of-interval\n    element 000000c8\n    element 000000d3 end-of-interval\n\
        \x20 set cc key 1228 length 8\n    element 7900000011000000\n\
        \x20 set ci interval concat key 1240 length 8\n    element 0000007800000005 - 0000008000000006\n\
        \x20 map mm map key 19 length 4 data 0xffffff00\n    element 77000000 : accept\n\
        \x20 chain out hook output priority 0 policy accept\n";
    let rule = |rule: &str, all: &[Identity]| found(&format!("{text}    rule {rule}  # 38a62da6\n"), all);
    rule("meta skuid @exr accept", &[Uid(123), Uid(200), Uid(210)]);
    rule("meta mark . meta l4proto @cc accept", &[Mark(0x79)]);
    rule("meta mark . meta skuid @ci accept", &[Mark(0x78), Mark(0x80), Uid(5), Uid(6)]);
    rule("meta mark vmap @mm", &[Mark(0x77)]);
    rule(
        "[ meta 2=0000000a 1=00000001 ] [ lookup 1=5f5f7365743000 2=00000001 5=00000000 ] [ immediate 1=00000000 2=0c0002000800010000000001 ]",
        &[Uid(125)],
    );
    rule(
        "[ meta 2=00000003 1=00000001 ] [ meta 2=00000010 1=00000009 ] [ lookup 1=636300 2=00000001 5=00000000 ]",
        &[Mark(0x79)],
    );
}

/// A rule with any unnamed set in it is shown so, whatever else it asks for.
#[test]
fn rules_shown_by_expressions_are_found() {
    let rule = |rule: &str, all: &[Identity]| found(&format!("table inet t\n    rule {rule}  # 38a6\n"), all);
    let address = "[ meta 2=0000000f 1=00000001 ] [ cmp 1=00000001 2=00000000 3=0500010002000000 ] \
        [ payload 1=00000001 2=00000001 3=00000010 4=00000004 ] [ lookup 1=5f5f7365743000 2=00000001 5=00000000 ]";
    rule(
        &format!("{address} [ meta 2=00000003 1=00000001 ] [ cmp 1=00000001 2=00000000 3=0800010007000000 ]"),
        &[Mark(7)],
    );
    rule(
        &format!(
            "{address} [ meta 2=00000003 1=00000001 ] [ bitwise 1=00000001 2=00000001 3=00000004 6=00000000 \
             4=0800010000ff0000 5=0800010000000000 ] [ cmp 1=00000001 2=00000000 3=0800010000070000 ]"
        ),
        &[Mark(0x700)],
    );
    let swap = "[ byteorder 1=00000001 2=00000001 3=00000001 4=00000004 5=00000004 ]";
    rule(
        &format!("{address} [ meta 2=0000000a 1=00000001 ] {swap} [ cmp 1=00000001 2=00000004 3=0800010000000320 ]"),
        &[Uid(800), Uid(801)],
    );
    rule(
        &format!(
            "{address} [ meta 2=0000000b 1=00000001 ] {swap} [ range 1=00000001 2=00000000 3=08000100000002bc \
             4=0800010000000320 ]"
        ),
        &[Gid(700), Gid(800)],
    );
    rule(
        "[ meta 2=00000003 1=00000001 ] [ cmp 1=00000001 2=00000000 3=0800010007000000 ] \
         [ meta 2=0000000a 1=00000001 ] [ cmp 1=00000001 2=00000001 3=0800010008000000 ]",
        &[Mark(7), Uid(7), Uid(8), Uid(9)],
    );
    rule(
        &format!("{address} [ socket 1=00000001 2=00000001 ] [ cmp 1=00000001 2=00000000 3=0800010009000000 ]"),
        &[Mark(9)],
    );
    rule("[ match 1=6f776e657200 2=00000001 3=4d0000004d00000000000000000000000100000000000000 ]", &[Uid(77)]);
}

#[test]
fn numbers_of_a_rule_that_is_not_understood_are_guessed() {
    found("meta mark set meta mark and 0x7 or 0x40", &[Mark(7), Mark(0x40)]);
    found("meta skuid numbered 12 accept", &[Uid(12)]);
}

#[test]
fn every_rule_gets_one_before_any_gets_two() {
    let many: Vec<String> = (1..40).map(|number| number.to_string()).collect();
    let text = format!("meta mark {{ {} }} accept\nmeta skuid 999 accept\nmeta skgid != 7 drop", many.join(", "));
    let found = identities_in(&text);
    assert_eq!(found[..3], [Mark(1), Uid(999), Gid(7)]);
}
