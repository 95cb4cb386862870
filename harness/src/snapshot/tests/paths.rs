//! What leads packets elsewhere beside routes and packet filters: neighbours, address labels, IPsec, traffic control, Multipath
//! TCP. Each change is made and taken back, with root privileges and without.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use nix::errno::Errno;
use nlink::netlink::addr::Ipv6Address;
use nlink::netlink::filter::U32Filter;
use nlink::netlink::genl::mptcp::MptcpEndpointBuilder;
use nlink::netlink::neigh::Neighbor;
use nlink::netlink::tc::{HtbClassConfig, HtbQdiscConfig, TbfConfig};
use nlink::netlink::xfrm::{IpsecProtocol, PolicyDirection, XfrmAddress, XfrmSaBuilder, XfrmSelector, XfrmSpBuilder};
use nlink::netlink::{Mptcp, Xfrm};
use nlink::{Connection, TcHandle};

use super::super::netlink::{Netlink, encode};
use super::super::{Error, Tolerance, compare};
use super::network::{change, connected};
use super::{Client, isolated, rootless};

const MAC: [u8; 6] = [2, 0x11, 0x22, 0x33, 0x44, 0x55];
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 9);

/// A request that changes something and is only acknowledged.
#[track_caller]
fn tell(netlink: &mut Netlink, kind: u16, body: &[u8]) {
    match netlink.ask("change something", kind, body) {
        Ok(_) | Err(Error::Netlink { errno: Errno::ENODATA, .. }) => {}
        Err(error) => panic!("request {kind}: {error}"),
    }
}

#[test]
fn neighbours_made_by_hand_are_found() {
    isolated(|client| neighbours(&client));
}

#[test]
fn neighbours_made_by_hand_are_found_without_root() {
    rootless(|client| neighbours(&client));
}

fn neighbours(client: &Client) {
    let route = connected(client);
    let before = client.take();
    let v4 = || Neighbor::new_v4("eth0", NEIGHBOUR);
    let line = "+eth0 10.7.0.9 permanent mac 021122334455\n";
    change!(
        client,
        before,
        ["neighbours"],
        line,
        route.add_neighbor(v4().lladdr(MAC).permanent()),
        route.del_neighbor(v4())
    );
    let line = "+eth0 10.7.0.9 noarp mac 021122334455\n";
    change!(
        client,
        before,
        ["neighbours"],
        line,
        route.add_neighbor(v4().lladdr(MAC).noarp()),
        route.del_neighbor(v4())
    );
    let v6 = || Neighbor::new_v6("eth0", "fd00::9".parse::<Ipv6Addr>().expect("an address"));
    change!(
        client,
        before,
        ["neighbours"],
        "+eth0 fd00::9 permanent mac 021122334455\n",
        route.add_neighbor(v6().lladdr(MAC).permanent()),
        route.del_neighbor(v6())
    );
    change!(
        client,
        before,
        ["neighbours"],
        "+eth0 10.7.0.9 proxy\n",
        route.add_proxy_arp("eth0", NEIGHBOUR),
        route.del_proxy_arp("eth0", NEIGHBOUR)
    );
    change!(
        client,
        before,
        ["neighbours"],
        "+eth0 10.7.0.9 extern-learn\n",
        route.add_neighbor(v4().lladdr(MAC).reachable().extern_learn()),
        route.del_neighbor(v4())
    );

    // What is learned, or asked for, or made by the kernel for groups, broadcasts and itself, does not count.
    client.runtime.block_on(route.add_neighbor(v4().lladdr(MAC).reachable())).expect("a neighbour");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_broadcast(true).expect("an option");
    socket.set_multicast_loop_v4(false).expect("an option");
    for to in ["10.7.0.255", "10.7.0.77", "127.0.0.1", "10.7.0.2"] {
        socket.send_to(b"x", (to, 9)).expect("a datagram");
    }
    socket.join_multicast_v4(&Ipv4Addr::new(239, 1, 1, 1), &Ipv4Addr::new(10, 7, 0, 2)).expect("a group");
    let known = client.runtime.block_on(route.get_neighbors()).expect("the neighbours");
    assert!(known.iter().any(|neighbour| neighbour.destination() == Some(&IpAddr::from([10, 7, 0, 255]))));
    client.expect(&before, &[]);
}

#[test]
fn changed_address_labels_are_found() {
    isolated(|client| labels(&client));
}

#[test]
fn changed_address_labels_are_found_without_root() {
    rootless(|client| labels(&client));
}

fn labels(client: &Client) {
    const NEW: u16 = 72;
    const DELETE: u16 = 73;
    let before = client.take();
    assert!(before.topics["address-labels"].contains("fc00::/7 label 5\n"), "{}", before.topics["address-labels"]);
    let mut netlink = Netlink::route().expect("netlink");
    let label = |prefix: &str, length: u8, label: u32| {
        let address: Ipv6Addr = prefix.parse().expect("an address");
        let header = [libc::AF_INET6 as u8, 0, length, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        [header.to_vec(), encode(1, &address.octets()), encode(2, &label.to_ne_bytes())].concat()
    };
    tell(&mut netlink, NEW, &label("fd00:7::", 64, 99));
    let change = client.expect(&before, &["address-labels"]).remove(0);
    assert_eq!((change.class, change.requirement), ("X04", "RST-1"));
    assert!(change.diff.contains("+fd00:7::/64 label 99\n"), "{}", change.diff);
    tell(&mut netlink, DELETE, &label("fd00:7::", 64, 99));
    client.expect(&before, &[]);
    tell(&mut netlink, DELETE, &label("fc00::", 7, 5));
    assert_eq!(client.changes(&before)[0].summary, "address-labels: 1 missing: `fc00::/7 label 5`");
    tell(&mut netlink, NEW, &label("fc00::", 7, 5));
    client.expect(&before, &[]);
}

#[test]
fn ipsec_policies_and_states_are_found() {
    isolated(|client| ipsec(&client));
}

#[test]
fn ipsec_policies_and_states_are_found_without_root() {
    rootless(|client| ipsec(&client));
}

fn ipsec(client: &Client) {
    const ALLOCATE_INDEX: u16 = 22;
    const SET_DEFAULT: u16 = 39;
    let before = client.take();
    if before.topics["xfrm"].starts_with("none: ") {
        println!("skipped: {}", before.topics["xfrm"]);
        return;
    }
    assert_eq!(before.topics["xfrm"], "default in accept forward accept out accept\n");
    let xfrm = client.connect(Connection::<Xfrm>::new);
    let selector = || {
        let daddr = XfrmAddress::from_v4(Ipv4Addr::new(10, 2, 0, 0));
        XfrmSelector { family: libc::AF_INET as u16, daddr, prefixlen_d: 16, ..XfrmSelector::default() }
    };
    let block = || XfrmSpBuilder::new(selector(), PolicyDirection::Out).block().priority(5);
    let line = "+policy out action block priority 5 for 10.2.0.0/16 from 0.0.0.0/0";
    // Made twice, so that a number which the kernel gave is seen if it is shown.
    for _ in 0..2 {
        change!(client, before, ["xfrm"], line, xfrm.add_sp(block()), xfrm.del_sp(selector(), PolicyDirection::Out));
    }
    client.runtime.block_on(xfrm.add_sp(block())).expect("a policy");
    assert_eq!(client.changes(&before)[0].requirement, "FWL-16");
    let made = client.take();
    client.runtime.block_on(xfrm.del_sp(selector(), PolicyDirection::Out)).expect("no policy");
    client.runtime.block_on(xfrm.add_sp(block())).expect("a policy");
    client.expect(&made, &[]);
    // Under lockdown blocking may stay, but what others block must too.
    let lockdown = Tolerance { own_rules_stay: true, ..Tolerance::default() };
    assert_eq!(compare(&before, &made, &lockdown), []);
    assert_eq!(compare(&made, &before, &lockdown).len(), 1);
    client.runtime.block_on(xfrm.update_sp(block().allow())).expect("a policy");
    assert_eq!(compare(&before, &client.take(), &lockdown).len(), 1);
    client.runtime.block_on(xfrm.flush_sp()).expect("no policies");
    client.expect(&before, &[]);

    let mut netlink = Netlink::xfrm().expect("netlink");
    tell(&mut netlink, SET_DEFAULT, &[1, 0, 0, 0]);
    let change = client.expect(&before, &["xfrm"]).remove(0);
    assert!(change.diff.contains("+default in block forward accept out accept\n"), "{}", change.diff);
    tell(&mut netlink, SET_DEFAULT, &[2, 2, 2, 0]);
    client.expect(&before, &[]);

    // A state needs no cipher while it only has an index.
    let mut state = vec![0; 232];
    state[56..60].copy_from_slice(&[10, 7, 0, 2]);
    state[76] = 50;
    state[80..84].copy_from_slice(&[10, 7, 0, 1]);
    state[208..214].copy_from_slice(&[7, 0, 0, 0, 2, 0]);
    for at in [224, 228] {
        state[at..at + 4].copy_from_slice(&0x1234_u32.to_ne_bytes());
    }
    tell(&mut netlink, ALLOCATE_INDEX, &state);
    let change = client.expect(&before, &["xfrm"]).remove(0);
    let line = "+state from 10.7.0.1 to 10.7.0.2 proto 50 spi 0x00001234 reqid 7 mode 0 ";
    assert!(change.diff.contains(line), "{}", change.diff);
    client.runtime.block_on(xfrm.flush_sa()).expect("no states");
    client.expect(&before, &[]);

    let (from, to) = (Ipv4Addr::new(10, 7, 0, 1).into(), Ipv4Addr::new(10, 7, 0, 2).into());
    let full = XfrmSaBuilder::new(from, to, 0x77, IpsecProtocol::Esp).auth_hmac_sha256(&[1; 32]).encr_aes_cbc(&[2; 16]);
    match client.runtime.block_on(xfrm.add_sa(full)) {
        Ok(()) => {
            let change = client.expect(&before, &["xfrm"]).remove(0);
            assert!(change.diff.contains(" hmac(sha256) key sha256 "), "{}", change.diff);
            assert!(!change.diff.contains("0101010101"), "a key is shown: {}", change.diff);
            client.runtime.block_on(xfrm.flush_sa()).expect("no states");
            client.expect(&before, &[]);
        }
        Err(error) => println!("skipped: a state with keys: this kernel has no ESP: {error}"),
    }
}

#[test]
fn changed_traffic_control_is_found() {
    isolated(|client| traffic(&client));
}

#[test]
fn changed_traffic_control_is_found_without_root() {
    rootless(|client| traffic(&client));
}

fn traffic(client: &Client) {
    let route = connected(client);
    let before = client.take();
    let shaped = |rate: u64| {
        TbfConfig::new()
            .rate(nlink::Rate::bytes_per_sec(rate))
            .burst(nlink::Bytes::new(16_000))
            .limit(nlink::Bytes::new(64_000))
    };
    client.runtime.block_on(route.add_qdisc("eth0", shaped(125_000).build())).expect("a qdisc");
    let slow = client.take();
    assert!(client.expect(&before, &["links"])[0].diff.contains("+eth0 queue tbf "));
    client.runtime.block_on(route.replace_qdisc("eth0", shaped(250_000).build())).expect("a qdisc");
    client.expect(&slow, &["links"]);
    client.runtime.block_on(route.del_qdisc("eth0", TcHandle::ROOT)).expect("no qdisc");
    client.expect(&before, &[]);

    // Classes, and filters that hang on a queueing discipline instead of a hook.
    let (root, first) = (TcHandle::major_only(1), TcHandle::new(1, 1));
    client.runtime.block_on(async {
        let htb = HtbQdiscConfig::new().build();
        route.add_qdisc_full("eth0", TcHandle::ROOT, Some(root), htb).await.expect("a qdisc");
    });
    let htb = client.take();
    client.runtime.block_on(async {
        let class = HtbClassConfig::new(nlink::Rate::bytes_per_sec(125_000)).build();
        route.add_class("eth0", root, first, class).await.expect("a class");
    });
    assert!(client.expect(&htb, &["links"])[0].diff.contains("+eth0 class htb 1:1 parent root\n"));
    let class = client.take();
    let to = |last: u8| U32Filter::new().classid(first).match_dst_ipv4(Ipv4Addr::new(10, 7, 0, last), 32).build();
    client.runtime.block_on(route.add_filter("eth0", root, to(7))).expect("a filter");
    let changes = client.expect(&class, &["links"]);
    assert!(changes[0].diff.contains("+eth0 filter on 1:0 u32 handle 80000800 "), "{}", changes[0].diff);
    let filtered = client.take();
    client.runtime.block_on(route.flush_filters("eth0", root)).expect("no filters");
    client.expect(&class, &[]);
    client.runtime.block_on(route.add_filter("eth0", root, to(8))).expect("a filter");
    client.expect(&filtered, &["links"]);
    // Packets count, and counters do not.
    let filtered = client.take();
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    for to in [8, 9] {
        socket.send_to(b"x", (Ipv4Addr::new(10, 7, 0, to), 9)).expect("a datagram");
    }
    client.expect(&filtered, &[]);
    client.runtime.block_on(route.del_qdisc("eth0", TcHandle::ROOT)).expect("no qdisc");
    client.expect(&before, &[]);
}

#[test]
fn multipath_tcp_is_found() {
    isolated(|client| multipath(&client));
}

#[test]
fn multipath_tcp_is_found_without_root() {
    rootless(|client| multipath(&client));
}

fn multipath(client: &Client) {
    connected(client);
    let before = client.take();
    if before.topics["mptcp"].starts_with("none: ") {
        println!("skipped: {}", before.topics["mptcp"]);
        return;
    }
    let mptcp = {
        let _runtime = client.runtime.enter();
        client.runtime.block_on(Connection::<Mptcp>::new_async()).expect("a connection")
    };
    let endpoint = MptcpEndpointBuilder::new(Ipv4Addr::new(10, 7, 0, 2).into()).id(3).subflow();
    change!(
        client,
        before,
        ["mptcp"],
        "+endpoint 10.7.0.2 id 3 flags 0x2\n",
        mptcp.add_endpoint(endpoint.clone()),
        mptcp.del_endpoint(3)
    );
}

/// Which of several addresses is used: how long one is preferred, and how an interface makes its own.
#[test]
fn changed_choice_of_addresses_is_found() {
    isolated(|client| choice(&client));
}

#[test]
fn changed_choice_of_addresses_is_found_without_root() {
    rootless(|client| choice(&client));
}

fn choice(client: &Client) {
    const IFLA_AF_SPEC: u16 = 26;
    const IFLA_INET6_TOKEN: u16 = 7;
    let route = connected(client);
    let address = || Ipv6Address::new("eth0", "fd00:7::3".parse().expect("an address"), 64);
    client.runtime.block_on(route.add_address(address())).expect("an address");
    let before = client.take();
    client.runtime.block_on(route.replace_address(address().preferred_lifetime(3600))).expect("an address");
    let changes = client.expect(&before, &["addresses"]);
    assert!(changes[0].diff.contains(" lifetime forever preferred limited\n"), "{}", changes[0].diff);
    client.runtime.block_on(route.replace_address(address())).expect("an address");
    client.expect(&before, &[]);

    // ip-token(8).
    let index = nix::net::if_::if_nametoindex("eth0").expect("an interface");
    let mut netlink = Netlink::route().expect("netlink");
    let mut set = |token: &str| {
        let token: Ipv6Addr = token.parse().expect("an address");
        let of_inet6 = encode(libc::AF_INET6 as u16, &encode(IFLA_INET6_TOKEN, &token.octets()));
        let header = [&[0; 4][..], &index.to_ne_bytes(), &[0; 8]].concat();
        tell(&mut netlink, libc::RTM_SETLINK, &[header, encode(IFLA_AF_SPEC, &of_inet6)].concat());
    };
    set("::7");
    let changes = client.expect(&before, &["links"]);
    assert!(changes[0].diff.contains(" token ::7"), "{}", changes[0].diff);
    set("::");
    client.expect(&before, &[]);
}
