//! Nothing is found in a subject that is right in another way than the reference.

use libtest_mimic::{Arguments, Failed};
use watertight_leaky::{VARIANTS, Variant};
use watertight_tests::{Bundle, Needs, missing, repeats, trial};

fn main() {
    let arguments = Arguments::from_args();
    let reason = missing(Needs::Cases);
    let trials =
        VARIANTS.iter().map(|variant| trial(variant.name, reason.as_deref(), || passes_each_time(variant))).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn passes_each_time(variant: &'static Variant) -> Result<(), Failed> {
    for time in 1..=repeats() {
        passes(variant).map_err(|problem| format!("run {time} of {}: {problem}", repeats()))?;
    }
    Ok(())
}

fn passes(variant: &Variant) -> Result<(), String> {
    let subject = format!("sound:{}", variant.name);
    let mut arguments = vec!["--subject", &subject, "--profile", variant.profile];
    arguments.extend(variant.scenarios.iter().flat_map(|scenario| ["--scenario", scenario]));
    let bundle = Bundle::record(&arguments);
    let report = bundle.report();
    let others = bundle.others();
    let code = bundle.ran.code();
    if others.is_empty() && report.results.len() >= variant.scenarios.len() && code == Some(0) {
        return Ok(());
    }
    Err(format!(
        "expected PASS of at least {} cases, and exit code 0; got {} cases, exit code {code:?} and\n{}\nbundle: {}",
        variant.scenarios.len(),
        report.results.len(),
        others.join("\n"),
        bundle.keep().display()
    ))
}
