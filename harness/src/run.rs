//! Runs cases: each in a process of its own, several at a time, judged when its recording is finished.
//!
//! A case's process reads its plan from standard input, which then is its lifeline: when this process ends, however it
//! ends, the case ends with it. This module prints nothing; progress goes to an observer.

use crate::{
    case::{self, CasePlan, SharedTables},
    judge::{self, CaseVerdict, Options},
    sandbox::isolate,
};
use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The longest that a case may take; after that it is ended and inconclusive.
pub const CASE_LIMIT: Duration = Duration::from_secs(240);

/// What becomes of a case.
#[derive(Debug, Clone)]
pub enum Progress {
    /// It starts.
    Started {
        /// Its place in the list.
        index: usize,
    },
    /// It is judged.
    Finished {
        /// Its place in the list.
        index: usize,
        /// The verdict.
        verdict: Box<CaseVerdict>,
    },
}

/// Runs `plans`, `jobs` at a time; the verdicts are in the order of the plans.
pub fn run_all(
    plans: &[CasePlan],
    jobs: usize,
    options: &Options,
    observe: &(dyn Fn(Progress) + Sync),
) -> Vec<CaseVerdict> {
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(vec![None; plans.len()]);
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, plans.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(plan) = plans.get(index) else { return };
                    observe(Progress::Started { index });
                    let verdict = run_one(plan, options);
                    observe(Progress::Finished { index, verdict: Box::new(verdict.clone()) });
                    verdicts.lock().expect("no holder panics")[index] = Some(verdict);
                }
            });
        }
    });
    verdicts
        .into_inner()
        .expect("no holder panics")
        .into_iter()
        .map(|verdict| verdict.expect("every case ran"))
        .collect()
}

/// Runs one case and judges it.
pub fn run_one(plan: &CasePlan, options: &Options) -> CaseVerdict {
    let started = Instant::now();
    let trouble = record(plan).err().map(|error| error.to_string());
    let mut verdict = judge::judge_folder(&plan.folder, options)
        .unwrap_or_else(|error| CaseVerdict::unreadable(&plan.scenario, &plan.axes.id(), &error.to_string()));
    if let Some(trouble) = trouble {
        verdict.note_trouble(&trouble);
    }
    verdict.duration_ms = started.elapsed().as_millis() as u64;
    if let Err(error) = judge::write_verdict(&plan.folder, &verdict) {
        verdict.note_trouble(&format!("the verdict was not written: {error}"));
    }
    if let Err(error) = judge::annotate_captures(&plan.folder, &verdict) {
        verdict.note_trouble(&format!("the captures were not annotated: {error}"));
    }
    verdict
}

/// The recording of a case failed; its words are in `harness.log`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The process could not be started or fed.
    #[error("failed to start a case: {0}")]
    Start(#[from] io::Error),
    /// It took too long.
    #[error("the case took longer than {} s and was ended", CASE_LIMIT.as_secs())]
    TooLong,
    /// It failed.
    #[error("the case's process ended with {status}: {words}")]
    Failed {
        /// Its exit status.
        status: String,
        /// The last of its words.
        words: String,
    },
}

fn record(plan: &CasePlan) -> Result<(), RunError> {
    let log_path = plan.folder.join("harness.log");
    let log = std::fs::File::create(&log_path)?;
    let mut child =
        Command::new("/proc/self/exe").arg("@case").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn()?;
    let mut lifeline = child.stdin.take().expect("its input is piped");
    let mut line = serde_json::to_vec(plan).map_err(io::Error::from)?;
    line.push(b'\n');
    let fed = lifeline.write_all(&line).and_then(|()| lifeline.flush());
    let status = match wait_until(&mut child, Instant::now() + CASE_LIMIT)? {
        Some(status) => status,
        None => {
            // The end of the lifeline ends everything in the case.
            drop(lifeline);
            let _ = child.wait();
            return Err(RunError::TooLong);
        }
    };
    drop(lifeline);
    fed?;
    if status.success() {
        return Ok(());
    }
    let mut words = std::fs::read_to_string(&log_path).unwrap_or_default();
    let from = words.len().saturating_sub(2000);
    words = words.chars().skip(from).collect::<String>().trim().to_owned();
    Err(RunError::Failed { status: status.to_string(), words })
}

/// Waits for the child's end by a pidfd, so that nothing is polled.
fn wait_until(child: &mut std::process::Child, deadline: Instant) -> io::Result<Option<std::process::ExitStatus>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let pidfd = pidfd_open(child.id())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return child.try_wait();
        }
        let wait = PollTimeout::try_from(left.min(Duration::from_secs(60))).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return child.wait().map(Some),
            Err(errno) => return Err(io::Error::from_raw_os_error(errno as i32)),
        }
    }
}

fn pidfd_open(pid: u32) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: pidfd_open takes two integers and gives a new descriptor that nobody else owns.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The process of one case: the program's entry for `@case`. Must be called before any thread is started.
pub fn case_main() -> ExitCode {
    match case_in_isolation() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(70)
        }
    }
}

fn case_in_isolation() -> Result<(), Box<dyn std::error::Error>> {
    let mut line = Vec::new();
    // Byte by byte: whatever is behind the line is not ours to take.
    let mut stdin = io::stdin().lock();
    let mut byte = [0u8];
    while stdin.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let lifeline = stdin.as_fd().try_clone_to_owned()?;
    drop(stdin);
    let plan: CasePlan = serde_json::from_slice(&line)?;
    let tables = SharedTables::open();
    let isolation = isolate(lifeline)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = tokio::task::LocalSet::new().block_on(&runtime, case::run(plan, isolation, tables));
    result?;
    Ok(())
}

/// Makes the folder of a case in a bundle.
pub fn case_folder(bundle: &Path, subject: &str, scenario: &str, case: &str) -> io::Result<PathBuf> {
    let folder = bundle.join(subject).join(scenario).join(case);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
