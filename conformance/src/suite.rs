//! The suite as tests: a case each, in a process of its own.

use crate::{
    Backend,
    bundle::Bundle,
    daemon::{self, ENTRY},
    options::{self, Options},
};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::{
    env, fs,
    path::Path,
    process::ExitCode,
    sync::{Arc, OnceLock},
};
use watertight::{
    case::CasePlan,
    judge::{self, CaseVerdict, Verdict},
    report, run,
    scenario::{self, Axes, Scenario, SettingsPatch, Step},
    selfcheck,
    subject::SubjectCommand,
};
use watertight_protocol::Capability;

/// Variables that daemon and backend get too, where they are set.
const HANDED_ON: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];

/// Runs the tests that the command line asks for, as libtest does.
pub(crate) fn main(backend: &dyn Backend) -> ExitCode {
    let arguments = Arguments::from_args();
    let (options, suite) = match (Options::from_environment(), scenario::suite()) {
        (Ok(options), Ok(suite)) => (options, suite),
        (Err(error), _) => return refuse(&error),
        (_, Err(error)) => return refuse(&error),
    };
    let run = Arc::new(Run {
        name: backend.name().to_owned(),
        capabilities: daemon::capabilities(backend),
        machine: OnceLock::new(),
        options,
    });
    let profiles = backend.profiles();
    let cases = suite.into_iter().flat_map(|(id, scenario)| {
        let cases = scenario.matrix.cases();
        cases.into_iter().map(move |axes| Case { id: id.clone(), scenario: scenario.clone(), axes })
    });
    // A case's number is the same whatever is asked for, and so are the names that are derived from it.
    let trials: Vec<Trial> = (1..)
        .zip(cases)
        .filter(|(_, case)| profiles.contains(&case.axes.profile))
        .map(|(number, case)| run.clone().trial(number, case))
        .collect();
    if trials.is_empty() {
        return refuse(&format_args!("the backend '{}' names no profile, so there is nothing to test", run.name));
    }
    if arguments.list {
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let bundle = match Bundle::open(&run.options) {
        Ok(bundle) => bundle,
        Err(error) => {
            return refuse(&format_args!(
                "failed to make the folder {}: {error}; name another one in WATERTIGHT_BUNDLE",
                run.options.bundle.display()
            ));
        }
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Err(error) = bundle.sweep() {
        eprintln!("empty folders are left in {}: {error}", run.options.bundle.display());
    }
    conclusion.exit_code()
}

fn refuse(problem: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::from(64)
}

/// One case of the suite.
struct Case {
    id: String,
    scenario: Scenario,
    axes: Axes,
}

impl Case {
    fn name(&self) -> String {
        format!("{} [{}]", self.id, self.axes.id())
    }

    /// Why it is not for a backend that can do this, or not on this machine.
    fn unsupported(&self, capabilities: &[Capability]) -> Option<String> {
        let needs = self.scenario.needs_of(&self.axes);
        let missing: Vec<String> =
            needs.iter().filter(|need| !capabilities.contains(need)).map(Capability::to_string).collect();
        if !missing.is_empty() {
            return Some(format!("the backend does not claim {}", missing.join(", ")));
        }
        if chooses_a_method(&self.scenario) {
            return Some("it asks for a DNS method by name, and a backend is one method".into());
        }
        self.axes.profile.folders().err().map(|layer| layer.missing())
    }
}

/// Whether a scenario is about the choice among several methods.
fn chooses_a_method(scenario: &Scenario) -> bool {
    let names_one = |patch: &SettingsPatch| patch.dns_method.as_ref().is_some_and(|method| method != "auto");
    scenario.environment.contains_key(watertight_dns_manager::METHOD_VARIABLE)
        || names_one(&scenario.settings)
        || scenario.steps.iter().any(|step| matches!(step, Step::Configure(patch) if names_one(patch)))
}

/// What all cases of a run have in common.
struct Run {
    name: String,
    capabilities: Vec<Capability>,
    options: Options,
    machine: OnceLock<Vec<String>>,
}

impl Run {
    fn trial(self: Arc<Self>, number: u64, case: Case) -> Trial {
        let (name, unsupported) = (case.name(), case.unsupported(&self.capabilities));
        // Where the tests are listed for another program, which does not see the reason, it is a flag as well.
        let flagged = unsupported.is_some() && env::var_os("NEXTEST").is_some();
        let test = move || match unsupported {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => self.run(number, &case),
        };
        Trial::ignorable_test(name, test).with_ignored_flag(flagged)
    }

    fn run(&self, number: u64, case: &Case) -> Result<Completion, Failed> {
        let lacks = self.machine();
        if !lacks.is_empty() {
            let reason = format!("this machine cannot run cases: {}", lacks.join("; "));
            return if self.options.required { Err(reason.into()) } else { Ok(Completion::ignored_with(reason)) };
        }
        let folder = self.options.bundle.join(&self.name).join(&case.id).join(case.axes.id());
        make_empty(&folder)?;
        let plan = CasePlan {
            scenario: case.id.clone(),
            definition: case.scenario.clone(),
            axes: case.axes.clone(),
            subject: SubjectCommand {
                name: self.name.clone(),
                program: "@self".into(),
                arguments: vec![ENTRY.into()],
                environment: HANDED_ON.iter().filter_map(|name| Some(((*name).into(), env::var(name).ok()?))).collect(),
            },
            folder: folder.clone(),
            nonce: self.options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number),
            replay: options::replay(self.options.seed, &case.name()),
            sabotage: None,
        };
        let verdict = run::run_one(&plan, &judge::Options::default());
        let outcome = outcome(&verdict, &folder)?;
        fs::remove_dir_all(&folder).map_err(|error| format!("failed to remove {}: {error}", folder.display()))?;
        Ok(outcome)
    }

    /// What the machine lacks, looked at when the first case wants to run.
    fn machine(&self) -> &[String] {
        self.machine.get_or_init(|| {
            let lacks = selfcheck::missing();
            for problem in &lacks {
                eprintln!("this machine cannot run cases: {problem}");
            }
            lacks
        })
    }
}

/// A folder of a case, which is new: what an earlier run has kept there is somebody's evidence.
fn make_empty(folder: &Path) -> Result<(), String> {
    let made =
        fs::create_dir_all(folder).and_then(|()| fs::read_dir(folder)).map(|mut entries| entries.next().is_none());
    match made {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "{} holds an earlier run's case: nothing was run, and nothing in it was touched; remove it, or name another folder in WATERTIGHT_BUNDLE",
            folder.display()
        )),
        Err(error) => Err(format!(
            "failed to make the folder {}: {error}; name another one in WATERTIGHT_BUNDLE",
            folder.display()
        )),
    }
}

/// What a verdict is as a test's outcome: only a pass is one.
fn outcome(verdict: &CaseVerdict, folder: &Path) -> Result<Completion, Failed> {
    match verdict.verdict {
        Verdict::Pass => Ok(Completion::Completed),
        Verdict::Unsupported => Ok(Completion::ignored_with(&verdict.reason)),
        _ => Err(in_words(verdict, folder).into()),
    }
}

/// Findings as the program prints them, or what is missing in the evidence; and where everything is.
fn in_words(verdict: &CaseVerdict, folder: &Path) -> String {
    let mut words = String::new();
    for finding in &verdict.findings {
        words += &format!(
            "{} {}  {} [{}]\n{}\n",
            finding.verdict,
            finding.requirement,
            verdict.scenario,
            verdict.case,
            report::finding(verdict, finding, folder)
        );
    }
    if verdict.findings.is_empty() {
        words += &format!(
            "{}  {} [{}]\n  reason       {}\n  replay       {}\n\n",
            verdict.verdict, verdict.scenario, verdict.case, verdict.reason, verdict.replay
        );
    }
    words + &format!("kept: {}", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(verdict: Verdict) -> CaseVerdict {
        CaseVerdict { verdict, ..CaseVerdict::unreadable("states/connected", "static-file", "a frame is missing") }
    }

    #[test]
    fn only_a_pass_is_a_pass() {
        let folder = Path::new("/bundle/mine/states/connected/static-file");
        for each in Verdict::ALL {
            match (each, outcome(&verdict(each), folder)) {
                (Verdict::Pass, Ok(Completion::Completed)) => {}
                (Verdict::Unsupported, Ok(Completion::Ignored { reason })) => {
                    assert_eq!(reason.as_deref(), Some("a frame is missing"));
                }
                (each, Err(failed)) if each <= Verdict::Inconclusive => {
                    let said = failed.message().unwrap_or_default();
                    let head = format!("{each}  states/connected [static-file]\n  reason       a frame is missing\n");
                    assert!(said.starts_with(&head), "{said}");
                    assert!(said.ends_with("kept: /bundle/mine/states/connected/static-file"), "{said}");
                }
                (each, _) => panic!("{each} has another outcome"),
            }
        }
    }
}
