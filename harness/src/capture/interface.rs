//! The interface's own counters (RTM_GETSTATS, rtnetlink(7)), read over a netlink socket that belongs to the
//! namespace in which it was opened, from whichever thread. Nothing but counters.

use std::{
    io::{self, Read},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    error::{Error, NEEDS_INTERFACE, NEEDS_KERNEL},
    socket::{failed, interface_index},
};

/// How long the kernel may take to answer; it answers while the request is being sent.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a `nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of an `if_stats_msg`.
const STATS_MESSAGE: usize = 12;
/// Attribute `IFLA_STATS_LINK_64`, and its bit in the filter mask.
const STATS_LINK_64: u16 = 1;

/// What the interface has counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that arrived and that no protocol wanted; packet sockets and the ingress hook have seen them.
    pub rx_dropped: u64,
    /// Frames that were to be sent and were dropped by the device.
    pub tx_dropped: u64,
}

/// Reads the counters of one interface.
#[derive(Debug)]
pub struct InterfaceCounters {
    socket: Socket,
    interface: String,
    index: u32,
    sequence: u32,
}

impl InterfaceCounters {
    /// Opens the counters of `interface` in the calling thread's network namespace. Fails if it is not there.
    pub fn open(interface: &str) -> Result<Self, Error> {
        let index = interface_index(interface)?;
        let domain = Domain::from(libc::AF_NETLINK);
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE))).map_err(failed(
            "open a route netlink socket",
            interface,
            NEEDS_KERNEL,
        ))?;
        socket.set_read_timeout(Some(DEADLINE)).map_err(failed(
            "set a deadline on a netlink socket",
            interface,
            NEEDS_KERNEL,
        ))?;
        Ok(Self { socket, interface: interface.to_owned(), index, sequence: 0 })
    }

    /// Reads them. Fails when the interface is gone or has moved to another namespace.
    pub fn read(&mut self) -> Result<LinkCounters, Error> {
        let result = self.request();
        result.map_err(failed("read the interface's counters", &self.interface, NEEDS_INTERFACE))
    }

    fn request(&mut self) -> io::Result<LinkCounters> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::with_capacity(HEADER + STATS_MESSAGE);
        request.extend_from_slice(&((HEADER + STATS_MESSAGE) as u32).to_ne_bytes());
        request.extend_from_slice(&libc::RTM_GETSTATS.to_ne_bytes());
        request.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        request.extend_from_slice(&self.sequence.to_ne_bytes());
        request.extend_from_slice(&0_u32.to_ne_bytes());
        // Family and padding, then the interface and which statistics.
        request.extend_from_slice(&[0; 4]);
        request.extend_from_slice(&self.index.to_ne_bytes());
        request.extend_from_slice(&(1_u32 << (STATS_LINK_64 - 1)).to_ne_bytes());
        self.socket.send(&request)?;

        let mut answer = [0; 4096];
        let length = self.socket.read(&mut answer)?;
        parse(&answer[..length], self.sequence)
    }
}

/// Takes the counters out of the kernel's answer to request `sequence`.
fn parse(answer: &[u8], sequence: u32) -> io::Result<LinkCounters> {
    let short = || io::Error::other("the kernel's answer is too short");
    let field = |range: std::ops::Range<usize>| answer.get(range).ok_or_else(short);
    let length = u32_of(field(0..4)?) as usize;
    let kind = u16_of(field(4..6)?);
    if u32_of(field(8..12)?) != sequence {
        return Err(io::Error::other("the kernel answered another request"));
    }
    if libc::c_int::from(kind) == libc::NLMSG_ERROR {
        return Err(io::Error::from_raw_os_error(-(u32_of(field(16..20)?) as i32)));
    }
    let mut attributes = field(HEADER + STATS_MESSAGE..length)?;
    while attributes.len() >= 4 {
        let (size, kind) = (usize::from(u16_of(&attributes[..2])), u16_of(&attributes[2..4]));
        let value = attributes.get(4..size).ok_or_else(short)?;
        if kind == STATS_LINK_64 {
            // The layout of `rtnl_link_stats64`.
            let counter = |position: usize| value.get(position * 8..position * 8 + 8).map(u64_of).ok_or_else(short);
            return Ok(LinkCounters {
                rx_packets: counter(0)?,
                tx_packets: counter(1)?,
                rx_bytes: counter(2)?,
                tx_bytes: counter(3)?,
                rx_dropped: counter(6)?,
                tx_dropped: counter(7)?,
            });
        }
        attributes = attributes.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(io::Error::other("the kernel's answer holds no counters"))
}

fn u16_of(bytes: &[u8]) -> u16 {
    bytes.try_into().map(u16::from_ne_bytes).unwrap_or_default()
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes.try_into().map(u32::from_ne_bytes).unwrap_or_default()
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.try_into().map(u64::from_ne_bytes).unwrap_or_default()
}
