//! Network namespaces and links for the tests of this module. Nothing here touches the host: each test has a thread and
//! a namespace of its own, which end together.

use std::{
    io, mem,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sched::{CloneFlags, unshare};
use nlink::{Connection, Route, netlink::link::VethLink};
use socket2::{Domain, Socket, Type};

use super::{
    link::quiet_veth,
    socket::{bind, interface_index, packet_socket},
};

/// The end of the link at which frames are sent.
pub(super) const NEAR: &str = "near";
/// The end at which they are captured.
pub(super) const FAR: &str = "far";

/// Runs a test on a thread of its own in a network namespace of its own. Without the privilege the test is skipped, or
/// fails if WATERTIGHT_REQUIRE_PRIVILEGES=1 is set.
pub(super) fn in_namespace<F>(test: F)
where
    F: AsyncFnOnce() + Send + 'static,
{
    let thread = std::thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            let reason = format!("a network namespace cannot be made: {errno}");
            if std::env::var_os("WATERTIGHT_REQUIRE_PRIVILEGES").is_some_and(|value| value == "1") {
                panic!("{reason}");
            }
            println!("skipped: {reason}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A veth pair, both ends down, offloads as the kernel makes them.
pub(super) async fn noisy_veth(mtu: u32) {
    let route = Connection::<Route>::new().expect("a route socket");
    route.add_link(VethLink::new(NEAR, FAR).mtu(mtu).peer_mtu(mtu)).await.expect("a veth pair");
}

/// A veth pair with offloads off, the far end up and the near end down: nothing can arrive yet.
pub(super) async fn veth() {
    veth_with_mtu(1500).await;
}

/// The same with another MTU.
pub(super) async fn veth_with_mtu(mtu: u32) {
    noisy_veth(mtu).await;
    quiet_veth(NEAR).await.expect("near offloads off");
    quiet_veth(FAR).await.expect("far offloads off");
    up(FAR).await;
}

/// Brings an interface up. The end that comes up last can send at once.
pub(super) async fn up(interface: &str) {
    Connection::<Route>::new().expect("a route socket").set_link_up(interface).await.expect("link up");
}

/// Takes an interface down.
pub(super) async fn down(interface: &str) {
    Connection::<Route>::new().expect("a route socket").set_link_down(interface).await.expect("link down");
}

/// A TUN device without packet information, up; packets go in and out through the file.
pub(super) async fn tun(name: &str) -> OwnedFd {
    let file: OwnedFd =
        std::fs::File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun").into();
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is a valid ifreq that outlives the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    assert_eq!(made, 0, "make {name}: {}", io::Error::last_os_error());
    up(name).await;
    file
}

/// Sends whole frames on an interface as any program with a packet socket can.
pub(super) struct FrameSender(Socket);

impl FrameSender {
    pub(super) fn open(interface: &str) -> Self {
        let socket = packet_socket(interface).expect("a packet socket");
        bind(&socket, interface, interface_index(interface).expect("an index"), 0).expect("bound");
        Self(socket)
    }

    pub(super) fn send(&self, frame: &[u8]) {
        let sent = self.0.send(frame).expect("sent");
        assert_eq!(sent, frame.len());
    }
}

/// The ethertype of test frames: IEEE 802 local experimental ethertype 2.
pub(super) const TEST_ETHERTYPE: [u8; 2] = [0x88, 0xb6];

/// A frame of 74 bytes with a number in it.
pub(super) fn numbered(number: u64) -> Vec<u8> {
    let mut frame = vec![0; 74];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&TEST_ETHERTYPE);
    frame[14..22].copy_from_slice(&number.to_be_bytes());
    frame
}

/// The number in a test frame, if it is one.
pub(super) fn number(frame: &[u8]) -> Option<u64> {
    (frame.get(12..14)? == TEST_ETHERTYPE).then_some(())?;
    frame.get(14..22)?.try_into().map(u64::from_be_bytes).ok()
}

/// Sends one buffer as datagrams of `size` bytes with a single call (UDP_SEGMENT, udp(7)), to a neighbour that need not
/// exist.
pub(super) async fn send_segmented(interface: &str, size: u16, datagrams: usize) {
    let route = Connection::<Route>::new().expect("a route socket");
    let address = nlink::netlink::addr::Ipv4Address::new(interface, "10.99.0.1".parse().expect("an address"), 24);
    route.add_address(address).await.expect("an address");
    let neighbour = nlink::netlink::neigh::Neighbor::new_v4(interface, "10.99.0.2".parse().expect("an address"))
        .lladdr([2, 0, 0, 0, 0, 2])
        .permanent();
    route.add_neighbor(neighbour).await.expect("a neighbour");
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a UDP socket");
    super::socket::set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, &i32::from(size)).expect("UDP_SEGMENT");
    let to: std::net::SocketAddr = "10.99.0.2:4000".parse().expect("an address");
    let sent = socket.send_to(&vec![7; usize::from(size) * datagrams], &to.into()).expect("sent");
    assert_eq!(sent, usize::from(size) * datagrams);
}
