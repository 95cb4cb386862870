//! Findings of the restore check: snapshots that are not what they must be.

use super::{
    effective::Services,
    recording::Recording,
    services::is_broken,
    verdict::{Finding, Verdict},
};
use crate::{
    history::Event,
    scenario::{Expected, Fault, Manager, Profile, ServiceChange, Step},
    snapshot::{self, Occasion, Tolerance},
    testbed::plan::{LAN_SECOND_V4, LAN_ULA},
    watch::nameservers,
};
use std::collections::BTreeSet;
use watertight_protocol::Settings;

/// Files that the harness itself makes when it plays the outsider.
const OUTSIDERS_FILES: [&str; 2] = ["/etc/resolv.conf.outsider", "/etc/.outsider"];

/// The section of NetworkManager's file of what it was told and has to remember that says whether it checks connectivity.
const CONNECTIVITY_SWITCH: &str = "[connectivity]";
/// The folder of its profiles.
const PROFILES: &str = "/NetworkManager/system-connections/";

/// All findings about what was, or was not, put back.
pub fn findings(recording: &Recording) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut killed = false;
    let mut settings: Option<&Settings> = None;
    let mut outsider: Option<&str> = None;
    let mut present: Option<&str> = None;
    let mut services = Services::default();
    let mut renewed: Option<(&[String], &[String])> = None;
    let mut away_before = false;
    for (at, record) in recording.records.iter().enumerate() {
        services.note(&record.event);
        match &record.event {
            Event::LeaseRenewed { was, is } => renewed = Some((was, is)),
            Event::ServiceChanged { change: ServiceChange::Start | ServiceChange::Stop } => away_before = true,
            Event::Step { step: Step::Fault(Fault::Kill), .. } => killed = true,
            Event::Settings(new) => settings = Some(new),
            Event::File { cause, content, .. } => {
                present = Some(content);
                if cause == "outsider" {
                    outsider = Some(content);
                }
            }
            Event::Snapshot { folder, compared: Some(expected) } => {
                let case = Comparison {
                    recording,
                    folder,
                    killed,
                    settings,
                    outsider,
                    present,
                    services: services.clone(),
                    renewed,
                    broken: is_broken(recording, at),
                    away_before,
                };
                found.extend(case.check(*expected));
            }
            _ => {}
        }
    }
    found
}

pub(super) struct Comparison<'a> {
    pub(super) recording: &'a Recording,
    pub(super) folder: &'a str,
    killed: bool,
    pub(super) settings: Option<&'a Settings>,
    outsider: Option<&'a str>,
    pub(super) present: Option<&'a str>,
    /// The resolver services, and whom they ask.
    pub(super) services: Services<'a>,
    /// The servers of the uplink's lease before and after it was renewed.
    renewed: Option<(&'a [String], &'a [String])>,
    /// resolvconf was made to fail.
    broken: bool,
    /// The resolver service was away for a while.
    pub(super) away_before: bool,
}

impl Comparison<'_> {
    fn check(&self, expected: Expected) -> Vec<Finding> {
        match expected {
            Expected::Restored => self.differences(&[]),
            Expected::RestoredOutsider => {
                let mut found = self.differences(&["resolv.conf"]);
                found.extend(self.outsiders_version());
                found.extend(self.attributes_left());
                found
            }
            Expected::ResolverRestored if self.outsider.is_some() => self.outsiders_version().into_iter().collect(),
            Expected::ResolverRestored => self.resolver_differences(),
            Expected::Approved => {
                let file = self.not_approved();
                let method = file.as_ref().and_then(|file| self.method_not_effective(file));
                let file = file.into_iter().chain(method).chain(self.servers_forgotten());
                let file = file.chain(self.manager_not_told()).chain(self.forwarder_not_told());
                file.chain(self.link_not_approved()).chain(self.exposed()).collect()
            }
            Expected::UplinkKept => self.uplink_lost().into_iter().collect(),
            Expected::Error => Vec::new(),
        }
    }

    /// RST-4: the servers that the network gave the uplink meanwhile are the ones that are asked, not the ones before.
    fn uplink_lost(&self) -> Option<Finding> {
        let content = &*self.services.seen_through(self.present?);
        let servers = nameservers(content);
        let mut wanted = vec![LAN_SECOND_V4.to_string()];
        // Router advertisements name one of their own, which stays.
        if self.recording.header.axes.profile.has_lease() {
            wanted.push(LAN_ULA.to_string());
        }
        if servers == wanted {
            return None;
        }
        let summary =
            format!("expected the servers that the uplink was given meanwhile, {wanted:?}; asked are {servers:?}");
        Some(self.finding("RST-4", "X03", Verdict::NotRestored, summary, content.into()))
    }

    pub(super) fn finding(
        &self,
        requirement: &str,
        class: &str,
        verdict: Verdict,
        summary: String,
        detail: String,
    ) -> Finding {
        Finding {
            requirement: requirement.into(),
            class: class.into(),
            verdict,
            window: format!("snapshot {}", self.folder),
            summary,
            count: 1,
            evidence: None,
            detail: (!detail.is_empty()).then_some(detail),
        }
    }

    fn compare(&self) -> Vec<snapshot::Difference> {
        // A snapshot that cannot be read makes the case inconclusive elsewhere.
        let read = |name: &str| self.recording.snapshots.get(name).and_then(|snapshot| snapshot.as_ref().ok());
        let (Some(before), Some(after)) = (read("before"), read(self.folder)) else { return Vec::new() };
        let tolerance = Tolerance {
            occasion: if self.killed { Occasion::Crash } else { Occasion::Disconnect },
            own_rules_stay: self.settings.is_some_and(|settings| settings.lockdown),
            // While the subject runs it may have as many processes as it likes; the last snapshot is taken after its end.
            ignore_topics: if self.folder == "after" {
                BTreeSet::new()
            } else {
                ["processes", "sockets"].map(str::to_owned).into()
            },
            ignore_paths: OUTSIDERS_FILES.map(Into::into).to_vec(),
            ..Tolerance::default()
        };
        let (mut before, mut after) = (before.clone(), after.clone());
        if self.recording.header.axes.profile == Profile::SystemdResolvedForeign {
            // What it reads from the resolver file, which is compared itself, it reads again when it is next asked.
            [&mut before, &mut after].into_iter().for_each(snapshot::Snapshot::forget_what_follows_the_resolver_file);
        }
        let (before, after) = (&mut before, &after);
        let Some((was, is)) = self.renewed else { return snapshot::compare(before, after, &tolerance) };
        before.expect_renewed_lease(was, is);
        let mut found = snapshot::compare(before, after, &tolerance);
        for difference in found.iter_mut().filter(|difference| difference.topic == "resolv.conf") {
            (difference.class, difference.requirement) = ("X03", "RST-4");
        }
        found
    }

    fn differences(&self, without: &[&str]) -> Vec<Finding> {
        self.compare()
            .into_iter()
            .filter(|difference| !without.contains(&difference.topic.as_str()))
            // Who writes the file stamps it, and that is not the subject.
            .filter(|difference| {
                let manager = self.recording.header.axes.profile.manager();
                difference.requirement != "RST-7" || !matches!(manager, Manager::NetworkManager | Manager::Resolvconf)
            })
            .map(|difference| {
                let (requirement, class) = self.requirement(&difference);
                self.finding(
                    requirement,
                    class,
                    Verdict::NotRestored,
                    format!("expected {} as before; {}", difference.topic, difference.summary),
                    difference.diff,
                )
            })
            .collect()
    }

    /// What the difference breaks: where it is what a DNS method has left with its service, that method's own requirement.
    fn requirement(&self, difference: &snapshot::Difference) -> (&'static str, &'static str) {
        let of_connectivity =
            difference.diff.lines().any(|line| line.starts_with(['+', '-']) && line.contains(CONNECTIVITY_SWITCH));
        let of_file = matches!(difference.topic.as_str(), "resolv.conf" | "etc");
        match self.recording.header.axes.profile {
            // After a crash too, says the requirement.
            profile if profile.has_network_manager() && of_connectivity => ("NMG-3", "X05"),
            Profile::Openresolv | Profile::DebianResolvconf if self.broken && of_file => ("RCF-3", difference.class),
            _ if self.killed => (difference.requirement, difference.class),
            profile
                if profile.manager() == Manager::NetworkManager
                    && (difference.class == "X05" || difference.diff.contains(PROFILES)) =>
            {
                ("NMG-2", difference.class)
            }
            Profile::Openresolv | Profile::DebianResolvconf if difference.class == "X05" => ("RCF-2", "X05"),
            _ => (difference.requirement, difference.class),
        }
    }

    fn resolver_differences(&self) -> Vec<Finding> {
        let topics = [
            "resolv.conf",
            "etc",
            "systemd-resolved",
            "systemd-networkd",
            "network-manager",
            "resolvconf",
            "forwarder",
        ];
        let mut found = self.differences(&[]);
        found.retain(|finding| topics.iter().any(|topic| finding.summary.starts_with(&format!("expected {topic} "))));
        found
    }

    /// RST-4: what somebody else left is what is restored.
    fn outsiders_version(&self) -> Option<Finding> {
        let (outsider, present) = (self.outsider?, self.present?);
        // Through a link that is the subject's own an outsider changes what it leads to; the link itself goes with the subject.
        let parts = |version: &str| version.split_once('\n').map(|(head, body)| (head.to_owned(), body.to_owned()));
        let original = self.recording.records.iter().find_map(|record| match &record.event {
            Event::File { content, .. } => parts(content),
            _ => None,
        });
        let through_own_link = parts(outsider).zip(original).is_some_and(|((link, left), (original, _))| {
            let restored = Some((original.clone(), left));
            link.starts_with("symlink ") && link != original && parts(present) == restored
        });
        if outsider == present || through_own_link {
            return None;
        }
        let diff = similar::TextDiff::from_lines(outsider, present)
            .unified_diff()
            .header("left by the outsider", "restored")
            .to_string();
        let summary = format!(
            "expected the resolver file as somebody else left it (servers {:?}); it names {:?}",
            nameservers(outsider),
            nameservers(present)
        );
        Some(self.finding("RST-4", "X03", Verdict::NotRestored, summary, diff))
    }

    /// RST-4: whatever somebody else has written, the file has no attributes and flags that it did not have.
    fn attributes_left(&self) -> Option<Finding> {
        let read = |name: &str| {
            let snapshot = self.recording.snapshots.get(name)?.as_ref().ok()?;
            snapshot.topics.get("resolv.conf").map(String::as_str)
        };
        let (before, now) = (read("before")?, read(self.folder)?);
        let is_attribute = |line: &&str| line.starts_with("attribute: ") || line.starts_with("flags: ");
        let none = "flags: none";
        let left: Vec<&str> = now
            .lines()
            .filter(is_attribute)
            .filter(|line| *line != none && !before.lines().any(|known| known == *line))
            .collect();
        if left.is_empty() {
            return None;
        }
        let summary = format!("expected the resolver file without attributes that it did not have; it has {left:?}");
        Some(self.finding("RST-4", "X03", Verdict::NotRestored, summary, now.into()))
    }

    /// STA-1: the backup is not more readable than the original.
    fn exposed(&self) -> Vec<Finding> {
        let read = |name: &str| self.recording.snapshots.get(name).and_then(|snapshot| snapshot.as_ref().ok());
        let (Some(before), Some(now)) = (read("before"), read(self.folder)) else { return Vec::new() };
        snapshot::exposed_copies(before, now)
            .into_iter()
            .map(|what| {
                let summary = format!("expected the backup to be no more readable than the original; {what}");
                self.finding("STA-1", "X01", Verdict::Failed, summary, String::new())
            })
            .collect()
    }
}
