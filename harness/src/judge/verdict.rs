//! Verdicts, findings and accounts: the words that reports use.

use super::{Options, counts, recording::Recording};
use crate::history::{CaptureAccount, Event};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// What is said of a case, a requirement or a finding. The order is from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// DNS left where the policy forbids it.
    #[serde(rename = "LEAK")]
    Leak,
    /// The original configuration did not come back exactly.
    #[serde(rename = "NOT-RESTORED")]
    NotRestored,
    /// Something is blocked that must work.
    #[serde(rename = "OVERBLOCK")]
    Overblock,
    /// The subject does not do what it must.
    #[serde(rename = "FAILED")]
    Failed,
    /// The evidence is not complete.
    #[serde(rename = "INCONCLUSIVE")]
    Inconclusive,
    /// The subject says that it cannot do this.
    #[serde(rename = "UNSUPPORTED")]
    Unsupported,
    /// Complete evidence, and nothing against the subject.
    #[serde(rename = "PASS")]
    Pass,
}

impl Verdict {
    /// All verdicts, worst first.
    pub const ALL: [Verdict; 7] = [
        Verdict::Leak,
        Verdict::NotRestored,
        Verdict::Overblock,
        Verdict::Failed,
        Verdict::Inconclusive,
        Verdict::Unsupported,
        Verdict::Pass,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Leak => "LEAK",
            Verdict::NotRestored => "NOT-RESTORED",
            Verdict::Overblock => "OVERBLOCK",
            Verdict::Failed => "FAILED",
            Verdict::Inconclusive => "INCONCLUSIVE",
            Verdict::Unsupported => "UNSUPPORTED",
            Verdict::Pass => "PASS",
        }
    }

    /// Whether it is held against the subject.
    pub fn is_finding(self) -> bool {
        self < Verdict::Inconclusive
    }

    /// What it means, for `explain`.
    pub fn meaning(self) -> &'static str {
        match self {
            Verdict::Leak => {
                "DNS, or anything else that no rule of the policy explains, left outside the tunnel, or went through it to a server that is not approved. The evidence is a frame in the capture."
            }
            Verdict::NotRestored => {
                "After the subject was done, files, settings, rules, routes, links or processes were not exactly as before. The evidence is a difference of two snapshots."
            }
            Verdict::Overblock => "Something that must work was blocked.",
            Verdict::Failed => "The subject did not do what the requirement says it must.",
            Verdict::Inconclusive => {
                "The evidence is not complete, so nothing is said for or against the subject. The reason names the condition that does not hold."
            }
            Verdict::Unsupported => "The subject, or this machine, cannot do what the scenario needs, and says so.",
            Verdict::Pass => {
                "All five conditions hold (positive control, liveness, accounting, stimulus, agreement), and nothing was found."
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One violation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The requirement that was broken.
    pub requirement: String,
    /// The leak class.
    pub class: String,
    /// What it is.
    pub verdict: Verdict,
    /// Where in the case: the state, or the two states of a transition, and the step.
    pub window: String,
    /// Expected and actual, in one sentence.
    pub summary: String,
    /// How often it was seen.
    pub count: u64,
    /// The first frame that shows it.
    pub evidence: Option<Evidence>,
    /// More to read: a diff, for instance.
    pub detail: Option<String>,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// The link: `<link>.pcapng`.
    pub link: String,
    /// Sequence number from 0; Wireshark counts from 1.
    pub frame: u64,
}

/// A requirement's verdict in a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequirementVerdict {
    /// Its id.
    pub id: String,
    /// The verdict.
    pub verdict: Verdict,
}

/// One of the five conditions of a `PASS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Condition {
    /// `positive control`, `liveness`, `accounting`, `stimulus`, `agreement`.
    pub name: String,
    /// Whether it holds.
    pub holds: bool,
    /// The figures, and what is missing.
    pub figures: String,
}

/// The account of the evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Accounting {
    /// The five conditions, and what the harness itself could not do.
    pub conditions: Vec<Condition>,
    /// Each link's frames.
    pub links: Vec<LinkAccount>,
}

/// One link's frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkAccount {
    /// The link.
    pub link: String,
    /// Frames in the capture's file.
    pub captured: u64,
    /// Frames that the kernel dropped.
    pub dropped: u64,
    /// Frames that the interface counted.
    pub interface: u64,
    /// Frames that the nftables counter counted.
    pub counter: u64,
}

impl From<&CaptureAccount> for LinkAccount {
    fn from(account: &CaptureAccount) -> Self {
        Self {
            link: account.link.clone(),
            captured: account.captured,
            dropped: account.dropped,
            interface: account.interface,
            counter: account.counter,
        }
    }
}

impl Accounting {
    /// Whether the evidence is complete.
    pub fn complete(&self) -> bool {
        self.conditions.iter().all(|condition| condition.holds)
    }

    fn gaps(&self) -> String {
        let gaps: Vec<String> = self
            .conditions
            .iter()
            .filter(|condition| !condition.holds)
            .map(|condition| format!("{}: {}", condition.name, condition.figures))
            .collect();
        gaps.join("; ")
    }
}

/// A subject's name and version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubjectName {
    /// As on the command line.
    pub name: String,
    /// As it said.
    pub version: String,
}

/// The verdict on a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaseVerdict {
    /// 1.
    pub format: u32,
    /// The subject.
    pub subject: SubjectName,
    /// The scenario's id.
    pub scenario: String,
    /// The case's id.
    pub case: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Why, unless it is a pass.
    pub reason: String,
    /// Each requirement's verdict.
    pub requirements: Vec<RequirementVerdict>,
    /// What was found.
    pub findings: Vec<Finding>,
    /// What was seen and is not held against the subject: permitted chatter, `should` requirements, limits of this machine.
    pub notes: Vec<String>,
    /// The account.
    pub accounting: Accounting,
    /// Milliseconds, recording and judging.
    pub duration_ms: u64,
    /// The command that runs this case again.
    #[serde(default)]
    pub replay: String,
}

impl CaseVerdict {
    pub(super) fn new(recording: &Recording) -> Self {
        let header = &recording.header;
        let version = recording.records.iter().find_map(|record| match &record.event {
            Event::Initialized { version, .. } => Some(version.clone()),
            _ => None,
        });
        Self {
            format: 1,
            subject: SubjectName { name: header.subject.clone(), version: version.unwrap_or_default() },
            scenario: header.scenario.clone(),
            case: header.case.clone(),
            verdict: Verdict::Pass,
            reason: String::new(),
            requirements: Vec::new(),
            findings: Vec::new(),
            notes: Vec::new(),
            accounting: Accounting::default(),
            duration_ms: 0,
            replay: header.replay.clone(),
        }
    }

    /// An adapter that did not pass the smoke check, with the check's words (RST-6: an adapter keeps the protocol).
    pub fn no_smoke(subject: &str, problem: &str) -> Self {
        let finding = Finding {
            requirement: "RST-6".into(),
            class: "R10".into(),
            verdict: Verdict::Failed,
            window: "before any scenario".into(),
            summary: problem.into(),
            count: 1,
            evidence: None,
            detail: None,
        };
        Self {
            subject: SubjectName { name: subject.into(), version: String::new() },
            verdict: Verdict::Failed,
            requirements: vec![RequirementVerdict { id: finding.requirement.clone(), verdict: Verdict::Failed }],
            findings: vec![finding],
            ..Self::unreadable("smoke", "protocol", problem)
        }
    }

    /// A case whose recording cannot be read.
    pub fn unreadable(scenario: &str, case: &str, problem: &str) -> Self {
        Self {
            format: 1,
            subject: SubjectName { name: String::new(), version: String::new() },
            scenario: scenario.into(),
            case: case.into(),
            verdict: Verdict::Inconclusive,
            reason: problem.into(),
            requirements: Vec::new(),
            findings: Vec::new(),
            notes: Vec::new(),
            accounting: Accounting::default(),
            duration_ms: 0,
            replay: String::new(),
        }
    }

    /// Something of the harness went wrong beside the recording: no pass without a doubt.
    pub fn note_trouble(&mut self, trouble: &str) {
        if self.verdict > Verdict::Inconclusive {
            self.verdict = Verdict::Inconclusive;
            self.reason = trouble.into();
        } else {
            self.notes.push(trouble.into());
        }
    }

    pub(super) fn unsupported(&mut self, reason: String) {
        self.verdict = Verdict::Unsupported;
        self.reason = reason;
    }

    /// Nothing was run, so there is nothing to judge.
    pub(super) fn not_run(&mut self, recording: &Recording, reason: String) {
        self.unsupported(reason);
        let ids = recording.header.definition.requirements.iter();
        self.requirements =
            ids.map(|id| RequirementVerdict { id: id.clone(), verdict: Verdict::Unsupported }).collect();
    }

    pub(super) fn conclude(
        &mut self,
        recording: &Recording,
        findings: Vec<Finding>,
        accounting: Accounting,
        options: &Options,
    ) {
        let unsupported = self.verdict == Verdict::Unsupported;
        for finding in findings {
            if counts(&finding.requirement, options) {
                self.findings.push(finding);
            } else {
                self.notes.push(format!("{} (should): {}", finding.requirement, finding.summary));
            }
        }
        self.findings.sort_by(|a, b| (a.verdict, &a.requirement, &a.class).cmp(&(b.verdict, &b.requirement, &b.class)));
        let worst = self.findings.iter().map(|finding| finding.verdict).min();
        let complete = accounting.complete();
        self.verdict = match worst {
            Some(worst) => worst,
            None if !complete => Verdict::Inconclusive,
            None if unsupported => Verdict::Unsupported,
            None => Verdict::Pass,
        };
        match worst {
            Some(worst) => {
                let first = self.findings.iter().find(|finding| finding.verdict == worst).expect("the worst is there");
                self.reason = format!("{}: {}", first.requirement, first.summary);
            }
            None if !complete => self.reason = accounting.gaps(),
            None => {}
        }
        let otherwise = if !complete {
            Verdict::Inconclusive
        } else if unsupported {
            Verdict::Unsupported
        } else {
            Verdict::Pass
        };
        let mut requirements: BTreeMap<String, Verdict> =
            recording.header.definition.requirements.iter().map(|id| (id.clone(), otherwise)).collect();
        for finding in &self.findings {
            let verdict = requirements.entry(finding.requirement.clone()).or_insert(finding.verdict);
            *verdict = (*verdict).min(finding.verdict);
        }
        self.requirements = requirements.into_iter().map(|(id, verdict)| RequirementVerdict { id, verdict }).collect();
        self.accounting = accounting;
    }
}
