//! Two texts of the topic "resolv.conf" compared, and the text for a file that somebody else is known to have left. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Snapshot;
use sha2::{Digest, Sha256};

use super::diff::{paragraphs, unified};
use super::escape::{block, hex, unblock, word};
use super::resolv_conf::PATH;

/// What a third party left where /etc/resolv.conf was, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolvConf {
    /// Nothing.
    Missing,
    /// A file with these bytes; mode (without the type), user and group if they are known.
    File {
        /// All of it.
        bytes: Vec<u8>,
        /// The permission bits.
        mode: Option<u32>,
        /// User and group.
        owner: Option<(u32, u32)>,
    },
    /// A symbolic link with this target; what it leads to is not looked at.
    Symlink {
        /// As readlink(2) gives it.
        target: Vec<u8>,
    },
}

impl Snapshot {
    /// Puts what somebody else left meanwhile in the place of the original, so that it is what must be there afterwards
    /// (RST-4, STA-5). What is not known about it (times, attributes, …) is not compared.
    pub fn expect_resolv_conf(&mut self, left: &ResolvConf) {
        let mut text = format!("path: {PATH}\n");
        match left {
            ResolvConf::Missing => text.push_str("type: missing\n"),
            ResolvConf::File { bytes, mode, owner } => {
                let mode = mode.map_or(ANY.into(), |mode| format!("{mode:04o}"));
                let owner = owner.map_or(ANY.into(), |(uid, gid)| format!("{uid}:{gid}"));
                let _ = write!(
                    text,
                    "type: file\nmode: {mode}\nowner: {owner}\nmtime: {ANY}\nattribute: {ANY}\nflags: {ANY}\n"
                );
                let _ = write!(text, "content:\n{}", block(bytes));
            }
            ResolvConf::Symlink { target } => {
                let _ = write!(
                    text,
                    "type: symlink\ntarget: {}\nowner: {ANY}\nmtime: {ANY}\nattribute: {ANY}\n",
                    word(target)
                );
                let _ = write!(text, "\npath: {ANY}\n");
            }
        }
        self.topics.insert("resolv.conf".into(), text);
    }
}

/// Topics that name the servers of a lease.
const OF_LEASES: [&str; 4] = ["resolv.conf", "systemd-resolved", "network-manager", "files"];

impl Snapshot {
    /// Puts the servers of a lease that was renewed meanwhile in the place of those that it had (RST-4): everything else must be
    /// as before, and each server where the one before was. When files were written is not compared.
    pub fn expect_renewed_lease(&mut self, was: &[String], is: &[String]) {
        for topic in OF_LEASES {
            let Some(text) = self.topics.get_mut(topic) else { continue };
            *text = match topic {
                "files" => renewed_files(text, was, is),
                _ => renewed(text, was, is),
            };
            if topic == "resolv.conf" {
                let lines = text.lines().map(|line| if line.starts_with("mtime: ") { "mtime: *" } else { line });
                *text = lines.map(|line| format!("{line}\n")).collect();
            }
        }
    }
}

/// Whole words alone: an address is part of longer ones.
fn renewed(text: &str, was: &[String], is: &[String]) -> String {
    let address = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':');
    let mut new = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let inside = rest.find(|c| !address(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(inside);
        // A colon may end a word of prose.
        let place = was.iter().position(|server| server == run);
        new.push_str(place.and_then(|place| is.get(place)).map_or(run, String::as_str));
        let outside = after.find(address).unwrap_or(after.len());
        new.push_str(&after[..outside]);
        rest = &after[outside..];
    }
    new
}

/// Files whose content is shown, with the size and digest of their new content.
fn renewed_files(text: &str, was: &[String], is: &[String]) -> String {
    let file = |paragraph: &str| {
        let new = renewed(paragraph, was, is);
        let (Some(bytes), Some((head, _)), Some((_, blocks))) =
            (unblock(&new), new.split_once(" size "), new.split_once('\n'))
        else {
            return paragraph.to_owned();
        };
        if new == paragraph {
            return new;
        }
        format!("{head} size {} sha256 {}\n{blocks}", bytes.len(), hex(&Sha256::digest(&bytes)))
    };
    paragraphs(text).map(file).collect()
}

/// The value of a line that may be anything.
const ANY: &str = "*";

/// How two texts differ.
pub struct Change {
    pub summary: String,
    pub diff: String,
    /// Bytes, type or target, not only what surrounds them.
    pub is_content: bool,
    /// A service writes the file: it is a link to somewhere below /run.
    pub is_generated: bool,
    /// Only times of modification.
    pub is_time_only: bool,
}

/// `None` if the second is as the first.
pub fn compare(before: &str, after: &str) -> Option<Change> {
    let (before, after) = (files(before), files(after));
    let after = forget(&before, after);
    let is_generated = before.len() > 1 && before.iter().skip(1).any(|file| file.is_below_run());

    let timeless = |files: &[File]| files.iter().map(|file| file.text(false)).collect::<String>();
    let whole = |files: &[File]| files.iter().map(|file| file.text(true)).collect::<String>();
    if timeless(&before) != timeless(&after) {
        let labels = differing(&before, &after);
        let is_content = labels.iter().any(|label| matches!(*label, "path" | "type" | "target" | "content"));
        return Some(Change {
            summary: summary(&before, &after, &labels),
            diff: unified("resolv.conf", &timeless(&before), &timeless(&after)),
            is_content,
            is_generated,
            is_time_only: false,
        });
    }
    // A service may have written its file again.
    let touched = before.iter().zip(&after).any(|(before, after)| {
        !before.is_below_run() && before.get("mtime") != after.get("mtime") && before.get("mtime") != Some(ANY)
    });
    touched.then(|| Change {
        summary: format!("{PATH}: restored, but its time of modification is another one"),
        diff: unified("resolv.conf", &whole(&before), &whole(&after)),
        is_content: false,
        is_generated,
        is_time_only: true,
    })
}

/// /etc/resolv.conf, and the paths that it leads to in both texts.
pub fn paths_in_both(before: &str, after: &str) -> BTreeSet<String> {
    let paths = |text: &str| -> BTreeSet<String> {
        files(text).iter().filter_map(|file| Some(file.get("path")?.to_owned())).collect()
    };
    let mut both: BTreeSet<String> = paths(before).intersection(&paths(after)).cloned().collect();
    both.insert(PATH.into());
    both
}

/// The bytes that a reader of /etc/resolv.conf gets; `None` if it gets none.
pub fn content(text: &str) -> Option<Vec<u8>> {
    unblock(text)
}

/// One paragraph: labels and values, and the content's lines.
#[derive(Clone, Default)]
struct File {
    lines: Vec<(String, String)>,
    content: String,
}

impl File {
    fn get(&self, label: &str) -> Option<&str> {
        if label == "content" {
            return Some(&self.content);
        }
        self.lines.iter().find(|(known, _)| known == label).map(|(_, value)| value.as_str())
    }

    fn all(&self, label: &str) -> Vec<&str> {
        match label {
            "content" => vec![&self.content],
            _ => self.lines.iter().filter(|(known, _)| known == label).map(|(_, value)| value.as_str()).collect(),
        }
    }

    fn is_below_run(&self) -> bool {
        self.get("path").is_some_and(|path| path.starts_with("/run/") || path.starts_with("/var/run/"))
    }

    fn text(&self, with_time: bool) -> String {
        let mut text = String::new();
        for (label, value) in self.lines.iter().filter(|(label, _)| with_time || label != "mtime") {
            let _ = writeln!(text, "{label}: {value}");
        }
        text + &self.content
    }
}

fn files(text: &str) -> Vec<File> {
    let parse = |paragraph: &str| {
        let mut file = File::default();
        for line in paragraph.lines() {
            match line.split_once(": ") {
                _ if line.starts_with(' ') => {
                    file.content.push_str(line);
                    file.content.push('\n');
                }
                Some((label, value)) => file.lines.push((label.into(), value.into())),
                None => {}
            }
        }
        file
    };
    // No content line is empty: each starts with blanks.
    text.split("\n\n").map(parse).collect()
}

/// `after` without what `before` says may be anything.
fn forget(before: &[File], after: Vec<File>) -> Vec<File> {
    let mut forgotten = Vec::new();
    for (at, mut file) in after.into_iter().enumerate() {
        let Some(expected) = before.get(at) else {
            forgotten.push(file);
            continue;
        };
        if expected.get("path") == Some(ANY) {
            forgotten.push(expected.clone());
            return forgotten;
        }
        if expected.get("attribute") == Some(ANY) {
            file.lines.retain(|(label, _)| label != "attribute");
            let place = file.lines.iter().position(|(label, _)| label == "mtime").map_or(file.lines.len(), |at| at + 1);
            file.lines.insert(place, ("attribute".into(), ANY.into()));
        }
        for (label, value) in &mut file.lines {
            if expected.get(label) == Some(ANY) {
                *value = ANY.into();
            }
        }
        forgotten.push(file);
    }
    forgotten
}

fn differing(before: &[File], after: &[File]) -> Vec<&'static str> {
    let mut labels = vec!["path", "type", "target", "mode", "owner", "attribute", "flags", "content"];
    labels.retain(|label| {
        let values = |files: &[File]| files.iter().map(|file| file.all(label).join("\n")).collect::<Vec<_>>();
        values(before) != values(after)
    });
    labels
}

fn summary(before: &[File], after: &[File], labels: &[&str]) -> String {
    let first = |files: &[File], label: &str| {
        files.first().and_then(|file| file.get(label)).map_or("none".to_owned(), ToOwned::to_owned)
    };
    let part = |label: &&str| {
        let (was, is) = (first(before, label), first(after, label));
        match *label {
            "content" => "content differs".to_owned(),
            "path" => "leads elsewhere".to_owned(),
            label if was == is => format!("{label} of what it leads to differs"),
            label => format!("{label} was {was} and is {is}"),
        }
    };
    // A file that is of another type differs in everything else too.
    let shown = if first(before, "type") == first(after, "type") { labels } else { &["type"] };
    format!("{PATH}: {}", shown.iter().map(part).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_lease_changes_its_servers_and_nothing_else() {
        let (was, is) =
            (["192.168.1.1".to_owned(), "198.51.100.53".into()], ["192.168.1.1".to_owned(), "192.168.1.2".into()]);
        let swap = |text: &str| renewed(text, &was, &is);
        assert_eq!(swap("nameserver 198.51.100.53\n"), "nameserver 192.168.1.2\n");
        assert_eq!(
            swap("1198.51.100.53 198.51.100.534 198.51.100.53.1"),
            "1198.51.100.53 198.51.100.534 198.51.100.53.1"
        );
        assert_eq!(swap("link eth0 DNS 192.168.1.1 198.51.100.53"), "link eth0 DNS 192.168.1.1 192.168.1.2");
        let mut snapshot = Snapshot::default();
        let content = b"nameserver 198.51.100.53\n";
        let entry = |content: &[u8]| {
            let digest = hex(&Sha256::digest(content));
            format!("/run/x file 0644 0:0 size {} sha256 {digest}\n{}", content.len(), block(content))
        };
        snapshot.topics.insert("files".into(), format!("/run dir 0755 0:0\n{}", entry(content)));
        let text = format!("path: {PATH}\ntype: file\nmtime: 5\ncontent:\n{}", block(content));
        snapshot.topics.insert("resolv.conf".into(), text);
        snapshot.topics.insert("routes".into(), "198.51.100.53 dev eth0\n".into());
        snapshot.expect_renewed_lease(&was, &is);
        let now = b"nameserver 192.168.1.2\n";
        assert_eq!(snapshot.topics["files"], format!("/run dir 0755 0:0\n{}", entry(now)));
        let text = format!("path: {PATH}\ntype: file\nmtime: *\ncontent:\n{}", block(now));
        assert_eq!(snapshot.topics["resolv.conf"], text);
        assert_eq!(snapshot.topics["routes"], "198.51.100.53 dev eth0\n");
    }
}
