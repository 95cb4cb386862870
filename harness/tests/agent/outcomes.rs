//! What an attempt tells: answers, silence, refusals, and what could not be tried.

use super::{
    attempt,
    lab::{ANSWER_V4, ANSWER_V6, CLIENT_V4, CLIENT_V6, FAR_V4, FAR_V6, Lab, at, far, rule, spec},
    named,
};
use nlink::netlink::nftables::{Family, FilterHook, IcmpxCode};
use std::net::IpAddr;
use watertight::agent::{
    Endpoint,
    wire::{Attempt, Bind, Event, Outcome, Qtype, Refusal, RefusalOrigin, Shape, Stage, Via},
};

pub fn udp(server: impl Into<Endpoint>) -> Via {
    Via::Udp { server: server.into(), bind: Bind::None, mark: None }
}

pub fn tcp(server: impl Into<Endpoint>) -> Via {
    Via::Tcp { server: server.into(), bind: Bind::None, mark: None, fast_open: false }
}

fn tls(server: impl Into<Endpoint>) -> Via {
    Via::Tls { server: server.into(), bind: Bind::None, mark: None }
}

pub async fn answers_over_udp_tcp_and_tls(lab: Lab) {
    let link_local = Endpoint::on("fe80::ff:fe00:1".parse::<IpAddr>().unwrap(), 5353, "eth0");
    for agent in [lab.agent().await, lab.user_agent().await] {
        let mut ways = vec![("udp", udp(link_local.clone()))];
        for (far, own) in [(FAR_V4, CLIENT_V4), (FAR_V6, CLIENT_V6)] {
            ways.extend([("udp", udp(at(far, 53))), ("tcp", tcp(at(far, 53))), ("tls", tls(at(far, 853)))]);
            for bind in [Bind::Device("eth0".into()), Bind::Source(own.parse().unwrap())] {
                let server = Endpoint::from(at(far, 53));
                ways.push(("udp", Via::Udp { server: server.clone(), bind: bind.clone(), mark: None }));
                ways.push(("tcp", Via::Tcp { server, bind, mark: None, fast_open: false }));
            }
        }
        for (transport, via) in ways {
            // The name tells the two agents apart.
            let name = format!("u{}.{}", agent.client.ping().await.unwrap().1, agent.fresh_name());
            let attempt = named(&agent, &name, via.clone()).await;
            let Outcome::Answered { rcode: 0, addresses, from: Some(_), after_us } = &attempt.outcome else {
                panic!("{via:?}: {attempt:?}");
            };
            assert_eq!(addresses, &[ANSWER_V4.parse::<IpAddr>().unwrap()]);
            assert!(*after_us < 5_000_000 && attempt.tried && attempt.sent_ns >= Some(attempt.started_ns));

            // The far side has seen this very query, once, from the port that was told before it was sent.
            let seen = lab.seen(&name);
            assert_eq!(seen.len(), 1, "{via:?}: {seen:?}");
            assert_eq!(seen[0].transport, transport);
            assert_eq!(seen[0].from.port(), attempt.local.unwrap().port());
            let told = agent.events().iter().find_map(|event| match event {
                Event::Sending { id, at_ns, local, dns_id } if *id == name => Some((*at_ns, *local, *dns_id)),
                _ => None,
            });
            let (at_ns, local, dns_id) = told.unwrap();
            assert!(Some(at_ns) <= attempt.sent_ns, "told after it was sent: {via:?}");
            assert_eq!(local.unwrap().port(), seen[0].from.port());
            assert!(dns_id.is_some() && dns_id == attempt.dns_id);
        }
    }
    // An IPv6 socket that speaks IPv4 (RFC 4291, section 2.5.5.2).
    let agent = lab.agent().await;
    let mapped = |port| at(&format!("::ffff:{FAR_V4}"), port);
    for via in [udp(mapped(53)), tcp(mapped(53))] {
        let name = agent.fresh_name();
        assert!(matches!(named(&agent, &name, via).await.outcome, Outcome::Answered { .. }));
        assert!(lab.seen(&name)[0].from.is_ipv4());
    }
    let refused = attempt(&agent, udp(mapped(54))).await;
    let Outcome::Refused(Refusal { how, origin: RefusalOrigin::Icmp { from, .. }, .. }) = &refused.outcome else {
        panic!("{refused:?}");
    };
    assert_eq!((how.as_str(), *from), ("ECONNREFUSED", FAR_V4.parse().ok()));

    let mut aaaa = spec("aaaa.probe.test", udp(at(FAR_V4, 53)));
    aaaa.qtype = Qtype::Aaaa;
    let probed = agent.client.probe(vec![aaaa]).await.unwrap();
    let Outcome::Answered { addresses, .. } = &probed.attempts[0].1.outcome else { panic!("{probed:?}") };
    assert_eq!(addresses, &[ANSWER_V6.parse::<IpAddr>().unwrap()]);
    let missing = named(&agent, "missing.probe.test", udp(at(FAR_V4, 53))).await;
    assert!(matches!(missing.outcome, Outcome::Answered { rcode: 3, .. }), "{missing:?}");
}

pub async fn silence_and_refusals_by_the_far_side(lab: Lab) {
    let agent = lab.agent().await;
    for server in far() {
        for (name, via) in [("silent-udp.test", udp(server)), ("silent-tcp.test", tcp(server))] {
            let silent = named(&agent, name, via).await;
            let Outcome::NoAnswer { waited_ms, stage: Stage::Answer } = silent.outcome else { panic!("{silent:?}") };
            // The time before the send is part of the timeout.
            assert!((200..3000).contains(&waited_ms) && silent.tried && silent.sent_ns.is_some(), "{silent:?}");
        }

        let mut closed = server;
        closed.set_port(54);
        let refused = attempt(&agent, udp(closed)).await;
        let Outcome::Refused(Refusal { how, origin: RefusalOrigin::Icmp { from, .. }, .. }) = &refused.outcome else {
            panic!("{refused:?}");
        };
        assert_eq!((how.as_str(), *from), ("ECONNREFUSED", Some(server.ip())));
        assert!(refused.tried && refused.sent_ns.is_some());
        let refused = attempt(&agent, tcp(closed)).await;
        assert!(is_refused(&refused, "ECONNREFUSED", &RefusalOrigin::Connection), "{refused:?}");
    }
    for unrouted in [at("203.0.113.1", 53), at("2001:db8:ffff::1", 53)] {
        for via in [udp(unrouted), tcp(unrouted)] {
            let refused = attempt(&agent, via).await;
            assert!(is_refused(&refused, "ENETUNREACH", &RefusalOrigin::Local), "{refused:?}");
            assert_eq!(refused.sent_ns, None);
        }
    }
}

fn is_refused(attempt: &Attempt, expected: &str, expected_origin: &RefusalOrigin) -> bool {
    matches!(&attempt.outcome, Outcome::Refused(Refusal { how, origin, .. })
        if how == expected && origin == expected_origin && attempt.tried)
}

pub async fn drops_and_rejects_of_a_local_firewall(lab: Lab) {
    let agent = lab.agent().await;
    let capture = lab.capture();
    // Neighbours are known and everything works before, or a drop would prove nothing.
    for server in far() {
        assert!(matches!(attempt(&agent, udp(server)).await.outcome, Outcome::Answered { .. }));
    }
    capture.frames();

    lab.rules(
        Family::Inet,
        FilterHook::Output,
        vec![rule().match_udp_dport(53).drop(), rule().match_tcp_dport(53).drop()],
    )
    .await;
    for server in far() {
        let dropped = attempt(&agent, udp(server)).await;
        let Outcome::SendFailed { errno: libc::EPERM, name, refusal: None, .. } = &dropped.outcome else {
            panic!("{dropped:?}");
        };
        assert_eq!(name, "EPERM");
        assert!(dropped.tried && dropped.sent_ns.is_none() && dropped.local.is_some());
        let dropped = named(&agent, &agent.silent_name(), tcp(server)).await;
        assert!(matches!(dropped.outcome, Outcome::NoAnswer { stage: Stage::Connect, .. }), "{dropped:?}");
        assert!(dropped.tried);
    }

    lab.rules(
        Family::Inet,
        FilterHook::Output,
        vec![
            rule().match_udp_dport(53).reject(),
            rule().match_tcp_dport(53).reject_tcp_reset(),
            rule().match_tcp_dport(853).reject_icmpx(IcmpxCode::AdminProhibited),
        ],
    )
    .await;
    for server in far() {
        let rejected = attempt(&agent, udp(server)).await;
        let Outcome::SendFailed { errno: libc::EPERM, refusal: Some(refusal), .. } = &rejected.outcome else {
            panic!("{rejected:?}");
        };
        assert_eq!(refusal.how, "ECONNREFUSED");
        assert!(matches!(refusal.origin, RefusalOrigin::Icmp { .. }), "{refusal:?}");
        let rejected = attempt(&agent, tcp(server)).await;
        assert!(is_refused(&rejected, "ECONNREFUSED", &RefusalOrigin::Connection), "{rejected:?}");
        // IPv6 notes a local rejection of the first SYN without ending the call; the second SYN, a second later, does.
        let prohibited = attempt(&agent, tls(at(&server.ip().to_string(), 853))).await;
        let how = if server.is_ipv4() { "EHOSTUNREACH" } else { "EACCES" };
        assert!(is_refused(&prohibited, how, &RefusalOrigin::Connection), "{prohibited:?}");
    }
    assert_eq!(capture.packets(), Vec::<Vec<u8>>::new(), "nothing has left");
}

pub async fn what_cannot_be_tried_does_not_count_as_tried(lab: Lab) {
    let user = lab.user_agent().await;
    let root = lab.agent().await;
    let server = at(FAR_V4, 53);
    let bound = |bind| Via::Udp { server: server.into(), bind, mark: None };
    let packet = |interface: &str| Via::PacketSocket {
        interface: interface.into(),
        destination_mac: None,
        source: at(CLIENT_V4, 0),
        destination: server,
        shape: Shape::Plain,
    };
    let raw = Via::RawSocket { source: at(CLIENT_V4, 0), destination: server, bind: Bind::None, shape: Shape::Plain };
    for (agent, via, words) in [
        (&user, packet("eth0"), "packet socket"),
        (&user, raw, "not permitted"),
        (&user, Via::Udp { server: server.into(), bind: Bind::None, mark: Some(1) }, "mark"),
        (&root, packet("no-such-link"), "no-such-link"),
        (&root, bound(Bind::Device("no-such-link".into())), "no-such-link"),
        (&root, bound(Bind::Source("192.0.2.99".parse().unwrap())), "192.0.2.99"),
        (&root, Via::UdpSocket { socket: "none".into() }, "no flow named none"),
        (&root, udp(Endpoint::on("fe80::1".parse::<IpAddr>().unwrap(), 53, "no-such-link")), "no-such-link"),
    ] {
        let attempt = attempt(agent, via.clone()).await;
        let Outcome::NotPossible { reason } = &attempt.outcome else { panic!("{via:?}: {attempt:?}") };
        assert!(reason.contains(words), "{via:?}: {reason}");
        assert!(!attempt.tried && attempt.sent_ns.is_none());
    }
    let mut other = spec("other.probe.test", udp(server));
    other.as_uid = Some(1234);
    let probed = user.client.probe(vec![other]).await.unwrap();
    let Outcome::NotPossible { reason } = &probed.attempts[0].1.outcome else { panic!("{probed:?}") };
    assert!(reason.contains("user 1234"), "{reason}");
    let no_name = named(&root, &"x".repeat(70), udp(server)).await;
    assert!(matches!(no_name.outcome, Outcome::NotPossible { .. }) && !no_name.tried, "{no_name:?}");
}
