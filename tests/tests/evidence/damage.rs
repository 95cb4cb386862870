//! Ways to damage a finished case, each with words that the judge's reason must have.
//!
//! Where a damage would also show by something simpler (a gap in the numbers, an account that does not close), that is put
//! right, so that each condition is tested by itself.

use serde_json::{Value, json};
use std::{fs, path::Path};
use watertight::capture::{self, Frame, LinkType, Marker, MarkerKind, PcapngWriter};
use watertight_tests::edit_history;

/// One way.
pub struct Damage {
    /// What is done.
    pub name: &'static str,
    /// What the reason must say.
    pub words: &'static [&'static str],
    /// Does it to a case's folder.
    pub inflict: fn(&Path),
}

/// All ways.
pub const DAMAGES: &[Damage] = &[
    Damage { name: "clock-stepped", words: &["liveness: ", "the wall clock was stepped by"], inflict: step_the_clock },
    Damage {
        name: "history-cut-after-a-line",
        words: &["liveness: ", "the history was cut"],
        inflict: |case| keep_lines(case, 0.7),
    },
    Damage {
        name: "history-without-its-end",
        words: &["liveness: ", "the history was cut"],
        inflict: |case| edit_history(case, |events| drop(events.pop())),
    },
    Damage {
        name: "history-cut-within-a-line",
        words: &["history"],
        inflict: |case| cut(&case.join("history.jsonl"), 0.7),
    },
    Damage { name: "history-empty", words: &["history"], inflict: |case| cut(&case.join("history.jsonl"), 0.0) },
    Damage {
        name: "an-event-lost",
        words: &["liveness: ", "the history has a gap at event"],
        inflict: |case| {
            edit_history(case, |events| {
                let at = position(events, |event| event["kind"] == "query");
                events.remove(at);
            });
        },
    },
    Damage {
        name: "capture-truncated",
        words: &["liveness: ", "the capture of uplink cannot be read"],
        inflict: |case| cut(&case.join("uplink.pcapng"), 0.5),
    },
    Damage {
        name: "capture-of-the-tunnel-missing",
        words: &["liveness: ", "the capture of tunnel cannot be read"],
        inflict: |case| fs::remove_file(case.join("tunnel.pcapng")).expect("it is there"),
    },
    Damage {
        name: "frames-lost",
        words: &["accounting: ", "uplink: ", "in the file"],
        inflict: |case| {
            lose_frames(case, "uplink", |frames, nonce| {
                let at = frames.iter().position(|frame| marker(frame, nonce).is_none()).expect("there are frames");
                frames.drain(at..at + 1);
            });
        },
    },
    Damage {
        name: "a-canary-lost-on-the-uplink",
        words: &["liveness: ", "Canary", "was sent on uplink and is not in its capture"],
        inflict: |case| lose_markers(case, "uplink", MarkerKind::Canary, 1),
    },
    Damage {
        name: "a-barrier-lost-in-the-tunnel",
        words: &["liveness: ", "Barrier", "was sent on tunnel and is not in its capture"],
        inflict: |case| lose_markers(case, "tunnel", MarkerKind::Barrier, 1),
    },
    Damage {
        name: "a-canary-never-sent",
        words: &["liveness: ", "canaries instead of 2"],
        inflict: |case| {
            lose_events(case, |event| event["kind"] == "marker" && event["marker"] == "canary", 1);
        },
    },
    Damage {
        name: "a-control-never-seen",
        words: &["positive control: ", "udp4-public-root was not seen to leave before the subject started"],
        inflict: lose_a_control,
    },
    Damage {
        name: "a-query-lost",
        words: &["agreement: ", "is in no far log"],
        inflict: |case| lose_queries(case, "udp"),
    },
    Damage {
        name: "a-query-over-tls-lost",
        words: &["agreement: ", "are in the log"],
        inflict: |case| lose_queries(case, "tls"),
    },
    Damage {
        name: "a-probe-lost",
        words: &["stimulus: ", "was not tried"],
        inflict: |case| {
            lose_events(case, |event| event["kind"] == "probe" && event["id"] == "3-udp4-lan-root", 1);
        },
    },
    Damage {
        name: "no-probes-planned",
        words: &["stimulus: ", "no probes were planned"],
        inflict: |case| each(case, "planned", |event| event["probes"] = json!([])),
    },
    Damage {
        name: "a-window-without-probes",
        words: &["stimulus: ", "was not planned in window 4"],
        inflict: |case| nth(case, "planned", 3, |event| event["probes"] = json!([])),
    },
    Damage {
        name: "a-window-not-probed",
        words: &["stimulus: ", "no window was probed after step 5"],
        inflict: lose_a_window,
    },
    Damage {
        name: "a-hammer-without-a-report",
        words: &["stimulus: ", "hammers were planned"],
        inflict: |case| lose_events(case, |event| event["kind"] == "hammer", 1),
    },
    Damage {
        name: "a-hammer-that-did-nothing",
        words: &["stimulus: ", "made no attempt"],
        inflict: |case| nth(case, "hammer", 0, |event| event["report"]["attempts"] = json!(0)),
    },
    Damage {
        name: "a-transition-not-hammered",
        words: &["stimulus: ", "no hammer was planned for step 1"],
        inflict: |case| {
            edit_history(case, |events| {
                lose(events, |event| event["kind"] == "hammer-planned", 1);
                lose(events, |event| event["kind"] == "hammer", 1);
            });
        },
    },
    Damage {
        name: "a-frame-dropped-by-the-kernel",
        words: &["accounting: ", "uplink: the kernel dropped 1 frames"],
        inflict: |case| {
            account(case, "uplink", |event| {
                add(event, &[("dropped", 1), ("interface", 1), ("counter", 1), ("sent", 1)])
            })
        },
    },
    Damage {
        name: "a-frame-that-only-the-interface-counted",
        words: &["accounting: ", "are not the interface's"],
        inflict: |case| account(case, "uplink", |event| add(event, &[("interface", 1), ("sent", 1)])),
    },
    Damage {
        name: "a-frame-that-only-nftables-counted",
        words: &["agreement: ", "the nftables counter saw"],
        inflict: |case| account(case, "uplink", |event| add(event, &[("counter", 1)])),
    },
    Damage {
        name: "a-frame-that-only-the-sender-counted",
        words: &["agreement: ", "the near end sent"],
        inflict: |case| account(case, "uplink", |event| add(event, &[("sent", 1)])),
    },
    Damage {
        name: "an-account-missing",
        words: &["accounting: ", "its capture gave no account"],
        inflict: |case| lose_events(case, |event| event["kind"] == "capture", 1),
    },
    Damage {
        name: "the-far-logs-account-missing",
        words: &["agreement: ", "the far resolvers gave no account"],
        inflict: |case| lose_events(case, |event| event["kind"] == "queries-end", 1),
    },
    Damage {
        name: "a-snapshot-without-a-topic",
        words: &["harness: ", "the snapshot after cannot be read"],
        inflict: |case| fs::remove_file(case.join("after/resolv.conf.txt")).expect("it is there"),
    },
    Damage {
        name: "the-first-snapshot-missing",
        words: &["harness: ", "the snapshot before cannot be read"],
        inflict: |case| fs::remove_dir_all(case.join("before")).expect("it is there"),
    },
    Damage {
        name: "nothing-to-compare-with",
        words: &["harness: ", "the snapshot before was not taken"],
        inflict: |case| lose_events(case, |event| event["kind"] == "snapshot" && event["folder"] == "before", 1),
    },
    Damage {
        name: "the-last-comparison-not-made",
        words: &["harness: ", "the snapshot after was not taken"],
        inflict: |case| lose_events(case, |event| event["kind"] == "snapshot" && event["folder"] == "after", 1),
    },
    Damage {
        name: "an-expectation-not-looked-at",
        words: &["stimulus: ", "no snapshot was taken for the expectation of step 4"],
        inflict: |case| lose_events(case, |event| event["kind"] == "snapshot" && event["folder"] == "step-3", 1),
    },
    Damage {
        name: "the-resolver-file-not-watched",
        words: &["harness: ", "saw a version of the resolver file that its watcher did not"],
        inflict: |case| lose_events(case, |event| event["kind"] == "file" && event["cause"] != "snapshot", usize::MAX),
    },
    Damage {
        name: "the-harness-had-trouble",
        words: &["harness: ", "a disk was full"],
        inflict: |case| {
            edit_history(case, |events| {
                let (mut event, last) = (events[1].clone(), events.len() - 1);
                event["event"] = json!({"kind": "harness", "problem": "a disk was full"});
                events.insert(last, event);
                renumber(events);
            });
        },
    },
];

/// Five seconds forwards, in the middle of the case, in everything that was stamped by that clock.
fn step_the_clock(case: &Path) {
    const STEP: u64 = 5_000_000_000;
    let mut from = 0;
    edit_history(case, |events| {
        let middle = events.len() / 2;
        from = events[middle]["t"].as_u64().expect("a time");
        for event in &mut events[middle..] {
            event["t"] = json!(event["t"].as_u64().expect("a time") + STEP);
        }
    });
    for link in ["uplink", "tunnel"] {
        edit_frames(case, link, |frames, _| {
            frames.iter_mut().filter(|frame| frame.timestamp_ns >= from).for_each(|frame| frame.timestamp_ns += STEP);
        });
    }
}

/// No frame of the control's probe left, and every count agrees.
fn lose_a_control(case: &Path) {
    let mut name = Vec::new();
    edit_history(case, |events| {
        // As on the wire: a label's length, and the label.
        let control = events
            .iter()
            .filter(|event| event["event"]["kind"] == "planned")
            .flat_map(|event| event["event"]["probes"].as_array().expect("a list"))
            .find(|probe| probe["id"] == "1-udp4-public-root")
            .and_then(|probe| probe["name"].as_str())
            .expect("it is planned in the first window")
            .to_owned();
        name = control.split('.').next().expect("a label").as_bytes().to_vec();
        let lost = lose(events, |event| event["kind"] == "query" && event["name"] == *control, usize::MAX);
        let end = position(events, |event| event["kind"] == "queries-end");
        add(&mut events[end]["event"], &[("counted", -lost), ("written", -lost)]);
    });
    lose_frames_and_counts(case, "uplink", |frames, _| {
        frames.retain(|frame| !frame.bytes.windows(name.len()).any(|window| window == name));
    });
}

fn lose_queries(case: &Path, transport: &str) {
    lose_events(
        case,
        |event| event["kind"] == "query" && event["server"] == "public" && event["transport"] == transport,
        1,
    );
}

/// The last window, from its plan to its last probe.
fn lose_a_window(case: &Path) {
    edit_history(case, |events| {
        let from = events.iter().rposition(|event| event["event"]["kind"] == "planned").expect("windows are probed");
        let to = events.iter().rposition(|event| event["event"]["kind"] == "probe").expect("probes are made");
        let mut index = 0;
        events.retain(|event| {
            index += 1;
            !(from..=to).contains(&(index - 1))
                || event["event"]["kind"] != "planned" && event["event"]["kind"] != "probe"
        });
        renumber(events);
    });
}

fn lose_markers(case: &Path, link: &str, kind: MarkerKind, count: usize) {
    lose_frames_and_counts(case, link, |frames, nonce| {
        let mut left = count;
        frames.retain(|frame| {
            let lost = left > 0 && marker(frame, nonce).is_some_and(|marker| marker.kind == kind);
            left -= usize::from(lost);
            !lost
        });
    });
}

/// Edits the account of a link's capture.
fn account(case: &Path, link: &str, edit: impl FnOnce(&mut Value)) {
    edit_history(case, |events| {
        let at = position(events, |event| event["kind"] == "capture" && event["link"] == link);
        edit(&mut events[at]["event"]);
    });
}

/// Loses frames, and makes every account agree with what is left.
fn lose_frames_and_counts(case: &Path, link: &str, edit: impl FnOnce(&mut Vec<Frame>, u64)) {
    let lost = lose_frames(case, link, edit);
    let counts = [("captured", -lost), ("interface", -lost), ("counter", -lost), ("sent", -lost)];
    account(case, link, |event| add(event, &counts));
}

fn lose_frames(case: &Path, link: &str, edit: impl FnOnce(&mut Vec<Frame>, u64)) -> i64 {
    let lost = edit_frames(case, link, edit);
    assert!(lost > 0, "the damage was done");
    lost
}

/// Writes the capture anew, whole in itself. Gives back how many frames it lost.
fn edit_frames(case: &Path, link: &str, edit: impl FnOnce(&mut Vec<Frame>, u64)) -> i64 {
    let mut nonce = 0;
    edit_history(case, |events| nonce = events[0]["event"]["nonce"].as_u64().expect("the case has a nonce"));
    let path = case.join(format!("{link}.pcapng"));
    let mut file = capture::read(&path).expect("a whole capture");
    let before = file.frames.len();
    edit(&mut file.frames, nonce);
    let mut writer = PcapngWriter::create(&path, &file.link_name, file.link_type).expect("the copy is writable");
    file.frames.iter().for_each(|frame| writer.write(frame).expect("the copy is writable"));
    writer.finish(file.statistics).expect("the copy is writable");
    (before - file.frames.len()) as i64
}

fn marker(frame: &Frame, nonce: u64) -> Option<Marker> {
    [LinkType::Ethernet, LinkType::Raw].into_iter().find_map(|kind| Marker::decode(&frame.bytes, kind, nonce))
}

/// Loses the first `count` events that match, and closes the gaps in the numbers. Gives back how many were lost.
fn lose(events: &mut Vec<Value>, matches: impl Fn(&Value) -> bool, count: usize) -> i64 {
    let (before, mut left) = (events.len(), count);
    events.retain(|event| {
        let lost = left > 0 && matches(&event["event"]);
        left -= usize::from(lost);
        !lost
    });
    let lost = (before - events.len()) as i64;
    assert!(lost > 0, "the damage was done");
    renumber(events);
    lost
}

fn lose_events(case: &Path, matches: impl Fn(&Value) -> bool, count: usize) {
    edit_history(case, |events| {
        lose(events, matches, count);
    });
}

fn renumber(events: &mut [Value]) {
    events.iter_mut().enumerate().for_each(|(seq, event)| event["seq"] = json!(seq));
}

fn position(events: &[Value], matches: impl Fn(&Value) -> bool) -> usize {
    events.iter().position(|event| matches(&event["event"])).expect("the history has such an event")
}

fn each(case: &Path, kind: &str, edit: impl Fn(&mut Value)) {
    edit_history(case, |events| {
        events.iter_mut().map(|event| &mut event["event"]).filter(|event| event["kind"] == kind).for_each(edit);
    });
}

fn nth(case: &Path, kind: &str, number: usize, edit: impl FnOnce(&mut Value)) {
    edit_history(case, |events| {
        let mut of_the_kind = events.iter_mut().map(|event| &mut event["event"]).filter(|event| event["kind"] == kind);
        edit(of_the_kind.nth(number).expect("the history has such an event"));
    });
}

fn add(event: &mut Value, fields: &[(&str, i64)]) {
    for (field, count) in fields {
        // The tunnel's near end cannot be read.
        if let Some(old) = event[field].as_i64() {
            event[field] = json!(old + count);
        }
    }
}

fn keep_lines(case: &Path, share: f64) {
    edit_history(case, |events| events.truncate((events.len() as f64 * share) as usize));
}

fn cut(path: &Path, share: f64) {
    let length = fs::metadata(path).expect("it is there").len();
    let file = fs::File::options().write(true).open(path).expect("the copy is writable");
    file.set_len((length as f64 * share) as u64).expect("the copy is writable");
}
