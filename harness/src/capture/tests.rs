//! Captures, markers and counters on real links.

use std::{
    fs::File,
    io::{Read, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use nlink::{
    Connection, Nftables,
    netlink::nftables::{BaseChain, Chain, Family, FilterHook, Priority, Rule},
};

use super::{
    Capture, Error, InterfaceCounters, LinkType, Marker, MarkerKind, MarkerPath, MarkerSender, MarkerWatch, Ring,
    RingConfig, Sink, Transport, WitnessCounter, decode, quiet_veth, read,
    test_namespace::{
        FAR, FrameSender, NEAR, down, in_namespace, noisy_veth, number, numbered, send_segmented, tun, up, veth,
        veth_with_mtu,
    },
};

const NONCE: u64 = 0x5eed;
const DEADLINE: Duration = Duration::from_secs(10);

/// A ring that takes what a test sends.
fn ring() -> Ring {
    Ring::open(RingConfig::quiet(FAR)).expect("a ring")
}

#[test]
fn every_frame_is_in_the_file_and_the_account_closes() {
    in_namespace(async || {
        const FRAMES: u64 = 50_000;
        veth().await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("uplink.pcapng");
        let witness = WitnessCounter::install(FAR).await.unwrap();
        let mut near = InterfaceCounters::open(NEAR).unwrap();
        let before = near.read().unwrap();
        let capture =
            Capture::start(Ring::open(RingConfig::uplink(FAR)).unwrap(), Sink::file(&path).link_name("uplink"))
                .unwrap();
        up(NEAR).await;
        let sender = FrameSender::open(NEAR);
        (0..FRAMES).for_each(|number| sender.send(&numbered(number)));
        down(NEAR).await;
        let stats = capture.stop().unwrap();

        assert_eq!(stats.gap(), None, "{stats:?}");
        assert_eq!(stats.captured + stats.tp_drops, stats.link_rx_packets);
        assert_eq!(witness.read().await.unwrap().packets, stats.link_rx_packets);
        let sent = near.read().unwrap();
        assert_eq!(sent.tx_packets - before.tx_packets, stats.link_rx_packets);
        assert!(stats.reader_cpu_ns > 0);

        let file = read(&path).unwrap();
        assert_eq!((file.link_name.as_str(), file.link_type), ("uplink", LinkType::Ethernet));
        assert_eq!(file.frames.len() as u64, stats.captured);
        assert_eq!(file.statistics.received, Some(stats.link_rx_packets));
        assert_eq!(file.statistics.dropped, Some(0));
        let numbers: Vec<u64> = file.frames.iter().filter_map(|frame| number(&frame.bytes)).collect();
        assert_eq!(numbers.len() as u64 + sent.tx_dropped - before.tx_dropped, FRAMES);
        assert!(numbers.is_sorted(), "frames of one sender are out of order");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        for frame in &file.frames {
            assert!(now.abs_diff(frame.timestamp_ns) < 60_000_000_000, "a stamp of {}", frame.timestamp_ns);
            assert_eq!(frame.original_length as usize, frame.bytes.len());
        }
    });
}

#[test]
fn frames_lost_to_a_frozen_reader_are_reported_and_the_account_still_closes() {
    in_namespace(async || {
        veth().await;
        let witness = WitnessCounter::install(FAR).await.unwrap();
        let config = RingConfig { blocks: 4, block_size: 4096, ..RingConfig::quiet(FAR) };
        let capture = Capture::start(Ring::open(config).unwrap(), Sink::nowhere()).unwrap();
        capture.freeze().unwrap();
        up(NEAR).await;
        let sender = FrameSender::open(NEAR);
        (0..5_000).for_each(|number| sender.send(&numbered(number)));
        down(NEAR).await;
        let stats = capture.stop().unwrap();

        assert!(stats.tp_drops > 4_000, "{stats:?}");
        assert!(stats.freeze_count > 0, "{stats:?}");
        let room = 4 * 4096 / numbered(0).len() as u64;
        assert!((1..room).contains(&stats.captured), "what the ring holds is read at the end, and no more: {stats:?}");
        assert_eq!(stats.unaccounted(), 0, "{stats:?}");
        assert_eq!(witness.read().await.unwrap().packets, stats.link_rx_packets);
        let gap = stats.gap().expect("dropped frames are a gap");
        assert!(gap.contains(&stats.tp_drops.to_string()), "{gap}");
    });
}

#[test]
fn a_late_start_shows_in_the_account_of_the_witness() {
    in_namespace(async || {
        veth().await;
        let witness = WitnessCounter::install(FAR).await.unwrap();
        up(NEAR).await;
        let sender = FrameSender::open(NEAR);
        (0..10).for_each(|number| sender.send(&numbered(number)));
        let ring = ring();
        assert!(ring.counters_at_start().rx_packets >= 10);
        let capture = Capture::start(ring, Sink::nowhere()).unwrap();
        sender.send(&numbered(10));
        down(NEAR).await;
        let stats = capture.stop().unwrap();
        assert!(stats.captured >= 1);
        assert!(witness.read().await.unwrap().packets >= stats.captured + 10);
        assert_eq!(witness.read().await.unwrap().packets, stats.link_rx_at_start + stats.link_rx_packets);
    });
}

#[test]
fn markers_are_seen_in_the_order_in_which_they_were_sent() {
    in_namespace(async || {
        veth().await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&order);
        let ring = ring();
        let (watch, tap) = MarkerWatch::new(FAR, ring.link_type(), NONCE);
        let order_tap = Box::new(move |frame: &super::Frame| {
            let marker = Marker::decode(&frame.bytes, LinkType::Ethernet, NONCE).map(|marker| (marker.kind, marker.id));
            let entry = marker.or(number(&frame.bytes).map(|number| (MarkerKind::Canary, 1_000 + number)));
            seen.lock().unwrap().extend(entry);
        });
        let capture = Capture::start(ring, Sink::nowhere().tap(order_tap).tap(tap)).unwrap();
        up(NEAR).await;
        let mut sender = MarkerSender::open(NEAR, NONCE).unwrap();
        let mut stranger = MarkerSender::open(NEAR, NONCE + 1).unwrap();
        assert_eq!(sender.path(), MarkerPath::Direct, "{:?}", sender.fallback());
        assert_eq!(stranger.path(), MarkerPath::PacketSocket);
        assert_eq!(stranger.fallback().and_then(|cause| cause.raw_os_error()), Some(libc::EBUSY));
        let frames = FrameSender::open(NEAR);

        // More than the direct path has slots, so that they are used again.
        let mut expected = Vec::new();
        for id in 0..200 {
            frames.send(&numbered(id));
            let kind = if id % 2 == 0 { MarkerKind::Canary } else { MarkerKind::Barrier };
            sender.send(kind, id).unwrap();
            stranger.send(kind, id).unwrap();
            expected.extend([(MarkerKind::Canary, 1_000 + id), (kind, id)]);
        }
        let last = watch.wait(MarkerKind::Barrier, 199, DEADLINE).await.unwrap();
        let first = watch.seen(MarkerKind::Canary, 0).expect("the first came before the last");
        assert!(first.sequence < last.sequence);
        assert_eq!(watch.seen(MarkerKind::Barrier, 0), None, "canary 0 is not barrier 0");

        let missing = watch.wait(MarkerKind::Barrier, 200, Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(missing, Error::MarkerNotSeen { .. }), "{missing}");
        down(NEAR).await;
        let error = sender.send(MarkerKind::Barrier, 200).unwrap_err();
        assert!(matches!(&error, Error::Send { cause, .. } if cause.raw_os_error() == Some(libc::ENETDOWN)), "{error}");

        // A send that failed must not be made up for by the next one.
        up(NEAR).await;
        sender.send(MarkerKind::Barrier, 201).unwrap();
        expected.push((MarkerKind::Barrier, 201));
        watch.wait(MarkerKind::Barrier, 201, DEADLINE).await.unwrap();
        down(NEAR).await;

        let (stats, awaited) = tokio::join!(async { capture.stop() }, watch.wait(MarkerKind::Barrier, 200, DEADLINE));
        assert_eq!(stats.unwrap().gap(), None);
        assert!(matches!(awaited, Err(Error::WatchEnded { .. })), "{awaited:?}");
        assert_eq!(*order.lock().unwrap(), expected);
    });
}

#[test]
fn no_egress_rule_holds_back_a_marker() {
    in_namespace(async || {
        veth().await;
        let ring = ring();
        let (watch, tap) = MarkerWatch::new(FAR, ring.link_type(), NONCE);
        let capture = Capture::start(ring, Sink::nowhere().tap(tap)).unwrap();
        up(NEAR).await;
        let nftables = Connection::<Nftables>::new().unwrap();
        let chain = BaseChain::filter(FilterHook::egress(NEAR), Priority::Filter);
        nftables
            .transaction()
            .add_table("subject", Family::Netdev)
            .add_chain(Chain::new("subject", "egress").unwrap().family(Family::Netdev).base(chain))
            .add_rule(Rule::new("subject", "egress").family(Family::Netdev).drop())
            .commit(&nftables)
            .await
            .unwrap();

        // The rule works: a packet socket does not get past it, and the kernel's word for that is passed on.
        let mut held = MarkerSender::open_on(NEAR, NONCE, None, MarkerPath::PacketSocket).unwrap();
        let error = held.send(MarkerKind::Canary, 1).unwrap_err();
        assert!(matches!(&error, Error::Send { cause, .. } if cause.raw_os_error() == Some(libc::ENOBUFS)), "{error}");

        let mut sender = MarkerSender::open(NEAR, NONCE).unwrap();
        sender.send(MarkerKind::Barrier, 2).unwrap();
        watch.wait(MarkerKind::Barrier, 2, DEADLINE).await.unwrap();
        assert_eq!(watch.seen(MarkerKind::Canary, 1), None);
        capture.stop().unwrap();
    });
}

/// How many UDP frames arrive of ten datagrams in one send.
async fn frames_of_one_send() -> usize {
    let count = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&count);
    let tap = Box::new(move |frame: &super::Frame| {
        let decoded = decode(&frame.bytes, LinkType::Ethernet);
        if matches!(decoded.transport, Some(Transport::Udp(udp)) if udp.dport == 4000) {
            *counter.lock().unwrap() += 1;
        }
    });
    let capture = Capture::start(ring(), Sink::nowhere().tap(tap)).unwrap();
    up(NEAR).await;
    send_segmented(NEAR, 100, 10).await;
    down(NEAR).await;
    assert_eq!(capture.stop().unwrap().gap(), None);
    *count.lock().unwrap()
}

#[test]
fn one_datagram_is_one_frame_on_a_quiet_veth() {
    in_namespace(async || {
        veth().await;
        assert_eq!(frames_of_one_send().await, 10);
    });
    // The same send without it, to know that the test can fail.
    in_namespace(async || {
        noisy_veth(1500).await;
        up(FAR).await;
        assert_eq!(frames_of_one_send().await, 1);
    });
}

#[test]
fn quieting_what_is_not_there_is_an_error() {
    in_namespace(async || {
        let error = quiet_veth("nothing0").await.unwrap_err();
        assert!(error.to_string().contains("nothing0"), "{error}");
    });
}

#[test]
fn vlan_tags_are_in_the_frame_as_on_the_wire() {
    in_namespace(async || {
        veth().await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link.pcapng");
        let capture = Capture::start(ring(), Sink::file(&path)).unwrap();
        up(NEAR).await;
        let plain = numbered(1);
        let tagged = [&plain[..12], &[0x81, 0x00, 0x20, 0x07], &plain[12..]].concat();
        let twice = [&plain[..12], &[0x88, 0xa8, 0x00, 0x64, 0x81, 0x00, 0x20, 0x07], &plain[12..]].concat();
        let sender = FrameSender::open(NEAR);
        sender.send(&tagged);
        sender.send(&twice);
        down(NEAR).await;
        assert_eq!(capture.stop().unwrap().gap(), None);
        let frames = read(&path).unwrap().frames;
        for (sent, ids) in [(tagged, vec![7]), (twice, vec![100, 7])] {
            let frame = frames.iter().find(|frame| frame.bytes == sent).expect("the frame as it was sent");
            assert_eq!(frame.original_length as usize, sent.len());
            assert_eq!(decode(&frame.bytes, LinkType::Ethernet).vlan, ids);
        }
    });
}

#[test]
fn a_tun_device_is_a_raw_link() {
    in_namespace(async || {
        let device = tun("wt0").await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tunnel.pcapng");
        let capture = Capture::start(Ring::open(RingConfig::quiet("wt0")).unwrap(), Sink::file(&path)).unwrap();
        assert_eq!(capture.link_type(), LinkType::Raw);
        let (source, destination) = ("10.64.0.2".parse().unwrap(), "10.64.0.1".parse().unwrap());
        let wrong = MarkerSender::open("wt0", NONCE).unwrap_err();
        assert!(matches!(wrong, Error::SenderLinkType { .. }), "{wrong}");

        // A marker that is sent comes out of the file; one that is written into it arrives.
        let mut sender = MarkerSender::open_raw("wt0", NONCE, source, destination).unwrap();
        sender.send(MarkerKind::Canary, 5).unwrap();
        let mut file = File::from(device);
        let mut buffer = [0; 2048];
        let marker = loop {
            let length = file.read(&mut buffer).unwrap();
            // The kernel's own router solicitations come out too.
            if let Some(marker) = Marker::decode(&buffer[..length], LinkType::Raw, NONCE) {
                break marker;
            }
        };
        assert_eq!((marker.kind, marker.id), (MarkerKind::Canary, 5));
        let envelope = super::Envelope::Ip { source: destination, destination: source };
        let arriving = Marker { kind: MarkerKind::Barrier, nonce: NONCE, id: 6 };
        file.write_all(&arriving.encode(&envelope).unwrap()).unwrap();
        assert_eq!(capture.stop().unwrap().gap(), None);

        let captured = read(&path).unwrap();
        assert_eq!(captured.link_type, LinkType::Raw);
        let markers: Vec<_> =
            captured.frames.iter().filter_map(|frame| Marker::decode(&frame.bytes, LinkType::Raw, NONCE)).collect();
        assert_eq!(markers, [arriving], "outgoing packets are left out");
    });
}

#[test]
fn a_link_that_goes_down_and_up_goes_on_being_captured() {
    in_namespace(async || {
        veth().await;
        let capture = Capture::start(ring(), Sink::nowhere()).unwrap();
        up(NEAR).await;
        let sender = FrameSender::open(NEAR);
        sender.send(&numbered(1));
        down(FAR).await;
        up(FAR).await;
        // The end that comes up last can send at once.
        down(NEAR).await;
        up(NEAR).await;
        let sender = FrameSender::open(NEAR);
        sender.send(&numbered(2));
        down(NEAR).await;
        let stats = capture.stop().unwrap();
        assert_eq!(stats.gap(), None);
        assert!(stats.captured >= 2, "{stats:?}");
        assert!(stats.link_down_events >= 1, "{stats:?}");
    });
}

#[test]
fn a_frame_that_does_not_fit_is_a_gap() {
    in_namespace(async || {
        veth_with_mtu(9000).await;
        let config = RingConfig { block_size: 4096, ..RingConfig::quiet(FAR) };
        let capture = Capture::start(Ring::open(config).unwrap(), Sink::nowhere()).unwrap();
        up(NEAR).await;
        let mut frame = numbered(1);
        frame.resize(8000, 0xaa);
        FrameSender::open(NEAR).send(&frame);
        down(NEAR).await;
        let stats = capture.stop().unwrap();
        assert_eq!(stats.cut_frames, 1, "{stats:?}");
        assert!(stats.gap().is_some_and(|gap| gap.contains("not whole")));
    });
}

#[test]
fn what_goes_wrong_in_the_reader_comes_out_of_stop() {
    in_namespace(async || {
        veth().await;
        up(NEAR).await;
        let sender = FrameSender::open(NEAR);

        // The head of the file already cannot be written.
        let full = Capture::start(ring(), Sink::file("/dev/full")).unwrap_err();
        assert!(matches!(&full, Error::File { cause, .. } if cause.raw_os_error() == Some(libc::ENOSPC)), "{full}");

        let panicking = Capture::start(ring(), Sink::nowhere().tap(Box::new(|_| panic!("tap broke")))).unwrap();
        sender.send(&numbered(1));
        let error = panicking.stop().unwrap_err();
        assert!(matches!(&error, Error::ReaderPanicked { message, .. } if message == "tap broke"), "{error}");
    });
}

#[test]
fn an_abandoned_capture_leaves_a_file_that_is_known_to_be_truncated() {
    in_namespace(async || {
        veth().await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link.pcapng");
        let ring = ring();
        let (watch, tap) = MarkerWatch::new(FAR, ring.link_type(), NONCE);
        let capture = Capture::start(ring, Sink::file(&path).tap(tap)).unwrap();
        up(NEAR).await;
        MarkerSender::open(NEAR, NONCE).unwrap().send(MarkerKind::Canary, 1).unwrap();
        watch.wait(MarkerKind::Canary, 1, DEADLINE).await.unwrap();
        drop(capture);
        let error = read(&path).unwrap_err();
        let length = std::fs::metadata(&path).unwrap().len();
        assert!(matches!(&error, Error::Truncated { offset, .. } if *offset == length), "{error}");
    });
}

#[test]
fn a_counter_that_somebody_removed_is_an_error() {
    in_namespace(async || {
        veth().await;
        let first = WitnessCounter::install(FAR).await.unwrap();
        let second = WitnessCounter::install(NEAR).await.unwrap();
        up(NEAR).await;
        FrameSender::open(NEAR).send(&numbered(1));
        assert!(first.read().await.unwrap().packets >= 1, "two counters share a table, not a count");
        second.read().await.unwrap();
        Connection::<Nftables>::new().unwrap().flush_ruleset().await.unwrap();
        let error = first.read().await.unwrap_err();
        assert!(error.to_string().contains("watertight_witness"), "{error}");
    });
}

#[test]
fn rings_that_cannot_be_are_refused_with_the_reason() {
    in_namespace(async || {
        let missing = Ring::open(RingConfig::quiet("nothing0")).unwrap_err();
        assert!(missing.to_string().contains("nothing0"), "{missing}");
        veth().await;
        for (blocks, block_size) in [(0, 4096), (1, 0), (1, 1000), (1 << 20, 1 << 20)] {
            let config = RingConfig { blocks, block_size, ..RingConfig::quiet(FAR) };
            let error = Ring::open(config).unwrap_err();
            assert!(matches!(error, Error::RingConfig { .. }), "{error}");
        }
    });
}
