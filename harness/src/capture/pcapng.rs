//! Capture files: pcapng (draft-ietf-opsawg-pcapng), one section, one interface, nanosecond stamps, frames in
//! capture order, and a statistics block as the end mark. A file without that block, or with fewer frames than it
//! names, is truncated, and reading it is an error: there is no silent short read.
//!
//! Only files of this shape are read. For other people's captures there is Wireshark.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pcap_file::{
    DataLink, PcapError,
    pcapng::{
        Block, PcapNgParser, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
        },
    },
};

use super::{
    error::Error,
    frame::{Frame, LinkType},
};

/// `if_tsresol` of nanoseconds.
const NANOSECONDS: u8 = 9;
/// What is collected in memory before it is written.
const BUFFER: usize = 256 << 10;
/// What a pcapng option can hold.
const LONGEST_COMMENT: usize = 0xffff;

/// What the end of the file says besides the number of frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileStatistics {
    /// Frames the interface received (`isb_ifrecv`); `None` if it was gone at the end.
    pub received: Option<u64>,
    /// Frames the kernel dropped for lack of room (`isb_ifdrop`).
    pub dropped: Option<u64>,
}

/// A capture file, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureFile {
    /// Name of the link (`if_name`).
    pub link_name: String,
    /// What its frames start with.
    pub link_type: LinkType,
    /// The frames in capture order; `sequence` is the index.
    pub frames: Vec<Frame>,
    /// What the end of the file says.
    pub statistics: FileStatistics,
}

/// Reads a capture file. Fails with [`Error::Truncated`] if it has no end, with [`Error::Malformed`] if it is not
/// of the shape that [`PcapngWriter`] gives it; both name the offset in bytes.
pub fn read(path: impl AsRef<Path>) -> Result<CaptureFile, Error> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(file_error("read", path))?;
    Parser { path, bytes: &bytes }.parse()
}

/// Gives the frames named by their sequence numbers a comment, which replaces the one they had; an empty comment
/// removes it. The file is replaced at once (written beside it and renamed), so nobody ever sees half of it.
pub fn annotate(path: impl AsRef<Path>, comments: &BTreeMap<u64, String>) -> Result<(), Error> {
    let path = path.as_ref();
    let mut capture = read(path)?;
    let frames = capture.frames.len() as u64;
    for (&sequence, comment) in comments {
        if comment.len() > LONGEST_COMMENT {
            return Err(Error::CommentTooLong { path: path.to_owned(), sequence, length: comment.len() });
        }
        let frame = usize::try_from(sequence).ok().and_then(|index| capture.frames.get_mut(index));
        let frame = frame.ok_or_else(|| Error::NoSuchFrame { path: path.to_owned(), sequence, frames })?;
        frame.comment = (!comment.is_empty()).then(|| comment.clone());
    }

    let permissions = fs::metadata(path).map_err(file_error("read the mode of", path))?.permissions();
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.partial", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = write_whole(&beside, &capture).and_then(|()| {
        fs::set_permissions(&beside, permissions).map_err(file_error("set the mode of", &beside))?;
        fs::rename(&beside, path).map_err(file_error("replace", path))
    });
    if written.is_err() {
        // The first error is the one to report; a file that could not be made need not be removed.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_whole(path: &Path, capture: &CaptureFile) -> Result<(), Error> {
    let mut writer = PcapngWriter::create(path, &capture.link_name, capture.link_type)?;
    capture.frames.iter().try_for_each(|frame| writer.write(frame))?;
    writer.finish(capture.statistics)
}

/// Writes a capture file frame by frame.
pub struct PcapngWriter {
    path: PathBuf,
    writer: PcapNgWriter<BufWriter<File>>,
    written: u64,
    dirty: bool,
}

impl PcapngWriter {
    /// Creates the file, or replaces what is there, and writes its head.
    pub fn create(path: impl Into<PathBuf>, link_name: &str, link_type: LinkType) -> Result<Self, Error> {
        let path = path.into();
        let file = File::create(&path).map_err(file_error("create", &path))?;
        let writer = PcapNgWriter::new(BufWriter::with_capacity(BUFFER, file)).map_err(write_error(&path))?;
        let mut this = Self { path, writer, written: 0, dirty: true };
        this.block(InterfaceDescriptionBlock {
            linktype: match link_type {
                LinkType::Ethernet => DataLink::ETHERNET,
                LinkType::Raw => DataLink::RAW,
            },
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(link_name.to_owned())),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        })?;
        this.flush()?;
        Ok(this)
    }

    /// Appends a frame. Its place in the file is its sequence number; `frame.sequence` is not written.
    pub fn write(&mut self, frame: &Frame) -> Result<(), Error> {
        let options = match &frame.comment {
            Some(comment) if comment.len() > LONGEST_COMMENT => {
                let (path, sequence, length) = (self.path.clone(), frame.sequence, comment.len());
                return Err(Error::CommentTooLong { path, sequence, length });
            }
            Some(comment) => vec![EnhancedPacketOption::Comment(Cow::Borrowed(comment))],
            None => Vec::new(),
        };
        self.block(EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(frame.timestamp_ns),
            original_len: frame.original_length,
            data: Cow::Borrowed(&frame.bytes),
            options,
        })?;
        self.written += 1;
        Ok(())
    }

    /// Hands what was collected in memory to the system. Does nothing if there is nothing.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.dirty {
            self.writer.get_mut().flush().map_err(file_error("write", &self.path))?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Writes the end mark, with the number of frames, and closes the file.
    pub fn finish(mut self, statistics: FileStatistics) -> Result<(), Error> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut options = Vec::new();
        options.extend(statistics.received.map(InterfaceStatisticsOption::IsbIfRecv));
        options.extend(statistics.dropped.map(InterfaceStatisticsOption::IsbIfDrop));
        options.push(InterfaceStatisticsOption::IsbUsrDeliv(self.written));
        let nanoseconds = since_1970.as_nanos() as u64;
        // The library writes the stamp as it is; the format wants the upper half first, like in a packet block.
        let timestamp = if cfg!(target_endian = "little") { nanoseconds.rotate_left(32) } else { nanoseconds };
        self.block(InterfaceStatisticsBlock { interface_id: 0, timestamp, options })?;
        self.flush()
    }

    fn block<'a>(&mut self, block: impl pcap_file::pcapng::PcapNgBlock<'a>) -> Result<(), Error> {
        self.dirty = true;
        self.writer.write_pcapng_block(block).map_err(write_error(&self.path))?;
        Ok(())
    }
}

/// A file that is being read.
struct Parser<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl Parser<'_> {
    fn parse(&self) -> Result<CaptureFile, Error> {
        let (mut rest, mut parser) =
            PcapNgParser::new(self.bytes).map_err(|cause| self.block_error(self.bytes, cause))?;
        let mut head: Option<(String, LinkType)> = None;
        let mut frames: Vec<Frame> = Vec::new();
        while !rest.is_empty() {
            let (after, block) = parser.next_block(rest).map_err(|cause| self.block_error(rest, cause))?;
            match (block, &head) {
                (Block::InterfaceDescription(description), None) => head = Some(self.head(rest, &description)?),
                (Block::EnhancedPacket(packet), Some(_)) if packet.interface_id == 0 => {
                    frames.push(frame(frames.len() as u64, packet));
                }
                (Block::InterfaceStatistics(end), Some(_)) if end.interface_id == 0 => {
                    if !after.is_empty() {
                        return Err(self.malformed(after, format!("{} bytes follow the end mark", after.len())));
                    }
                    let statistics = self.statistics(rest, &end, frames.len() as u64)?;
                    let Some((link_name, link_type)) = head else { break };
                    return Ok(CaptureFile { link_name, link_type, frames, statistics });
                }
                _ => return Err(self.malformed(rest, "a block that does not belong here".to_owned())),
            }
            rest = after;
        }
        Err(self.truncated(rest, format!("{} whole frames, but no statistics block as the end mark", frames.len())))
    }

    fn head(&self, at: &[u8], description: &InterfaceDescriptionBlock<'_>) -> Result<(String, LinkType), Error> {
        let link_type = match description.linktype {
            DataLink::ETHERNET => LinkType::Ethernet,
            DataLink::RAW => LinkType::Raw,
            other => return Err(self.malformed(at, format!("link type {other:?} is neither Ethernet nor raw IP"))),
        };
        if !description.options.contains(&InterfaceDescriptionOption::IfTsResol(NANOSECONDS)) {
            return Err(self.malformed(at, "the time stamps are not in nanoseconds".to_owned()));
        }
        let name = description.options.iter().find_map(|option| match option {
            InterfaceDescriptionOption::IfName(name) => Some(name.clone().into_owned()),
            _ => None,
        });
        match name {
            Some(name) => Ok((name, link_type)),
            None => Err(self.malformed(at, "the interface has no name".to_owned())),
        }
    }

    fn statistics(&self, at: &[u8], end: &InterfaceStatisticsBlock<'_>, frames: u64) -> Result<FileStatistics, Error> {
        let mut statistics = FileStatistics::default();
        let mut written = None;
        for option in &end.options {
            match option {
                InterfaceStatisticsOption::IsbIfRecv(count) => statistics.received = Some(*count),
                InterfaceStatisticsOption::IsbIfDrop(count) => statistics.dropped = Some(*count),
                InterfaceStatisticsOption::IsbUsrDeliv(count) => written = Some(*count),
                _ => {}
            }
        }
        match written {
            Some(written) if written == frames => Ok(statistics),
            Some(written) if written > frames => {
                Err(self.truncated(at, format!("{frames} frames are there, {written} were written")))
            }
            Some(written) => Err(self.malformed(at, format!("{frames} frames are there, only {written} were written"))),
            None => Err(self.malformed(at, "the end mark does not say how many frames were written".to_owned())),
        }
    }

    /// The error for a block that cannot be read; `at` is the file from the block on.
    fn block_error(&self, at: &[u8], cause: PcapError) -> Error {
        match cause {
            PcapError::IncompleteBuffer => self.truncated(at, format!("a block of {} bytes or more is cut", at.len())),
            other => self.malformed(at, other.to_string()),
        }
    }

    fn truncated(&self, at: &[u8], detail: String) -> Error {
        Error::Truncated { path: self.path.to_owned(), offset: self.offset(at), detail }
    }

    fn malformed(&self, at: &[u8], detail: String) -> Error {
        Error::Malformed { path: self.path.to_owned(), offset: self.offset(at), detail }
    }

    fn offset(&self, rest: &[u8]) -> u64 {
        (self.bytes.len() - rest.len()) as u64
    }
}

fn frame(sequence: u64, packet: EnhancedPacketBlock<'_>) -> Frame {
    let comment = packet.options.into_iter().find_map(|option| match option {
        EnhancedPacketOption::Comment(text) => Some(text.into_owned()),
        _ => None,
    });
    Frame {
        sequence,
        timestamp_ns: packet.timestamp.as_nanos() as u64,
        original_length: packet.original_len,
        bytes: packet.data.into_owned(),
        comment,
    }
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |cause| Error::File { action, path, cause }
}

fn write_error(path: &Path) -> impl FnOnce(PcapError) -> Error {
    let path = path.to_owned();
    move |cause| {
        let cause = match cause {
            PcapError::IoError(cause) => cause,
            other => std::io::Error::other(other),
        };
        Error::File { action: "write", path, cause }
    }
}
