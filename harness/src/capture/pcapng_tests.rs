//! Capture files: what is written comes back, what is missing is noticed.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use proptest::prelude::*;

use super::{CaptureFile, Error, FileStatistics, Frame, LinkType, PcapngWriter, annotate, read};

fn frames(count: u64) -> Vec<Frame> {
    let frame = |sequence: u64| Frame {
        sequence,
        // Stamps can step back between cores.
        timestamp_ns: 1_700_000_000_123_456_789 + 1_000 * (sequence ^ 1),
        original_length: 20 + sequence as u32,
        bytes: vec![sequence as u8; 20 + sequence as usize],
        comment: (sequence == 2).then(|| "first seen → here".to_owned()),
    };
    (0..count).map(frame).collect()
}

fn write(path: &Path, link_type: LinkType, frames: &[Frame]) {
    let mut writer = PcapngWriter::create(path, "uplink", link_type).unwrap();
    frames.iter().for_each(|frame| writer.write(frame).unwrap());
    writer.finish(FileStatistics { received: Some(7), dropped: Some(2) }).unwrap();
}

#[test]
fn a_file_is_read_as_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uplink.pcapng");
    for (link_type, count) in [(LinkType::Ethernet, 5), (LinkType::Raw, 5), (LinkType::Ethernet, 0)] {
        write(&path, link_type, &frames(count));
        let expected = CaptureFile {
            link_name: "uplink".to_owned(),
            link_type,
            frames: frames(count),
            statistics: FileStatistics { received: Some(7), dropped: Some(2) },
        };
        assert_eq!(read(&path).unwrap(), expected);
    }
}

#[test]
fn the_file_is_what_the_format_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uplink.pcapng");
    write(&path, LinkType::Raw, &frames(1));
    let bytes = fs::read(&path).unwrap();
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    // Section header: type, length, byte order.
    assert_eq!((word(0), word(8)), (0x0a0d_0d0a, 0x1a2b_3c4d));
    let description = word(4) as usize;
    assert_eq!((word(description), word(description + 8) & 0xffff), (1, 101), "an interface of raw IP");
    let packet = description + word(description + 4) as usize;
    assert_eq!((word(packet), word(packet + 20), word(packet + 24)), (6, 20, 20), "captured and original length");
    let stamp = u64::from(word(packet + 12)) << 32 | u64::from(word(packet + 16));
    assert_eq!(stamp, 1_700_000_000_123_457_789, "nanoseconds since 1970, the upper half first");
    let end = packet + word(packet + 4) as usize;
    assert_eq!((word(end), word(end + 8)), (5, 0), "statistics of interface 0");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let stamp = u64::from(word(end + 12)) << 32 | u64::from(word(end + 16));
    assert!(now.abs_diff(stamp) < 60_000_000_000, "the end's stamp is {stamp}");
    assert_eq!(end + word(end + 4) as usize, bytes.len());
}

#[test]
fn a_file_cut_anywhere_is_an_error_that_says_where() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uplink.pcapng");
    write(&path, LinkType::Ethernet, &frames(3));
    let bytes = fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        match read(&path) {
            Err(Error::Truncated { offset, .. }) => assert!(offset <= length as u64, "{offset} of {length}"),
            other => panic!("cut to {length} of {}: {other:?}", bytes.len()),
        }
    }
    // More than there should be is no whole capture either.
    fs::write(&path, [&bytes[..], &bytes].concat()).unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(error, Error::Malformed { offset, .. } if offset == bytes.len() as u64), "{error}");
}

#[test]
fn a_frame_taken_out_of_the_middle_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uplink.pcapng");
    write(&path, LinkType::Ethernet, &frames(3));
    let mut bytes = fs::read(&path).unwrap();
    let length = |at: usize| u32::from_ne_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
    let description = length(0);
    let first = description + length(description);
    let second = first + length(first);
    bytes.drain(first..second);
    fs::write(&path, &bytes).unwrap();
    let error = read(&path).unwrap_err();
    assert!(error.to_string().contains("2 frames are there, 3 were written"), "{error}");
}

#[test]
fn comments_are_added_replaced_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uplink.pcapng");
    write(&path, LinkType::Ethernet, &frames(5));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let before = read(&path).unwrap();

    let comments = |pairs: &[(u64, &str)]| -> BTreeMap<u64, String> {
        pairs.iter().map(|(sequence, text)| (*sequence, (*text).to_owned())).collect()
    };
    annotate(&path, &comments(&[(0, "LEAK: FWL-5"), (2, "another"), (4, "last")])).unwrap();
    annotate(&path, &comments(&[(4, "")])).unwrap();
    let after = read(&path).unwrap();
    let found: Vec<Option<&str>> = after.frames.iter().map(|frame| frame.comment.as_deref()).collect();
    assert_eq!(found, [Some("LEAK: FWL-5"), None, Some("another"), None, None]);
    let bare = |file: CaptureFile| -> Vec<_> {
        file.frames.into_iter().map(|frame| Frame { comment: None, ..frame }).collect()
    };
    assert_eq!(after.statistics, before.statistics);
    assert_eq!(bare(after), bare(before));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside the file");
}

#[test]
fn comments_that_cannot_be_are_refused_and_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uplink.pcapng");
    write(&path, LinkType::Ethernet, &frames(2));
    let before = fs::read(&path).unwrap();
    let unknown = annotate(&path, &BTreeMap::from([(0, "fine".to_owned()), (2, "no such frame".to_owned())]));
    assert!(matches!(unknown, Err(Error::NoSuchFrame { sequence: 2, frames: 2, .. })), "{unknown:?}");
    let long = annotate(&path, &BTreeMap::from([(1, "x".repeat(70_000))]));
    assert!(matches!(long, Err(Error::CommentTooLong { sequence: 1, length: 70_000, .. })), "{long:?}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(read(directory.path().join("none.pcapng")).unwrap_err().to_string().contains("none.pcapng"));
}

proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(
        alterations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("uplink.pcapng");
        write(&path, LinkType::Ethernet, &frames(3));
        let mut bytes = fs::read(&path).unwrap();
        for (position, value) in alterations {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(file) = read(&path) {
            prop_assert_eq!(file.frames.len(), 3);
        }
    }
}
