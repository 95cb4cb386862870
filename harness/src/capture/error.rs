//! Everything that can go wrong with a capture, as one type. Each message names what failed, on what, the kernel's
//! or the library's own words, and what to do next.

use std::{io, path::PathBuf, time::Duration};

/// A capture, marker, counter or capture file that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a packet, netlink or AF_XDP socket.
    #[error("{action} on {interface}: {cause}; {advice}")]
    Socket {
        /// What was attempted.
        action: &'static str,
        /// The interface it was attempted on.
        interface: String,
        /// The kernel's answer.
        cause: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// The interface's frames have a header that nothing here decodes.
    #[error(
        "capture on {interface}: hardware type {hardware_type} is neither Ethernet nor plain IP; use a veth or TUN link"
    )]
    HardwareType {
        /// The interface.
        interface: String,
        /// Its `ARPHRD_*` number.
        hardware_type: u16,
    },
    /// A ring the kernel would refuse.
    #[error("ring for {interface}: {reason}; {blocks} blocks of {block_size} bytes were asked for")]
    RingConfig {
        /// The interface.
        interface: String,
        /// What is wrong with it.
        reason: &'static str,
        /// Blocks asked for.
        blocks: u32,
        /// Bytes a block.
        block_size: u32,
    },
    /// The kernel wrote a ring block that contradicts itself.
    #[error(
        "ring of {interface}: block {block} says {detail}; the capture of this link is void, please report the kernel version"
    )]
    RingBlock {
        /// The interface.
        interface: String,
        /// Index of the block.
        block: usize,
        /// What it says.
        detail: String,
    },
    /// The reader thread did not do what was asked within the deadline.
    #[error(
        "reader of {interface} was not {state} within {deadline:?}; the machine is overloaded or the thread hangs in its sink"
    )]
    ReaderDeadline {
        /// The interface.
        interface: String,
        /// The state that was awaited.
        state: &'static str,
        /// How long it was awaited.
        deadline: Duration,
    },
    /// The reader thread panicked, in all likelihood in a tap.
    #[error("reader of {interface} panicked: {message}; a tap must not panic, the capture of this link is void")]
    ReaderPanicked {
        /// The interface.
        interface: String,
        /// The panic's message.
        message: String,
    },
    /// The reader thread had ended before it was asked to.
    #[error("reader of {interface} had already ended; stop the capture to get the reason")]
    ReaderEnded {
        /// The interface.
        interface: String,
    },
    /// The threads of the process are used up.
    #[error("thread for the reader of {interface}: {cause}; raise the process's thread limit")]
    Thread {
        /// The interface.
        interface: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// An input or output error on a capture file.
    #[error("{action} {}: {cause}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The capture file ends before its statistics block: the capture was cut short, or the file was.
    #[error(
        "capture file {} is truncated at byte {offset}: {detail}; the run that wrote it did not end cleanly, run the case again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where the readable part ends.
        offset: u64,
        /// What is missing.
        detail: String,
    },
    /// The capture file is not one that this module writes.
    #[error("capture file {} at byte {offset}: {detail}; it was not written by watertight or it was altered", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// A comment for a frame that is not in the file.
    #[error("comment for frame {sequence} of {}: the file has {frames} frames; judge and file do not belong together", path.display())]
    NoSuchFrame {
        /// The file.
        path: PathBuf,
        /// The frame asked for.
        sequence: u64,
        /// How many there are.
        frames: u64,
    },
    /// A comment that a pcapng option cannot hold.
    #[error("comment for frame {sequence} of {}: {length} bytes, an option holds 65535; shorten it", path.display())]
    CommentTooLong {
        /// The file.
        path: PathBuf,
        /// The frame.
        sequence: u64,
        /// The comment's length in bytes.
        length: usize,
    },
    /// A netlink request that nlink carried out for us.
    #[error("{action} on {interface}: {cause}; {advice}")]
    Netlink {
        /// What was attempted.
        action: &'static str,
        /// The interface.
        interface: String,
        /// nlink's and the kernel's words.
        cause: Box<nlink::Error>,
        /// What to do about it.
        advice: &'static str,
    },
    /// The witness counter is gone: somebody deleted its table.
    #[error(
        "witness counter {counter} of {interface} is not in table netdev {table}; somebody removed it, the case is inconclusive"
    )]
    CounterGone {
        /// The interface.
        interface: String,
        /// The nftables table.
        table: &'static str,
        /// The counter's name.
        counter: String,
    },
    /// An offload that stayed on.
    #[error(
        "offloads {features} of {interface} stayed on after being turned off; one send could still become one large frame"
    )]
    OffloadStuck {
        /// The interface.
        interface: String,
        /// Their ethtool names, comma separated.
        features: String,
    },
    /// A marker could not be sent.
    #[error("send {kind} {id} on {interface}: {cause}; {advice}")]
    Send {
        /// The interface.
        interface: String,
        /// Canary or barrier.
        kind: super::MarkerKind,
        /// The marker's number.
        id: u64,
        /// The kernel's answer, verbatim.
        cause: io::Error,
        /// What it usually means.
        advice: &'static str,
    },
    /// Marker addresses of two families.
    #[error("marker addresses {source_address} and {destination} are of different families; give two of one family")]
    AddressFamilies {
        /// Source.
        source_address: std::net::IpAddr,
        /// Destination.
        destination: std::net::IpAddr,
    },
    /// A marker sender of the other link type.
    #[error("marker sender on {interface}: {detail}")]
    SenderLinkType {
        /// The interface.
        interface: String,
        /// What does not fit and what to call instead.
        detail: &'static str,
    },
    /// A marker that did not arrive in time.
    #[error(
        "{kind} {id} was not seen on {link} within {deadline:?}; the link is down, the capture is not reading, or the frame was dropped"
    )]
    MarkerNotSeen {
        /// The link.
        link: String,
        /// Canary or barrier.
        kind: super::MarkerKind,
        /// The marker's number.
        id: u64,
        /// How long it was awaited.
        deadline: Duration,
    },
    /// The capture ended while a marker was awaited.
    #[error("{kind} {id} cannot be seen on {link} any more: its capture has ended; stop the capture to get the reason")]
    WatchEnded {
        /// The link.
        link: String,
        /// Canary or barrier.
        kind: super::MarkerKind,
        /// The marker's number.
        id: u64,
    },
}

/// What to do when the kernel refuses a packet socket.
pub(super) const NEEDS_NET_RAW: &str = "this needs CAP_NET_RAW in the user namespace that owns the network namespace";
/// What to do when an interface is not there.
pub(super) const NEEDS_INTERFACE: &str =
    "the interface must exist in the network namespace of the calling thread and stay until the capture has ended";
/// What to do when the kernel refuses a change to an interface or the ruleset.
pub(super) const NEEDS_NET_ADMIN: &str = "this needs CAP_NET_ADMIN in the network namespace, and the interface in it";
/// What to do when the ring does not fit into memory.
pub(super) const NEEDS_MEMORY: &str = "ask for fewer or smaller blocks, or give the machine more memory";
/// What to do when the kernel lacks something that has been in Linux for years.
pub(super) const NEEDS_KERNEL: &str = "this needs Linux 4.20 or later with CONFIG_PACKET";
