//! Which servers a program's question really goes to: those in the resolver file, or, where that names a service on the
//! machine itself, those that the service asks.

use super::recording::Recording;
use crate::{
    history::{Event, Record},
    profile::STUBS,
    watch::nameservers,
};
use std::borrow::Cow;

/// The resolver file at one moment, with the servers that are really asked.
pub struct Effective<'a> {
    /// Place in the history.
    pub at: usize,
    /// The event that made it.
    pub record: &'a Record,
    /// What the kernel told of the file, or `service`.
    pub cause: &'a str,
    /// Whether the harness did it.
    pub by_harness: bool,
    /// The file's version.
    pub hash: &'a str,
    /// As the file's, with the service's servers in place of its stub.
    pub content: Cow<'a, str>,
    /// When the file was changed, as its node says.
    pub changed: Option<u64>,
}

/// All of a recording, in order.
pub fn effective(recording: &Recording) -> Vec<Effective<'_>> {
    let mut asked: Option<&[String]> = None;
    let mut file: Option<(&str, &str)> = None;
    let mut all = Vec::new();
    for (at, record) in recording.records.iter().enumerate() {
        match &record.event {
            Event::File { cause, by_harness, hash, content, changed, .. } => {
                file = Some((hash, content));
                all.push(Effective {
                    at,
                    record,
                    cause,
                    by_harness: *by_harness,
                    hash,
                    content: seen_through(content, asked),
                    changed: *changed,
                });
            }
            Event::Resolver { asked: now, .. } => {
                asked = Some(now);
                let Some((hash, content)) = file else { continue };
                let content = seen_through(content, asked);
                if matches!(content, Cow::Owned(_)) {
                    all.push(Effective {
                        at,
                        record,
                        cause: "service",
                        by_harness: false,
                        hash,
                        content,
                        changed: None,
                    });
                }
            }
            _ => {}
        }
    }
    all
}

/// A file's content, with the servers that the service behind its stub asks.
pub fn seen_through<'a>(content: &'a str, asked: Option<&[String]>) -> Cow<'a, str> {
    let servers = nameservers(content);
    let stub = !servers.is_empty() && servers.iter().all(|server| STUBS.contains(&server.as_str()));
    let Some(asked) = asked.filter(|_| stub) else { return Cow::Borrowed(content) };
    let head = content.lines().next().unwrap_or_default();
    let lines: String = asked.iter().map(|server| format!("nameserver {server}\n")).collect();
    Cow::Owned(format!("{head}\n{lines}"))
}

#[cfg(test)]
mod tests {
    use super::seen_through;

    #[test]
    fn a_stub_is_looked_through_and_a_server_is_not() {
        let asked = ["10.64.0.1".to_owned()];
        let stub = "symlink ../run/systemd/resolve/stub-resolv.conf\nnameserver 127.0.0.53\noptions edns0\n";
        let seen = "symlink ../run/systemd/resolve/stub-resolv.conf\nnameserver 10.64.0.1\n";
        assert_eq!(seen_through(stub, Some(&asked)), seen);
        assert_eq!(seen_through(stub, None), stub);
        let both = "file 0644 0:0\nnameserver 127.0.0.53\nnameserver 192.168.1.1\n";
        assert_eq!(seen_through(both, Some(&asked)), both);
        assert_eq!(seen_through("missing\n", Some(&asked)), "missing\n");
    }
}
