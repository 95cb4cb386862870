//! What is printed at the end: the matrix, and each finding as requirement, expected and actual, evidence, replay.

use std::{collections::BTreeMap, io::IsTerminal};
use watertight::{
    coverage,
    judge::{CaseVerdict, Verdict},
    report,
};

/// A verdict in its colour, where colours are wanted.
pub fn paint(verdict: Verdict) -> String {
    let plain = verdict.to_string();
    if !colours() {
        return plain;
    }
    let code = match verdict {
        Verdict::Pass => "32",
        Verdict::Leak | Verdict::NotRestored => "1;31",
        Verdict::Overblock | Verdict::Failed => "31",
        Verdict::Inconclusive => "33",
        Verdict::Unsupported => "2",
    };
    format!("\u{1b}[{code}m{plain}\u{1b}[0m")
}

fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && std::io::stdout().is_terminal()
}

fn mark(verdict: Verdict) -> String {
    let letter = match verdict {
        Verdict::Pass => ".",
        Verdict::Leak => "L",
        Verdict::NotRestored => "R",
        Verdict::Overblock => "O",
        Verdict::Failed => "F",
        Verdict::Inconclusive => "?",
        Verdict::Unsupported => "-",
    };
    if colours() { paint(verdict).replace(verdict.as_str(), letter) } else { letter.into() }
}

/// Scenarios by rows, their cases as marks.
pub fn matrix(verdicts: &[CaseVerdict]) {
    let mut rows: BTreeMap<&str, Vec<&CaseVerdict>> = BTreeMap::new();
    for verdict in verdicts {
        rows.entry(&verdict.scenario).or_default().push(verdict);
    }
    let width = rows.keys().map(|name| name.len()).max().unwrap_or(0);
    println!();
    for (scenario, cases) in &rows {
        let marks: String = cases.iter().map(|case| mark(case.verdict)).collect();
        let worst = cases.iter().map(|case| case.verdict).min().unwrap_or(Verdict::Pass);
        let seconds: f64 = cases.iter().map(|case| case.duration_ms as f64 / 1000.0).sum();
        println!(
            "{scenario:width$}  {marks}{}  {} {seconds:5.1} s",
            " ".repeat(14usize.saturating_sub(cases.len())),
            pad(worst)
        );
    }
    println!("\n. PASS  L LEAK  R NOT-RESTORED  O OVERBLOCK  F FAILED  ? INCONCLUSIVE  - UNSUPPORTED");
}

fn pad(verdict: Verdict) -> String {
    format!("{}{}", paint(verdict), " ".repeat(13 - verdict.as_str().len()))
}

/// Requirements that the cases check, and what became of them.
pub fn requirements(verdicts: &[CaseVerdict]) {
    let mut worst: BTreeMap<&str, (Verdict, usize)> = BTreeMap::new();
    for requirement in verdicts.iter().flat_map(|case| &case.requirements) {
        let entry = worst.entry(&requirement.id).or_insert((Verdict::Pass, 0));
        if requirement.verdict < entry.0 {
            *entry = (requirement.verdict, 0);
        }
        entry.1 += usize::from(requirement.verdict == entry.0);
    }
    let good = worst.values().filter(|(verdict, _)| *verdict == Verdict::Pass).count();
    println!("\n{good} of {} requirements pass", worst.len());
    for (id, (verdict, cases)) in worst.iter().filter(|(_, (verdict, _))| *verdict != Verdict::Pass) {
        println!("  {} {id} in {cases} case{}", pad(*verdict), if *cases == 1 { "" } else { "s" });
    }
    let pairs = coverage::Pairs::of(verdicts);
    println!(
        "requirements × profiles: {} of {} pass; {} apply to the profiles that were run",
        pairs.passed, pairs.checked, pairs.applicable
    );
}

/// How many of the slowest cases are named.
const SLOWEST: usize = 10;

/// The cases that took longest: where a suite's time goes.
pub fn slowest(verdicts: &[CaseVerdict]) {
    if verdicts.len() <= SLOWEST {
        return;
    }
    let mut cases: Vec<&CaseVerdict> = verdicts.iter().collect();
    cases.sort_by_key(|case| std::cmp::Reverse(case.duration_ms));
    println!("\nslowest:");
    for case in &cases[..SLOWEST] {
        println!("{:7.1} s  {} [{}]", case.duration_ms as f64 / 1000.0, case.scenario, case.case);
    }
}

/// Findings, worst first, each once a scenario.
pub fn findings(verdicts: &[CaseVerdict], bundle: &std::path::Path) {
    let mut shown = 0;
    for case in verdicts {
        for finding in &case.findings {
            shown += 1;
            if shown > 20 {
                continue;
            }
            println!("\n{} {}  {} [{}]", paint(finding.verdict), finding.requirement, case.scenario, case.case);
            let folder = bundle.join(&case.subject.name).join(&case.scenario).join(&case.case);
            print!("{}", report::finding(case, finding, &folder));
        }
    }
    if shown > 20 {
        println!("\n… and {} more findings, in report.json", shown - 20);
    }
    for case in verdicts.iter().filter(|case| case.findings.is_empty() && case.verdict != Verdict::Pass) {
        println!("\n{}  {} [{}]\n  reason       {}", paint(case.verdict), case.scenario, case.case, case.reason);
    }
}
