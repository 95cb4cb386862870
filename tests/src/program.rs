//! The program under test: built by the cargo that runs the tests, in their profile and their target folder.
//!
//! `CARGO_BIN_EXE_watertight` exists for tests of the program's own crate only, and the tests are a crate of their own.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::OnceLock,
};

/// The program's path. Builds it first, which is quick when it is fresh; `WATERTIGHT_PROGRAM` names one that is built.
///
/// # Panics
///
/// If it cannot be built, with cargo's own words.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("WATERTIGHT_PROGRAM") {
        Some(path) => PathBuf::from(path),
        None => built_once_a_run(),
    })
}

/// The program, ready for arguments. Nothing of a terminal or of a developer's own variables changes what it prints.
pub fn watertight() -> Command {
    let mut command = Command::new(program());
    command.stdin(Stdio::null()).env("CI", "1").env("NO_COLOR", "1").env_remove("RUST_LOG");
    command
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Ran {
    /// Its status.
    pub status: ExitStatus,
    /// All that it printed, errors last.
    pub said: String,
}

impl Ran {
    /// Its exit code; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// Runs the program to its end.
pub fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
    let output = watertight().args(arguments).output().unwrap_or_else(|error| {
        panic!("failed to start {}: {error}", program().display());
    });
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    Ran { status: output.status, said }
}

/// With nextest each test is a process: the first one of a run builds, the others read where the program is.
fn built_once_a_run() -> PathBuf {
    let places = Places::of_this_test();
    let Some(run) = std::env::var("NEXTEST_RUN_ID").ok() else { return build(&places) };
    let folder = places.target.join("tmp");
    let attempt = || -> io::Result<PathBuf> {
        fs::create_dir_all(&folder)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(folder.join("watertight-build.lock"))?;
        lock.lock()?;
        let note = folder.join("watertight-build.note");
        if let Some(path) = fs::read_to_string(&note).ok().and_then(|text| Some(text.strip_prefix(&run)?.to_owned())) {
            return Ok(PathBuf::from(path.trim()));
        }
        let path = build(&places);
        fs::write(&note, format!("{run} {}\n", path.display()))?;
        Ok(path)
    };
    attempt().unwrap_or_else(|error| panic!("failed to note in {} what was built: {error}", folder.display()))
}

/// Where this test was built, told by its own path: `TARGET[/TRIPLE]/PROFILE/deps/NAME`.
struct Places {
    target: PathBuf,
    profile: String,
}

impl Places {
    fn of_this_test() -> Self {
        let own = std::env::current_exe().expect("a running program has a path");
        let profile_folder = own.parent().and_then(Path::parent).expect("tests are built below a profile's folder");
        let profile = profile_folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let above = profile_folder.parent().expect("the profile's folder is in the target folder");
        // Cargo marks the target folder itself, and not the folder of a target triple in it.
        let marked = above.ancestors().take(2).find(|folder| folder.join("CACHEDIR.TAG").is_file());
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).or_else(|| marked.map(Into::into));
        Self { target: target.unwrap_or_else(|| above.to_owned()), profile }
    }
}

fn build(places: &Places) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    command
        .args([
            "build",
            "--package",
            "watertight-cli",
            "--bin",
            "watertight",
            "--message-format",
            "json-render-diagnostics",
        ])
        .arg("--manifest-path")
        .arg(crate::workspace().join("Cargo.toml"))
        .arg("--profile")
        .arg(if places.profile == "debug" { "dev" } else { &places.profile })
        .arg("--target-dir")
        .arg(&places.target)
        .stdin(Stdio::null());
    // What cargo says of the test's own crate is not true of the crates that are built here; build scripts that watch these
    // variables would run again, and everything that depends on them would be compiled again.
    for (name, _) in std::env::vars_os() {
        let of_a_crate =
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_", "CARGO_TARGET_TMPDIR"];
        if of_a_crate.iter().any(|start| name.to_string_lossy().starts_with(start)) || name == "OUT_DIR" {
            command.env_remove(name);
        }
    }
    let output = command.output().unwrap_or_else(|error| panic!("failed to start cargo: {error}"));
    assert!(
        output.status.success(),
        "cargo could not build the program ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "watertight")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.expect("cargo names the executable that it built")
}
