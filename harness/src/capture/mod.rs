//! The wire: every frame of a link, with an account that closes, and the means to read it again later. Judging
//! what a frame means for a requirement is not done here.
//!
//! The witnesses of one link, all at its far end, out of the subject's reach:
//!
//! 1. [`Capture`] reads a [`Ring`] and writes a pcapng file; its [`CaptureStats`] hold the kernel's own count of
//!    what the ring took and lost, and the interface's count of what arrived.
//! 2. [`WitnessCounter`] is an nftables rule that counts the same frames without copying one of them.
//!
//! [`MarkerSender`] puts canaries and barriers on the wire at the near end, [`MarkerWatch`] says when they have
//! arrived, [`quiet_veth`] makes one datagram one frame. [`read`] and [`annotate`] work on the finished file and
//! [`decode`] says what is in a frame.
//!
//! The order that leaves no gap: far end up, [`quiet_veth`] on both ends, [`WitnessCounter::install`],
//! [`Ring::open`], [`Capture::start`], and only then the near end up. To end: near end down (or a last barrier seen),
//! then [`Capture::stop`] and [`WitnessCounter::read`].

mod counter;
mod decode;
mod dns;
mod error;
mod frame;
mod interface;
mod link;
mod mapping;
mod marker;
mod packets;
mod pcapng;
mod reader;
mod ring;
mod sender;
mod socket;
mod streams;
mod watch;
mod xdp;

pub use counter::{WitnessCounter, Witnessed};
pub use decode::{Decoded, decode};
pub use dns::{DnsMessage, dns_message, dns_over_tcp, names_in, query_in};
pub use error::Error;
pub use frame::{Frame, FrameTap, LinkType};
pub use interface::{InterfaceCounters, LinkCounters};
pub use link::quiet_veth;
pub use marker::{Envelope, MARKER_ETHERTYPE, MARKER_PROTOCOL, Marker, MarkerKind};
pub use packets::{Arp, Fragment, Icmp, Ip, Tcp, Transport, Udp, is_wireguard};
pub use pcapng::{CaptureFile, FileStatistics, PcapngWriter, annotate, read};
pub use reader::{Capture, CaptureStats, Sink};
pub use ring::{Ring, RingConfig};
pub use sender::{MarkerPath, MarkerSender};
pub use streams::Streams;
pub use watch::{MarkerWatch, SeenMarker};

#[cfg(test)]
mod decode_tests;
#[cfg(test)]
mod pcapng_tests;
#[cfg(test)]
mod test_namespace;
#[cfg(test)]
mod tests;
