//! The reference subject has no finding in any case of the suite, and judging the bundle again gives the run's verdicts.
//!
//! `WATERTIGHT_REPEATS=10` is what the release's figure is from. How long it takes is a benchmark's question, not this one's.

use std::collections::BTreeMap;
use watertight_tests::{Bundle, Needs, missing, repeats, run, skip};

#[test]
fn every_case_of_the_suite_passes_on_the_reference_and_judging_again_agrees() {
    if skip(missing(Needs::Cases)) {
        return;
    }
    for time in 1..=repeats() {
        let bundle = Bundle::record(&[]);
        let report = bundle.report();
        let total: usize = watertight::scenario::suite()
            .expect("the suite loads")
            .values()
            .map(|scenario| scenario.matrix.cases().len())
            .sum();
        assert_eq!(report.results.len(), total, "every case of the suite was to be run:\n{}", bundle.ran.said);
        println!(
            "run {time} of {}: {total} cases, verdicts {:?}, {}",
            repeats(),
            report.totals,
            seconds(&bundle.ran.said)
        );

        let others: Vec<String> = report
            .results
            .iter()
            .filter(|result| result.verdict.as_str() != "PASS")
            .map(|result| format!("{} {} [{}]: {}", result.verdict, result.scenario, result.case, result.reason))
            .collect();
        if !others.is_empty() || bundle.ran.code() != Some(0) {
            let code = bundle.ran.code();
            panic!(
                "expected PASS of every case, and exit code 0; got exit code {code:?} and\n{}\nbundle: {}",
                others.join("\n"),
                bundle.keep().display()
            );
        }

        let judged = run(["judge".as_ref(), bundle.path().as_os_str()]);
        let recorded: BTreeMap<String, String> = report
            .results
            .iter()
            .map(|result| (format!("{} [{}]", result.scenario, result.case), result.verdict.to_string()))
            .collect();
        let again: BTreeMap<String, String> = judged
            .said
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(verdict, case)| (case.trim().to_owned(), verdict.to_owned()))
            .collect();
        assert_eq!(again, recorded, "judging again gives other verdicts:\n{}", judged.said);
        assert_eq!(judged.code(), Some(0), "{}", judged.said);
    }
}

/// The program's own words: `N cases in S s`.
fn seconds(said: &str) -> &str {
    said.lines().find(|line| line.contains(" cases in ")).unwrap_or_default()
}
