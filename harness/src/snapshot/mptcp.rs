//! The topic "mptcp": the addresses that Multipath TCP may use beside a connection's own (RFC 8684), and how many. Traffic of a
//! connection can leave by them whatever its route. Endpoints that the kernel makes for a connection are left out.

use std::fmt::Write as _;

use super::Error;
use super::links::Links;
use super::netlink::{Netlink, attribute, attributes, encode, number};
use super::none_or;
use super::routes::address;

// include/uapi/linux/genetlink.h: command and version, then two reserved bytes.
const HEADER: usize = 4;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

// include/uapi/linux/mptcp_pm.h.
const VERSION: u8 = 1;
const MPTCP_PM_CMD_GET_ADDR: u8 = 3;
const MPTCP_PM_CMD_GET_LIMITS: u8 = 6;
const MPTCP_PM_ATTR_ADDR: u16 = 1;
const MPTCP_PM_ATTR_RCV_ADD_ADDRS: u16 = 2;
const MPTCP_PM_ATTR_SUBFLOWS: u16 = 3;
const ADDR_FAMILY: u16 = 1;
const ADDR_ID: u16 = 2;
const ADDR_ADDR4: u16 = 3;
const ADDR_ADDR6: u16 = 4;
const ADDR_PORT: u16 = 5;
const ADDR_FLAGS: u16 = 6;
const ADDR_IF_IDX: u16 = 7;
/// Made by the kernel for an address that a connection came to.
const IMPLICIT: u32 = 0x10;

/// The topic.
pub fn mptcp(links: &Links) -> Result<String, Error> {
    let mut netlink = Netlink::generic()?;
    let request = [vec![CTRL_CMD_GETFAMILY, VERSION, 0, 0], encode(CTRL_ATTR_FAMILY_NAME, b"mptcp_pm\0")].concat();
    let family = netlink.ask("find Multipath TCP", GENL_ID_CTRL, &request);
    none_or("this kernel has no Multipath TCP", family, |family| {
        let id = attribute(family.body.get(HEADER..).unwrap_or_default(), CTRL_ATTR_FAMILY_ID);
        let id = id.map_or(0, |id| number(id) as u16);
        let mut lines = Vec::new();
        let limits = [MPTCP_PM_CMD_GET_LIMITS, VERSION, 0, 0];
        let limits = netlink.ask("read the limits of Multipath TCP", id, &limits)?;
        let limit = |kind: u16| attribute(limits.body.get(HEADER..).unwrap_or_default(), kind).map_or(0, number);
        let (subflows, accepted) = (limit(MPTCP_PM_ATTR_SUBFLOWS), limit(MPTCP_PM_ATTR_RCV_ADD_ADDRS));
        lines.push(format!("limits subflows {subflows} accepted {accepted}\n"));
        let request = [MPTCP_PM_CMD_GET_ADDR, VERSION, 0, 0];
        for message in netlink.dump("list the endpoints of Multipath TCP", id, &request)? {
            let rest = message.body.get(HEADER..).unwrap_or_default();
            if let Some(endpoint) = attribute(rest, MPTCP_PM_ATTR_ADDR) {
                lines.extend(endpoint_line(links, endpoint));
            }
        }
        lines.sort();
        Ok(lines.concat())
    })
}

fn endpoint_line(links: &Links, endpoint: &[u8]) -> Option<String> {
    let flags = attribute(endpoint, ADDR_FLAGS).map_or(0, number);
    if flags & IMPLICIT != 0 {
        return None;
    }
    let family = attribute(endpoint, ADDR_FAMILY).map_or(0, number) as u8;
    let of = attribute(endpoint, ADDR_ADDR4).or(attribute(endpoint, ADDR_ADDR6)).unwrap_or_default();
    let mut text = format!("endpoint {}", address(family, of));
    for (kind, payload) in attributes(endpoint) {
        let _ = match kind {
            ADDR_ID => write!(text, " id {}", number(payload)),
            ADDR_PORT if number(payload) != 0 => write!(text, " port {}", number(payload)),
            ADDR_IF_IDX if number(payload) != 0 => write!(text, " dev {}", links.name(number(payload))),
            _ => Ok(()),
        };
    }
    let _ = writeln!(text, " flags {flags:#x}");
    Some(text)
}
