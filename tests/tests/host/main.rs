//! The host is as it was: after a run that came to its end, and after each of thirty that were killed at random moments.
//!
//! "The host" is a machine of the test's own: namespaces in which nobody else lives, so that the comparison is exact whatever
//! else runs on the real one. Its first process is this program, by the entry `@first`; all that a run leaves behind becomes
//! that process's child, or is seen in its /proc.

mod machine;
mod snapshot;

use libtest_mimic::{Arguments, Failed};
use machine::{FOLDER, First};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use snapshot::Snapshot;
use std::{
    fs,
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};
use watertight_tests::{Needs, missing, program, trial};

/// As many as the project promises.
const KILLS: u64 = 30;
/// Parts of the suite that are run in turn.
const PARTS: u64 = 6;
/// The longest that a harness lives before it is killed: longer than most cases take.
const LONGEST: Duration = Duration::from_millis(2500);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "@machine", what] => return machine::start_first(what),
        [_, "@first", what] => return first(what),
        _ => {}
    }
    let arguments = Arguments::from_args();
    let reason = missing(Needs::Cases).or_else(|| missing(Needs::Root));
    let trials = vec![
        trial("a_run_that_ends_leaves_the_host_as_it_was", reason.as_deref(), || inside("ended")),
        trial("a_run_that_is_killed_at_any_moment_leaves_the_host_as_it_was", reason.as_deref(), || inside("killed")),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Carries a test out in a machine of its own.
fn inside(what: &str) -> Result<(), Failed> {
    let output = machine::command(program(), what)?.output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        print!("{said}");
        return Ok(());
    }
    Err(format!("the machine's first process ended with {}:\n{said}", output.status).into())
}

/// The machine's first process.
fn first(what: &str) -> ExitCode {
    let tested = First::settle().and_then(|first| match what {
        "ended" => ended(&first),
        _ => killed(&first),
    });
    match tested {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn ended(first: &First) -> Result<(), String> {
    let before = Snapshot::take()?;
    let mut harness = harness("ended", &["--scenario", "states/connect-disconnect", "--case", "static-file+default"])?;
    let status = harness.wait().map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("the run ended with {status}: {}", said("ended")));
    }
    first.wait_until_alone()?;
    before.compare(&Snapshot::take()?).map_err(|difference| format!("after a run that ended:\n{difference}"))
}

fn killed(first: &First) -> Result<(), String> {
    let before = Snapshot::take()?;
    let mut random = SplitMix(2026);
    let (mut within_cases, mut processes) = (0, 0);
    for number in 1..=KILLS {
        let moment = LONGEST.mul_f64(random.share());
        let name = format!("killed-{number}");
        // Each time another part of the suite, that takes longer than the longest life.
        let part = format!("{}/{PARTS}", number % PARTS + 1);
        let mut harness = harness(&name, &["--partition", &part, "--jobs", "2"])?;
        if ends_before(&harness, moment)? {
            return Err(format!("the run ended by itself within {moment:?}: {}", said(&name)));
        }
        let alive = first.others()?.len();
        harness.kill().map_err(|error| error.to_string())?;
        let status = harness.wait().map_err(|error| error.to_string())?;
        if status.signal() != Some(libc::SIGKILL) {
            return Err(format!("the harness was to be killed and ended with {status}: {}", said(&name)));
        }
        let began = Instant::now();
        first.wait_until_alone().map_err(|problem| format!("killed after {moment:?}: {problem}"))?;
        let gone = began.elapsed();
        before.compare(&Snapshot::take()?).map_err(|difference| format!("killed after {moment:?}:\n{difference}"))?;
        within_cases += usize::from(has_history(Path::new(FOLDER).join(&name).as_path()));
        processes += alive;
        println!(
            "killed after {:>4} ms with {alive:>2} processes; alone again {} ms later",
            moment.as_millis(),
            gone.as_millis()
        );
    }
    println!(
        "{KILLS} kills, {within_cases} of them within a case, {processes} processes in all; the host was as before each time"
    );
    if within_cases < KILLS as usize / 3 {
        return Err(format!(
            "only {within_cases} of {KILLS} kills met a case that ran: this machine is too slow for the moments"
        ));
    }
    Ok(())
}

/// Starts a run; what it says and its bundle go where nothing is compared.
fn harness(name: &str, arguments: &[&str]) -> Result<std::process::Child, String> {
    let log = fs::File::create(format!("{FOLDER}/{name}.log")).map_err(|error| error.to_string())?;
    let errors = log.try_clone().map_err(|error| error.to_string())?;
    Command::new(format!("{FOLDER}/watertight"))
        .args(["run", "--bundle", &format!("{FOLDER}/{name}")])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("failed to start the program: {error}"))
}

/// Whether the process ends before a moment that comes without an event of its own.
fn ends_before(process: &std::process::Child, moment: Duration) -> Result<bool, String> {
    let pidfd = machine::pidfd(process.id() as i32).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + moment;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).map_err(|error| error.to_string())?;
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.to_string()),
        }
    }
}

fn said(name: &str) -> String {
    fs::read_to_string(format!("{FOLDER}/{name}.log")).unwrap_or_default()
}

/// Whether a case had begun to record.
fn has_history(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        entry.file_name() == "history.jsonl" || path.is_dir() && has_history(&path)
    })
}

/// Random numbers that are the same in every run (SplitMix64, Steele, Lea and Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64
    }
}
