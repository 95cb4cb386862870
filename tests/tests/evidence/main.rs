//! Evidence cannot be faked by accident: whatever goes missing, the verdict is `INCONCLUSIVE` and says what is missing.
//!
//! Two kinds of trials: a run whose evidence is damaged while it is taken (`--sabotage`), and a finished `PASS` bundle that is
//! damaged afterwards and judged again. And one that is no damage: watchers that are late.

mod damage;

use damage::{DAMAGES, Damage};
use libtest_mimic::{Arguments, Failed};
use std::{path::Path, sync::OnceLock};
use watertight_tests::{Bundle, Needs, edit_history, missing, run, trial};

/// What the program does to its own evidence, and words of the reason that must be given.
const SABOTAGES: [(&str, &[&str]); 6] = [
    ("tiny-ring", &["accounting: ", "uplink: the kernel dropped"]),
    ("frozen-reader", &["was not seen on uplink", "the capture is not reading"]),
    ("late-capture", &["agreement: ", "uplink: the near end sent"]),
    ("skipped-probe", &["stimulus: ", "was not tried"]),
    ("lost-canary", &["liveness: ", "Canary", "was sent on uplink and is not in its capture"]),
    ("cut-log", &["agreement: ", "the far resolvers counted"]),
];

/// States, transitions, a tunnel and a restore: every kind of evidence is in it.
const CASE: [&str; 6] = ["--scenario", "states/connect-disconnect", "--case", "static-file+default", "--jobs", "1"];

fn main() {
    let arguments = Arguments::from_args();
    let reason = missing(Needs::Cases);
    let sabotages = SABOTAGES
        .iter()
        .map(|(name, words)| trial(&format!("recorded::{name}"), reason.as_deref(), || recorded_with(name, words)));
    let late = trial("late-notice", reason.as_deref(), nothing_is_found_where_the_watchers_are_late);
    let reading = trial("late-reading", reason.as_deref(), a_reading_is_not_dated_before_what_it_shows);
    let damages = DAMAGES
        .iter()
        .map(|damage| trial(&format!("finished::{}", damage.name), reason.as_deref(), || judged_after(damage)));
    let trials = sabotages.chain([late, reading]).chain(damages).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn recorded_with(sabotage: &str, words: &[&str]) -> Result<(), Failed> {
    let bundle = Bundle::record(&[&CASE[..], &["--sabotage", sabotage]].concat());
    let result = bundle.only_result();
    let seen = format!("{}: {}", result.verdict, result.reason);
    let problem = if bundle.ran.code() != Some(2) || result.verdict.as_str() != "INCONCLUSIVE" {
        Some("expected INCONCLUSIVE and exit code 2".to_owned())
    } else {
        missing_words(&result.reason, words)
    };
    match problem {
        None => Ok(()),
        Some(problem) => Err(format!(
            "{problem}\ngot {seen} (exit code {:?})\nbundle: {}",
            bundle.ran.code(),
            bundle.keep().display()
        )
        .into()),
    }
}

/// What is noticed late, and was done in time, is no finding, and nothing is missing.
fn nothing_is_found_where_the_watchers_are_late() -> Result<(), Failed> {
    let scenario = ["--scenario", "states/connect-disconnect", "--case", "*+default", "--sabotage", "late-notice"];
    let bundle = Bundle::record(&scenario);
    match (bundle.ran.code(), bundle.others().as_slice()) {
        (Some(0), []) => Ok(()),
        (code, others) => {
            let others = others.join("\n");
            let place = bundle.keep();
            Err(format!(
                "expected PASS of every case; got exit code {code:?} and\n{others}\nbundle: {}",
                place.display()
            )
            .into())
        }
    }
}

/// Servers that a service was told of are in the history with a time at which it had been told, however late it was asked.
fn a_reading_is_not_dated_before_what_it_shows() -> Result<(), Failed> {
    let scenario =
        ["--scenario", "systemd-resolved/connected", "--case", "systemd-resolved+default", "--sabotage", "late-notice"];
    let bundle = Bundle::record(&scenario);
    let mut told: Option<u64> = None;
    let mut dated = Vec::new();
    edit_history(&bundle.cases()[0], |events| {
        for record in events.iter() {
            let (t, event) = (record["t"].as_u64(), &record["event"]);
            if event["kind"] == "bus" && event["message"] == "call" && event["member"] == "SetLinkDNS" {
                told = told.or(t);
            }
            let names_tunnel =
                event["asked"].as_array().is_some_and(|asked| asked.iter().any(|one| one == "10.64.0.1"));
            if event["kind"] == "resolver" && names_tunnel {
                dated.push(t);
            }
        }
    });
    if told.is_some() && !dated.is_empty() && dated.iter().all(|t| *t >= told) && bundle.ran.code() == Some(0) {
        return Ok(());
    }
    let place = bundle.keep();
    Err(format!("told at {told:?}, and the readings that show it have {dated:?}; bundle: {}", place.display()).into())
}

/// The bundle that all damages start from, recorded once a process.
fn whole() -> &'static Bundle {
    static WHOLE: OnceLock<Bundle> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let bundle = Bundle::record(&CASE);
        let result = bundle.only_result();
        assert_eq!(result.verdict.as_str(), "PASS", "damage shows on a pass only: {}", result.reason);
        bundle
    })
}

fn judged_after(damage: &Damage) -> Result<(), Failed> {
    let copy = tempfile::Builder::new().prefix("watertight-test-").tempdir()?;
    copy_tree(&whole().cases()[0], copy.path())?;
    (damage.inflict)(copy.path());
    let judged = run(["judge".as_ref(), copy.path().as_os_str()]);
    let problem = if judged.code() != Some(2) || !judged.said.starts_with("INCONCLUSIVE") {
        Some("expected INCONCLUSIVE and exit code 2".to_owned())
    } else {
        missing_words(&judged.said, damage.words)
    };
    match problem {
        None => Ok(()),
        Some(problem) => {
            let kept = copy.keep();
            Err(format!("{problem}\ngot exit code {:?}:\n{}\ncase: {}", judged.code(), judged.said, kept.display())
                .into())
        }
    }
}

fn missing_words(text: &str, words: &[&str]) -> Option<String> {
    let missing = words.iter().find(|words| !text.contains(*words))?;
    Some(format!("expected the reason to say '{missing}'"))
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (source, target) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if source.is_dir() {
            copy_tree(&source, &target)?;
        } else {
            std::fs::copy(&source, &target)?;
        }
    }
    Ok(())
}
