//! The whole matrix on the reference subject: a test a scenario, which runs all its cases. There is no finding in any of them, and
//! judging the bundle again gives the run's verdicts.
//!
//! `cargo nextest run --partition` shards it, a name filters it, `WATERTIGHT_REPEATS=10` is what a release's figure is from. How
//! long the matrix takes is what `watertight run` prints.

use libtest_mimic::{Arguments, Failed};
use std::collections::BTreeMap;
use watertight_tests::{Bundle, Needs, missing, repeats, run, trial};

fn main() {
    let arguments = Arguments::from_args();
    let reason = missing(Needs::Cases);
    let suite = watertight::scenario::suite().expect("the suite loads");
    let trials = suite.into_iter().map(|(id, scenario)| {
        let cases = scenario.matrix.cases().len();
        let name = id.clone();
        trial(&name, reason.as_deref(), move || passes_each_time(&id, cases))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn passes_each_time(scenario: &str, cases: usize) -> Result<(), Failed> {
    for time in 1..=repeats() {
        passes(scenario, cases).map_err(|problem| format!("run {time} of {}: {problem}", repeats()))?;
    }
    Ok(())
}

fn passes(scenario: &str, cases: usize) -> Result<(), String> {
    let bundle = Bundle::record(&["--scenario", scenario]);
    let report = bundle.report();
    if report.results.len() != cases {
        return Err(format!("{cases} cases were to be run:\n{}", bundle.ran.said));
    }
    let others = bundle.others();
    let code = bundle.ran.code();
    if !others.is_empty() || code != Some(0) {
        let (others, place) = (others.join("\n"), bundle.keep());
        let place = place.display();
        return Err(format!(
            "expected PASS of every case, and exit code 0; got exit code {code:?} and\n{others}\nbundle: {place}"
        ));
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
    if again != recorded || judged.code() != Some(0) {
        return Err(format!("judging again gives other verdicts:\n{}", judged.said));
    }
    Ok(())
}
