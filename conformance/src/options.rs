//! What the environment says about a run.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

/// Where failing tests keep their cases.
const BUNDLE: &str = "WATERTIGHT_BUNDLE";
/// What names and marker frames are derived from.
const SEED: &str = "WATERTIGHT_SEED";
/// Whether a machine that cannot run cases is a failure.
const REQUIRED: &str = "WATERTIGHT_REQUIRE_PRIVILEGES";

/// A run's options.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The folder for the cases. It need not exist.
    pub(crate) bundle: PathBuf,
    /// Whether the environment names that folder: then other processes may use it too.
    pub(crate) named: bool,
    /// What names and marker frames are derived from.
    pub(crate) seed: u64,
    /// A machine that cannot run cases is a failure.
    pub(crate) required: bool,
}

/// A variable with a value that makes no sense.
#[derive(Debug)]
pub(crate) struct BadVariable {
    name: &'static str,
    value: String,
    wanted: &'static str,
}

impl fmt::Display for BadVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is '{}' and not {}; set it anew, or not at all", self.name, self.value, self.wanted)
    }
}

impl Options {
    /// Reads them.
    pub(crate) fn from_environment() -> Result<Self, BadVariable> {
        let named = env::var_os(BUNDLE).filter(|value| !value.is_empty());
        Ok(Self {
            named: named.is_some(),
            // Cases are written by processes that are elsewhere.
            bundle: match named {
                Some(folder) => env::current_dir().map(|here| here.join(&folder)).unwrap_or_else(|_| folder.into()),
                None => new_bundle(),
            },
            seed: variable(SEED, "a number")?.unwrap_or_else(rand::random),
            required: env::var_os(REQUIRED).is_some_and(|value| value == "1"),
        })
    }
}

/// The command that runs one test again as it was, as a POSIX shell takes it.
pub(crate) fn replay(seed: u64, test: &str) -> String {
    // Cargo adds a hyphen and sixteen digits to the name of a test program.
    let program = env::current_exe().unwrap_or_default();
    let stem = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let is_hash = |end: &str| end.len() == 16 && end.chars().all(|digit| digit.is_ascii_hexdigit());
    let name = stem.rsplit_once('-').filter(|(_, end)| is_hash(end)).map_or(stem.as_str(), |(name, _)| name);
    format!("{SEED}={seed} cargo test --test {name} -- --exact '{test}'")
}

fn variable<T: FromStr>(name: &'static str, wanted: &'static str) -> Result<Option<T>, BadVariable> {
    let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let value = value.to_string_lossy().into_owned();
    value.parse().map(Some).map_err(|_| BadVariable { name, value, wanted })
}

/// A folder that no other run has, in cargo's target folder, or among temporary files for a program that is not in one.
fn new_bundle() -> PathBuf {
    let program = env::current_exe().unwrap_or_default();
    // Cargo marks its target folder.
    let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let name = format!("{seconds}-{}", std::process::id());
    target.map(Path::to_owned).unwrap_or_else(env::temp_dir).join("watertight-bundles").join(name)
}
