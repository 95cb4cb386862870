//! A TPACKET_V3 receive ring (packet(7), the kernel's packet_mmap document): frames are written by the kernel into
//! memory shared with us, block by block. Who reads the ring, and when, is in `reader`.
//!
//! No filter is ever attached: a frame that a filter rejects is counted nowhere, so the account could not close.

use std::{
    io, mem,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use socket2::Socket;

use super::{
    error::{Error, NEEDS_INTERFACE, NEEDS_KERNEL, NEEDS_MEMORY},
    frame::LinkType,
    interface::{InterfaceCounters, LinkCounters},
    mapping::Mapping,
    socket::{bind, failed, get_option, hardware, interface_index, packet_socket, set_option},
};

/// Size of the units in which the kernel reckons a ring; a frame may take many of them.
const UNIT: u32 = 2048;
/// Ethertype under which the kernel delivers frames of every protocol.
const ALL_PROTOCOLS: u16 = libc::ETH_P_ALL as u16;

/// Which interface, and how much room its frames have while the reader is elsewhere.
///
/// Many small blocks are better than few large ones: at low rates a block is handed over after `retire_ms` however
/// empty it is, and large blocks would run out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingConfig {
    /// Name of the interface, in the network namespace of the thread that opens the ring.
    pub interface: String,
    /// Number of blocks, at least 1.
    pub blocks: u32,
    /// Bytes a block, a multiple of the page size. A frame longer than a block is cut (`CaptureStats::cut_frames`).
    pub block_size: u32,
    /// Milliseconds after which a block that is not full is handed over.
    pub retire_ms: u32,
}

impl RingConfig {
    /// 1024 blocks of 64 KiB, for the uplink: no frame of a million was lost at the highest rate that was reached.
    pub fn uplink(interface: impl Into<String>) -> Self {
        Self { interface: interface.into(), blocks: 1024, block_size: 64 << 10, retire_ms: 10 }
    }

    /// 128 blocks of 64 KiB, for links with little traffic.
    pub fn quiet(interface: impl Into<String>) -> Self {
        Self { blocks: 128, ..Self::uplink(interface) }
    }
}

/// The kernel's own account of a ring (PACKET_STATISTICS). Reading it resets it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingStatistics {
    /// Frames that reached the socket, dropped ones included.
    pub(super) packets: u64,
    /// Frames for which the ring had no room.
    pub(super) drops: u64,
    /// How many times the ring was full.
    pub(super) freezes: u64,
}

/// An open ring. Frames are being collected from the moment it is returned, whether or not somebody reads them.
#[derive(Debug)]
pub struct Ring {
    config: RingConfig,
    link_type: LinkType,
    socket: Socket,
    map: Mapping,
    next_block: usize,
    counters: InterfaceCounters,
    at_start: LinkCounters,
}

/// One frame inside a block of the ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingFrame<'a> {
    /// CLOCK_REALTIME in nanoseconds.
    pub(super) timestamp_ns: u64,
    /// Length on the wire without a tag that the kernel took out.
    pub(super) original_length: u32,
    /// Protocol and control information of the VLAN tag that the kernel took out.
    pub(super) vlan: Option<(u16, u16)>,
    /// The frame without that tag.
    pub(super) bytes: &'a [u8],
}

impl Ring {
    /// Opens a ring in the calling thread's network namespace. Outgoing frames of the interface are left out.
    ///
    /// The interface may still be down. For an account that closes, no frame may arrive between its coming up and
    /// the ring's being open: open the ring before the other end of the link comes up.
    pub fn open(config: RingConfig) -> Result<Self, Error> {
        let name = config.interface.as_str();
        let refuse = |reason| Error::RingConfig {
            interface: name.to_owned(),
            reason,
            blocks: config.blocks,
            block_size: config.block_size,
        };
        if config.blocks == 0 {
            return Err(refuse("a ring needs at least one block"));
        }
        if config.block_size == 0 || !config.block_size.is_multiple_of(4096) {
            return Err(refuse("a block is a multiple of 4096 bytes"));
        }
        let Some(length) = config.blocks.checked_mul(config.block_size) else {
            return Err(refuse("a ring is smaller than 4 GiB"));
        };

        let socket = packet_socket(name)?;
        let index = interface_index(name)?;
        let hardware_type = hardware(&socket, name)?.hardware_type;
        let link_type = LinkType::of_hardware(hardware_type)
            .ok_or_else(|| Error::HardwareType { interface: name.to_owned(), hardware_type })?;

        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_VERSION, &version).map_err(failed(
            "choose TPACKET_V3",
            name,
            NEEDS_KERNEL,
        ))?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32).map_err(failed(
            "leave out outgoing frames",
            name,
            NEEDS_KERNEL,
        ))?;
        let request = libc::tpacket_req3 {
            tp_block_size: config.block_size,
            tp_block_nr: config.blocks,
            tp_frame_size: UNIT,
            tp_frame_nr: length / UNIT,
            tp_retire_blk_tov: config.retire_ms,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request).map_err(failed(
            "make the receive ring",
            name,
            NEEDS_MEMORY,
        ))?;
        let map =
            Mapping::shared(&socket, length as usize, 0).map_err(failed("map the receive ring", name, NEEDS_MEMORY))?;

        let mut counters = InterfaceCounters::open(name)?;
        let at_start = counters.read()?;
        bind(&socket, name, index, ALL_PROTOCOLS)?;
        Ok(Self { config, link_type, socket, map, next_block: 0, counters, at_start })
    }

    /// What the ring was opened with.
    pub fn config(&self) -> &RingConfig {
        &self.config
    }

    /// What its frames start with.
    pub fn link_type(&self) -> LinkType {
        self.link_type
    }

    /// The interface's counters just before the ring began to collect.
    pub fn counters_at_start(&self) -> LinkCounters {
        self.at_start
    }

    /// The interface's counters now.
    pub(super) fn counters(&mut self) -> Result<LinkCounters, Error> {
        self.counters.read()
    }

    /// The socket, to poll: it is readable when a block is ready.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes the pending error off the socket; ENETDOWN each time the link goes down.
    pub(super) fn take_error(&self) -> Result<Option<io::Error>, Error> {
        let taken = self.socket.take_error();
        taken.map_err(failed("read the packet socket's error", &self.config.interface, NEEDS_INTERFACE))
    }

    /// Reads the kernel's account, and so resets it: once, at the end.
    pub(super) fn take_statistics(&self) -> Result<RingStatistics, Error> {
        // SAFETY: the structure consists of integers.
        let read =
            unsafe { get_option::<libc::tpacket_stats_v3>(&self.socket, libc::SOL_PACKET, libc::PACKET_STATISTICS) };
        let statistics = read.map_err(failed("read the ring's statistics", &self.config.interface, NEEDS_KERNEL))?;
        Ok(RingStatistics {
            packets: statistics.tp_packets.into(),
            drops: statistics.tp_drops.into(),
            freezes: statistics.tp_freeze_q_cnt.into(),
        })
    }

    /// Hands each frame of the next block to `each` and gives the block back to the kernel. Returns whether there
    /// was a block. The first error of `each` ends the walk and is returned.
    pub(super) fn next_block(
        &mut self,
        mut each: impl FnMut(RingFrame<'_>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let start = self.next_block * self.config.block_size as usize;
        let status_at = start + mem::offset_of!(libc::tpacket_block_desc, hdr);
        // SAFETY: the status word is aligned, lives as long as the mapping, and both sides access it atomically.
        let status = unsafe { AtomicU32::from_ptr(self.map.at(status_at).cast()) };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return Ok(false);
        }
        // SAFETY: the block lies within the mapping and is ours until its status is given back; the kernel does
        // not write to it meanwhile.
        let block = unsafe { std::slice::from_raw_parts(self.map.at(start), self.config.block_size as usize) };
        let result = walk(block, &mut each);
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        let block_index = self.next_block;
        self.next_block = (self.next_block + 1) % self.config.blocks as usize;
        match result {
            Ok(()) => Ok(true),
            Err(Walk::Each(error)) => Err(error),
            Err(Walk::Contradiction(detail)) => {
                Err(Error::RingBlock { interface: self.config.interface.clone(), block: block_index, detail })
            }
        }
    }
}

/// Why a block was not walked to its end.
enum Walk {
    /// The visitor failed.
    Each(Error),
    /// The block's own numbers do not fit.
    Contradiction(String),
}

/// Visits each frame of a block.
fn walk(block: &[u8], each: &mut impl FnMut(RingFrame<'_>) -> Result<(), Error>) -> Result<(), Walk> {
    let description: libc::tpacket_block_desc = structure(block, 0)?;
    // SAFETY: version 1 is the only layout of a block, and all its bits are valid integers.
    let header = unsafe { description.hdr.bh1 };
    let mut at = header.offset_to_first_pkt as usize;
    for number in 0..header.num_pkts {
        let packet: libc::tpacket3_hdr = structure(block, at)?;
        let from = at + usize::from(packet.tp_mac);
        let bytes = block.get(from..from + packet.tp_snaplen as usize).ok_or_else(|| {
            Walk::Contradiction(format!("frame {number} takes {} bytes at {from}", packet.tp_snaplen))
        })?;
        let vlan = (packet.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
            let known = packet.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let protocol = if known { packet.hv1.tp_vlan_tpid } else { libc::ETH_P_8021Q as u16 };
            (protocol, packet.hv1.tp_vlan_tci as u16)
        });
        let timestamp_ns = u64::from(packet.tp_sec) * 1_000_000_000 + u64::from(packet.tp_nsec);
        each(RingFrame { timestamp_ns, original_length: packet.tp_len, vlan, bytes }).map_err(Walk::Each)?;
        at += packet.tp_next_offset as usize;
    }
    Ok(())
}

/// Reads a C structure of integers at `offset` of a block.
fn structure<T: Copy>(block: &[u8], offset: usize) -> Result<T, Walk> {
    match block.get(offset..).filter(|rest| rest.len() >= mem::size_of::<T>()) {
        // SAFETY: the bytes are there, alignment is not needed, and every bit pattern is valid for integers.
        Some(rest) => Ok(unsafe { std::ptr::read_unaligned(rest.as_ptr().cast()) }),
        None => Err(Walk::Contradiction(format!("a header lies at {offset}, beyond its {} bytes", block.len()))),
    }
}
