//! The ways a packet can take: marks, users, old flows, packet and raw sockets, fast open, getaddrinfo.

use super::{
    attempt,
    lab::{ANSWER_V4, ANSWER_V6, CLIENT_MAC, CLIENT_V4, CLIENT_V6, FAR_MAC, FAR_V4, FAR_V6, Lab, at, far, rule, spec},
    named,
    outcomes::{tcp, udp},
};
use nlink::netlink::nftables::{CmpOp, CtState, Expr, Family, FilterHook, MetaKey, Register, Rule};
use std::{net::SocketAddr, time::Instant};
use watertight::agent::{
    MacAddress,
    wire::{Attempt, Bind, Event, Family as Ask, OpenSpec, Outcome, Protocol, Shape, Stage, Via},
};

fn answered(attempt: &Attempt) -> bool {
    matches!(attempt.outcome, Outcome::Answered { .. })
}

fn denied(attempt: &Attempt) -> bool {
    matches!(attempt.outcome, Outcome::SendFailed { errno: libc::EPERM, .. })
}

fn from_user(key: MetaKey, id: u32) -> Rule {
    rule()
        .expr(Expr::Meta { dreg: Register::R0, key })
        .expr(Expr::Cmp { sreg: Register::R0, op: CmpOp::Eq, data: id.to_ne_bytes().to_vec() })
        .accept()
}

pub async fn marks_and_users_are_seen_by_the_firewall(lab: Lab) {
    let agent = lab.agent().await;
    let server = at(FAR_V4, 53);
    let marked = |mark, bind| Via::Udp { server: server.into(), bind, mark };
    let device = || Bind::Device("eth0".into());
    let cases = [
        (rule().match_mark(0x77).accept(), marked(Some(0x77), device()), None, None),
        (from_user(MetaKey::SkUid, 1234), udp(server), Some(1234), None),
        (from_user(MetaKey::SkUid, 1234), tcp(server), Some(1234), None),
        (from_user(MetaKey::SkGid, 4321), udp(server), None, Some(4321)),
        // A user, a mark and a device at once: the user does not take the rights for the other two away.
        (rule().match_mark(0x77).accept(), marked(Some(0x77), device()), Some(1234), Some(4321)),
    ];
    for (pass, via, as_uid, as_gid) in cases {
        lab.rules(
            Family::Inet,
            FilterHook::Output,
            vec![pass, rule().match_udp_dport(53).drop(), rule().match_tcp_dport(53).reject_tcp_reset()],
        )
        .await;
        let mut probe = spec(&agent.fresh_name(), via.clone());
        (probe.as_uid, probe.as_gid) = (as_uid, as_gid);
        let probed = agent.client.probe(vec![probe]).await.unwrap();
        assert!(answered(&probed.attempts[0].1), "{via:?} as {as_uid:?}, {as_gid:?}: {probed:?}");

        let plain = match via {
            Via::Tcp { .. } => tcp(server),
            _ => udp(server),
        };
        let stranger = attempt(&agent, plain).await;
        assert!(!answered(&stranger) && stranger.tried, "{stranger:?}");
    }
}

pub async fn old_flows_stay_open_and_meet_the_new_rules(lab: Lab) {
    let agent = lab.agent().await;
    // A stateful rule of somebody else's: without one the kernel tracks nothing.
    let stateful = || rule().match_ct_state(CtState::ESTABLISHED).accept();
    lab.rules(Family::Inet, FilterHook::Output, vec![stateful()]).await;
    let open = |socket: &str, protocol, server: SocketAddr, name: &str| OpenSpec {
        socket: socket.into(),
        protocol,
        server: server.into(),
        bind: Bind::None,
        name: name.into(),
        timeout_ms: if name.starts_with("silent") { 400 } else { 5000 },
    };
    let mut ports = Vec::new();
    for (index, server) in far().into_iter().enumerate() {
        for (kind, protocol) in [("udp", Protocol::Udp), ("tcp", Protocol::Tcp)] {
            let (socket, name) = (format!("{kind}{index}"), format!("open-{kind}{index}.test"));
            let flow = agent.client.open(open(&socket, protocol, server, &name)).await.unwrap();
            assert_eq!(lab.seen(&name)[0].from.port(), flow.local.unwrap().port());
            ports.push(flow.local.unwrap().port());
        }
    }
    let again = agent.client.open(open("udp0", Protocol::Udp, far()[0], "again.test")).await.unwrap_err();
    assert!(again.to_string().contains("close it first"), "{again}");
    let silent = agent.client.open(open("silent", Protocol::Tcp, far()[0], "silent.test")).await.unwrap_err();
    assert!(silent.to_string().contains("no answer within"), "{silent}");

    let udp_flow = |index| Via::UdpSocket { socket: format!("udp{index}") };
    let tcp_flow = |index| Via::TcpSocket { socket: format!("tcp{index}") };
    // A firewall that forgets old flows lets them through; new ones are blocked.
    let block = || vec![rule().match_udp_dport(53).drop(), rule().match_tcp_dport(53).drop()];
    lab.rules(Family::Inet, FilterHook::Output, [vec![stateful()], block()].concat()).await;
    for (index, server) in far().into_iter().enumerate() {
        assert!(denied(&attempt(&agent, udp(server)).await));
        for (via, port) in [(udp_flow(index), ports[2 * index]), (tcp_flow(index), ports[2 * index + 1])] {
            let name = agent.fresh_name();
            let old = named(&agent, &name, via).await;
            assert!(answered(&old), "{old:?}");
            assert_eq!((lab.seen(&name)[0].from.port(), old.local.unwrap().port()), (port, port));
        }
    }
    // One that does not forget.
    lab.rules(Family::Inet, FilterHook::Output, block()).await;
    for index in 0..2 {
        let old = attempt(&agent, udp_flow(index)).await;
        assert!(denied(&old) && old.tried, "{old:?}");
        let old = named(&agent, &agent.silent_name(), tcp_flow(index)).await;
        assert!(matches!(old.outcome, Outcome::NoAnswer { stage: Stage::Answer, .. }) && old.tried, "{old:?}");
    }
    lab.no_rules().await;
    for index in 0..2 {
        // A failed send leaves nothing behind on a UDP flow; an unanswered TCP flow is over.
        assert!(answered(&attempt(&agent, udp_flow(index)).await));
        let gone = attempt(&agent, tcp_flow(index)).await;
        assert!(matches!(gone.outcome, Outcome::NotPossible { .. }) && !gone.tried, "{gone:?}");
    }
    assert!(agent.client.close("udp0").await.unwrap());
    assert!(!agent.client.close("udp0").await.unwrap());
    assert!(!agent.client.close("tcp0").await.unwrap());
    assert!(matches!(attempt(&agent, udp_flow(0)).await.outcome, Outcome::NotPossible { .. }));
}

fn packet(source: SocketAddr, destination: SocketAddr, shape: Shape) -> Via {
    let (interface, destination_mac) = ("eth0".into(), Some(MacAddress(FAR_MAC)));
    Via::PacketSocket { interface, destination_mac, source, destination, shape }
}

fn ways_out() -> [(SocketAddr, SocketAddr); 2] {
    [(at(CLIENT_V4, 0), at(FAR_V4, 53)), (at(CLIENT_V6, 0), at(FAR_V6, 53))]
}

const SHAPES: [Shape; 3] = [Shape::Plain, Shape::Fragments, Shape::Extensions];

pub async fn frames_pass_below_the_output_hook(lab: Lab) {
    let agent = lab.agent().await;
    let capture = lab.capture();
    for server in far() {
        assert!(answered(&attempt(&agent, udp(server)).await));
    }
    lab.rules(Family::Inet, FilterHook::Output, vec![rule().match_udp_dport(53).drop()]).await;
    for (source, destination) in ways_out() {
        for shape in SHAPES {
            capture.frames();
            let name = agent.fresh_name();
            let out = named(&agent, &name, packet(source, destination, shape)).await;
            // The far side's kernel takes it for a query, whatever its shape: lengths, checksums and offsets are right.
            assert!(answered(&out), "{shape:?}: {out:?}");
            let seen = lab.seen(&name);
            assert_eq!((seen.len(), seen[0].from), (1, out.local.unwrap()));
            let frames = capture.packets();
            assert_eq!(frames.len(), if shape == Shape::Fragments { 2 } else { 1 }, "{shape:?}");
            for frame in frames {
                assert_eq!((&frame[..6], &frame[6..12]), (&FAR_MAC[..], &CLIENT_MAC[..]));
            }
        }
    }
    // A source that is nobody's: it leaves all the same, and no answer is waited for.
    capture.frames();
    let spoofed = attempt(&agent, packet(at("192.0.2.77", 5300), at(FAR_V4, 53), Shape::Plain)).await;
    assert!(spoofed.tried && matches!(spoofed.outcome, Outcome::NoAnswer { waited_ms: 0, .. }), "{spoofed:?}");
    assert!(capture.frames().iter().any(|frame| frame[26..30] == [192, 0, 2, 77]));

    lab.rules(Family::Netdev, FilterHook::egress("eth0"), vec![rule().match_udp_dport(53).drop()]).await;
    capture.frames();
    for (source, destination) in ways_out() {
        let stopped = attempt(&agent, packet(source, destination, Shape::Plain)).await;
        assert!(matches!(stopped.outcome, Outcome::SendFailed { .. }) && stopped.tried, "{stopped:?}");
    }
    assert!(capture.packets().is_empty(), "the egress hook has seen the frames");
}

pub async fn raw_packets_meet_the_output_hook(lab: Lab) {
    let agent = lab.agent().await;
    let capture = lab.capture();
    let raw = |source, destination, shape| Via::RawSocket { source, destination, bind: Bind::None, shape };
    for (source, destination) in ways_out() {
        for shape in SHAPES {
            let name = agent.fresh_name();
            let out = named(&agent, &name, raw(source, destination, shape)).await;
            assert!(answered(&out), "{shape:?}: {out:?}");
            assert_eq!(lab.seen(&name)[0].from, out.local.unwrap());
        }
    }
    lab.rules(Family::Inet, FilterHook::Output, vec![rule().match_udp_dport(53).drop()]).await;
    capture.frames();
    for (source, destination) in ways_out() {
        assert!(denied(&attempt(&agent, raw(source, destination, Shape::Plain)).await));
    }
    let spoofed = attempt(&agent, raw(at("192.0.2.77", 5300), at(FAR_V4, 53), Shape::Plain)).await;
    assert!(denied(&spoofed), "{spoofed:?}");
    assert!(capture.packets().is_empty());
}

pub async fn fast_open_puts_the_query_into_the_syn(lab: Lab) {
    // The server's side: TCP_FASTOPEN without cookies, in the far namespace alone.
    lab.at_far(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1539").unwrap());
    let agent = lab.agent().await;
    let capture = lab.capture();
    let name = agent.fresh_name();
    let via = Via::Tcp { server: at(FAR_V4, 53).into(), bind: Bind::None, mark: None, fast_open: true };
    let attempt = named(&agent, &name, via).await;
    assert!(answered(&attempt), "{attempt:?}");
    assert_eq!(lab.seen(&name).len(), 1);
    let syns: Vec<_> = capture
        .frames()
        .into_iter()
        .filter(|frame| frame[12..14] == [8, 0] && frame[23] == 6 && frame[14 + 20 + 13] & 0x12 == 0x02)
        .collect();
    assert_eq!(syns.len(), 1);
    let label = name.split('.').next().unwrap();
    assert!(syns[0].windows(label.len()).any(|window| window == label.as_bytes()), "the SYN holds no query");
}

pub async fn getaddrinfo_follows_resolv_conf(lab: Lab) {
    let file = tempfile();
    std::fs::write(&file.0, format!("nameserver {FAR_V4}\nsearch probe.test\n")).unwrap();
    let agent = lab.agent_with_resolv_conf(&file.0).await;
    let ask = |family| Via::GetAddrInfo { family };
    for (family, expected) in
        [(Ask::V4, vec![ANSWER_V4]), (Ask::V6, vec![ANSWER_V6]), (Ask::Any, vec![ANSWER_V4, ANSWER_V6])]
    {
        let name = agent.fresh_name();
        let found = named(&agent, &name, ask(family)).await;
        let Outcome::Answered { addresses, from: None, .. } = &found.outcome else { panic!("{found:?}") };
        let mut addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        addresses.sort();
        assert_eq!(addresses, expected);
        assert!(found.tried && found.sent_ns.is_some());
        assert_eq!(lab.seen(&name).len(), expected.len());
        assert!(lab.seen(&name).iter().all(|seen| seen.from.is_ipv4()));
    }
    // A single label takes the search domain.
    assert!(answered(&named(&agent, "single", ask(Ask::V4)).await));
    assert_eq!(lab.seen("single.probe.test").len(), 1);
    let missing = named(&agent, "missing.probe.test", ask(Ask::V4)).await;
    let Outcome::ResolverError { code, text } = &missing.outcome else { panic!("{missing:?}") };
    assert!(code == "EAI_NONAME" && !text.is_empty() && missing.tried, "{missing:?}");

    // The next call sees the next configuration, and only that.
    std::fs::write(&file.0, format!("nameserver {FAR_V6}\n")).unwrap();
    let name = agent.fresh_name();
    assert!(answered(&named(&agent, &name, ask(Ask::V4)).await));
    assert!(lab.seen(&name).iter().all(|seen| seen.from.is_ipv6()));

    // A server that says nothing: the call is abandoned at the deadline, long before glibc gives up.
    std::fs::write(&file.0, "nameserver 192.0.2.99\nnameserver 192.0.2.98\n").unwrap();
    let started = Instant::now();
    let silent = named(&agent, &agent.silent_name(), ask(Ask::Any)).await;
    assert!(matches!(silent.outcome, Outcome::NoAnswer { .. }) && silent.tried, "{silent:?}");
    assert!(started.elapsed().as_millis() < 1900, "{:?}", started.elapsed());

    // Rules that refuse at once.
    std::fs::write(&file.0, format!("nameserver {FAR_V4}\n")).unwrap();
    lab.rules(Family::Inet, FilterHook::Output, vec![rule().match_udp_dport(53).reject()]).await;
    let refused = attempt(&agent, ask(Ask::Any)).await;
    let Outcome::ResolverError { code, .. } = &refused.outcome else { panic!("{refused:?}") };
    assert_eq!(code, "EAI_AGAIN");
    assert!(agent.events().iter().any(|event| matches!(event, Event::Sending { dns_id: None, local: None, .. })));
}

/// A file that is gone afterwards.
struct TemporaryFile(std::path::PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn tempfile() -> TemporaryFile {
    TemporaryFile(std::env::temp_dir().join(format!("watertight-agent-{}-resolv.conf", std::process::id())))
}
