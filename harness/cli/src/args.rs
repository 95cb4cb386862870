//! The command line. Exit codes: 0 all pass, 1 findings, 2 inconclusive (or unsupported under `--strict`), 64 and up usage
//! and machine errors.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Proves that a VPN's DNS manager and firewall do not leak, and that they put everything back.
#[derive(Debug, Parser)]
#[command(name = "watertight", version, about, max_term_width = 120)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run scenarios on a subject, in networks of their own, and judge what was recorded.
    Run(Box<Run>),
    /// Judge a finished bundle, or one case of it, again.
    Judge(Judge),
    /// List what the program carries.
    List {
        /// What to list.
        #[arg(value_enum)]
        what: What,
        /// A folder with scenarios of your own, which are added to the suite.
        #[arg(long, value_name = "DIR")]
        scenarios: Option<PathBuf>,
    },
    /// Explain a requirement, leak class, verdict, scenario, defect or exit code.
    Explain {
        /// For example FWL-5, W01, LEAK, states/connect-disconnect, 2.
        id: String,
    },
    /// Check that an adapter speaks the protocol, before any scenario.
    Smoke(Subject),
    /// Get the software of profiles that this machine does not have, without installing anything.
    ///
    /// Packages of this machine's distribution are downloaded and unpacked into the cache: WATERTIGHT_LAYERS, or
    /// watertight/layers in the user's cache.
    Fetch {
        /// Layers, as profiles name them. [default: all that are missing]
        #[arg(value_name = "LAYER")]
        layers: Vec<String>,
    },
    /// Say what this machine can do, what is missing, and how to get it.
    Doctor,
}

#[derive(Debug, Args)]
pub struct Subject {
    /// `reference`, `leaky:DEFECT`, `sound:VARIANT`, or the path of an adapter.
    #[arg(long, default_value = "reference", value_name = "NAME|PATH")]
    pub subject: String,
    /// An argument for the adapter; may be repeated.
    #[arg(long = "subject-arg", value_name = "A", allow_hyphen_values = true)]
    pub arguments: Vec<String>,
    /// A variable of this environment that the adapter gets too; may be repeated.
    #[arg(long = "subject-env", value_name = "NAME")]
    pub environment: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub subject: Subject,
    /// Scenarios to run, by id; `*` matches anything. May be repeated. [default: all]
    #[arg(long, value_name = "GLOB")]
    pub scenario: Vec<String>,
    /// Cases to run, by id; `*` matches anything. May be repeated. [default: all]
    #[arg(long, value_name = "GLOB")]
    pub case: Vec<String>,
    /// Profiles to run. May be repeated. [default: all]
    #[arg(long, value_name = "P")]
    pub profile: Vec<String>,
    /// A folder with scenarios of your own, which are added to the suite; one with the id of the suite's takes its place.
    #[arg(long, value_name = "DIR")]
    pub scenarios: Option<PathBuf>,
    /// Cases at a time. [default: twice the number of processors, 16 at most]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Only the K-th of N parts of the cases.
    #[arg(long, value_name = "K/N")]
    pub partition: Option<Partition>,
    /// Where to put the bundle. [default: a new folder below ./watertight-bundles]
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Count `should` requirements like `must`, and exit with 2 where a case is inconclusive or unsupported.
    #[arg(long)]
    pub strict: bool,
    /// The number from which names and marker frames are derived. [default: random]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Damage the evidence on purpose: for Watertight's own tests.
    #[arg(long, hide = true)]
    pub sabotage: Option<String>,
}

#[derive(Debug, Args)]
pub struct Judge {
    /// A bundle, or a case's folder in one.
    pub bundle: PathBuf,
    /// Count `should` requirements like `must`.
    #[arg(long)]
    pub strict: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum What {
    Scenarios,
    Requirements,
    Probes,
    Subjects,
    Defects,
    Variants,
}

/// The K-th of N parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub part: usize,
    pub parts: usize,
}

impl std::str::FromStr for Partition {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        match parsed {
            Some((part, parts)) if part >= 1 && part <= parts => Ok(Self { part, parts }),
            _ => Err(format!("'{text}' is not K/N with 1 ≤ K ≤ N, for example 2/4")),
        }
    }
}
