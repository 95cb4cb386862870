//! What one captured frame is. Its meaning is found by `decode`, its storage by `pcapng`.

/// A frame as it was on the wire, whole, with the kernel's stamp.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// Position in the capture of its link, from 0, without gaps.
    pub sequence: u64,
    /// Kernel timestamp, nanoseconds since 1970 of CLOCK_REALTIME. It can step back between cores: order is
    /// `sequence`, not time.
    pub timestamp_ns: u64,
    /// Length on the wire in bytes; more than `bytes.len()` only if the frame did not fit a block of the ring.
    pub original_length: u32,
    /// The frame from its link-layer header on, VLAN tags in place.
    pub bytes: Vec<u8>,
    /// The comment that Wireshark shows, if the frame has one.
    pub comment: Option<String>,
}

/// Called with each frame in the reader thread, in order, before the next frame is taken. It must be quick, must
/// not block and must not panic.
pub type FrameTap = Box<dyn FnMut(&Frame) + Send>;

/// What a frame starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// An Ethernet header (LINKTYPE_ETHERNET, 1).
    Ethernet,
    /// An IPv4 or IPv6 header (LINKTYPE_RAW, 101), as on a TUN device.
    Raw,
}

impl LinkType {
    /// The link type of an interface with this `ARPHRD_*` number, or `None` if it is neither of the two.
    pub fn of_hardware(hardware_type: u16) -> Option<Self> {
        match hardware_type {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Some(Self::Ethernet),
            libc::ARPHRD_NONE => Some(Self::Raw),
            _ => None,
        }
    }
}
