//! An AF_XDP socket that only sends, in copy mode (the kernel's af_xdp document). It hands frames to the driver's
//! transmit function directly, past the queueing discipline and past the egress hook of nftables, which a packet
//! socket with PACKET_QDISC_BYPASS goes through since Linux 5.17.

use std::{
    io, mem,
    os::fd::AsRawFd,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use socket2::{Domain, Socket, Type};

use super::{
    mapping::Mapping,
    socket::{get_option, set_option},
};

/// Frames that can be under way at a time, a power of two.
const SLOTS: u32 = 64;
/// Bytes a frame at most; the smallest chunk the kernel takes.
const SLOT_SIZE: usize = 2048;

/// Sends frames on queue 0 of one interface.
#[derive(Debug)]
pub(super) struct DirectTransmit {
    socket: Socket,
    memory: Mapping,
    transmit: SharedRing,
    completed: SharedRing,
    free: Vec<u64>,
}

impl DirectTransmit {
    /// Opens it on an interface of the calling thread's network namespace. Fails with EAFNOSUPPORT where the kernel
    /// has no AF_XDP, and with EBUSY where another such socket has the queue.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None)?;
        let memory = Mapping::anonymous(SLOTS as usize * SLOT_SIZE)?;
        // SAFETY: all zeros is a valid registration.
        let mut registration: libc::xdp_umem_reg = unsafe { mem::zeroed() };
        registration.addr = memory.at(0) as u64;
        registration.len = memory.length() as u64;
        registration.chunk_size = SLOT_SIZE as u32;
        set_option(&socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)?;
        // The fill ring stays empty, but a socket without one is refused.
        for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_TX_RING] {
            set_option(&socket, libc::SOL_XDP, ring, &SLOTS)?;
        }
        // SAFETY: the structure consists of integers.
        let offsets: libc::xdp_mmap_offsets = unsafe { get_option(&socket, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)? };
        let transmit =
            SharedRing::map(&socket, &offsets.tx, mem::size_of::<libc::xdp_desc>(), libc::XDP_PGOFF_TX_RING)?;
        let completed = SharedRing::map(
            &socket,
            &offsets.cr,
            mem::size_of::<u64>(),
            libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t,
        )?;
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: index,
            sxdp_queue_id: 0,
            sxdp_shared_umem_fd: 0,
        };
        // SAFETY: pointer and length describe the address above.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        let free = (0..u64::from(SLOTS)).map(|slot| slot * SLOT_SIZE as u64).collect();
        Ok(Self { socket, memory, transmit, completed, free })
    }

    /// Sends one frame. When this fails the frame has not been sent and will not be.
    pub(super) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if frame.len() > SLOT_SIZE {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        while let Some(entry) = self.completed.consume() {
            // SAFETY: the entry is one of the completion ring's, which are addresses.
            self.free.push(unsafe { ptr::read(entry.cast::<u64>()) });
        }
        // All frames are under way: nobody at the far end takes them.
        let Some(slot) = self.free.pop() else { return Err(io::Error::from_raw_os_error(libc::ENOBUFS)) };
        // SAFETY: the slot is free, so neither the kernel nor we use its memory, and the frame fits.
        unsafe { ptr::copy_nonoverlapping(frame.as_ptr(), self.memory.at(slot as usize), frame.len()) };
        let position = self.transmit.producer().load(Ordering::Relaxed);
        let description = libc::xdp_desc { addr: slot, len: frame.len() as u32, options: 0 };
        // SAFETY: the entry is the one at the producer's position, which the kernel does not read yet.
        unsafe { ptr::write(self.transmit.entry(position).cast::<libc::xdp_desc>(), description) };
        self.transmit.producer().store(position.wrapping_add(1), Ordering::Release);

        // SAFETY: an empty message has no buffer; this only starts the transmission.
        let sent = unsafe { libc::sendto(self.socket.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
        let result = if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        if self.transmit.consumer().load(Ordering::Acquire) == position {
            // The kernel reads this ring only within that call, so a frame it left there can be taken back.
            self.transmit.producer().store(position, Ordering::Release);
            self.free.push(slot);
            return result.and(Err(io::Error::from_raw_os_error(libc::EAGAIN)));
        }
        result
    }
}

/// One of the rings of an AF_XDP socket: positions that only grow, and entries at position modulo size.
#[derive(Debug)]
struct SharedRing {
    map: Mapping,
    producer: usize,
    consumer: usize,
    entries: usize,
    entry_size: usize,
}

impl SharedRing {
    fn map(
        socket: &Socket,
        offsets: &libc::xdp_ring_offset,
        entry_size: usize,
        page_offset: libc::off_t,
    ) -> io::Result<Self> {
        let entries = offsets.desc as usize;
        let map = Mapping::shared(socket, entries + SLOTS as usize * entry_size, page_offset)?;
        Ok(Self { map, producer: offsets.producer as usize, consumer: offsets.consumer as usize, entries, entry_size })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: the word is aligned, lives as long as the mapping, and both sides access it atomically.
        unsafe { AtomicU32::from_ptr(self.map.at(self.producer).cast()) }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for the producer.
        unsafe { AtomicU32::from_ptr(self.map.at(self.consumer).cast()) }
    }

    fn entry(&self, position: u32) -> *mut u8 {
        self.map.at(self.entries + (position % SLOTS) as usize * self.entry_size)
    }

    /// The next entry that the kernel has produced. It must be read before the next call.
    fn consume(&self) -> Option<*mut u8> {
        let position = self.consumer().load(Ordering::Relaxed);
        if position == self.producer().load(Ordering::Acquire) {
            return None;
        }
        // The entry stays as it is until as many frames have been sent as the ring has entries.
        self.consumer().store(position.wrapping_add(1), Ordering::Release);
        Some(self.entry(position))
    }
}
