//! Which servers a program's question really goes to: those in the resolver file, or, where that names a service on the
//! machine itself, those that the service asks.

use super::recording::Recording;
use crate::{
    history::{Event, Record},
    profile::STUBS,
    watch::nameservers,
};
use std::{borrow::Cow, collections::BTreeMap};

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
    /// When the file was changed, as its node says; for a service, when the first call passed over the bus, since it was
    /// seen last, that told it of a link: no change is earlier.
    pub changed: Option<u64>,
}

impl Effective<'_> {
    /// When it can have come into force at the earliest: what is noticed late is no fault of the subject's.
    pub fn earliest(&self) -> u64 {
        self.changed.unwrap_or_else(|| self.record.earliest())
    }
}

/// All of a recording, in order.
pub fn effective(recording: &Recording) -> Vec<Effective<'_>> {
    let mut services = Services::default();
    let mut file: Option<(&str, &str)> = None;
    let mut told: Option<u64> = None;
    let mut all = Vec::new();
    for (at, record) in recording.records.iter().enumerate() {
        services.note(&record.event);
        match &record.event {
            // It is asked afterwards what it is set to, which takes a while, in which it may be told the same again.
            Event::Bus { message, link: Some(_), member, .. } if message == "call" && tells(member) => {
                told.get_or_insert(record.earliest());
            }
            Event::File { cause, by_harness, hash, content, changed, .. } => {
                file = Some((hash, content));
                all.push(Effective {
                    at,
                    record,
                    cause,
                    by_harness: *by_harness,
                    hash,
                    content: services.seen_through(content),
                    changed: *changed,
                });
            }
            Event::Resolver { service, .. } => {
                let changed = if service == "systemd-resolved" { told.take() } else { None };
                let Some((hash, content)) = file else { continue };
                let content = services.seen_through(content);
                if matches!(content, Cow::Owned(_)) {
                    all.push(Effective { at, record, cause: "service", by_harness: false, hash, content, changed });
                }
            }
            _ => {}
        }
    }
    all
}

/// Whether a method of systemd-resolved's sets something, of those that are about a link (org.freedesktop.resolve1(5)).
fn tells(member: &str) -> bool {
    ["Set", "Revert"].iter().any(|start| member.starts_with(start))
}

/// Resolver services on the machine itself, as they were told of last: where they answer, and whom they ask.
#[derive(Debug, Clone, Default)]
pub struct Services<'a> {
    by_name: BTreeMap<&'a str, (Vec<&'a str>, &'a [String])>,
}

impl<'a> Services<'a> {
    /// Takes what an event tells of them.
    pub fn note(&mut self, event: &'a Event) {
        let Event::Resolver { service, asked, at, .. } = event else { return };
        let known = match self.by_name.get(service.as_str()) {
            // It is not there for the moment: nobody is asked.
            Some((known, _)) if at.is_empty() && asked.is_empty() => known.clone(),
            _ if at.is_empty() && service == "systemd-resolved" => STUBS.to_vec(),
            _ => at.iter().map(String::as_str).collect(),
        };
        self.by_name.insert(service, (known, asked));
    }

    /// A file's content, with the servers that the service behind its stub asks. An address of the machine itself where nobody
    /// is known to answer stays what it is, and is nobody's approved server.
    pub fn seen_through<'b>(&self, content: &'b str) -> Cow<'b, str> {
        let servers = nameservers(content);
        let behind = |(at, _): &&(Vec<&str>, &[String])| {
            !servers.is_empty() && servers.iter().all(|server| at.contains(&server.as_str()))
        };
        let Some((_, asked)) = self.by_name.values().find(behind) else { return Cow::Borrowed(content) };
        let head = content.lines().next().unwrap_or_default();
        let lines: String = asked.iter().map(|server| format!("nameserver {server}\n")).collect();
        Cow::Owned(format!("{head}\n{lines}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Services;
    use crate::history::Event;

    fn told(service: &str, at: &[&str], asked: &[&str]) -> Event {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let (at, asked) = (owned(at), owned(asked));
        Event::Resolver { service: service.into(), cause: "start".into(), asked, at, settings: String::new() }
    }

    #[test]
    fn a_stub_is_looked_through_and_a_server_is_not() {
        let event = told("systemd-resolved", &[], &["10.64.0.1"]);
        let mut services = Services::default();
        let stub = "symlink ../run/systemd/resolve/stub-resolv.conf\nnameserver 127.0.0.53\noptions edns0\n";
        let seen = "symlink ../run/systemd/resolve/stub-resolv.conf\nnameserver 10.64.0.1\n";
        assert_eq!(services.seen_through(stub), stub);
        services.note(&event);
        assert_eq!(services.seen_through(stub), seen);
        let both = "file 0644 0:0\nnameserver 127.0.0.53\nnameserver 192.168.1.1\n";
        assert_eq!(services.seen_through(both), both);
        assert_eq!(services.seen_through("missing\n"), "missing\n");
    }

    #[test]
    fn each_address_is_seen_through_by_who_answers_there() {
        let events = [
            told("NetworkManager", &[], &["9.9.9.9"]),
            told("systemd-resolved", &["127.0.0.53"], &["10.64.0.1"]),
            told("dnsmasq", &["127.0.0.1"], &["192.168.1.1", "198.51.100.53"]),
        ];
        let mut services = Services::default();
        events.iter().for_each(|event| services.note(event));
        let file = |server: &str| format!("file 0644 0:0\nnameserver {server}\n");
        let forwarder = "file 0644 0:0\nnameserver 192.168.1.1\nnameserver 198.51.100.53\n";
        assert_eq!(services.seen_through(&file("127.0.0.1")), forwarder);
        assert_eq!(services.seen_through(&file("127.0.0.53")), file("10.64.0.1"));
        // Nobody is known there.
        assert_eq!(services.seen_through(&file("127.0.0.2")), file("127.0.0.2"));
        let (changed, gone) = (told("dnsmasq", &["127.0.0.1"], &["10.64.0.1"]), told("dnsmasq", &[], &[]));
        services.note(&changed);
        assert_eq!(services.seen_through(&file("127.0.0.1")), file("10.64.0.1"));
        services.note(&gone);
        assert_eq!(services.seen_through(&file("127.0.0.1")), "file 0644 0:0\n");
    }
}
