//! A case's folder, read: history, captures with their frames decoded and put into intervals, snapshots.

use crate::{
    capture::{self, Decoded, Marker, MarkerKind as WireKind, Streams, decode},
    history::{self, CaseHeader, Event, FORMAT, MarkerKind, Record},
    snapshot::Snapshot,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// A folder that is no case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// No history, or a damaged one.
    #[error(transparent)]
    History(#[from] history::HistoryError),
    /// A history of something else, or of a format that this program does not know.
    #[error("{} is no case that this program can judge: {problem}", folder.display())]
    NotACase {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        problem: String,
    },
}

/// A frame with what it says.
#[derive(Debug)]
pub struct SeenFrame {
    /// Sequence number in its capture.
    pub sequence: u64,
    /// Kernel timestamp, nanoseconds.
    pub t: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// What they are.
    pub decoded: Decoded,
    /// The barrier before it; 0 before the first.
    pub after_barrier: u64,
    /// A marker of this case, if it is one.
    pub marker: Option<Marker>,
}

impl SeenFrame {
    /// The socket that sent it: address, port, and whether it is TCP.
    pub fn sender(&self) -> Option<(IpAddr, u16, bool)> {
        let (from, _) = self.decoded.ports()?;
        let tcp = matches!(self.decoded.transport, Some(capture::Transport::Tcp(_)));
        Some((self.decoded.ip.as_ref()?.src, from, tcp))
    }
}

/// The socket that a kind of probe sends from, as [`SeenFrame::sender`] gives it.
pub fn probe_socket(kind: &str, local: SocketAddr) -> (IpAddr, u16, bool) {
    let tcp = kind.contains("-tcp") || ["tcp", "dot"].iter().any(|start| kind.starts_with(start));
    (local.ip(), local.port(), tcp)
}

/// One link's capture.
#[derive(Debug, Default)]
pub struct LinkFrames {
    /// All frames in the order of the capture.
    pub frames: Vec<SeenFrame>,
    /// Kernel timestamps of the barriers that were seen.
    pub barriers: BTreeMap<u64, u64>,
    /// Canaries that were seen.
    pub canaries: BTreeMap<u64, u64>,
    /// Why the file cannot be read, if so.
    pub problem: Option<String>,
}

/// Everything that is known of a case.
#[derive(Debug)]
pub struct Recording {
    /// Where it was read from.
    pub folder: PathBuf,
    /// What was run.
    pub header: CaseHeader,
    /// The history.
    pub records: Vec<Record>,
    /// Frames by link.
    pub links: BTreeMap<String, LinkFrames>,
    /// Snapshots by folder.
    pub snapshots: BTreeMap<String, Result<Snapshot, String>>,
}

impl Recording {
    /// Reads a case's folder. What is damaged inside it is a value: it makes the case inconclusive.
    pub fn read(folder: &Path) -> Result<Self, JudgeError> {
        let records = history::read(&folder.join("history.jsonl"))?;
        let not_a_case = |problem: String| JudgeError::NotACase { folder: folder.into(), problem };
        let header = match records.first().map(|record| &record.event) {
            Some(Event::Case(header)) => header.clone(),
            _ => return Err(not_a_case("its history does not begin with a case".into())),
        };
        if header.format != FORMAT {
            return Err(not_a_case(format!("its format is {}, this program knows {FORMAT}", header.format)));
        }
        let links = header
            .links
            .iter()
            .map(|(link, _)| (link.clone(), read_link(&folder.join(format!("{link}.pcapng")), header.nonce)))
            .collect();
        let snapshots = records
            .iter()
            .filter_map(|record| match &record.event {
                Event::Snapshot { folder: name, .. } => Some((name.clone(), read_snapshot(folder, name))),
                _ => None,
            })
            .collect();
        Ok(Self { folder: folder.into(), header, records, links, snapshots })
    }

    /// The markers that were sent: id, kind, position in the history.
    pub fn markers(&self) -> impl Iterator<Item = (u64, MarkerKind, usize)> + '_ {
        self.records.iter().enumerate().filter_map(|(at, record)| match &record.event {
            Event::Marker { id, marker, .. } => Some((*id, *marker, at)),
            _ => None,
        })
    }
}

/// A snapshot with every topic of the first one: what one of them does not say cannot be compared.
fn read_snapshot(case: &Path, name: &str) -> Result<Snapshot, String> {
    for entry in std::fs::read_dir(case.join("before")).into_iter().flatten().flatten() {
        let topic = entry.file_name();
        // The subject may take its own folder away.
        if topic != "state_dir.txt" && !case.join(name).join(&topic).is_file() {
            return Err(format!("{} is missing", topic.display()));
        }
    }
    Snapshot::read_from(&case.join(name)).map_err(|error| error.to_string())
}

fn read_link(path: &Path, nonce: u64) -> LinkFrames {
    let file = match capture::read(path) {
        Ok(file) => file,
        Err(error) => return LinkFrames { problem: Some(error.to_string()), ..LinkFrames::default() },
    };
    let mut link = LinkFrames::default();
    let mut after_barrier = 0;
    let mut streams = Streams::default();
    for frame in file.frames {
        let marker = Marker::decode(&frame.bytes, file.link_type, nonce);
        match marker {
            Some(Marker { kind: WireKind::Barrier, id, .. }) => {
                after_barrier = id;
                link.barriers.insert(id, frame.timestamp_ns);
            }
            Some(Marker { kind: WireKind::Canary, id, .. }) => {
                link.canaries.insert(id, frame.timestamp_ns);
            }
            None => {}
        }
        let mut decoded = decode(&frame.bytes, file.link_type);
        if let Some(message) = streams.completes(&frame.bytes, &decoded) {
            decoded.dns = Some(message);
        }
        link.frames.push(SeenFrame {
            sequence: frame.sequence,
            t: frame.timestamp_ns,
            bytes: frame.bytes,
            decoded,
            after_barrier,
            marker,
        });
    }
    link
}
