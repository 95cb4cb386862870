//! The topic "xfrm": the kernel's IPsec policies, states and defaults, which encrypt, pass or drop packets past every routing
//! table and packet filter. Keys are shown as digests. Counters, lifetimes that ran, replay windows, and what the kernel makes
//! while it negotiates are left out; so are policies of single sockets, which go with the sockets.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::Error;
use super::escape::{hex, word};
use super::links::Links;
use super::netlink::{Netlink, attributes, number, number_be};
use super::none_or;
use super::routes::address;

// include/uapi/linux/xfrm.h.
const XFRM_MSG_GETSA: u16 = 18;
const XFRM_MSG_GETPOLICY: u16 = 21;
const XFRM_MSG_GETDEFAULT: u16 = 40;
/// struct xfrm_selector.
const SELECTOR: usize = 56;
/// struct xfrm_lifetime_cfg: four limits, then four seconds.
const LIMITS: usize = 64;
/// struct xfrm_userpolicy_info.
const POLICY: usize = 168;
/// struct xfrm_usersa_info.
const STATE: usize = 224;
/// struct xfrm_user_tmpl.
const TEMPLATE: usize = 64;

const XFRMA_ALG_AUTH: u16 = 1;
const XFRMA_ALG_CRYPT: u16 = 2;
const XFRMA_ALG_COMP: u16 = 3;
const XFRMA_TMPL: u16 = 5;
const XFRMA_LTIME_VAL: u16 = 9;
const XFRMA_REPLAY_VAL: u16 = 10;
const XFRMA_LASTUSED: u16 = 15;
const XFRMA_POLICY_TYPE: u16 = 16;
const XFRMA_ALG_AEAD: u16 = 18;
const XFRMA_ALG_AUTH_TRUNC: u16 = 20;
const XFRMA_REPLAY_ESN_VAL: u16 = 23;
const XFRMA_PAD: u16 = 27;

/// The topic.
pub fn xfrm(links: &Links) -> Result<String, Error> {
    none_or("this kernel has no XFRM", Netlink::xfrm(), |mut netlink| {
        let mut lines = Vec::new();
        for message in netlink.dump("list the IPsec policies", XFRM_MSG_GETPOLICY, &[])? {
            lines.extend(message.body.split_at_checked(POLICY).and_then(|(header, rest)| policy(links, header, rest)));
        }
        for message in netlink.dump("list the IPsec states", XFRM_MSG_GETSA, &[])? {
            lines.extend(message.body.split_at_checked(STATE).and_then(|(header, rest)| state(links, header, rest)));
        }
        match netlink.ask("read the default IPsec policies", XFRM_MSG_GETDEFAULT, &[0; 4]) {
            Ok(message) => lines.push(defaults(&message.body)),
            // Kernels before 5.15 accept by default and do not know the question.
            Err(Error::Netlink { errno: nix::errno::Errno::EINVAL, .. }) => {}
            Err(error) => return Err(error),
        }
        lines.sort();
        Ok(lines.concat())
    })
}

/// struct xfrm_userpolicy_default: in, forward, out; 0 not said, 1 block, 2 accept.
fn defaults(body: &[u8]) -> String {
    let name = |at: usize| if body.get(at) == Some(&1) { "block" } else { "accept" };
    format!("default in {} forward {} out {}\n", name(0), name(1), name(2))
}

/// The index of a policy is left out: the kernel numbers a policy anew when it is made again.
fn policy(links: &Links, header: &[u8], rest: &[u8]) -> Option<String> {
    let (limits, numbers) = (&header[SELECTOR..SELECTOR + LIMITS], &header[SELECTOR + LIMITS + 32..]);
    let direction = match numbers[8] {
        0 => "in",
        1 => "out",
        2 => "forward",
        // A socket's own.
        _ => return None,
    };
    let action = match numbers[9] {
        0 => "allow".into(),
        1 => "block".into(),
        other => other.to_string(),
    };
    let mut text = format!("policy {direction} action {action} priority {}", number(&numbers[..4]));
    text += &selector(links, &header[..SELECTOR]);
    if numbers[10] != 0 || numbers[11] != 0 {
        let _ = write!(text, " flags {:#04x} share {}", numbers[10], numbers[11]);
    }
    Some(text + &limits_of(limits) + &attributes_of(rest) + "\n")
}

fn state(links: &Links, header: &[u8], rest: &[u8]) -> Option<String> {
    const ESP: u8 = 50;
    const AH: u8 = 51;
    const COMP: u8 = 108;
    let (id, numbers) = (&header[SELECTOR..SELECTOR + 24], &header[192..]);
    let (spi, protocol) = (number_be(&id[16..20]), id[20]);
    // Without an index it only waits for a key exchange, for as long as the kernel likes.
    if spi == 0 && matches!(protocol, ESP | AH | COMP) {
        return None;
    }
    let family = u16::from_ne_bytes([numbers[20], numbers[21]]);
    let (from, to) = (in_family(family, &header[80..96]), in_family(family, &id[..16]));
    let mut text = format!("state from {from} to {to} proto {protocol} spi {spi:#010x}");
    let _ = write!(text, " reqid {} mode {} window {}", number(&numbers[16..20]), numbers[22], numbers[23]);
    if numbers[24] != 0 {
        let _ = write!(text, " flags {:#04x}", numbers[24]);
    }
    text += &selector(links, &header[..SELECTOR]);
    Some(text + &limits_of(&header[96..96 + LIMITS]) + &attributes_of(rest) + "\n")
}

/// Addresses, ports with their masks, family, prefix lengths, protocol, interface, user.
fn selector(links: &Links, selector: &[u8]) -> String {
    let family = u16::from_ne_bytes([selector[40], selector[41]]);
    let mut text = format!(
        " for {}/{} from {}/{}",
        in_family(family, &selector[..16]),
        selector[42],
        in_family(family, &selector[16..32]),
        selector[43]
    );
    for (name, at) in [("dport", 32), ("sport", 36)] {
        let port = |at: usize| u16::from_be_bytes([selector[at], selector[at + 1]]);
        if port(at + 2) != 0 {
            let _ = write!(text, " {name} {}/{:#06x}", port(at), port(at + 2));
        }
    }
    if selector[44] != 0 {
        let _ = write!(text, " ipproto {}", selector[44]);
    }
    match number(&selector[48..52]) {
        0 => {}
        index => text += &format!(" dev {}", links.name(index)),
    }
    match number(&selector[52..56]) {
        0 => {}
        user => text += &format!(" user {user}"),
    }
    text
}

/// A family that is not said has an address of zeros.
fn in_family(family: u16, bytes: &[u8]) -> String {
    match i32::from(family) {
        libc::AF_INET => address(libc::AF_INET as u8, &bytes[..4]),
        libc::AF_INET6 => address(libc::AF_INET6 as u8, bytes),
        _ => format!("family-{family} {}", hex(bytes)),
    }
}

/// What was asked for, not what is left of it; nothing where there is no limit.
fn limits_of(limits: &[u8]) -> String {
    let (amounts, seconds) = limits.split_at(32);
    let none = amounts.iter().all(|byte| *byte == 0xff) && seconds.iter().all(|byte| *byte == 0);
    if none { String::new() } else { format!(" limits {}", hex(limits)) }
}

fn attributes_of(rest: &[u8]) -> String {
    attributes(rest).fold(String::new(), |mut text, (kind, payload)| {
        let _ = match kind {
            XFRMA_LTIME_VAL | XFRMA_REPLAY_VAL | XFRMA_LASTUSED | XFRMA_PAD => Ok(()),
            XFRMA_POLICY_TYPE if payload.first() == Some(&0) => Ok(()),
            // struct xfrm_replay_state_esn: length, then counters, and the size of the window in the sixth number.
            XFRMA_REPLAY_ESN_VAL => write!(text, " esn-window {}", payload.get(20..24).map_or(0, number)),
            XFRMA_TMPL => write!(text, "{}", payload.chunks_exact(TEMPLATE).map(template).collect::<String>()),
            XFRMA_ALG_AUTH | XFRMA_ALG_CRYPT | XFRMA_ALG_COMP | XFRMA_ALG_AEAD | XFRMA_ALG_AUTH_TRUNC => {
                // struct xfrm_algo and its like: a name of 64 bytes, lengths, key.
                let (name, key) = payload.split_at(payload.len().min(64));
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                write!(text, " algorithm-{kind} {} key sha256 {}", word(name), hex(&Sha256::digest(key)))
            }
            _ => write!(text, " attribute-{kind} {}", hex(payload)),
        };
        text
    })
}

/// How a policy wants packets to be wrapped: struct xfrm_user_tmpl.
fn template(template: &[u8]) -> String {
    let family = u16::from_ne_bytes([template[24], template[25]]);
    let (to, from) = (in_family(family, &template[..16]), in_family(family, &template[28..44]));
    let (spi, protocol) = (number_be(&template[16..20]), template[20]);
    let (reqid, mode, optional) = (number(&template[44..48]), template[48], template[50]);
    format!(
        " template from {from} to {to} proto {protocol} spi {spi:#010x} reqid {reqid} mode {mode} optional {optional}"
    )
}
