//! Links, addresses, routes and routing rules of the kernel's.

use std::net::{Ipv4Addr, Ipv6Addr};

use nlink::netlink::addr::Ipv4Address;
use nlink::netlink::link::VethLink;
use nlink::netlink::route::{Ipv4Route, Ipv6Route, RouteMetrics, RouteType};
use nlink::netlink::rule::RuleBuilder;
use nlink::netlink::tc::ClsactConfig;
use nlink::{Connection, Route};

use super::super::{Snapshot, Tolerance, compare};
use super::{Client, isolated};

const NET: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 0);
const ME: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);

/// A veth pair with an address, duplicate address detection off.
pub fn connected(client: &Client) -> Connection<Route> {
    let route = client.connect(Connection::<Route>::new);
    client.runtime.block_on(async {
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").expect("a setting");
        route.add_link(VethLink::new("eth0", "peer0")).await.expect("a link");
        for link in ["lo", "eth0", "peer0"] {
            route.set_link_up(link).await.expect("a link up");
        }
        route.add_address(Ipv4Address::new("eth0", ME, 24)).await.expect("an address");
    });
    route
}

/// Does, expects these topics, undoes, expects nothing.
macro_rules! change {
    ($client:expr, $before:expr, $topics:expr, $part:expr, $do:expr, $undo:expr) => {{
        $client.runtime.block_on($do).expect(stringify!($do));
        let changes = $client.expect(&$before, &$topics);
        let diffs: String = changes.iter().map(|change| change.diff.clone()).collect();
        assert!(diffs.contains($part), "{:?} is not in\n{diffs}", $part);
        assert!(changes.iter().all(|change| change.class == "X04"));
        $client.runtime.block_on($undo).expect(stringify!($undo));
        $client.expect(&$before, &[]);
    }};
}

pub(super) use change;

#[test]
fn each_change_to_the_network_is_found() {
    isolated(|client| {
        let route = connected(&client);
        let before = client.take();
        let v4 = |prefix: u8| Ipv4Route::new(NET, prefix).dev("eth0").table(1234);
        change!(
            client,
            before,
            ["routes"],
            "+v4 table 1234 unicast 10.7.0.0/25 dev eth0 proto boot scope link\n",
            route.add_route(v4(25)),
            route.del_route(v4(25))
        );
        let default = || Ipv4Route::new(Ipv4Addr::UNSPECIFIED, 0).gateway(ROUTER).dev("eth0").priority(7);
        let metrics = || default().metrics(RouteMetrics::new().mtu(1400));
        let line = "+v4 table main unicast default metric 7 mtu 1400 via 10.7.0.1 dev eth0 proto boot scope global\n";
        change!(client, before, ["routes"], line, route.add_route(metrics()), route.del_route(default()));
        let v6 = || Ipv6Route::new("fd00:1::".parse::<Ipv6Addr>().expect("an address"), 64).dev("eth0").table(99);
        change!(
            client,
            before,
            ["routes"],
            "+v6 table 99 unicast fd00:1::/64 ",
            route.add_route(v6()),
            route.del_route(v6())
        );
        let hole = || Ipv4Route::new(NET, 30).route_type(RouteType::Blackhole).table(5);
        change!(
            client,
            before,
            ["routes"],
            "+v4 table 5 blackhole 10.7.0.0/30 ",
            route.add_route(hole()),
            route.del_route(hole())
        );

        let marked = || RuleBuilder::v4().priority(100).fwmark_mask(0x51, 0xff).table(1234).invert();
        change!(
            client,
            before,
            ["rules"],
            "+v4 100: not from all fwmark 0x51 mask 0xff ",
            route.add_rule(marked()),
            route.del_rule(marked())
        );
        let suppress = || RuleBuilder::v6().priority(99).table(254).suppress_prefixlen(0);
        change!(
            client,
            before,
            ["rules"],
            "suppress_prefixlength 0",
            route.add_rule(suppress()),
            route.del_rule(suppress())
        );
        let ports = || RuleBuilder::v4().priority(98).udp().dport(53, 53).oif("eth0").prohibit();
        change!(
            client,
            before,
            ["rules"],
            " oif eth0 dport 53-53 ipproto 17 prohibit ",
            route.add_rule(ports()),
            route.del_rule(ports())
        );

        change!(
            client,
            before,
            ["links", "sysctl"],
            "mtu 1400",
            route.set_link_mtu("eth0", 1400),
            route.set_link_mtu("eth0", 1500)
        );
        change!(
            client,
            before,
            ["addresses", "routes"],
            "+eth0 10.7.1.1/32 ",
            route.add_address(Ipv4Address::new("eth0", Ipv4Addr::new(10, 7, 1, 1), 32)),
            route.del_address("eth0", Ipv4Addr::new(10, 7, 1, 1).into(), 32)
        );
        change!(
            client,
            before,
            ["links"],
            "+eth0 queue clsact ",
            route.add_qdisc("eth0", ClsactConfig::new()),
            route.del_qdisc("eth0", nlink::TcHandle::CLSACT)
        );
        change!(
            client,
            before,
            ["links"],
            "+wt0 kind veth ",
            route.add_link(VethLink::new("wt0", "wt1")),
            route.del_link("wt0")
        );
    });
}

/// What the subject's own routing may be under lockdown, and what it may not.
#[test]
fn under_lockdown_the_subjects_own_routing_may_stay() {
    isolated(|client| {
        let route = connected(&client);
        let before = client.take();
        let tolerance = Tolerance { own_rules_stay: true, ..Tolerance::default() };
        let topics = |after: &Snapshot| -> Vec<String> {
            compare(&before, after, &tolerance).into_iter().map(|change| change.topic).collect()
        };
        client.runtime.block_on(async {
            route.add_rule(RuleBuilder::v4().priority(100).table(1234)).await.expect("a rule");
            route.add_route(Ipv4Route::new(NET, 25).dev("eth0").table(1234)).await.expect("a route");
        });
        client.expect(&before, &["routes", "rules"]);
        assert_eq!(topics(&client.take()), [] as [&str; 0]);
        client.runtime.block_on(route.add_route(Ipv4Route::new(NET, 25).dev("eth0"))).expect("a route");
        assert_eq!(topics(&client.take()), ["routes"]);
        client.runtime.block_on(route.del_route(Ipv4Route::new(NET, 25).dev("eth0"))).expect("a route");
        client.runtime.block_on(route.del_rule(RuleBuilder::v4().priority(32767))).expect("a rule");
        assert_eq!(topics(&client.take()), ["rules"]);
    });
}

/// The older packet filter, without its program: the table that the kernel makes is read, changed and put back.
#[test]
fn rules_of_the_older_packet_filter_are_found() {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

    const INFO: usize = 84;
    const REPLACE: usize = 96;
    isolated(|client| {
        let before = client.take();
        let socket =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).expect("a socket");
        let get = |option: i32, buffer: &mut [u8]| {
            let mut length = buffer.len() as u32;
            // SAFETY: the buffer is writable and `length` is its size.
            unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_IP,
                    option,
                    buffer.as_mut_ptr().cast(),
                    &raw mut length,
                )
            }
        };
        let mut info = [0; INFO];
        info[..6].copy_from_slice(b"filter");
        if get(64, &mut info) != 0 {
            println!("skipped: this kernel has no ip_tables: {}", std::io::Error::last_os_error());
            return;
        }
        // Listing has made an empty table.
        client.expect(&before, &[]);
        let number = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]) as usize;
        let (count, size) = (number(76), number(80));
        let mut blob = vec![0; 40 + size];
        blob[..36].copy_from_slice(&[&info[..32], &(size as u32).to_ne_bytes()[..]].concat());
        assert_eq!(get(65, &mut blob), 0, "{}", std::io::Error::last_os_error());
        let load = |verdict: i32| {
            let mut entries = blob[40..].to_vec();
            // The first policy's target ends with the verdict and padding.
            entries[144..148].copy_from_slice(&verdict.to_ne_bytes());
            let mut counters = vec![0_u8; count * 16];
            // struct ipt_replace: name, hooks, number, size, hook entries, underflows, number of counters, where they go.
            let mut replace = [&info[..36], &info[76..84], &info[36..76], &(count as u32).to_ne_bytes()[..]].concat();
            replace.resize(REPLACE - 8, 0);
            replace.extend((counters.as_mut_ptr() as usize).to_ne_bytes());
            replace.extend(entries);
            // SAFETY: the buffer is a whole `ipt_replace` with its rules; the kernel writes `count` counters where it says.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_IP,
                    64,
                    replace.as_ptr().cast(),
                    replace.len() as u32,
                )
            };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        };
        load(-1);
        let change = client.expect(&before, &["iptables"]).remove(0);
        assert_eq!((change.class, change.requirement), ("X04", "FWL-16"));
        assert!(change.diff.contains("+table ip filter\n"), "{}", change.diff);
        load(-2);
        client.expect(&before, &[]);
    });
}
