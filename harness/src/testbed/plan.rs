//! The testbed's address plan: every name, link and address, in one place. They exist only inside the namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The client's uplink at start.
pub const UPLINK: &str = "eth0";
/// The relay's decrypted side.
pub const RELAY_TUNNEL: &str = "wt-relay";
/// The tunnel interface that settings name.
pub const CLIENT_TUNNEL: &str = "wt0";

/// Hardware addresses: the client's uplink, and the router's end of it.
pub const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 2];
/// The router's end of the client's uplink.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];

/// The client's address on the LAN, a /24.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 50);
/// The client's unique local address, a /64.
pub const CLIENT_ULA: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x50);
/// The client's global address, a /64.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x50);

/// The router, and the LAN's resolver.
pub const LAN_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// The LAN's resolver, unique local.
pub const LAN_ULA: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
/// The LAN's resolver, global.
pub const LAN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// The LAN's resolver, link-local.
pub const LAN_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// A second LAN resolver that is not the router, so that it can be approved alone.
pub const LAN_SECOND_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
/// A LAN address whose port 53 swallows everything: the hammer's target.
pub const LAN_SINK_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 99);

/// DNS servers of a lease, in order.
pub const LEASED: [Ipv4Addr; 2] = [LAN_V4, ISP_V4];
/// DNS servers of a lease that was renewed, in order: each at the place of the one before.
pub const RENEWED: [Ipv4Addr; 2] = [LAN_V4, LAN_SECOND_V4];

/// The internet provider's resolver.
pub const ISP_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
/// The internet provider's resolver.
pub const ISP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x53);
/// An internet address whose port 53 swallows everything: the hammer's target.
pub const SINK_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 99);
/// An internet address whose port 53 swallows everything: the hammer's target.
pub const SINK_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x99);

/// A public resolver that probes ask directly.
pub const PUBLIC_V4: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
/// A public resolver that probes ask directly.
pub const PUBLIC_V6: Ipv6Addr = Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe);
/// A public resolver that custom settings use.
pub const CUSTOM_V4: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);
/// A public resolver that custom settings use.
pub const CUSTOM_V6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111);

/// The relay.
pub const RELAY_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The relay.
pub const RELAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 0x10);
/// The relay's usual port.
pub const RELAY_PORT: u16 = 51820;
/// The client's API.
pub const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 20)), 443);
/// The client's API at port 53, for FWL-8.
pub const API_PORT_53: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 20)), 53);

/// The relay's resolver inside the tunnel.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
/// The relay's resolver inside the tunnel.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 1);
/// The client's address inside the tunnel.
pub const TUNNEL_V4: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 2);
/// The client's address inside the tunnel.
pub const TUNNEL_V6: Ipv6Addr = Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 2);

/// A machine behind the client (container, virtual machine, hotspot guest).
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 2);
/// The client's side of the guest's link.
pub const GUEST_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// A machine behind the client.
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 30, 0, 0, 0, 0, 0, 2);
/// The client's side of the guest's link.
pub const GUEST_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 30, 0, 0, 0, 0, 0, 1);
/// The client's interface towards the guest.
pub const GUEST_LINK: &str = "vguest0";

/// The domain of the local network, where a scenario has it one.
pub const SEARCH_DOMAIN: &str = "home.test";

/// The name of the web server on the LAN that says whether a machine is online. The client has it in its hosts file.
pub const ONLINE: &str = "online.home.test";

/// The zone under which every probe's name lies.
pub const PROBE_ZONE: &str = "probe.watertight.test";
/// The zone of names that a cache may keep: answers have a time to live.
pub const KEPT_ZONE: &str = "kept.probe.watertight.test";
