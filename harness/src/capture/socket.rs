//! Packet sockets and the few interface questions they need. No ring, no frames.

use std::{ffi::CString, io, mem, os::fd::AsRawFd};

use socket2::{Domain, Socket, Type};

use super::error::{Error, NEEDS_INTERFACE, NEEDS_NET_RAW};

/// What the kernel knows of an interface without netlink.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hardware {
    /// Its `ARPHRD_*` number.
    pub(super) hardware_type: u16,
    /// Its address; zeros where it has none.
    pub(super) address: [u8; 6],
}

/// A packet socket with protocol 0: it receives nothing until it is bound to an interface, so frames of other
/// interfaces cannot get in first (packet(7)).
pub(super) fn packet_socket(interface: &str) -> Result<Socket, Error> {
    Socket::new(Domain::PACKET, Type::RAW, None).map_err(failed("open a packet socket", interface, NEEDS_NET_RAW))
}

/// Index of the interface in the calling thread's network namespace.
pub(super) fn interface_index(interface: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(interface).map_err(io::Error::from).map_err(failed(
        "find the interface",
        interface,
        NEEDS_INTERFACE,
    ))
}

/// Hardware type and address of the interface (SIOCGIFHWADDR, netdevice(7)).
pub(super) fn hardware(socket: &Socket, interface: &str) -> Result<Hardware, Error> {
    let name = CString::new(interface).map_err(io::Error::from).map_err(failed(
        "name the interface",
        interface,
        NEEDS_INTERFACE,
    ))?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.as_bytes().len() >= request.ifr_name.len() {
        let cause = io::Error::from_raw_os_error(libc::ENAMETOOLONG);
        return Err(failed("name the interface", interface, NEEDS_INTERFACE)(cause));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = *from as libc::c_char;
    }
    // SAFETY: the request is a valid ifreq that outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request) } < 0 {
        return Err(failed("read the hardware address", interface, NEEDS_INTERFACE)(io::Error::last_os_error()));
    }
    // SAFETY: SIOCGIFHWADDR fills this member.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut bytes = [0; 6];
    for (to, from) in bytes.iter_mut().zip(address.sa_data) {
        *to = from as u8;
    }
    Ok(Hardware { hardware_type: address.sa_family, address: bytes })
}

/// Binds a packet socket to one interface; from here on frames of `protocol` (host byte order) arrive.
pub(super) fn bind(socket: &Socket, interface: &str, index: u32, protocol: u16) -> Result<(), Error> {
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index as libc::c_int;
    // SAFETY: pointer and length describe the address above.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(failed("bind a packet socket", interface, NEEDS_INTERFACE)(io::Error::last_os_error())),
    }
}

/// Sets an option whose value is a plain C structure or integer.
pub(super) fn set_option<T: Copy>(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const *value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an option whose value is a plain C structure of integers.
///
/// # Safety
/// All zeros, and whatever the kernel writes for this option, must be valid for `T`.
pub(super) unsafe fn get_option<T: Copy>(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<T> {
    // SAFETY: the caller vouches that zeros are a valid `T`.
    let mut value: T = unsafe { mem::zeroed() };
    let mut length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`; the kernel writes at most `length` bytes.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Makes the error of a failed call.
pub(super) fn failed(action: &'static str, interface: &str, advice: &'static str) -> impl FnOnce(io::Error) -> Error {
    let interface = interface.to_owned();
    move |cause| Error::Socket { action, interface, cause, advice }
}
