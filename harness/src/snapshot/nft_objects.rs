//! The parts of an nftables ruleset as lines of text. Every attribute of a message is shown or is in a list here of what
//! changes by itself, so that nothing is lost unnoticed; a rule is shown as `nft` would where that is possible, always with a
//! digest of what it is on the wire, because two different rules can read the same. The attributes' numbers are those of
//! include/uapi/linux/netfilter/nf_tables.h.

use std::fmt::Write as _;

use nlink::netlink::nftables::{Family, RuleSpec, parse_expressions};
use sha2::{Digest, Sha256};

use super::escape::{hex, line, quoted, word};
use super::netlink::{attribute, attributes, number_be, string};

fn family_name(family: u8) -> String {
    Family::from_u8(family).map_or_else(|| format!("family-{family}"), |family| family.to_string())
}

/// `table inet name …`.
pub fn table(family: u8, name: &[u8], rest: &[u8]) -> String {
    const FLAGS: [(u32, &str); 3] = [(1, "dormant"), (2, "owner"), (4, "persist")];
    let mut text = format!("table {} {}", family_name(family), word(name));
    for (kind, payload) in attributes(rest) {
        match kind {
            // NAME, USE, HANDLE, PAD, OWNER (a port number; the flag says that there is one).
            1 | 3 | 4 | 5 | 7 => {}
            2 => text.push_str(&flags(payload, &FLAGS)),
            6 => text.push_str(&comment(payload)),
            _ => text.push_str(&unknown(kind, payload)),
        }
    }
    text.push('\n');
    text
}

/// `  chain name …`.
pub fn chain(family: u8, name: &[u8], rest: &[u8]) -> String {
    const FLAGS: [(u32, &str); 3] = [(1, "base"), (2, "hw-offload"), (4, "binding")];
    let mut text = format!("  chain {}", word(name));
    for (kind, payload) in attributes(rest) {
        match kind {
            // TABLE, HANDLE, NAME, USE, COUNTERS, PAD, ID.
            1 | 2 | 3 | 6 | 8 | 9 | 11 => {}
            4 => text.push_str(&hook(family, payload)),
            5 => {
                let policy = number_be(payload);
                let name = match policy {
                    0 => "drop".into(),
                    1 => "accept".into(),
                    other => other.to_string(),
                };
                let _ = write!(text, " policy {name}");
            }
            7 => {
                let _ = write!(text, " type {}", word(string(payload)));
            }
            10 => text.push_str(&flags(payload, &FLAGS)),
            12 => text.push_str(&comment(payload)),
            _ => text.push_str(&unknown(kind, payload)),
        }
    }
    text.push('\n');
    text
}

fn hook(family: u8, payload: &[u8]) -> String {
    const INET: [&str; 6] = ["prerouting", "input", "forward", "output", "postrouting", "ingress"];
    const NETDEV: [&str; 2] = ["ingress", "egress"];
    const ARP: [&str; 3] = ["input", "output", "forward"];
    let names: &[&str] = match Family::from_u8(family) {
        Some(Family::Netdev) => &NETDEV,
        Some(Family::Arp) => &ARP,
        _ => &INET,
    };
    let mut text = String::new();
    for (kind, payload) in attributes(payload) {
        let _ = match kind {
            1 => {
                let hook = number_be(payload);
                let name = names.get(hook as usize).map_or_else(|| hook.to_string(), |name| (*name).into());
                write!(text, " hook {name}")
            }
            2 => write!(text, " priority {}", number_be(payload) as i32),
            3 => write!(text, " device {}", word(string(payload))),
            // A single device is there twice.
            4 if attribute(payload, 1).is_some() && attributes(payload).count() == 1 => Ok(()),
            4 => {
                let mut devices: Vec<String> = attributes(payload).map(|(_, name)| word(string(name))).collect();
                devices.sort();
                write!(text, " devices {}", devices.join(","))
            }
            _ => write!(text, "{}", unknown(kind, payload)),
        };
    }
    text
}

/// `    rule …`.
pub fn rule(family: u8, rest: &[u8]) -> String {
    let mut text = String::from("    rule ");
    let expressions = attribute(rest, 4).unwrap_or_default();
    let exact = exact(expressions);
    match readable(family, expressions) {
        Some(readable) => text.push_str(&readable),
        None => text.push_str(&exact),
    }
    let mut digested = exact;
    for (kind, payload) in attributes(rest) {
        let shown = match kind {
            // TABLE, CHAIN, HANDLE, EXPRESSIONS, POSITION, PAD, ID, POSITION_ID, CHAIN_ID.
            1..=4 | 6 | 8..=11 => continue,
            7 => comment(payload),
            // COMPAT among them: the protocol an xtables match was checked for.
            _ => unknown(kind, payload),
        };
        text.push_str(&shown);
        digested.push_str(&shown);
    }
    // What tells two rules apart that read the same (a protocol match that a port match implies, say).
    let _ = writeln!(text, "  # {}", hex(&Sha256::digest(digested)[..12]));
    text
}

/// The rule as `nft -s list ruleset` prints it, without comment.
fn readable(family: u8, expressions: &[u8]) -> Option<String> {
    let family = Family::from_u8(family)?;
    let parsed = parse_expressions(expressions);
    if parsed.is_empty() {
        return None;
    }
    let text = RuleSpec::lift(&parsed, family).nft_syntax_stateless(family)?;
    // Names and prefixes in a rule are other people's bytes.
    Some(line(text.as_bytes()))
}

/// The expressions one by one: `[ name 1=hex 2=hex ]`, without what packets change.
fn exact(expressions: &[u8]) -> String {
    let mut text = String::new();
    for (_, element) in attributes(expressions) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&expression(element));
    }
    if text.is_empty() { "[ ]".into() } else { text }
}

fn expression(element: &[u8]) -> String {
    let name = attribute(element, 1).map(string).unwrap_or_default();
    let mut text = format!("[ {}", word(name));
    for (kind, payload) in attributes(attribute(element, 2).unwrap_or_default()) {
        let counts = match name {
            b"counter" => matches!(kind, 1 | 2),
            b"quota" => kind == 4,
            b"last" => true,
            _ => false,
        };
        if !counts {
            let _ = write!(text, " {kind}={}", hex(payload));
        }
    }
    text.push_str(" ]");
    text
}

const SET_INTERVAL_END: u32 = 1;
/// NFT_SET_EVAL: rules add and remove the elements.
const SET_DYNAMIC: u32 = 0x20;

/// `  set name …`, then the elements, sorted. `messages` are the answers to the question for the elements.
pub fn set(name: &[u8], rest: &[u8], messages: &[&[u8]]) -> String {
    const FLAGS: [(u32, &str); 8] = [
        (0x1, "anonymous"),
        (0x2, "constant"),
        (0x4, "interval"),
        (0x8, "map"),
        (0x10, "timeout"),
        (SET_DYNAMIC, "dynamic"),
        (0x40, "object"),
        (0x80, "concat"),
    ];
    let mut text = format!("  set {}", word(name));
    for (kind, payload) in attributes(rest) {
        let _ = match kind {
            // TABLE, NAME, ID, PAD, HANDLE, TYPE (which the kernel chooses), COUNT.
            1 | 2 | 10 | 14 | 16 | 19 | 20 => Ok(()),
            3 => write!(text, "{}", flags(payload, &FLAGS)),
            4 => write!(text, " key {}", number_be(payload)),
            5 => write!(text, " length {}", number_be(payload)),
            6 => write!(text, " data {:#x}", number_be(payload)),
            7 => write!(text, " data-length {}", number_be(payload)),
            8 => write!(text, " policy {}", number_be(payload)),
            9 => write!(text, " description {}", hex(payload)),
            11 => write!(text, " timeout {}", hex(payload)),
            12 => write!(text, " gc {}", hex(payload)),
            13 => write!(text, "{}", comment(payload)),
            15 => write!(text, " objects {}", number_be(payload)),
            17 => write!(text, " {}", expression(payload)),
            18 => write!(text, " {}", exact(payload)),
            _ => write!(text, "{}", unknown(kind, payload)),
        };
    }
    text.push('\n');
    let dynamic = attribute(rest, 3).map_or(0, number_be) & SET_DYNAMIC != 0;
    if dynamic {
        text.push_str("    elements come and go with packets and are not recorded\n");
        return text;
    }
    let key_type = attribute(rest, 4).map_or(0, number_be);
    let mut elements: Vec<_> = messages
        .iter()
        .filter_map(|message| attribute(message, 3))
        .flat_map(attributes)
        .filter_map(|(_, element)| render_element(key_type, element))
        .collect();
    elements.sort();
    for (_, element) in elements {
        text.push_str(&element);
    }
    text
}

/// What elements are sorted by, and the line; `None` for one that expires.
fn render_element(key_type: u32, element: &[u8]) -> Option<((Vec<u8>, bool), String)> {
    let mut text = String::from("    element ");
    let raw = attribute(element, 1).unwrap_or_default();
    let flags = attribute(element, 3).map_or(0, number_be);
    text.push_str(&key(key_type, raw));
    if flags & SET_INTERVAL_END != 0 {
        text.push_str(" end-of-interval");
    }
    for (kind, payload) in attributes(element) {
        let _ = match kind {
            // KEY, PAD.
            1 | 8 => Ok(()),
            2 => write!(text, " : {}", data(payload)),
            3 if flags & !SET_INTERVAL_END == 0 => Ok(()),
            3 => write!(text, " flags {flags:#x}"),
            // TIMEOUT, EXPIRATION.
            4 | 5 => return None,
            6 => write!(text, "{}", comment(payload)),
            7 => write!(text, " {}", expression(payload)),
            9 => write!(text, " : object {}", word(string(payload))),
            10 => write!(text, " - {}", key(key_type, payload)),
            11 => write!(text, " {}", exact(payload)),
            _ => write!(text, "{}", unknown(kind, payload)),
        };
    }
    text.push('\n');
    Some(((raw.to_vec(), flags & SET_INTERVAL_END != 0), text))
}

/// A key as text where its type (nft's numbers) has an obvious one and no second reading.
fn key(key_type: u32, payload: &[u8]) -> String {
    const IPV4: u32 = 7;
    const IPV6: u32 = 8;
    const PORT: u32 = 13;
    match (key_type, attribute(payload, 1)) {
        (IPV4, Some(bytes)) if bytes.len() == 4 => super::routes::address(libc::AF_INET as u8, bytes),
        (IPV6, Some(bytes)) if bytes.len() == 16 => super::routes::address(libc::AF_INET6 as u8, bytes),
        (PORT, Some(bytes)) if bytes.len() == 2 => number_be(bytes).to_string(),
        (_, Some(bytes)) => hex(bytes),
        (_, None) => data(payload),
    }
}

/// NFTA_DATA_VALUE, or NFTA_DATA_VERDICT with code and chain.
fn data(payload: &[u8]) -> String {
    if let Some(value) = attribute(payload, 1) {
        return hex(value);
    }
    let verdict = attribute(payload, 2).unwrap_or_default();
    let code = attribute(verdict, 1).map_or(0, number_be) as i32;
    let name = match code {
        0 => "drop".into(),
        1 => "accept".into(),
        -1 => "continue".into(),
        -2 => "break".into(),
        -3 => "jump".into(),
        -4 => "goto".into(),
        -5 => "return".into(),
        other => format!("verdict {other}"),
    };
    match attribute(verdict, 2) {
        Some(chain) => format!("{name} {}", word(string(chain))),
        None => name,
    }
}

/// `  object name …`.
pub fn object(name: &[u8], rest: &[u8]) -> String {
    const COUNTER: u32 = 1;
    const QUOTA: u32 = 2;
    let of = attribute(rest, 3).map_or(0, number_be);
    let label = match of {
        COUNTER => "counter".into(),
        QUOTA => "quota".into(),
        3 => "ct-helper".into(),
        4 => "limit".into(),
        other => format!("type-{other}"),
    };
    let mut text = format!("  object {} {label}", word(name));
    for (kind, payload) in attributes(rest) {
        match kind {
            // TABLE, NAME, TYPE, USE, HANDLE, PAD.
            1..=3 | 5..=7 => {}
            4 => {
                for (kind, payload) in attributes(payload) {
                    if !(of == COUNTER || of == QUOTA && kind == 4) {
                        let _ = write!(text, " {kind}={}", hex(payload));
                    }
                }
            }
            8 => text.push_str(&comment(payload)),
            _ => text.push_str(&unknown(kind, payload)),
        }
    }
    text.push('\n');
    text
}

/// `  flowtable name …`.
pub fn flowtable(name: &[u8], rest: &[u8]) -> String {
    let mut text = format!("  flowtable {}", word(name));
    for (kind, payload) in attributes(rest) {
        match kind {
            // TABLE, NAME, USE, HANDLE, PAD.
            1 | 2 | 4 | 5 | 6 => {}
            3 => {
                for (kind, payload) in attributes(payload) {
                    let _ = match kind {
                        1 => write!(text, " hook {}", number_be(payload)),
                        2 => write!(text, " priority {}", number_be(payload) as i32),
                        3 => {
                            let mut devices: Vec<String> =
                                attributes(payload).map(|(_, name)| word(string(name))).collect();
                            devices.sort();
                            write!(text, " devices {}", devices.join(","))
                        }
                        _ => write!(text, "{}", unknown(kind, payload)),
                    };
                }
            }
            7 => text.push_str(&flags(payload, &[(1, "offload"), (2, "counter")])),
            _ => text.push_str(&unknown(kind, payload)),
        }
    }
    text.push('\n');
    text
}

fn flags(payload: &[u8], names: &[(u32, &str)]) -> String {
    let mut rest = number_be(payload);
    let mut text = String::new();
    for (bit, name) in names {
        if rest & bit != 0 {
            let _ = write!(text, " {name}");
            rest &= !bit;
        }
    }
    if rest != 0 {
        let _ = write!(text, " flags {rest:#x}");
    }
    text
}

/// User data: type, length, value, of which 0 is a comment in tables, chains, rules, sets, elements and objects alike.
fn comment(payload: &[u8]) -> String {
    match payload {
        [0, length, text @ .., 0] if usize::from(*length) == text.len() + 1 && !text.contains(&0) => {
            format!(" comment {}", quoted(text))
        }
        _ => format!(" userdata {}", hex(payload)),
    }
}

fn unknown(kind: u16, payload: &[u8]) -> String {
    format!(" attribute-{kind} {}", hex(payload))
}
