//! The judge: a pure function of a case's folder. It gives the same verdict wherever and whenever it runs.
//!
//! Absence of evidence is never a pass: a `PASS` needs all five conditions of [`Accounting`], and no finding. The policy is
//! written from the requirements and shares no code with any firewall.

mod answers;
mod cache;
mod connecting;
mod effective;
mod evidence;
mod expected;
mod explain;
#[cfg(test)]
mod explain_tests;
mod held;
mod link_control;
mod methods;
mod order;
mod policy;
mod recording;
mod restore;
mod services;
mod smoke;
mod stimulus;
mod timeline;
mod verdict;
mod wire;

pub use policy::{Approved, approved};
pub use recording::{JudgeError, Recording};
pub use smoke::{SMOKE_FILE, write_smoke};
pub use verdict::{Accounting, CaseVerdict, Condition, Evidence, Finding, RequirementVerdict, SubjectName, Verdict};

use crate::{capture, history::Event, spec::Level};
use std::{collections::BTreeMap, io, path::Path};

/// How strictly is judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// `should` requirements count like `must`.
    pub strict: bool,
}

/// Judges the case in `folder`, or the smoke check that failed.
pub fn judge_folder(folder: &Path, options: &Options) -> Result<CaseVerdict, JudgeError> {
    if folder.join(SMOKE_FILE).is_file() {
        return smoke::judge_smoke(folder);
    }
    Ok(judge(&Recording::read(folder)?, options))
}

/// Judges a recording.
pub fn judge(recording: &Recording, options: &Options) -> CaseVerdict {
    let mut verdict = CaseVerdict::new(recording);
    if let Some(missing) = missing_software(recording) {
        verdict.not_run(recording, missing);
        return verdict;
    }
    if let Some(missing) = missing_capabilities(recording) {
        verdict.unsupported(missing);
    }
    let timeline = timeline::Timeline::of(recording);
    let mut findings = Vec::new();
    findings.extend(wire::findings(recording, &timeline));
    findings.extend(order::findings(recording, &timeline));
    findings.extend(connecting::findings(recording, &timeline));
    findings.extend(restore::findings(recording));
    findings.extend(services::findings(recording, &timeline));
    findings.extend(cache::findings(recording, &timeline));
    findings.extend(held::findings(recording, &timeline));
    let accounting = evidence::account(recording, &timeline);
    // What was not seen is only known where the evidence is complete.
    let unmet = expected::findings(recording, &timeline);
    findings.extend(unmet.certain);
    if accounting.complete() {
        findings.extend(unmet.by_absence);
    }
    verdict.notes.extend(unmet.notes);
    verdict.conclude(recording, findings, accounting, options);
    verdict
}

/// Software that the profile needs and the machine does not have: nothing was run.
fn missing_software(recording: &Recording) -> Option<String> {
    recording.records.iter().find_map(|record| match &record.event {
        Event::NoSoftware { reason } => Some(reason.clone()),
        _ => None,
    })
}

/// Capabilities that the scenario needs and the subject does not claim.
fn missing_capabilities(recording: &Recording) -> Option<String> {
    let (capabilities, dns_methods) = recording.records.iter().find_map(|record| match &record.event {
        Event::Initialized { capabilities, dns_methods, .. } => Some((capabilities, dns_methods)),
        _ => None,
    })?;
    recording.header.definition.lacking(&recording.header.axes, capabilities, dns_methods)
}

/// Writes `verdict.json` into the case's folder.
pub fn write_verdict(folder: &Path, verdict: &CaseVerdict) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(verdict).map_err(io::Error::from)?;
    text.push('\n');
    std::fs::write(folder.join("verdict.json"), text)
}

/// Puts each finding's text on its frame, so that Wireshark shows it.
pub fn annotate_captures(folder: &Path, verdict: &CaseVerdict) -> Result<(), capture::Error> {
    let mut comments: BTreeMap<&str, BTreeMap<u64, String>> = BTreeMap::new();
    for finding in &verdict.findings {
        if let Some(evidence) = &finding.evidence {
            let text = format!("{} {}: {}", finding.verdict, finding.requirement, finding.summary);
            comments.entry(&evidence.link).or_default().entry(evidence.frame).or_insert(text);
        }
    }
    for (link, comments) in comments {
        capture::annotate(folder.join(format!("{link}.pcapng")), &comments)?;
    }
    Ok(())
}

/// Whether a requirement's violation counts.
fn counts(requirement: &str, options: &Options) -> bool {
    options.strict || crate::spec::requirement(requirement).is_none_or(|requirement| requirement.level == Level::Must)
}
