//! Traffic control for the topic "links": queueing disciplines, classes, and the filters on them, which see packets below every
//! firewall hook. Counters are left out, and so is what actions behind filters do.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Error;
use super::escape::{hex, word};
use super::links::Links;
use super::netlink::{Netlink, attribute, attributes, number, string};

// include/uapi/linux/rtnetlink.h, struct tcmsg: family, padding, interface, handle, parent, info.
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// tc(8): where the filters of a clsact queueing discipline hang.
const TC_H_MIN_INGRESS: u32 = 0xffff_fff2;
const TC_H_MIN_EGRESS: u32 = 0xffff_fff3;
/// From here on the kernel numbers queueing disciplines itself, each with the next number.
const TC_H_AUTOMATIC: u32 = 0x8000_0000;
/// Queueing disciplines whose options are settings alone. Those of others (htb, sfq) hold counters too.
const PLAIN: [&str; 8] = ["bfifo", "codel", "fq", "fq_codel", "pfifo", "pfifo_fast", "prio", "tbf"];
/// struct tc_netem_qopt; what follows it may be a random number.
const NETEM: usize = 24;
/// The attributes of a filter that say what it matches and where that goes (include/uapi/linux/pkt_cls.h).
const MATCHES: [(&str, &[u16]); 2] = [
    // TCA_U32_*: CLASSID, HASH, LINK, DIVISOR, SEL, MARK.
    ("u32", &[1, 2, 3, 4, 5, 10]),
    // TCA_BPF_*: CLASSID, OPS_LEN, OPS, NAME, FLAGS, TAG.
    ("bpf", &[3, 4, 5, 7, 8, 10]),
];

struct Object {
    index: u32,
    handle: u32,
    parent: u32,
    info: u32,
    kind: String,
    options: Vec<u8>,
}

/// A line for each queueing discipline, class and filter.
pub fn queues(netlink: &mut Netlink, links: &Links) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    // The interface, what filters hang on, and how that is called.
    let mut hooks: BTreeSet<(u32, u32, String)> = BTreeSet::new();
    let mut with_handle = BTreeSet::new();
    for queue in objects(netlink, "list the queueing disciplines", libc::RTM_GETQDISC, 0, 0)? {
        if queue.kind == "clsact" || queue.kind == "ingress" {
            hooks.insert((queue.index, TC_H_MIN_INGRESS, "ingress".into()));
            hooks.insert((queue.index, TC_H_MIN_EGRESS, "egress".into()));
        } else if queue.handle != 0 {
            hooks.insert((queue.index, queue.handle, format!("on {}", class(queue.handle))));
            with_handle.insert(queue.index);
        }
        let mut text = format!("{} queue {} parent {:08x}", links.name(queue.index), queue.kind, queue.parent);
        if queue.handle != 0 && queue.handle < TC_H_AUTOMATIC {
            let _ = write!(text, " handle {:x}:", queue.handle >> 16);
        }
        let settings = match queue.kind.as_str() {
            "netem" => queue.options.get(..NETEM).unwrap_or_default(),
            kind if PLAIN.contains(&kind) => &queue.options,
            _ => &[],
        };
        if !settings.is_empty() {
            let _ = write!(text, " options {}", hex(settings));
        }
        lines.push(text + "\n");
    }
    // Only a queueing discipline that somebody has put there has classes that anything can hang on.
    for index in with_handle {
        for of in objects(netlink, "list the traffic control classes", libc::RTM_GETTCLASS, index, 0)? {
            hooks.insert((index, of.handle, format!("on {}", class(of.handle))));
            lines.push(format!(
                "{} class {} {} parent {}\n",
                links.name(index),
                of.kind,
                class(of.handle),
                class(of.parent)
            ));
        }
    }
    for (index, parent, hook) in hooks {
        for filter in objects(netlink, "list the traffic control filters", libc::RTM_GETTFILTER, index, parent)? {
            let mut text = format!("{} filter {hook} {}", links.name(index), filter.kind);
            // Preference and protocol.
            let _ = write!(text, " handle {:x} info {:08x}", filter.handle, filter.info);
            let shown = MATCHES.iter().find(|(kind, _)| *kind == filter.kind).map_or(&[][..], |(_, shown)| *shown);
            for (kind, payload) in attributes(&filter.options).filter(|(kind, _)| shown.contains(kind)) {
                let _ = write!(text, " option-{kind} {}", hex(payload));
            }
            lines.push(text + "\n");
        }
    }
    Ok(lines)
}

fn objects(
    netlink: &mut Netlink,
    action: &'static str,
    kind: u16,
    index: u32,
    parent: u32,
) -> Result<Vec<Object>, Error> {
    let mut request = [0; HEADER];
    request[4..8].copy_from_slice(&index.to_ne_bytes());
    request[12..16].copy_from_slice(&parent.to_ne_bytes());
    let object = |body: &[u8]| {
        let (header, rest) = body.split_at_checked(HEADER)?;
        Some(Object {
            index: number(&header[4..8]),
            handle: number(&header[8..12]),
            parent: number(&header[12..16]),
            info: number(&header[16..20]),
            kind: word(attribute(rest, TCA_KIND).map(string).unwrap_or_default()),
            options: attribute(rest, TCA_OPTIONS).unwrap_or_default().to_vec(),
        })
    };
    Ok(netlink.dump(action, kind, &request)?.iter().filter_map(|message| object(&message.body)).collect())
}

/// `major:minor` in hexadecimal, as tc(8) writes it; a major number that the kernel chose is left out.
fn class(handle: u32) -> String {
    match handle {
        u32::MAX => "root".into(),
        TC_H_AUTOMATIC.. => format!(":{:x}", handle & 0xffff),
        _ => format!("{:x}:{:x}", handle >> 16, handle & 0xffff),
    }
}
