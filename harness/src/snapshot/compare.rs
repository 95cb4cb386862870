//! What is different between two snapshots, and which requirement that breaks. A pure function of the stored text, because a
//! bundle is judged again years later.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::diff::{by_key, is_within, lines, paragraphs, some_of, unified};
use super::{NONE, Snapshot, backup, resolver};

/// One thing that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// The topic it is in.
    pub topic: String,
    /// The leak class: X01 to X05.
    pub class: &'static str,
    /// The requirement it breaks.
    pub requirement: &'static str,
    /// That requirement's level.
    pub severity: Severity,
    /// One sentence.
    pub summary: String,
    /// A unified diff of canonical text, every byte visible.
    pub diff: String,
}

/// How much a difference counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Fails only under `--strict`.
    Should,
    /// Fails.
    Must,
}

/// After what the client is compared, which decides the requirement and the leak class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Occasion {
    /// A disconnect or a clean stop: RST-1, STA-3, FWL-16.
    #[default]
    Disconnect,
    /// A crash, a new start and a disconnect: RST-2, X02.
    Crash,
    /// A disconnect after somebody else had edited the resolver file, so that the first snapshot holds what they left
    /// ([`Snapshot::expect_resolv_conf`]): RST-4, X03 for that file.
    Edit,
}

/// What may be different.
#[derive(Debug, Clone, Default)]
pub struct Tolerance {
    /// After what.
    pub occasion: Occasion,
    /// Under lockdown the subject goes on blocking: tables, rules in the tables of others, routing rules, routes in tables
    /// of their own and IPsec policies that block may have been added. Nothing of anybody else's may be changed or gone.
    pub own_rules_stay: bool,
    /// nftables tables that are not looked at, as `inet name`.
    pub ignore_tables: Vec<String>,
    /// Paths in the client that are not looked at, nor is what is below them.
    pub ignore_paths: Vec<PathBuf>,
    /// Interfaces that somebody else added or removed meanwhile: they, their addresses, routes and settings are not looked at.
    pub ignore_links: Vec<String>,
    /// Topics that are not looked at.
    pub ignore_topics: BTreeSet<String>,
}

/// Something a third-party program leaves behind that is no finding, and is listed in the report.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ToleratedRemain {
    /// An empty directory or an empty file.
    pub path: &'static str,
    /// The program, and why it does.
    pub reason: &'static str,
}

/// All that is tolerated. Each only while it is empty.
pub const TOLERATED_REMAINS: &[ToleratedRemain] = &[
    ToleratedRemain { path: "/run/wireguard", reason: "wireguard-go makes it for its sockets and leaves it" },
    ToleratedRemain {
        path: "/run/resolvconf/exclusive",
        reason: "openresolv makes it for exclusive records and leaves it",
    },
    ToleratedRemain {
        path: "/run/systemd/resolve/netif",
        reason: "systemd-resolved makes it when it is told of a link's servers for the first time, and leaves it",
    },
    ToleratedRemain { path: "/run/xtables.lock", reason: "iptables locks it and leaves it" },
];

/// The tolerated remains that are in the second snapshot and were not in the first.
pub fn tolerated_remains(before: &Snapshot, after: &Snapshot) -> Vec<&'static ToleratedRemain> {
    let (before, after) = (by_key(before.topic("files")), by_key(after.topic("files")));
    let is_empty = |path: &str| {
        let Some(text) = after.get(path) else { return false };
        let below = format!("{path}/");
        let file = text.contains(" file ") && text.contains(" size 0 ");
        file || text.contains(" dir ") && !after.keys().any(|other| other.starts_with(&below))
    };
    TOLERATED_REMAINS.iter().filter(|remain| !before.contains_key(remain.path) && is_empty(remain.path)).collect()
}

/// What is different in `after`, in the order of the topics; nothing if everything is exactly as it was.
pub fn compare(before: &Snapshot, after: &Snapshot, tolerance: &Tolerance) -> Vec<Difference> {
    let mut found = Vec::new();
    let comparison = Comparison { before, after, tolerance };
    let topics: BTreeSet<&String> = before.topics.keys().chain(after.topics.keys()).collect();
    for topic in topics.into_iter().filter(|topic| !tolerance.ignore_topics.contains(*topic)) {
        match topic.as_str() {
            "state_dir" => found.extend(comparison.state_dir()),
            _ if !before.topics.contains_key(topic) => found.extend(comparison.unrecorded(topic, "before")),
            _ if !after.topics.contains_key(topic) => found.extend(comparison.unrecorded(topic, "after")),
            "resolv.conf" => found.extend(comparison.resolv_conf()),
            "etc" | "files" | "dev" => found.extend(comparison.files(topic)),
            "nftables" => found.extend(comparison.nftables()),
            "network-manager" => found.extend(comparison.network_manager()),
            "sysctl" => found.extend(comparison.sysctl()),
            _ => found.extend(comparison.list(topic)),
        }
    }
    found
}

struct Comparison<'a> {
    before: &'a Snapshot,
    after: &'a Snapshot,
    tolerance: &'a Tolerance,
}

impl Comparison<'_> {
    fn difference(
        &self,
        topic: &str,
        class: &'static str,
        requirement: &'static str,
        summary: String,
        diff: String,
    ) -> Difference {
        let (class, requirement) = match self.tolerance.occasion {
            Occasion::Crash => ("X02", "RST-2"),
            Occasion::Edit if topic == "resolv.conf" => ("X03", "RST-4"),
            Occasion::Disconnect | Occasion::Edit => (class, requirement),
        };
        Difference { topic: topic.into(), class, requirement, severity: Severity::Must, summary, diff }
    }

    fn unrecorded(&self, topic: &str, when: &str) -> Option<Difference> {
        let (before, after) = (self.before.topic(topic), self.after.topic(topic));
        let summary = format!("{topic} was not recorded {when}, so nothing can be said about it");
        Some(self.difference(topic, "X01", "RST-1", summary, unified(topic, before, after)))
    }

    fn resolv_conf(&self) -> Option<Difference> {
        let change = resolver::compare(self.before.topic("resolv.conf"), self.after.topic("resolv.conf"))?;
        let requirement = if change.is_content && !change.is_generated { "STA-3" } else { "RST-1" };
        let mut difference = self.difference("resolv.conf", "X01", requirement, change.summary, change.diff);
        if change.is_time_only {
            (difference.class, difference.requirement, difference.severity) = ("X01", "RST-7", Severity::Should);
        }
        Some(difference)
    }

    /// Files by what they are part of, so that one finding is about one thing.
    fn files(&self, topic: &str) -> Vec<Difference> {
        let (mut before, mut after) = (self.files_of(self.before, topic), self.files_of(self.after, topic));
        let mut keys = differing(&before, &after);
        // What is different in both topics is a difference in "etc", shown as in "files", where its content is.
        let other = if topic == "etc" { "files" } else { "etc" };
        let (other_before, other_after) = (self.files_of(self.before, other), self.files_of(self.after, other));
        for key in differing(&other_before, &other_after) {
            if topic == "files" {
                keys.remove(key);
            } else if keys.contains(key) {
                let show = |files: &mut BTreeMap<_, _>, other: &BTreeMap<_, _>| match other.get(key) {
                    Some(text) => files.insert(key, *text),
                    None => files.remove(key),
                };
                show(&mut before, &other_before);
                show(&mut after, &other_after);
            }
        }
        let mut groups: BTreeMap<&'static str, Vec<&str>> = BTreeMap::new();
        for key in keys {
            groups.entry(class_of(key)).or_default().push(key);
        }
        let only = |files: &BTreeMap<&str, &str>, keys: &[&str]| -> String {
            keys.iter().filter_map(|key| files.get(key).copied()).collect()
        };
        let difference = |(class, keys): (&'static str, Vec<&str>)| {
            let diff = unified(topic, &only(&before, &keys), &only(&after, &keys));
            self.difference(topic, class, "RST-1", summary_of_files(&before, &after, &keys), diff)
        };
        groups.into_iter().map(difference).collect()
    }

    /// A topic's files without those that another topic is about or that may differ.
    fn files_of<'a>(&self, snapshot: &'a Snapshot, topic: &str) -> BTreeMap<&'a str, &'a str> {
        let mut files = by_key(snapshot.topic(topic));
        let elsewhere = resolver::paths_in_both(self.before.topic("resolv.conf"), self.after.topic("resolv.conf"));
        let remains = tolerated_remains(self.before, self.after);
        let ignored: Vec<String> = self
            .tolerance
            .ignore_paths
            .iter()
            .map(|path| super::escape::word(path.as_os_str().as_encoded_bytes()))
            .collect();
        files.retain(|key, _| {
            let below =
                |path: &String| *key == path || key.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
            !elsewhere.contains(*key) && !remains.iter().any(|remain| remain.path == *key) && !ignored.iter().any(below)
        });
        files
    }

    fn state_dir(&self) -> Vec<Difference> {
        let Some(original) = resolver::content(self.before.topic("resolv.conf")) else { return Vec::new() };
        let difference = |copy: backup::Copy| {
            let summary =
                format!("backup left behind: {} still holds the original resolver file, {}", copy.path, copy.form);
            self.difference("state_dir", "X01", "RST-1", summary, unified("state_dir", "", &copy.paragraph))
        };
        backup::copies(&original, self.after.topic("state_dir")).into_iter().map(difference).collect()
    }

    fn nftables(&self) -> Option<Difference> {
        let name = |table: &str| {
            let mut words = table.split([' ', '\n']).skip(1);
            format!("{} {}", words.next().unwrap_or_default(), words.next().unwrap_or_default())
        };
        let tables = |text: &str| -> BTreeMap<String, String> {
            let tables = paragraphs(text).map(|table| (name(table), table.to_owned()));
            tables.filter(|(name, _)| !self.tolerance.ignore_tables.contains(name)).collect()
        };
        let before = tables(self.before.topic("nftables"));
        let mut after = tables(self.after.topic("nftables"));
        if self.tolerance.own_rules_stay {
            after.retain(|name, _| before.contains_key(name));
            for (name, table) in &mut after {
                if is_within(&before[name], table) {
                    table.clone_from(&before[name]);
                }
            }
        }
        if before == after {
            return None;
        }
        let names = |one: &BTreeMap<String, String>, other: &BTreeMap<String, String>, both: bool| -> Vec<String> {
            one.iter()
                .filter(|(name, table)| other.get(*name).map_or(!both, |other| both && other != *table))
                .map(|(name, _)| name.clone())
                .collect()
        };
        let parts = [
            ("tables left over", names(&after, &before, false)),
            ("tables missing", names(&before, &after, false)),
            ("tables changed", names(&before, &after, true)),
        ];
        let parts =
            parts.iter().filter_map(|(what, list)| some_of(what, &list.iter().map(String::as_str).collect::<Vec<_>>()));
        let summary = format!("nftables: {}", parts.collect::<Vec<_>>().join("; "));
        let text = |tables: BTreeMap<String, String>| tables.into_values().collect::<String>();
        Some(self.difference("nftables", "X04", "FWL-16", summary, unified("nftables", &text(before), &text(after))))
    }

    /// The switch for connectivity checking is another requirement's matter than connections and servers.
    fn network_manager(&self) -> Vec<Difference> {
        const SWITCH: &str = "global ConnectivityCheckEnabled ";
        let parts = |snapshot: &Snapshot| -> (String, String) {
            snapshot.topic("network-manager").split_inclusive('\n').partition(|line| line.starts_with(SWITCH))
        };
        let (before, after) = (parts(self.before), parts(self.after));
        let compared = [(before.0, after.0, "NMG-3"), (before.1, after.1, "NMG-2")];
        let difference = |(before, after, requirement): (String, String, &'static str)| {
            if before == after {
                return None;
            }
            let (missing, added) = lines(&before, &after);
            let mut parts: Vec<String> =
                [some_of("left over", &added), some_of("missing", &missing)].into_iter().flatten().collect();
            if parts.is_empty() {
                parts.push("in another order".into());
            }
            let summary = format!("network-manager: {}", parts.join("; "));
            let diff = unified("network-manager", &before, &after);
            Some(self.difference("network-manager", "X05", requirement, summary, diff))
        };
        compared.into_iter().filter_map(difference).collect()
    }

    /// Settings that are there both times: those of an interface come and go with it, those of a module with the machine's.
    fn sysctl(&self) -> Option<Difference> {
        let (before, after) = (by_key(self.before.topic("sysctl")), by_key(self.after.topic("sysctl")));
        let of_ignored_link =
            |key: &str| self.tolerance.ignore_links.iter().any(|link| key.split('/').any(|part| part == link));
        let changed: Vec<&str> = before
            .iter()
            .filter(|(key, value)| after.get(*key).is_some_and(|now| now != *value) && !of_ignored_link(key))
            .map(|(key, _)| *key)
            .collect();
        let summary = format!("kernel settings: {}", some_of("changed", &changed)?);
        let only = |settings: &BTreeMap<&str, &str>| changed.iter().map(|key| settings[key]).collect::<String>();
        Some(self.difference("sysctl", "X04", "FWL-16", summary, unified("sysctl", &only(&before), &only(&after))))
    }

    /// A topic of independent lines.
    fn list(&self, topic: &str) -> Option<Difference> {
        let keep = |text: &str| -> String {
            let counts =
                |line: &&str| !line.starts_with(NONE) && !self.of_ignored_link(topic, line) && !is_passing(topic, line);
            text.split_inclusive('\n').filter(counts).collect()
        };
        let before = keep(self.before.topic(topic));
        let mut after = keep(self.after.topic(topic));
        if self.tolerance.own_rules_stay && matches!(topic, "rules" | "routes" | "xfrm") {
            let (_, mut added) = lines(&before, &after);
            added.retain(|line| match topic {
                "rules" => true,
                "xfrm" => line.starts_with("policy ") && line.contains(" action block "),
                _ => !["main", "local", "default"].iter().any(|shared| line.contains(&format!(" table {shared} "))),
            });
            let mut added: Vec<String> = added.into_iter().map(str::to_owned).collect();
            after = after
                .split_inclusive('\n')
                .filter(|line| match added.iter().position(|added| added == line.trim_end_matches('\n')) {
                    Some(at) => {
                        added.swap_remove(at);
                        false
                    }
                    None => true,
                })
                .collect();
        }
        if before == after {
            return None;
        }
        let (missing, added) = lines(&before, &after);
        let mut parts: Vec<String> =
            [some_of("left over", &added), some_of("missing", &missing)].into_iter().flatten().collect();
        if parts.is_empty() {
            parts.push("in another order".into());
        }
        let (class, requirement) = match topic {
            "rules" | "iptables" | "xfrm" => ("X04", "FWL-16"),
            "resolvconf" => ("X05", "RCF-2"),
            "forwarder" | "systemd-resolved" | "systemd-networkd" | "bus-names" => ("X05", "RST-1"),
            _ => ("X04", "RST-1"),
        };
        let summary = format!("{topic}: {}", parts.join("; "));
        Some(self.difference(topic, class, requirement, summary, unified(topic, &before, &after)))
    }

    fn of_ignored_link(&self, topic: &str, line: &str) -> bool {
        let mut words = line.split_whitespace();
        self.tolerance.ignore_links.iter().any(|link| match topic {
            "links" | "addresses" | "neighbours" => line.split(' ').next() == Some(link),
            "routes" | "rules" | "address-labels" | "xfrm" | "mptcp" => {
                let words: Vec<&str> = words.by_ref().collect();
                words.windows(2).any(|pair| matches!(pair[0], "dev" | "iif" | "oif") && pair[1] == link)
            }
            _ => false,
        })
    }
}

/// NetworkManager's dispatcher is started by the bus when there is something to tell, and ends by itself.
fn is_passing(topic: &str, line: &str) -> bool {
    match topic {
        "processes" => line.trim_end().ends_with("/nm-dispatcher"),
        "bus-names" => line.trim_end() == "org.freedesktop.nm_dispatcher",
        _ => false,
    }
}

/// X05 for what resolver services keep, X04 for connection profiles, X01 for all else.
fn class_of(path: &str) -> &'static str {
    const SERVICES: [&str; 10] = [
        "/run/systemd/resolve",
        "/run/systemd/netif",
        "/run/systemd/network",
        "/run/NetworkManager",
        "/run/resolvconf",
        "/run/dnsmasq",
        "/etc/NetworkManager",
        "/etc/systemd/resolved.conf",
        "/etc/resolvconf",
        "/var/lib/NetworkManager",
    ];
    if path.contains("/system-connections/") {
        return "X04";
    }
    if SERVICES.iter().any(|service| path.starts_with(service)) { "X05" } else { "X01" }
}

fn differing<'a>(before: &BTreeMap<&'a str, &str>, after: &BTreeMap<&'a str, &str>) -> BTreeSet<&'a str> {
    let keys = before.keys().chain(after.keys());
    keys.copied().filter(|key| before.get(key) != after.get(key)).collect()
}

fn summary_of_files(before: &BTreeMap<&str, &str>, after: &BTreeMap<&str, &str>, keys: &[&str]) -> String {
    let (mut added, mut missing, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for key in keys {
        // In the topic "files" a path of the private root has a word before its type.
        let state = |files: &BTreeMap<&str, &'_ str>| {
            files.get(key).map(|text| text.split([' ', '\n']).nth(1).unwrap_or("").to_owned())
        };
        match (state(before), state(after)) {
            (_, Some(now)) if now == "deleted" => missing.push(*key),
            (None, Some(now)) if now == "changed" => changed.push(*key),
            (None, Some(_)) => added.push(*key),
            (Some(was), _) if was == "deleted" => added.push(*key),
            (Some(was), None) if was == "changed" => changed.push(*key),
            (Some(_), None) => missing.push(*key),
            (Some(_), Some(_)) => changed.push(*key),
            (None, None) => {}
        }
    }
    let parts = [some_of("left over", &added), some_of("missing", &missing), some_of("changed", &changed)];
    format!("files: {}", parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
}
