//! Copies of the original resolver file that more people can read than the original itself (STA-1).

use super::{Snapshot, backup, diff::paragraphs, resolver};
use std::{collections::BTreeMap, path::Path};

/// Readable by its group, and by others.
const READABLE: [(u32, &str); 2] = [(0o040, "its group"), (0o004, "others")];

/// One sentence for each such copy that a later snapshot shows; `before` has the original.
pub fn exposed_copies(before: &Snapshot, now: &Snapshot) -> Vec<String> {
    let original = before.topic("resolv.conf");
    let mode = original.lines().find_map(|line| line.strip_prefix("mode: ")).and_then(octal);
    let (Some(content), Some(mode)) = (resolver::content(original), mode) else { return Vec::new() };
    let topics = ["state_dir", "files", "etc", "dev"];
    let modes: BTreeMap<&str, u32> =
        topics.iter().flat_map(|topic| paragraphs(now.topic(topic))).filter_map(node).collect();
    topics
        .iter()
        .flat_map(|topic| {
            let known: Vec<&str> = paragraphs(before.topic(topic)).filter_map(node).map(|(path, _)| path).collect();
            backup::copies(&content, now.topic(topic)).into_iter().filter(move |copy| !known.contains(&&*copy.path))
        })
        .filter(|copy| copy.path != resolver_path())
        .filter_map(|copy| {
            let of_copy = *modes.get(&*copy.path)?;
            let (_, who) = READABLE.iter().find(|(bit, _)| {
                let reachable = Path::new(&copy.path)
                    .ancestors()
                    .skip(1)
                    // What is in no topic is the system's own, and open.
                    .all(|folder| folder.to_str().and_then(|folder| modes.get(folder)).is_none_or(|mode| mode & (bit >> 2) != 0));
                of_copy & bit != 0 && mode & bit == 0 && reachable
            })?;
            Some(format!(
                "{} holds the original resolver file, {}, and {who} can read it (mode {of_copy:04o}); the original had mode {mode:04o}",
                copy.path, copy.form
            ))
        })
        .collect()
}

fn resolver_path() -> &'static str {
    super::RESOLV_CONF
}

fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim(), 8).ok()
}

/// Path and mode of a paragraph `PATH [changed] TYPE MODE …`.
fn node(paragraph: &str) -> Option<(&str, u32)> {
    let mut words = paragraph.lines().next()?.split(' ');
    let path = words.next()?;
    words.filter(|word| word.len() == 4).find_map(octal).map(|mode| (path, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(resolv_conf: &str, state_dir: &str, files: &str) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (topic, text) in [("resolv.conf", resolv_conf), ("state_dir", state_dir), ("files", files)] {
            snapshot.topics.insert(topic.into(), text.into());
        }
        snapshot
    }

    #[test]
    fn a_copy_is_exposed_when_more_can_read_it() {
        let original = "path: /etc/resolv.conf\ntype: file\nmode: 0640\ncontent:\n    | nameserver 192.168.1.1\n";
        let before = snapshot(original, "", "");
        let copy = "size 23 sha256 0\n    | nameserver 192.168.1.1\n";
        for (folder, file, exposed) in
            [("0755", "0644", true), ("0700", "0644", false), ("0755", "0640", false), ("0711", "0604", true)]
        {
            let folder = format!("/var/lib/subject dir {folder} 0:0\n");
            let files = format!("{folder}/var/lib/subject/copy file {file} 0:0 {copy}");
            let found = exposed_copies(&before, &snapshot(original, &files, ""));
            assert_eq!(!found.is_empty(), exposed, "{files} {found:?}");
            assert_eq!(exposed_copies(&before, &snapshot(original, "", &files)), found);
        }
    }
}
