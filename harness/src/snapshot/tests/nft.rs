//! nftables rulesets of the kernel's: what is different reads different, what only counts does not.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use nlink::Connection;
use nlink::netlink::Nftables;
use nlink::netlink::nftables::{
    BaseChain, Chain, CmpOp, CtState, DynsetOp, Expr, Family, FibFlags, FilterHook, IcmpxCode, LimitUnit, MetaKey,
    Object, PacketField, PayloadBase, Policy, Priority, QuotaExpr, Register, Rule, Set, SetDataType, SetElement,
    SetKeyType, Verdict,
};
use nlink::netlink::types::route::RouteType;

use super::super::{Tolerance, compare};
use super::{Client, isolated};

const TABLE: &str = "wt";

fn rule() -> Rule {
    Rule::new(TABLE, "out").family(Family::Inet)
}

fn chain(name: &str, policy: Policy, priority: i32) -> Chain {
    let base = BaseChain::filter(FilterHook::Output, Priority::from_i32(priority)).policy(policy);
    Chain::new(TABLE, name).expect("a name").family(Family::Inet).base(base)
}

/// Table, chain, sets and objects that the rules need, as one transaction with the rules.
async fn load(nft: &Connection<Nftables>, rules: &[Rule]) {
    let set = |name: &str| Set::new(TABLE, name).family(Family::Inet);
    let servers = set("servers").key_type(SetKeyType::Ipv4Addr);
    let ports = set("ports").key_type(SetKeyType::InetService).interval();
    let verdicts = set("verdicts").key_type(SetKeyType::InetService).vmap();
    let marks = set("marks").key_type(SetKeyType::Ipv4Addr).map(SetDataType::Value(SetKeyType::Mark));
    let seen = set("seen").key_type(SetKeyType::Ipv4Addr).dynamic().timeout(Duration::from_secs(60));
    let mut transaction = nft
        .transaction()
        .destroy_table(TABLE, Family::Inet)
        .add_table(TABLE, Family::Inet)
        .add_chain(chain("out", Policy::Accept, 0))
        .add_chain(Chain::new(TABLE, "other").expect("a name").family(Family::Inet))
        .add_set(servers.clone())
        .add_set(ports.clone())
        .add_set(verdicts.clone())
        .add_set(marks.clone())
        .add_set(seen)
        .add_set_elements(&servers, &[SetElement::ipv4(Ipv4Addr::new(1, 1, 1, 1))])
        .add_set_elements(&ports, &[SetElement::port_range(53, 53), SetElement::port_range(853, 860)])
        .add_set_elements(&verdicts, &[SetElement::port(53).verdict(Verdict::Drop)])
        .add_set_elements(&marks, &[SetElement::ipv4(Ipv4Addr::LOCALHOST).value(SetElement::mark(7))])
        .add_object(&Object::counter(TABLE, "counted").family(Family::Inet))
        .add_object(&Object::quota(TABLE, "quota", QuotaExpr::new(1 << 20)).family(Family::Inet));
    for rule in rules {
        transaction = transaction.add_rule(rule.clone());
    }
    transaction.commit(nft).await.expect("a ruleset");
}

fn text(client: &Client) -> String {
    client.take().topics["nftables"].clone()
}

/// Rules that all do something else, many of them alike.
fn kinds() -> Vec<Rule> {
    let one = Ipv4Addr::new(1, 1, 1, 1);
    let six = Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 1);
    let raw = |offset: u32, data: &[u8]| {
        rule().expressions(vec![
            Expr::Payload { dreg: Register::R0, base: PayloadBase::Transport, offset, len: data.len() as u32 },
            Expr::Cmp { sreg: Register::R0, op: CmpOp::Eq, data: data.to_vec() },
            Expr::Verdict(Verdict::Drop),
        ])
    };
    vec![
        rule().accept(),
        rule().drop(),
        rule().drop().comment("one"),
        rule().drop().comment("two\n"),
        rule().match_udp_dport(53).drop(),
        rule().match_udp_dport(54).drop(),
        rule().match_tcp_dport(53).drop(),
        rule().match_udp_sport(53).drop(),
        rule().match_udp_dport_not(53).drop(),
        rule().match_daddr_v4(one, 32).accept(),
        rule().match_daddr_v4(one, 24).accept(),
        rule().match_saddr_v4(one, 32).accept(),
        rule().match_daddr_v6(six, 128).accept(),
        rule().match_oif("lo").accept(),
        rule().match_oif("wt0").accept(),
        rule().match_oif_not("wt0").accept(),
        rule().match_oif_prefix("wt").accept(),
        rule().match_mark(0x51).accept(),
        rule().match_mark_masked(0x51, 0xff).accept(),
        rule().set_mark(0x51),
        rule().set_ct_mark(0x51),
        rule().match_ct_state(CtState::ESTABLISHED).accept(),
        rule().match_ct_state(CtState::ESTABLISHED | CtState::RELATED).accept(),
        rule().match_daddr_in_set("servers").accept(),
        rule().match_not_in_set(PacketField::Ip4Daddr, "servers").accept(),
        rule().match_in_interval_set(PacketField::UdpDport, "ports").drop(),
        rule().vmap(PacketField::UdpDport, "verdicts"),
        rule().set_mark_from_map(PacketField::Ip4Daddr, "marks"),
        rule().add_to_set(PacketField::Ip4Daddr, "seen", None),
        rule().update_in_set(PacketField::Ip4Daddr, "seen", None),
        rule().reject(),
        rule().match_l4proto(6).reject_tcp_reset(),
        rule().match_l4proto(6).drop(),
        rule().match_l4proto(17).drop(),
        rule().reject_icmpx(IcmpxCode::AdminProhibited),
        rule().limit(10, LimitUnit::Second).accept(),
        rule().limit(10, LimitUnit::Minute).accept(),
        rule().limit(11, LimitUnit::Second).accept(),
        rule().counter().accept(),
        rule().counter_named("counted").accept(),
        rule().quota_named("quota").accept(),
        rule().quota_until(1000).accept(),
        rule().quota_over(1000).accept(),
        rule().log(Some("dns ")),
        rule().log(Some("dns\n")),
        rule().log(None),
        rule().try_jump("other").expect("a name"),
        rule().try_goto("other").expect("a name"),
        rule().notrack(),
        rule().match_fib_type(FibFlags::DADDR, RouteType::Local).drop(),
        raw(10, &[0x84, 0x00]),
        raw(10, &[0x84, 0x01]),
        raw(12, &[0x84, 0x00]),
        rule().expressions(vec![
            Expr::Meta { dreg: Register::R0, key: MetaKey::SkUid },
            Expr::Cmp { sreg: Register::R0, op: CmpOp::Eq, data: 0u32.to_ne_bytes().to_vec() },
            Expr::Verdict(Verdict::Accept),
        ]),
    ]
}

#[test]
fn different_rules_read_different() {
    isolated(|client| {
        let nft = client.connect(Connection::<Nftables>::new);
        let mut read: BTreeMap<String, String> = BTreeMap::new();
        let kinds = kinds();
        assert!(kinds.len() > 40);
        for rule in &kinds {
            client.runtime.block_on(load(&nft, std::slice::from_ref(rule)));
            let text = text(&client);
            let line = text.lines().find(|line| line.starts_with("    rule ")).expect("a rule").to_owned();
            // Not only by the digest, except where two rules read the same to nft too.
            println!("{line}");
            if let Some(other) = read.insert(text, format!("{rule:?}")) {
                panic!("{line} is\n{rule:?} and\n{other}");
            }
        }
        let readable: std::collections::BTreeSet<_> = read
            .keys()
            .filter_map(|text| text.lines().find(|line| line.starts_with("    rule "))?.split("  # ").next())
            .collect();
        assert_eq!(readable.len(), kinds.len(), "each kind can be told apart by a reader");
        assert!(readable.contains("    rule meta skuid 0 accept"), "{readable:#?}");
        assert!(readable.contains("    rule udp dport 53 drop"), "{readable:#?}");
    });
}

#[test]
fn loading_the_same_again_reads_the_same_and_order_counts() {
    isolated(|client| {
        let nft = client.connect(Connection::<Nftables>::new);
        let rules = kinds();
        client.runtime.block_on(load(&nft, &rules));
        let before = client.take();
        for _ in 0..5 {
            client.runtime.block_on(load(&nft, &rules));
            client.expect(&before, &[]);
        }
        let mut swapped = rules.clone();
        swapped.swap(4, 5);
        client.runtime.block_on(load(&nft, &swapped));
        let change = client.expect(&before, &["nftables"]).remove(0);
        assert_eq!((change.class, change.requirement), ("X04", "FWL-16"));
        assert_eq!(change.summary, "nftables: 1 tables changed: `inet wt`");
    });
}

#[test]
fn packets_change_nothing_and_everything_else_does() {
    isolated(|client| {
        let nft = client.connect(Connection::<Nftables>::new);
        let route = client.connect(Connection::<nlink::Route>::new);
        let rules =
            [rule().counter().accept().comment("counts"), rule().quota_until(1 << 20), rule().counter_named("counted")];
        let counting = [rule().counter(), rule().counter_named("counted"), rule().quota_named("quota").accept()];
        let dynamic = rule().dynset(
            PacketField::Ip4Daddr,
            nlink::netlink::nftables::DynsetExpr::new(DynsetOp::Update, "seen", Register::R0),
        );
        let all: Vec<Rule> = [dynamic].into_iter().chain(counting).chain(rules).collect();
        client.runtime.block_on(async {
            route.set_link_up("lo").await.expect("loopback up");
            load(&nft, &all).await;
        });
        let before = client.take();
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        for _ in 0..3 {
            socket.send_to(b"counted", "127.0.0.1:9").expect("a packet");
        }
        drop(socket);
        client.expect(&before, &[]);

        // Something else each time, in the same table.
        let set = |name: &str| Set::new(TABLE, name).family(Family::Inet);
        let begin = || nft.transaction();
        let servers = set("servers").key_type(SetKeyType::Ipv4Addr);
        let marks = set("marks").key_type(SetKeyType::Ipv4Addr).map(SetDataType::Value(SetKeyType::Mark));
        let dns = SetElement::ipv4(Ipv4Addr::new(8, 8, 8, 8));
        let home = SetElement::ipv4(Ipv4Addr::LOCALHOST);
        let egress = BaseChain::filter(FilterHook::egress("lo"), Priority::Filter);
        let netdev = Chain::new("low", "egress").expect("a name").family(Family::Netdev).base(egress);
        for (what, part, transaction) in [
            ("an element", "+    element 8.8.8.8\n", begin().add_set_elements(&servers, std::slice::from_ref(&dns))),
            (
                "an element's comment",
                "comment \"dns\"\n",
                begin().add_set_elements(&servers, &[dns.with_comment("dns")]),
            ),
            ("an element's value", "+    element 127.0.0.1 : 08000000\n", {
                begin()
                    .del_set_elements(&marks, std::slice::from_ref(&home))
                    .add_set_elements(&marks, &[home.clone().value(SetElement::mark(8))])
            }),
            ("a policy", "policy drop", begin().update_chain(chain("out", Policy::Drop, 0))),
            ("a chain", "+  chain more", begin().add_chain(chain("more", Policy::Accept, 0))),
            ("a priority", "priority -5", begin().add_chain(chain("more", Policy::Accept, -5))),
            ("a set", "+  set mine", begin().add_set(set("mine").key_type(SetKeyType::Mark))),
            (
                "an object",
                "+  object mine counter\n",
                begin().add_object(&Object::counter(TABLE, "mine").family(Family::Inet)),
            ),
            ("a table", "+table ip6 wt\n", begin().add_table(TABLE, Family::Ip6)),
            ("a table's flag", "+table inet wt dormant", begin().update_table(TABLE, Family::Inet, 1)),
            (
                "a table's comment",
                "+table ip mine comment \"hello\"",
                begin().add_table_with_comment("mine", Family::Ip, 0, Some("hello")),
            ),
            ("an egress chain", "hook egress", begin().add_table("low", Family::Netdev).add_chain(netdev)),
        ] {
            client.runtime.block_on(transaction.commit(&nft)).expect(what);
            let change = client.expect(&before, &["nftables"]).remove(0);
            assert!(change.diff.contains(part), "{what}: {part:?} is not in\n{}", change.diff);
            client.runtime.block_on(async {
                nft.flush_ruleset().await.expect("an empty ruleset");
                load(&nft, &all).await;
            });
            client.expect(&before, &[]);
        }
    });
}

#[test]
fn under_lockdown_own_rules_may_stay_and_others_must() {
    isolated(|client| {
        let nft = client.connect(Connection::<Nftables>::new);
        client.runtime.block_on(load(&nft, &[rule().match_udp_dport(53).drop(), rule().accept()]));
        let before = client.take();
        let lockdown = Tolerance { own_rules_stay: true, ..Tolerance::default() };
        client.runtime.block_on(async {
            let own = nft.transaction().add_table("subject", Family::Inet).add_rule(rule().match_tcp_dport(53).drop());
            own.commit(&nft).await.expect("rules");
        });
        client.expect(&before, &["nftables"]);
        assert_eq!(compare(&before, &client.take(), &lockdown), []);
        let ignored =
            Tolerance { ignore_tables: vec!["inet subject".into(), format!("inet {TABLE}")], ..Tolerance::default() };
        assert_eq!(compare(&before, &client.take(), &ignored), []);
        // Somebody else's rule is gone.
        client.runtime.block_on(load(&nft, &[rule().accept()]));
        assert_eq!(compare(&before, &client.take(), &lockdown).len(), 1);
        client.runtime.block_on(nft.flush_ruleset()).expect("an empty ruleset");
        let change = compare(&before, &client.take(), &lockdown).remove(0);
        assert_eq!(change.summary, format!("nftables: 1 tables missing: `inet {TABLE}`"));
    });
}
