//! Every planted defect is caught, as what it is: the verdict, the requirement and the leak class that the table names.
//!
//! Runs by hand with `WATERTIGHT_REPEATS=3`: a defect that is caught by luck is not caught.

use libtest_mimic::{Arguments, Failed};
use watertight_leaky::{DEFECTS, Defect};
use watertight_tests::{Bundle, Needs, missing, repeats, trial};

fn main() {
    let arguments = Arguments::from_args();
    let reason = missing(Needs::Cases);
    let trials =
        DEFECTS.iter().map(|defect| trial(defect.name, reason.as_deref(), || caught_each_time(defect))).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list && conclusion.num_filtered_out + conclusion.num_ignored == 0 {
        println!("defects caught: {} of {}", conclusion.num_passed, DEFECTS.len());
    }
    conclusion.exit();
}

fn caught_each_time(defect: &'static Defect) -> Result<(), Failed> {
    for time in 1..=repeats() {
        caught(defect).map_err(|problem| format!("run {time} of {}: {problem}", repeats()))?;
    }
    Ok(())
}

fn caught(defect: &Defect) -> Result<(), String> {
    let subject = format!("leaky:{}", defect.name);
    let bundle =
        Bundle::record(&["--subject", &subject, "--scenario", defect.scenario, "--case", defect.case, "--jobs", "1"]);
    let result = bundle.only_result();
    let caught = result.findings.iter().any(|finding| {
        (finding.verdict.as_str(), finding.requirement.as_str(), finding.class.as_str())
            == (defect.verdict, defect.requirement, defect.class)
    });
    // The case's verdict is the worst of its findings, so a defect may have a worse one beside its own.
    if caught && bundle.ran.code() == Some(1) {
        return Ok(());
    }
    let seen: Vec<String> = result
        .findings
        .iter()
        .map(|finding| {
            format!(
                "  {} {} {} ({}×, {}): {}",
                finding.verdict, finding.requirement, finding.class, finding.count, finding.window, finding.summary
            )
        })
        .collect();
    let code = bundle.ran.code();
    Err(format!(
        "expected {} {} {} in {} [{}], and exit code 1\ngot {} (exit code {code:?}): {}\n{}\nbundle: {}",
        defect.verdict,
        defect.requirement,
        defect.class,
        defect.scenario,
        defect.case,
        result.verdict,
        result.reason,
        seen.join("\n"),
        bundle.keep().display()
    ))
}
