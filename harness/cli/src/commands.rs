//! The commands: what each does, and the exit code it ends with.

use crate::{
    args::{Arguments, Command, Judge, Run, Subject, What},
    doctor,
    progress::Live,
    subjects, terminal,
};
use miette::{IntoDiagnostic, WrapErr, bail, miette};
use nix::sys::signal::{SigHandler, Signal, signal};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};
use watertight::{
    case::{CasePlan, Sabotage},
    coverage,
    judge::{CaseVerdict, Options, SMOKE_FILE, Verdict, judge_folder, write_smoke},
    probe, report, run,
    scenario::{self, Scenario},
    selfcheck::{SmokeError, smoke_check},
    spec,
    subject::SubjectCommand,
};

/// Exit codes, with their meanings for `explain`.
pub const EXIT_CODES: [(u8, &str); 6] = [
    (0, "every case passed (or is unsupported, without --strict)"),
    (1, "at least one finding: LEAK, NOT-RESTORED, OVERBLOCK or FAILED"),
    (2, "no finding, but an inconclusive case, or under --strict an unsupported one"),
    (64, "the command line is wrong, or names what is not there"),
    (69, "this machine lacks something that is needed; `watertight doctor` tells what"),
    (70, "Watertight itself failed"),
];

/// Carries a command out.
pub fn run(arguments: Arguments) -> ExitCode {
    let result = match arguments.command {
        Command::Run(arguments) => run_scenarios(&arguments),
        Command::Judge(arguments) => {
            end_with_the_reader();
            judge(&arguments)
        }
        Command::List { what, scenarios } => {
            end_with_the_reader();
            list(what, scenarios.as_deref())
        }
        Command::Explain { id } => {
            end_with_the_reader();
            explain(&id)
        }
        Command::Smoke(arguments) => smoke(&arguments),
        Command::Fetch { layers } => fetch(&layers),
        Command::Doctor => Ok(doctor::run()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error:?}");
        ExitCode::from(64)
    })
}

/// Who reads a list may have read enough, as head(1) has: then there is nothing to say (signal(7), SIGPIPE).
fn end_with_the_reader() {
    // SAFETY: no handler is installed, and no other thread runs yet.
    if let Err(errno) = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) } {
        tracing::debug!("SIGPIPE: {errno}");
    }
}

/// How many cases run at once: a case waits for others half of its time. With more than these many, the table of neighbours that
/// all network namespaces of a machine share (1024 unless set otherwise, some 30 a case) would be full now and then.
fn jobs() -> usize {
    const MOST: usize = 16;
    std::thread::available_parallelism().map_or(1, |count| (2 * count.get()).min(MOST))
}

fn suite(folder: Option<&Path>) -> miette::Result<BTreeMap<String, Scenario>> {
    let load = || {
        let mut suite = scenario::suite()?;
        if let Some(folder) = folder {
            suite.extend(scenario::load_directory(folder)?);
        }
        Ok::<_, scenario::LoadError>(suite)
    };
    load().into_diagnostic().wrap_err("failed to load the scenarios")
}

fn globs(patterns: &[String]) -> miette::Result<globset::GlobSet> {
    let mut set = globset::GlobSetBuilder::new();
    for pattern in patterns {
        set.add(globset::Glob::new(pattern).into_diagnostic()?);
    }
    set.build().into_diagnostic()
}

fn run_scenarios(arguments: &Run) -> miette::Result<ExitCode> {
    let suite = suite(arguments.scenarios.as_deref())?;
    let (wanted, cases) = (globs(&arguments.scenario)?, globs(&arguments.case)?);
    let subject =
        subjects::command(&arguments.subject.subject, &arguments.subject.arguments, &arguments.subject.environment)
            .map_err(|error| miette!("{error}"))?;
    if let Err(code) = doctor::check() {
        return Ok(code);
    }
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let sabotage: Option<Sabotage> = arguments
        .sabotage
        .as_ref()
        .map(|name| serde_json::from_value(serde_json::Value::String(name.clone())))
        .transpose()
        .into_diagnostic()?;
    let mut plans = Vec::new();
    for (id, scenario) in &suite {
        if !arguments.scenario.is_empty() && !wanted.is_match(id) {
            continue;
        }
        for axes in scenario.matrix.cases() {
            let profile = axes.profile.to_string();
            if (!arguments.case.is_empty() && !cases.is_match(axes.id()))
                || (!arguments.profile.is_empty() && !arguments.profile.contains(&profile))
            {
                continue;
            }
            plans.push((id.clone(), scenario.clone(), axes));
        }
    }
    if let Some(partition) = arguments.partition {
        let mut index = 0;
        plans.retain(|_| {
            index += 1;
            (index - 1) % partition.parts == partition.part - 1
        });
    }
    if plans.is_empty() {
        bail!("no case matches; `watertight list scenarios` lists what there is");
    }
    let bundle = bundle_folder(arguments.bundle.as_deref())?;
    let plans: Vec<CasePlan> = plans
        .into_iter()
        .enumerate()
        .map(|(index, (id, definition, axes))| {
            let folder = run::case_folder(&bundle, &subject.name, &id, &axes.id())
                .into_diagnostic()
                .wrap_err_with(|| format!("failed to make a folder for {id} in {}", bundle.display()))?;
            let nonce = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index as u64 + 1);
            let replay = replay(arguments, seed, &id, &axes.id());
            Ok(CasePlan { scenario: id, definition, axes, subject: subject.clone(), folder, nonce, replay, sabotage })
        })
        .collect::<miette::Result<_>>()?;
    let jobs = arguments.jobs.unwrap_or_else(jobs);
    let started = std::time::Instant::now();
    let smoke = smoke_before(&subject, &bundle)?;
    let live = Live::new(&plans);
    let options = Options { strict: arguments.strict };
    let mut verdicts = run::run_all(&plans, jobs, &options, &|progress| live.observe(progress));
    live.finish();
    let cases = verdicts.len();
    verdicts.extend(smoke);
    report::write(&bundle, &verdicts).into_diagnostic().wrap_err("failed to write the report")?;
    terminal::findings(&verdicts, &bundle);
    terminal::matrix(&verdicts);
    terminal::requirements(&verdicts);
    terminal::slowest(&verdicts);
    println!(
        "\n{cases} case{} in {:.1} s, seed {seed}\nbundle: {}",
        if cases == 1 { "" } else { "s" },
        started.elapsed().as_secs_f64(),
        bundle.display()
    );
    Ok(exit_code(&verdicts, arguments.strict))
}

/// The command that runs a case again. The seed makes names and markers the same.
fn replay(arguments: &Run, seed: u64, scenario: &str, case: &str) -> String {
    let mut words = vec!["watertight".to_owned(), "run".into(), "--subject".into(), arguments.subject.subject.clone()];
    words.extend(arguments.subject.arguments.iter().map(|argument| format!("--subject-arg={argument}")));
    words.extend(arguments.subject.environment.iter().map(|name| format!("--subject-env={name}")));
    if let Some(folder) = &arguments.scenarios {
        words.extend(["--scenarios".into(), folder.display().to_string()]);
    }
    if arguments.strict {
        words.push("--strict".into());
    }
    words.extend([
        "--seed".into(),
        seed.to_string(),
        "--scenario".into(),
        scenario.into(),
        "--case".into(),
        case.into(),
    ]);
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a POSIX shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The smoke check before any scenario; a failed one is a result, and the scenarios are run all the same.
fn smoke_before(subject: &SubjectCommand, bundle: &Path) -> miette::Result<Option<CaseVerdict>> {
    match smoke_check(subject) {
        Ok(words) => {
            eprintln!("{words}");
            Ok(None)
        }
        Err(SmokeError::Adapter(problem)) => {
            eprintln!("{problem}");
            let folder = run::case_folder(bundle, &subject.name, "smoke", "protocol").into_diagnostic()?;
            write_smoke(&folder, &subject.name, &problem).into_diagnostic().map(Some)
        }
        Err(error) => Err(miette!("{error}")),
    }
}

fn bundle_folder(wanted: Option<&Path>) -> miette::Result<PathBuf> {
    let folder = match wanted {
        Some(folder) => folder.to_path_buf(),
        None => {
            let seconds =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
            PathBuf::from(format!("watertight-bundles/{seconds}-{}", std::process::id()))
        }
    };
    if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!(
            "the bundle folder {} is not empty: nothing was run, and nothing in it was touched; name another one",
            folder.display()
        );
    }
    std::fs::create_dir_all(&folder)
        .into_diagnostic()
        .wrap_err_with(|| format!("failed to make {}", folder.display()))?;
    folder.canonicalize().into_diagnostic()
}

fn exit_code(verdicts: &[CaseVerdict], strict: bool) -> ExitCode {
    let worst = verdicts.iter().map(|case| case.verdict).min().unwrap_or(Verdict::Pass);
    ExitCode::from(match worst {
        _ if worst.is_finding() => 1,
        Verdict::Inconclusive => 2,
        Verdict::Unsupported if strict => 2,
        _ => 0,
    })
}

fn judge(arguments: &Judge) -> miette::Result<ExitCode> {
    let mut folders = Vec::new();
    collect_cases(&arguments.bundle, &mut folders)
        .into_diagnostic()
        .wrap_err_with(|| format!("failed to read {}", arguments.bundle.display()))?;
    if folders.is_empty() {
        bail!("{} holds no case: no history.jsonl below it", arguments.bundle.display());
    }
    folders.sort();
    let mut verdicts = Vec::new();
    for folder in folders {
        // A recording that cannot be read is no evidence for anything.
        let name = |path: Option<&Path>| {
            path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let verdict = judge_folder(&folder, &Options { strict: arguments.strict }).unwrap_or_else(|error| {
            CaseVerdict::unreadable(&name(folder.parent()), &name(Some(&folder)), &error.to_string())
        });
        let recorded: Option<CaseVerdict> =
            std::fs::read(folder.join("verdict.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let differs = recorded.as_ref().is_some_and(|recorded| recorded.verdict != verdict.verdict);
        println!(
            "{:<13} {} [{}]{}",
            verdict.verdict,
            verdict.scenario,
            verdict.case,
            if differs { "  differs from the recorded verdict" } else { "" }
        );
        verdicts.push(verdict);
    }
    terminal::findings(&verdicts, &arguments.bundle);
    Ok(exit_code(&verdicts, arguments.strict))
}

fn collect_cases(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if folder.join("history.jsonl").is_file() || folder.join(SMOKE_FILE).is_file() {
        found.push(folder.to_path_buf());
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_cases(&path, found)?;
        }
    }
    Ok(())
}

fn list(what: What, folder: Option<&Path>) -> miette::Result<ExitCode> {
    match what {
        What::Scenarios => {
            for (id, scenario) in suite(folder)? {
                println!("{id:<40} {:>3} cases  {}", scenario.matrix.cases().len(), scenario.title);
            }
        }
        What::Requirements => {
            print!("{}", coverage::Coverage::of(&suite(folder)?));
        }
        What::Probes => {
            let present = probe::Present {
                user: true,
                guest: true,
                search: true,
                tunnel: true,
                identities: Vec::new(),
                forwarder: Some(watertight::profile::FORWARDER_ADDRESS.into()),
            };
            for kind in probe::catalogue(&present, watertight::testbed::plan::RELAY_PORT) {
                println!("{:<32} {}", kind.id, kind.target());
            }
        }
        What::Subjects => {
            println!("{:<40} the reference VPN daemon", "reference");
            println!("{:<40} the reference with one defect; see `watertight list defects`", "leaky:DEFECT");
            println!("{:<40} the reference in another right way; see `watertight list variants`", "sound:VARIANT");
            println!("{:<40} an adapter of your own", "PATH");
        }
        What::Defects => {
            for defect in watertight_leaky::DEFECTS {
                println!(
                    "{:<36} {:<13} {:<7} {:<4} {}",
                    defect.name, defect.verdict, defect.requirement, defect.class, defect.summary
                );
            }
        }
        What::Variants => {
            for variant in watertight_leaky::VARIANTS {
                println!("{:<36} {:<20} {}", variant.name, variant.profile, variant.summary);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(id: &str) -> miette::Result<ExitCode> {
    if let Some(requirement) = spec::requirement(id) {
        println!("{} ({:?})\n{}\nfrom: {}", requirement.id, requirement.level, requirement.text, requirement.seed);
        let scenarios: Vec<String> = scenario::suite()
            .into_diagnostic()?
            .into_iter()
            .filter(|(_, s)| s.requirements.contains(&requirement.id))
            .map(|(id, _)| id)
            .collect();
        println!("checked by: {}", if scenarios.is_empty() { "no scenario yet".into() } else { scenarios.join(", ") });
    } else if let Some(class) = spec::leak_class(id) {
        println!("{} {}\nseen in: {}", class.id, class.name, class.source);
    } else if let Some(verdict) = Verdict::ALL.into_iter().find(|verdict| verdict.as_str().eq_ignore_ascii_case(id)) {
        println!("{verdict}\n{}", verdict.meaning());
    } else if let Some((code, meaning)) = EXIT_CODES.iter().find(|(code, _)| code.to_string() == id) {
        println!("exit status {code}: {meaning}");
    } else if let Some(defect) = watertight_leaky::defect(id) {
        println!(
            "{}: {}\ncaught by {} as {} {} {}",
            defect.name, defect.summary, defect.scenario, defect.verdict, defect.requirement, defect.class
        );
    } else if let Some(scenario) = scenario::suite().into_diagnostic()?.get(id) {
        println!("{id}: {}\nchecks {}", scenario.title, scenario.requirements.join(", "));
        for (index, step) in scenario.steps.iter().enumerate() {
            println!("{:>3}. {}", index + 1, toml_line(step));
        }
    } else {
        bail!("'{id}' is no requirement, leak class, verdict, scenario, defect or exit code; see `watertight list`");
    }
    Ok(ExitCode::SUCCESS)
}

fn toml_line(step: &scenario::Step) -> String {
    serde_json::to_string(step).unwrap_or_default().trim_matches(['{', '}']).replace("\":", "\" = ")
}

/// The smoke check alone.
fn smoke(arguments: &Subject) -> miette::Result<ExitCode> {
    let subject = subjects::command(&arguments.subject, &arguments.arguments, &arguments.environment)
        .map_err(|error| miette!("{error}"))?;
    if let Err(code) = doctor::check() {
        return Ok(code);
    }
    match smoke_check(&subject) {
        Ok(summary) => {
            println!("{summary}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("{error}");
            Ok(ExitCode::from(if matches!(error, SmokeError::Adapter(_)) { 1 } else { 70 }))
        }
    }
}

/// Gets what is missing, or what is named, and says where it is.
fn fetch(names: &[String]) -> miette::Result<ExitCode> {
    use watertight::layer::{LAYERS, Layer, Place};
    let mut wanted: Vec<&Layer> = Vec::new();
    for name in names {
        wanted.push(Layer::named(name).ok_or_else(|| {
            let known: Vec<&str> = LAYERS.iter().map(|layer| layer.name).collect();
            miette::miette!("there is no layer '{name}'; layers are {}", known.join(", "))
        })?);
    }
    if names.is_empty() {
        wanted.extend(LAYERS.iter().filter(|layer| layer.place() == Place::Missing));
    }
    for layer in wanted {
        eprintln!("fetching {}", layer.name);
        watertight::layer::fetch(layer).into_diagnostic()?;
    }
    for layer in LAYERS {
        match layer.place() {
            Place::Machine => println!("{:<20} on this machine", layer.name),
            Place::Folder(folder) => println!("{:<20} {}", layer.name, folder.display()),
            Place::Missing => println!("{:<20} missing", layer.name),
        }
    }
    Ok(ExitCode::SUCCESS)
}
