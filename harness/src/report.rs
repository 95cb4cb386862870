//! `report.json` and `junit.xml` of a bundle, and a finding in words.

mod words;

pub use words::finding;

use crate::judge::{Accounting, CaseVerdict, Finding, RequirementVerdict, SubjectName, Verdict};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io, path::Path, time::Duration};

/// `report.json`, format 1.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ReportFile {
    /// 1.
    pub format: u32,
    /// What was tested.
    pub subject: SubjectName,
    /// Where.
    pub host: Host,
    /// A result for each case.
    pub results: Vec<CaseResult>,
    /// Cases by verdict.
    pub totals: BTreeMap<String, usize>,
}

/// The machine that ran the cases.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// The kernel's name and release.
    pub kernel: String,
    /// The processor's architecture.
    pub architecture: String,
    /// Watertight's version.
    pub watertight: String,
}

/// One case's result.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CaseResult {
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
    /// What is not held against the subject.
    pub notes: Vec<String>,
    /// The evidence's account.
    pub accounting: Accounting,
    /// Milliseconds.
    pub duration_ms: u64,
    /// The command that runs this case again.
    #[serde(default)]
    pub replay: String,
}

/// Writes both files into the bundle.
pub fn write(bundle: &Path, verdicts: &[CaseVerdict]) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(&report(verdicts)).map_err(io::Error::from)?;
    text.push('\n');
    std::fs::write(bundle.join("report.json"), text)?;
    std::fs::write(bundle.join("junit.xml"), junit(verdicts)?)
}

fn report(verdicts: &[CaseVerdict]) -> ReportFile {
    let mut totals = BTreeMap::new();
    for verdict in verdicts {
        *totals.entry(verdict.verdict.as_str().to_owned()).or_insert(0) += 1;
    }
    let kernel = nix::sys::utsname::uname()
        .map(|name| format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy()))
        .unwrap_or_default();
    ReportFile {
        format: 1,
        subject: verdicts
            .iter()
            .map(|case| case.subject.clone())
            .find(|subject| !subject.version.is_empty())
            .or_else(|| verdicts.first().map(|case| case.subject.clone()))
            .unwrap_or(SubjectName { name: String::new(), version: String::new() }),
        host: Host {
            kernel,
            architecture: std::env::consts::ARCH.into(),
            watertight: env!("CARGO_PKG_VERSION").into(),
        },
        results: verdicts
            .iter()
            .map(|case| CaseResult {
                scenario: case.scenario.clone(),
                case: case.case.clone(),
                verdict: case.verdict,
                reason: case.reason.clone(),
                requirements: case.requirements.clone(),
                findings: case.findings.clone(),
                notes: case.notes.clone(),
                accounting: case.accounting.clone(),
                duration_ms: case.duration_ms,
                replay: case.replay.clone(),
            })
            .collect(),
        totals,
    }
}

fn junit(verdicts: &[CaseVerdict]) -> io::Result<String> {
    let mut suites: BTreeMap<&str, TestSuite> = BTreeMap::new();
    for case in verdicts {
        let suite = suites.entry(&case.scenario).or_insert_with(|| TestSuite::new(case.scenario.clone()));
        let status = match case.verdict {
            Verdict::Pass => TestCaseStatus::success(),
            Verdict::Unsupported => TestCaseStatus::skipped(),
            Verdict::Inconclusive => TestCaseStatus::non_success(NonSuccessKind::Error),
            _ => TestCaseStatus::non_success(NonSuccessKind::Failure),
        };
        let mut test = TestCase::new(case.case.clone(), status);
        test.status.set_message(format!("{}: {}", case.verdict, case.reason));
        test.set_time(Duration::from_millis(case.duration_ms));
        suite.add_test_case(test);
    }
    let mut report = Report::new("watertight");
    for suite in suites.into_values() {
        report.add_test_suite(suite);
    }
    report.to_string().map_err(io::Error::other)
}
