//! Findings about the servers that are asked once a step expects the approved ones: those that the resolver file names, and those
//! that the service was told which manages it.

use super::{
    order::is_approved,
    policy::approved,
    restore::Comparison,
    verdict::{Finding, Verdict},
};
use crate::{
    scenario::{Manager, Profile},
    watch::nameservers,
};
use std::net::IpAddr;
use watertight_protocol::{Dns, Settings};

impl Comparison<'_> {
    /// What a resolver file that names other servers says of the method that made it so.
    pub(super) fn method_not_effective(&self, file: &Finding) -> Option<Finding> {
        let interface = &self.settings?.tunnel.interface;
        let (requirement, what) = match self.recording.header.axes.profile {
            profile if profile.manager() == Manager::NetworkManager => {
                ("NMG-1", "NetworkManager to exclude all other servers")
            }
            Profile::Openresolv => ("RCF-1", "an exclusive record with openresolv"),
            Profile::DebianResolvconf => ("RCF-1", "an order of records that leaves no other server in the file"),
            // Told a service that programs do not ask.
            Profile::SystemdResolvedForeign if !self.link_value(interface, "DNS")?.is_empty() => (
                "SEL-3",
                "a method that manages the resolver file, which systemd-resolved and its resolvectl do not here",
            ),
            _ => return None,
        };
        Some(self.finding(
            requirement,
            "R06",
            Verdict::Failed,
            format!("expected {what}; {}", file.summary),
            String::new(),
        ))
    }

    /// The method that the environment forces, if it does.
    fn forced(&self) -> Option<&str> {
        self.recording.header.definition.environment.get("WATERTIGHT_DNS_METHOD").map(String::as_str)
    }

    /// A topic of the snapshot that is compared.
    fn topic(&self, name: &str) -> Option<&str> {
        let snapshot = self.recording.snapshots.get(self.folder)?.as_ref().ok()?;
        snapshot.topics.get(name).map(String::as_str)
    }

    /// SEL-1, and SEL-2 where a method is forced: who manages the resolver file is told of the approved servers, and is not merely
    /// written over.
    pub(super) fn manager_not_told(&self) -> Option<Finding> {
        let (settings, content) = (self.settings?, self.present?);
        let finding = |requirement: &str, summary: String| {
            Some(self.finding(requirement, "R06", Verdict::Failed, summary, String::new()))
        };
        if let Some(forced) = self.forced() {
            // Of the methods that can be forced here, the one that writes the file itself shows in it.
            let ignored = forced == "static-file" && !is_approved(content, settings);
            let summary = format!(
                "expected the forced method {forced} to write the resolver file; it names {:?}",
                nameservers(content)
            );
            return if ignored { finding("SEL-2", summary) } else { None };
        }
        let (requirement, topic, expected) = match self.recording.header.axes.profile.manager() {
            Manager::NetworkManager => {
                ("NMG-1", "network-manager", "NetworkManager to be told of the approved servers")
            }
            Manager::Resolvconf => ("RCF-1", "resolvconf", "a record of the approved servers with resolvconf"),
            Manager::Nobody | Manager::SystemdResolved => return None,
        };
        let text = self.topic(topic)?;
        let unknown: Vec<String> = wanted(settings).into_iter().filter(|server| !mentions(text, server)).collect();
        if unknown.is_empty() {
            return None;
        }
        finding(requirement, format!("expected {expected}; it knows nothing of {unknown:?}"))
    }

    /// NMG-1: NetworkManager's own forwarder, which can be told by others too, asks approved servers and no other.
    pub(super) fn forwarder_not_told(&self) -> Option<Finding> {
        let settings = self.settings?;
        if self.recording.header.axes.profile != Profile::NetworkManagerDnsmasq {
            return None;
        }
        let text = self.topic("forwarder")?;
        let asked: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("forward ")).collect();
        let lines: String = asked.iter().map(|server| format!("nameserver {server}\n")).collect();
        if is_approved(&format!("service\n{lines}"), settings) {
            return None;
        }
        let summary =
            format!("expected NetworkManager's dnsmasq to ask approved servers and no other; it asks {asked:?}");
        Some(self.finding("NMG-1", "R09", Verdict::Failed, summary, text.into()))
    }

    /// DNS-6: of the servers that a C library asks, which are the first three, none is left out.
    pub(super) fn servers_forgotten(&self) -> Option<Finding> {
        const ASKED: usize = 3;
        let (settings, content) = (self.settings?, &*self.services.seen_through(self.present?));
        let named = nameservers(content);
        if !is_approved(content, settings) {
            return None;
        }
        let wanted = wanted(settings);
        let missing: Vec<&String> = wanted.iter().take(ASKED).filter(|server| !named.contains(server)).collect();
        if missing.is_empty() {
            return None;
        }
        let summary = format!("expected all of the approved servers to be asked; {missing:?} are not among {named:?}");
        Some(self.finding("DNS-6", "R06", Verdict::Failed, summary, String::new()))
    }

    /// A property of a link in systemd-resolved; `None` if it does not run.
    fn link_value(&self, interface: &str, property: &str) -> Option<String> {
        let snapshot = self.recording.snapshots.get(self.folder)?.as_ref().ok()?;
        let text = snapshot.topics.get("systemd-resolved").filter(|text| !text.starts_with("absent"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("link {interface} {property} ")));
        Some(line.unwrap_or_default().to_owned())
    }

    /// RSD-1: where systemd-resolved manages the resolver file, the tunnel's link has the approved tunnel servers and claims all
    /// names, so that no other link is asked.
    pub(super) fn link_not_approved(&self) -> Option<Finding> {
        if !matches!(
            self.recording.header.axes.profile,
            Profile::SystemdResolved
                | Profile::SystemdResolvedUplink
                | Profile::NetworkManagerResolved
                | Profile::SystemdNetworkd
        ) || self.forced().is_some_and(|forced| forced != "systemd")
        {
            return None;
        }
        let settings = self.settings?;
        let snapshot = self.recording.snapshots.get(self.folder)?.as_ref().ok()?;
        let text = snapshot.topics.get("systemd-resolved")?;
        let interface = &settings.tunnel.interface;
        let approved: Vec<String> = approved(settings).tunnel.iter().map(IpAddr::to_string).collect();
        let (servers, domains) = (self.link_value(interface, "DNS")?, self.link_value(interface, "Domains")?);
        // Without a tunnel server, there is nothing that the link could be given.
        if approved.is_empty() || servers == approved.join(" ") && domains == "~." {
            return None;
        }
        let summary = format!(
            "expected the link {interface} to have the servers {approved:?} and the domain ~. in systemd-resolved; it has servers '{servers}' and domains '{domains}'"
        );
        // A service that came later than the first connection is noticed at the next (SEL-5).
        let requirement = if self.away_before { "SEL-5" } else { "RSD-1" };
        Some(self.finding(requirement, "R01", Verdict::Failed, summary, text.clone()))
    }

    /// DNS-1 to DNS-4: the resolver file names the approved servers, in their order.
    pub(super) fn not_approved(&self) -> Option<Finding> {
        let (settings, content) = (self.settings?, &*self.services.seen_through(self.present?));
        let requirement = match &settings.dns {
            Dns::Default => "DNS-1",
            Dns::Custom { servers } if servers.is_empty() => "DNS-4",
            Dns::Custom { .. } => "DNS-2",
        };
        let servers = nameservers(content);
        if !is_approved(content, settings) {
            let approved = approved(settings);
            let summary = format!(
                "expected the resolver file to name the approved servers ({:?} in the tunnel, {:?} beside it) and no other; it names {servers:?}",
                approved.tunnel, approved.lan
            );
            return Some(self.finding(requirement, "R06", Verdict::Failed, summary, content.into()));
        }
        let wanted = wanted(settings);
        // unbound asks whom it finds the quickest, not the first (unbound.conf(5), `forward-addr`).
        let by_unbound = self.recording.header.axes.profile == Profile::Unbound
            && self.present.is_some_and(|file| nameservers(file) != servers);
        if by_unbound {
            return None;
        }
        let places: Vec<Option<usize>> =
            servers.iter().map(|server| wanted.iter().position(|wanted| wanted == server)).collect();
        if places.windows(2).all(|pair| pair[0] <= pair[1]) {
            return None;
        }
        let summary = format!("expected the servers in the order {wanted:?}; the resolver file has {servers:?}");
        Some(self.finding("DNS-3", "R06", Verdict::Failed, summary, String::new()))
    }
}

/// Whether a text names a server, and not merely one whose address begins or ends the same.
fn mentions(text: &str, server: &str) -> bool {
    let address = server.split('%').next().unwrap_or(server);
    let words = text.split(|c: char| !(c.is_ascii_hexdigit() || matches!(c, '.' | ':')));
    words
        .flat_map(|word| [word, word.trim_matches(['.', ':'])])
        .any(|word| word == address || word.parse::<IpAddr>().is_ok_and(|word| address.parse() == Ok(word)))
}

/// The approved servers in the order in which they are to be asked.
fn wanted(settings: &Settings) -> Vec<String> {
    match &settings.dns {
        Dns::Custom { servers } if !servers.is_empty() => servers.iter().map(ToString::to_string).collect(),
        _ => approved(settings).tunnel.iter().map(IpAddr::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::mentions;

    #[test]
    fn a_server_is_mentioned_by_its_address_and_not_by_another_that_looks_alike() {
        let record = "record tun.wt0\n    | nameserver 10.64.0.1\n    | nameserver fd64:0::1\n";
        assert!(mentions(record, "10.64.0.1") && mentions(record, "fd64::1"));
        assert!(!mentions(record, "10.64.0.11") && !mentions(record, "0.64.0.1") && !mentions(record, "fd64::"));
        assert!(
            !mentions("nameserver 10.64.0.11\nnameserver fd64::1:1", "10.64.0.1") && !mentions("fd64::1:1", "fd64::1")
        );
        assert!(mentions("fe80::1", "fe80::1%eth0") && !mentions("", "10.64.0.1"));
    }
}
