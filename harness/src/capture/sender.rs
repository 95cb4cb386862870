//! Sends markers from the near end of a link, past everything in the client that could hold them back.

use std::{io, net::IpAddr};

use pnet::util::MacAddr;
use socket2::Socket;

use super::{
    error::{Error, NEEDS_KERNEL},
    frame::LinkType,
    marker::{Envelope, Marker, MarkerKind},
    socket::{bind, failed, hardware, interface_index, packet_socket, set_option},
    xdp::DirectTransmit,
};

/// How markers leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkerPath {
    /// An AF_XDP socket: neither the queueing discipline nor any egress rule sees them.
    Direct,
    /// A packet socket with PACKET_QDISC_BYPASS: no queueing discipline sees them, but since Linux 5.17 the netdev
    /// egress hook of nftables does. A rule there that drops them makes the send fail with ENOBUFS.
    PacketSocket,
}

/// Sends the markers of one case on one interface.
#[derive(Debug)]
pub struct MarkerSender {
    interface: String,
    nonce: u64,
    envelope: Envelope,
    transmit: Transmit,
    /// Why it is not the direct path.
    fallback: Option<io::Error>,
}

#[derive(Debug)]
enum Transmit {
    Direct(Box<DirectTransmit>),
    PacketSocket(Socket),
}

impl MarkerSender {
    /// Opens a sender on an Ethernet interface of the calling thread's network namespace. Markers are broadcast from
    /// the interface's own address. Open one sender an interface: the direct path has room for one.
    pub fn open(interface: &str, nonce: u64) -> Result<Self, Error> {
        Self::open_on(interface, nonce, None, MarkerPath::Direct)
    }

    /// Opens a sender on a TUN interface; markers are IP packets between these two addresses of one family.
    pub fn open_raw(interface: &str, nonce: u64, source: IpAddr, destination: IpAddr) -> Result<Self, Error> {
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(Error::AddressFamilies { source_address: source, destination });
        }
        Self::open_on(interface, nonce, Some(Envelope::Ip { source, destination }), MarkerPath::Direct)
    }

    /// How markers leave. Not [`MarkerPath::Direct`] where the kernel has no AF_XDP or its queue is taken.
    pub fn path(&self) -> MarkerPath {
        match self.transmit {
            Transmit::Direct(_) => MarkerPath::Direct,
            Transmit::PacketSocket(_) => MarkerPath::PacketSocket,
        }
    }

    /// Why the direct path could not be used.
    pub fn fallback(&self) -> Option<&io::Error> {
        self.fallback.as_ref()
    }

    /// Sends one marker. The kernel's error is passed on as it is; then the marker has not been sent.
    pub fn send(&mut self, kind: MarkerKind, id: u64) -> Result<(), Error> {
        let frame = Marker { kind, nonce: self.nonce, id }.encode(&self.envelope)?;
        let sent = match &mut self.transmit {
            Transmit::Direct(direct) => direct.send(&frame),
            Transmit::PacketSocket(socket) => socket.send(&frame).and_then(|length| {
                let whole = length == frame.len();
                if whole {
                    Ok(())
                } else {
                    Err(io::Error::other(format!("{length} of {} bytes were sent", frame.len())))
                }
            }),
        };
        sent.map_err(|cause| {
            let advice = match cause.raw_os_error() {
                Some(libc::ENETDOWN) => "the link is down",
                Some(libc::ENXIO | libc::ENODEV) => "the interface is gone",
                Some(libc::ENOBUFS) if self.path() == MarkerPath::PacketSocket => {
                    "an egress rule drops it, or the link's other end is down"
                }
                Some(libc::EBUSY | libc::ENOBUFS | libc::EAGAIN) => {
                    "the device dropped it: the link's other end is down or takes no frames"
                }
                _ => "check the interface",
            };
            Error::Send { interface: self.interface.clone(), kind, id, cause, advice }
        })
    }

    /// Opens a sender; `envelope` is `None` for Ethernet.
    pub(super) fn open_on(
        interface: &str,
        nonce: u64,
        envelope: Option<Envelope>,
        path: MarkerPath,
    ) -> Result<Self, Error> {
        let socket = packet_socket(interface)?;
        let hardware = hardware(&socket, interface)?;
        let index = interface_index(interface)?;
        let refuse = |detail| Err(Error::SenderLinkType { interface: interface.to_owned(), detail });
        let envelope = match (LinkType::of_hardware(hardware.hardware_type), envelope) {
            (Some(LinkType::Ethernet), None) => {
                Envelope::Ethernet { source: MacAddr::from(hardware.address), destination: MacAddr::broadcast() }
            }
            (Some(LinkType::Raw), Some(envelope)) => envelope,
            (Some(LinkType::Ethernet), Some(_)) => return refuse("it is an Ethernet link, use MarkerSender::open"),
            (Some(LinkType::Raw), None) => return refuse("it carries plain IP, use MarkerSender::open_raw"),
            (None, _) => {
                let hardware_type = hardware.hardware_type;
                return Err(Error::HardwareType { interface: interface.to_owned(), hardware_type });
            }
        };
        let interface = interface.to_owned();
        let fallback = match path {
            MarkerPath::PacketSocket => None,
            MarkerPath::Direct => match DirectTransmit::open(index) {
                Ok(direct) => {
                    let transmit = Transmit::Direct(Box::new(direct));
                    return Ok(Self { interface, nonce, envelope, transmit, fallback: None });
                }
                Err(cause) => Some(cause),
            },
        };
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1_i32).map_err(failed(
            "bypass the queueing discipline",
            &interface,
            NEEDS_KERNEL,
        ))?;
        // Protocol 0 again: this socket receives nothing.
        bind(&socket, &interface, index, 0)?;
        Ok(Self { interface, nonce, envelope, transmit: Transmit::PacketSocket(socket), fallback })
    }
}
