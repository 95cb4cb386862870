//! The agent's other work, and how it stands faults of the engine.

use super::{
    attempt,
    lab::{self, CLIENT_V4, CLIENT_V6, FAR_MAC, FAR_V4, FAR_V6, Lab, at, far, rule, spec},
    outcomes::udp,
};
use dhcproto::{Decodable, Decoder, Encodable, v4, v6};
use nlink::netlink::{
    Connection, Nftables,
    nftables::{Family, FilterHook},
};
use std::{
    collections::BTreeSet,
    io::Write,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use watertight::agent::{
    ClientError, MacAddress,
    wire::{CheckResult, DhcpVersion, Event, HammerSpec, ListenProtocol, ListenSpec, Outcome, Protocol, Received, Via},
};

pub async fn bad_lines_are_told_and_the_agent_goes_on(_: Lab) {
    let mut child = lab::command().spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let long = "x".repeat(2 << 20);
    for (line, about, words) in [
        ("not json", None, "understand a command"),
        (r#"{"cmd":"dance","id":"d1"}"#, Some("d1"), "unknown variant"),
        (r#"{"cmd":"close","socket":1}"#, None, "invalid type"),
        (r#"{"cmd":"hammer_stop","id":"h9"}"#, Some("h9"), "no such hammer"),
        (&long, None, "longer than"),
    ] {
        input.write_all(format!("{line}\n\n").as_bytes()).await.unwrap();
        let event = output.next_line().await.unwrap().unwrap();
        let Event::Error { about: told, text } = serde_json::from_str(&event).unwrap() else { panic!("{event}") };
        assert_eq!(told.as_deref(), about, "{text}");
        assert!(text.contains(words), "{text}");
    }
    input.write_all(b"{\"cmd\":\"ping\",\"id\":\"p\"}").await.unwrap();
    drop(input);
    let event = output.next_line().await.unwrap().unwrap();
    assert!(matches!(serde_json::from_str(&event).unwrap(), Event::Pong { id, .. } if id == "p"));
    assert!(child.wait().await.unwrap().success(), "end-of-file is a clean end");
}

pub async fn many_probes_run_at_the_same_time(lab: Lab) {
    let agent = lab.agent().await;
    let server = at(FAR_V4, 53);
    let specs: Vec<_> = (0..200).map(|number| spec(&format!("silent{number}.test"), udp(server))).collect();
    let started = Instant::now();
    let probed = agent.client.probe(specs).await.unwrap();
    assert_eq!((probed.attempts.len(), probed.missing.len()), (200, 0));
    assert!(probed.attempts.iter().all(|(_, attempt)| matches!(attempt.outcome, Outcome::NoAnswer { .. })));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());

    let twice = agent.client.probe(vec![spec("a.test", udp(server)), spec("a.test", udp(server))]).await;
    assert!(matches!(twice, Err(ClientError::IdInUse { .. })), "{twice:?}");
    let many = (0..300).map(|number| spec(&format!("b{number}.test"), udp(server))).collect();
    assert!(matches!(agent.client.probe(many).await, Err(ClientError::TooMany { count: 300 })));
    // Nothing is left of either.
    assert_eq!(agent.client.probe(vec![spec("a.test", udp(server))]).await.unwrap().attempts.len(), 1);
}

pub async fn a_hammer_counts_what_it_sends(lab: Lab) {
    let agent = lab.agent().await;
    let capture = lab.capture();
    for server in far() {
        attempt(&agent, udp(server)).await;
    }
    capture.frames();
    let hammer = |id: &str, max_sent| HammerSpec {
        id: id.into(),
        // No server is there: an answer would be no harm, but a slow one.
        targets: vec![at(FAR_V4, 5300).into(), at(FAR_V6, 5300).into()],
        name_prefix: format!("{id}-"),
        zone: "hammer.test".into(),
        interface: Some("eth0".into()),
        max_sent,
    };
    // To its budget: the report and the wire agree to the frame, and each name is there once.
    let running = agent.client.hammer_start(hammer("budget", 4000)).await.unwrap();
    let ports: BTreeSet<u16> = running.local.iter().map(SocketAddr::port).collect();
    assert_eq!(ports.len(), 2);
    let mut names = BTreeSet::new();
    let mut sent = 0;
    let until = Instant::now() + Duration::from_secs(20);
    while sent < 4000 && Instant::now() < until {
        for frame in capture.frames() {
            if let Some((port, name)) = hammered(&frame, b"budget-") {
                assert!(ports.contains(&port));
                names.insert(name);
                sent += 1;
            }
        }
        tokio::task::yield_now().await;
    }
    let report = agent.client.hammer_stop("budget").await.unwrap();
    assert_eq!((report.sent_ok, sent, names.len()), (4000, 4000, 4000));
    assert_eq!(report.attempts, report.sent_ok + report.busy + report.errors.values().sum::<u64>());
    assert!(names.contains("budget-0000000000") && report.budget_spent_at >= Some(report.last_ns));
    assert_eq!(report.targets.iter().map(|target| target.sent_ok).sum::<u64>(), 4000);
    assert_eq!(report.local, running.local);
    let told = agent.events().iter().filter(|event| matches!(event, Event::HammerStarted { .. })).count();
    assert_eq!(told, 1);
    let gaps = &report.gaps;
    assert_eq!((gaps.count, gaps.log2_us.iter().sum::<u64>()), (report.attempts - 1, report.attempts - 1));
    assert!(gaps.max_ns * gaps.count >= gaps.total_ns && gaps.over_5us <= gaps.count && gaps.max_ns > 0);
    assert!(capture.frames().iter().all(|frame| hammered(frame, b"budget-").is_none()), "nothing after the budget");

    // Through a change of rules: the runs show it, target by target.
    agent.client.hammer_start(hammer("change", u64::MAX)).await.unwrap();
    let to = |address: &str| rule().match_daddr(address.parse().unwrap(), if address == FAR_V4 { 32 } else { 128 });
    let blocked = || [FAR_V4, FAR_V6].into_iter().map(|address| to(address).counter().drop()).collect();
    for _ in 0..2 {
        lab.no_rules().await;
        both_arrive(&capture).await;
        lab.rules(Family::Inet, FilterHook::Output, blocked()).await;
        both_are_dropped().await;
    }
    let twice = agent.client.hammer_start(hammer("change", 1)).await.unwrap_err();
    assert!(twice.to_string().contains("stop it first"), "{twice}");
    let report = agent.client.hammer_stop("change").await.unwrap();
    assert_eq!(report.attempts, report.sent_ok + report.busy + report.errors.values().sum::<u64>());
    assert!(report.errors["EPERM"] > 0 && report.budget_spent_at.is_none(), "{report:?}");
    for target in 0..2 {
        let errors: Vec<_> =
            report.runs.iter().filter(|run| run.target == target).map(|run| run.error.as_deref()).collect();
        assert_eq!(errors, [None, Some("EPERM"), None, Some("EPERM")], "{:?}", report.runs);
    }
    let counted: u64 = report.runs.iter().map(|run| run.count).sum();
    assert_eq!(counted, report.attempts - report.busy);
    let gone = agent.client.hammer_stop("change").await.unwrap_err();
    assert!(gone.to_string().contains("no such hammer"), "{gone}");
}

/// Waits until the hammer's queries of both families arrive.
async fn both_arrive(capture: &lab::Capture) {
    capture.frames();
    let mut missing = BTreeSet::from([[0x08, 0x00], [0x86, 0xdd]]);
    let until = Instant::now() + Duration::from_secs(10);
    while !missing.is_empty() {
        assert!(Instant::now() < until, "no query of these ethertypes arrives: {missing:02x?}");
        for frame in capture.frames().iter().filter(|frame| hammered(frame, b"change-").is_some()) {
            missing.remove(&[frame[12], frame[13]]);
        }
        tokio::task::yield_now().await;
    }
}

/// Waits until the counters of all rules have moved.
async fn both_are_dropped() {
    let connection = Connection::<Nftables>::new().unwrap();
    // The expressions of a rule hold its counter's value.
    let read = async || -> Vec<_> {
        let rules = connection.list_rules("t", Family::Inet).await.unwrap();
        rules.into_iter().map(|rule| rule.expression_bytes).collect()
    };
    let first = read().await;
    assert_eq!(first.len(), 2);
    let until = Instant::now() + Duration::from_secs(10);
    while first.iter().zip(read().await).any(|(first, now)| *first == now) {
        assert!(Instant::now() < until, "the hammer does not meet the rules");
    }
}

/// The source port and the first label of a hammer's query.
fn hammered(frame: &[u8], prefix: &[u8]) -> Option<(u16, String)> {
    let at = frame.windows(prefix.len()).position(|window| window == prefix)?;
    let label = &frame[at..at + usize::from(frame[at - 1])];
    // 12 bytes of DNS header and one of length, 8 of UDP header.
    let udp = at - 21;
    Some((u16::from_be_bytes([frame[udp], frame[udp + 1]]), String::from_utf8(label.to_vec()).unwrap()))
}

pub async fn listeners_tell_what_arrives(lab: Lab) {
    let agent = lab.agent().await;
    let listen = |id: &str, address: &str, port| ListenSpec {
        id: id.into(),
        protocol: ListenProtocol::Both,
        address: address.parse().unwrap(),
        port,
    };
    for (id, any, own, far) in [("l4", "0.0.0.0", CLIENT_V4, FAR_V4), ("l6", "::", CLIENT_V6, FAR_V6)] {
        let mut listening = agent.client.listen(listen(id, any, 0)).await.unwrap();
        let [first, second] = listening.local[..] else { panic!("{listening:?}") };
        assert_eq!(first.port(), second.port());
        let to = at(own, first.port());
        let from = at(far, 53_000);
        let bytes = [0xab; 100];
        let (peer, silent) = lab.at_far(move || {
            UdpSocket::bind(from).unwrap().send_to(&bytes, to).unwrap();
            let mut stream = TcpStream::connect(to).unwrap();
            stream.write_all(b"hello").unwrap();
            // One that says nothing is told too, whether it stays or goes.
            drop(TcpStream::connect(to).unwrap());
            (stream, TcpStream::connect(to).unwrap())
        });
        let mut all = Vec::new();
        for _ in 0..4 {
            all.push(tokio::time::timeout(Duration::from_secs(5), listening.received.recv()).await.unwrap().unwrap());
        }
        let datagram = all.iter().find(|received| received.protocol == Protocol::Udp).unwrap();
        let at_ns = datagram.at_ns;
        assert_eq!(
            *datagram,
            Received {
                id: id.into(),
                protocol: Protocol::Udp,
                from: Some(from),
                to: Some(to),
                interface: Some("eth0".into()),
                bytes_hex: "ab".repeat(64),
                at_ns,
            }
        );
        let from_peer = |peer: &TcpStream| {
            let peer = peer.local_addr().unwrap();
            all.iter().find(|received| received.from == Some(peer)).unwrap()
        };
        assert_eq!(from_peer(&silent).bytes_hex, "");
        let stream = from_peer(&peer);
        assert_eq!((stream.protocol, stream.to, stream.bytes_hex.as_str()), (Protocol::Tcp, Some(to), "68656c6c6f"));

        let taken = agent.client.listen(listen("other", any, first.port())).await.unwrap_err();
        assert!(taken.to_string().contains("in use"), "{taken}");
        agent.client.unlisten(id).await.unwrap();
        assert_eq!(listening.received.recv().await, None);
        // The port is free again.
        agent.client.listen(listen("other", any, first.port())).await.unwrap();
        agent.client.unlisten("other").await.unwrap();
    }
    assert!(agent.client.unlisten("l4").await.is_err());
    assert_eq!(agent.client.dropped(), 0);
}

pub async fn loopback_is_checked_over_every_transport(lab: Lab) {
    let agent = lab.agent().await;
    let well = agent.client.loopback().await.unwrap();
    assert!(well.ok && well.checks.len() == 8, "{well:?}");
    assert!(well.checks.iter().all(|check| check.result == CheckResult::Passed), "{well:?}");

    lab.rules(Family::Inet, FilterHook::Output, vec![rule().match_oif("lo").match_tcp_dport(53).drop()]).await;
    let blocked = agent.client.loopback().await.unwrap();
    assert!(!blocked.ok && blocked.detail.contains("tcp 127.53.53.53 port 53"), "{blocked:?}");
    let failed = blocked.checks.iter().filter(|check| check.result == CheckResult::Failed).count();
    assert_eq!(failed, 2, "{blocked:?}");

    lab.rules(Family::Inet, FilterHook::Output, vec![rule().match_oif("lo").drop()]).await;
    let blocked = agent.client.loopback().await.unwrap();
    assert!(blocked.checks.iter().all(|check| check.result == CheckResult::Failed), "{blocked:?}");
}

pub async fn neighbours_are_resolved(lab: Lab) {
    let agent = lab.agent().await;
    let capture = lab.capture();
    for address in [FAR_V4, FAR_V6] {
        // The second time there is an entry already: it is resolved afresh.
        for _ in 0..2 {
            capture.frames();
            let found = agent.client.neighbour(address.parse().unwrap(), "eth0").await.unwrap();
            assert!(found.ok && found.mac == Some(MacAddress(FAR_MAC)), "{found:?}");
            let asked = capture.frames().into_iter().any(|frame| match frame[12..14] {
                [0x08, 0x06] => frame[21] == 1,
                [0x86, 0xdd] => frame[20] == 58 && frame[54] == 135,
                _ => false,
            });
            assert!(asked, "the kernel asked for {address}");
        }
    }
    let nobody = agent.client.neighbour("192.0.2.99".parse().unwrap(), "eth0").await.unwrap();
    assert!(!nobody.ok && nobody.detail.contains("not reachable within"), "{nobody:?}");
    let user = lab.user_agent().await.client.neighbour(FAR_V4.parse().unwrap(), "eth0").await.unwrap();
    assert!(!user.ok && user.detail.contains("permitted"), "{user:?}");
}

pub async fn leases_are_offered(lab: Lab) {
    let agent = lab.agent().await;
    let server = lab.at_far(|| {
        let socket = UdpSocket::bind("0.0.0.0:67").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    });
    let offering = std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        let (length, _) = server.recv_from(&mut buffer).unwrap();
        let discover = v4::Message::decode(&mut Decoder::new(&buffer[..length])).unwrap();
        assert_eq!(discover.opts().msg_type(), Some(v4::MessageType::Discover));
        let mut offer = discover.clone();
        offer.set_opcode(v4::Opcode::BootReply);
        offer.set_yiaddr(Ipv4Addr::new(192, 0, 2, 50));
        offer.set_opts(v4::DhcpOptions::default());
        offer.opts_mut().insert(v4::DhcpOption::MessageType(v4::MessageType::Offer));
        offer.opts_mut().insert(v4::DhcpOption::ServerIdentifier(Ipv4Addr::new(192, 0, 2, 1)));
        // Somebody else's comes first.
        let (xid, address) = (offer.xid(), offer.yiaddr());
        offer.set_xid(xid ^ 1).set_yiaddr(Ipv4Addr::new(192, 0, 2, 51));
        server.send_to(&offer.to_vec().unwrap(), (CLIENT_V4, 68)).unwrap();
        offer.set_xid(xid).set_yiaddr(address);
        server.send_to(&offer.to_vec().unwrap(), (CLIENT_V4, 68)).unwrap();
    });
    let offered = agent.client.dhcp("eth0", DhcpVersion::V4, Duration::from_secs(2)).await.unwrap();
    assert_eq!(offered.offered, Some("192.0.2.50".parse().unwrap()), "{offered:?}");
    assert!(offered.tried && offered.server == Some(FAR_V4.parse().unwrap()));
    offering.join().unwrap();

    let server = lab.at_far(|| {
        let socket = UdpSocket::bind("[::]:547").unwrap();
        let index = nix::net::if_::if_nametoindex("far0").unwrap();
        socket.join_multicast_v6(&"ff02::1:2".parse::<Ipv6Addr>().unwrap(), index).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    });
    let advertising = std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        let solicit = v6::Message::decode(&mut Decoder::new(&buffer[..length])).unwrap();
        assert_eq!(solicit.msg_type(), v6::MessageType::Solicit);
        let mut advertise = v6::Message::new_with_id(v6::MessageType::Advertise, solicit.xid());
        let addr = "2001:db8::50".parse().unwrap();
        let mut opts = v6::DhcpOptions::new();
        let lease = v6::IAAddr { addr, preferred_life: 60, valid_life: 60, opts: v6::DhcpOptions::new() };
        opts.insert(v6::DhcpOption::IAAddr(lease));
        advertise.opts_mut().insert(v6::DhcpOption::IANA(v6::IANA { id: 1, t1: 0, t2: 0, opts }));
        server.send_to(&advertise.to_vec().unwrap(), from).unwrap();
    });
    let offered = agent.client.dhcp("eth0", DhcpVersion::V6, Duration::from_secs(2)).await.unwrap();
    assert_eq!(offered.offered, Some("2001:db8::50".parse().unwrap()), "{offered:?}");
    advertising.join().unwrap();

    for version in [DhcpVersion::V4, DhcpVersion::V6] {
        let none = agent.client.dhcp("eth0", version, Duration::from_millis(100)).await.unwrap();
        assert!(none.tried && none.offered.is_none() && none.detail.contains("no offer"), "{none:?}");
    }
    lab.rules(Family::Inet, FilterHook::Output, vec![rule().match_udp_dport(67).drop()]).await;
    let blocked = agent.client.dhcp("eth0", DhcpVersion::V4, Duration::from_millis(100)).await.unwrap();
    assert!(blocked.tried && blocked.detail.contains("send to"), "{blocked:?}");
}

pub async fn a_dead_agent_is_noticed(lab: Lab) {
    let mut agent = lab.agent().await;
    let mut slow = spec("silent.test", udp(at(FAR_V4, 53)));
    slow.timeout_ms = 30_000;
    let hammer = HammerSpec {
        id: "h".into(),
        targets: vec![at(FAR_V4, 5300).into()],
        name_prefix: "h".into(),
        zone: "test".into(),
        interface: None,
        max_sent: 1,
    };
    agent.client.hammer_start(hammer).await.unwrap();
    let started = Instant::now();
    let (probed, ()) = tokio::join!(agent.client.probe(vec![slow]), async {
        // The query has left when the far side has it.
        while lab.seen("silent.test").is_empty() {
            tokio::task::yield_now().await;
        }
        agent.child.start_kill().unwrap();
    });
    let probed = probed.unwrap();
    assert_eq!(probed.missing, [("silent.test".to_owned(), "the agent has ended".to_owned())]);
    assert!(started.elapsed() < Duration::from_secs(5));
    let after = agent.client.ping().await;
    assert!(matches!(after, Err(ClientError::Ended { .. } | ClientError::Write { .. })), "{after:?}");
    let via = Via::UdpSocket { socket: "x".into() };
    assert!(agent.client.probe(vec![spec("later.test", via)]).await.is_err());

    // An orderly end, with a probe under way.
    let mut agent = lab.agent().await;
    agent.client.shutdown().await.unwrap();
    assert!(agent.child.wait().await.unwrap().success());
}
