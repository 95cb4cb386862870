//! The suite for backends finds both bugs of the example and nothing else; a backend without them passes; what cannot be run is
//! said, and is no pass.
//!
//! The example's test program here is its own file, built in this workspace. That it works from a repository of its own is what
//! `the_example_is_a_repository_of_its_own` shows, by hand or in CI: it builds everything once more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Mutex, PoisonError},
};
use tempfile::TempDir;
use watertight::{judge::CaseVerdict, layer};
use watertight_tests::{Needs, missing, skip};

const EXAMPLE: &str = env!("CARGO_BIN_EXE_example-conformance");
const MENDED: &str = env!("CARGO_BIN_EXE_mended-conformance");
const STUBBORN: &str = env!("CARGO_BIN_EXE_stubborn-conformance");

/// The example forgets everything of the original but its content.
const NOT_AS_IT_WAS: [(&str, &str); 8] = [
    ("static-file/originals [static-file+symlink-relative]", "STA-3"),
    ("static-file/originals [static-file+symlink-absolute]", "RST-1"),
    // The same bug takes the link for no file, and removes what it has set.
    ("static-file/originals [static-file+dangling]", "RST-1 STA-2"),
    ("static-file/originals [static-file+mode-0640]", "RST-1"),
    ("static-file/originals [static-file+owned-by-user]", "RST-1"),
    ("static-file/originals [static-file+extended-attribute]", "RST-1"),
    ("static-file/originals-after-crash [static-file+symlink-relative]", "RST-2"),
    ("static-file/originals-after-crash [static-file+mode-0640]", "RST-2"),
];

/// The example writes new servers over the old ones.
const WRITTEN_IN_PLACE: [(&str, &str); 6] = [
    ("dns/custom-lan [static-file]", "STA-2"),
    ("dns/custom-tunnel [static-file]", "STA-2"),
    ("firewall/allow-lan [static-file]", "STA-2"),
    ("transitions/change-relay [static-file]", "STA-2"),
    ("transitions/change-servers [static-file]", "STA-2"),
    ("transitions/reconnect [static-file]", "STA-2"),
];

/// What a backend that writes a file and watches nothing cannot be asked.
const NOT_FOR_IT: [(&str, &str); 7] = [
    ("dns/forced-method [static-file]", "a backend is one method"),
    ("dns/forced-method-impossible [static-file]", "a backend is one method"),
    ("dns/forced-method-unknown [static-file]", "a backend is one method"),
    ("static-file/deleted [static-file]", "does not claim watches-changes"),
    ("static-file/renamed [static-file]", "does not claim watches-changes"),
    ("static-file/rewritten [static-file]", "does not claim watches-changes"),
    ("static-file/symlinked [static-file]", "does not claim watches-changes"),
];

/// Each of these keeps all processors busy by itself.
static WHOLE_SUITE: Mutex<()> = Mutex::new(());

/// How a test program ended.
struct Ran {
    output: Output,
    said: String,
    bundle: TempDir,
}

fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let bundle = tempfile::Builder::new().prefix("watertight-test-").tempdir().expect("a folder for the bundle");
    let output = Command::new(program)
        .args(arguments)
        // Nothing of a developer's own, nor of the program that runs this test, changes what it does.
        .env_remove("NEXTEST")
        .env_remove("RUST_LOG")
        .env_remove("WATERTIGHT_REQUIRE_PRIVILEGES")
        .env("WATERTIGHT_BUNDLE", bundle.path())
        .env("WATERTIGHT_SEED", "7")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("failed to start {program}: {error}"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ran { output, said, bundle }
}

impl Ran {
    /// What became of each test: `ok`, `FAILED`, or `ignored (REASON)`.
    fn outcomes(&self) -> BTreeMap<String, String> {
        let outcome = |line: &str| {
            let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
            Some((name.trim_end().to_owned(), outcome.to_owned()))
        };
        self.said.lines().filter_map(outcome).collect()
    }

    fn with(&self, outcome: &str) -> BTreeSet<String> {
        self.outcomes().into_iter().filter(|(_, became)| became == outcome).map(|(name, _)| name).collect()
    }

    /// The verdicts that are kept, by test.
    fn kept(&self) -> BTreeMap<String, CaseVerdict> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.bundle.path().to_owned()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).expect("the bundle is readable").flatten() {
                if entry.path().is_dir() {
                    open.push(entry.path());
                } else if entry.file_name() == "verdict.json" {
                    let text = fs::read(entry.path()).expect("a verdict is readable");
                    let verdict: CaseVerdict = serde_json::from_slice(&text).expect("a verdict is JSON of its type");
                    found.insert(format!("{} [{}]", verdict.scenario, verdict.case), verdict);
                }
            }
        }
        found
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(self.bundle.path()).expect("the bundle is readable").next().is_none()
    }

    /// Only what is not for this backend is ignored, each with its reason.
    fn ignores_only_what_is_not_for_it(&self) {
        let mut ignored = self.outcomes();
        ignored.retain(|_, outcome| outcome.starts_with("ignored"));
        for (name, reason) in NOT_FOR_IT {
            let outcome = ignored.remove(name).unwrap_or_default();
            assert!(outcome.contains(reason), "{name}: expected '{reason}', got '{outcome}':\n{}", self.said);
        }
        assert_eq!(ignored, BTreeMap::new(), "{}", self.said);
    }
}

#[test]
fn both_bugs_of_the_example_are_found_and_nothing_else_is() {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let _alone = WHOLE_SUITE.lock().unwrap_or_else(PoisonError::into_inner);
    let ran = run(EXAMPLE, &[], &[]);
    let expected: BTreeMap<String, String> =
        NOT_AS_IT_WAS.iter().chain(&WRITTEN_IN_PLACE).map(|(name, ids)| ((*name).into(), (*ids).into())).collect();
    let found: BTreeMap<String, String> = ran
        .kept()
        .into_iter()
        .map(|(name, verdict)| {
            let ids: BTreeSet<&str> = verdict.findings.iter().map(|finding| &*finding.requirement).collect();
            (name, ids.into_iter().collect::<Vec<_>>().join(" "))
        })
        .collect();
    assert_eq!(found, expected, "{}", ran.said);
    assert_eq!(ran.with("FAILED"), expected.into_keys().collect(), "{}", ran.said);
    assert_eq!(ran.output.status.code(), Some(101), "{}", ran.said);
    ran.ignores_only_what_is_not_for_it();
    let in_words = [
        "NOT-RESTORED STA-3  static-file/originals [static-file+symlink-relative]\n  requirement  Restore is byte-exact",
        "FAILED STA-2  transitions/change-servers [static-file]\n  requirement  Every write is atomic",
        "  replay       WATERTIGHT_SEED=7 cargo test --test example-conformance -- --exact 'transitions/reconnect [static-file]'\n",
    ];
    for words in in_words {
        assert!(ran.said.contains(words), "expected '{words}' in\n{}", ran.said);
    }
    let folder = ran.bundle.path().join("tiny-resolver/transitions/reconnect/static-file");
    assert!(ran.said.contains(&format!("kept: {}\n", folder.display())), "{}", ran.said);
    assert!(folder.join("uplink.pcapng").is_file() && folder.join("history.jsonl").is_file());
}

#[test]
fn a_backend_without_the_bugs_passes_and_leaves_nothing() {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let _alone = WHOLE_SUITE.lock().unwrap_or_else(PoisonError::into_inner);
    let ran = run(MENDED, &[], &[]);
    assert_eq!(ran.with("FAILED"), BTreeSet::new(), "{}", ran.said);
    assert_eq!(ran.output.status.code(), Some(0), "{}", ran.said);
    ran.ignores_only_what_is_not_for_it();
    for (name, _) in NOT_AS_IT_WAS.iter().chain(&WRITTEN_IN_PLACE) {
        assert!(ran.with("ok").contains(*name), "{name} was to be run:\n{}", ran.said);
    }
    assert!(ran.is_empty(), "a passing case was kept in {}", ran.bundle.keep().display());
}

#[test]
fn a_backend_that_fails_is_told_its_own_words_and_may_print() {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let name = "states/connected [static-file]";
    let ran = run(STUBBORN, &["--exact", name], &[]);
    assert_eq!(ran.with("FAILED"), [name.to_owned()].into(), "{}", ran.said);
    let verdict = &ran.kept()[name];
    assert!(
        verdict.findings.iter().all(|finding| !finding.summary.contains("not JSON")),
        "what it prints is not the protocol's: {:?}",
        verdict.findings
    );
    let log = fs::read_to_string(ran.bundle.path().join("stubborn/states/connected/static-file/subject.log"))
        .expect("the case has the subject's log");
    for words in ["asked for 2 servers", "stubborn failed to set dns: wt0 is not to my liking; ask again tomorrow"] {
        assert!(log.contains(words), "expected '{words}' in\n{log}");
    }
}

#[test]
fn what_a_backend_or_the_machine_lacks_is_said_and_is_no_pass() {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let nothing = tempfile::tempdir().expect("a folder");
    let layers = [("WATERTIGHT_LAYERS", nothing.path().to_str().expect("a plain name"))];
    let ran = run(STUBBORN, &["--exact", "transitions/change-servers [static-file]"], &layers);
    let said = &ran.outcomes()["transitions/change-servers [static-file]"];
    assert_eq!(said, "ignored (the backend does not claim custom-dns, lan-dns)", "{}", ran.said);
    if layer::SYSTEMD_RESOLVED.place() != layer::Place::Machine {
        let ran = run(STUBBORN, &["--exact", "states/connected [systemd-resolved]"], &layers);
        let said = &ran.outcomes()["states/connected [systemd-resolved]"];
        assert!(said.starts_with("ignored (this machine has no systemd-resolved"), "{}", ran.said);
        assert!(said.contains("`watertight fetch systemd-resolved`"), "{}", ran.said);
    }
    assert!(ran.is_empty(), "nothing was run");
}

#[test]
fn tests_are_listed_and_filtered_as_libtest_does() {
    let listed = run(STUBBORN, &["--list"], &[]);
    let names: BTreeSet<&str> = listed.said.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    assert!(names.contains("states/connected [static-file]"), "{}", listed.said);
    assert!(names.contains("states/connected [systemd-resolved]"), "{}", listed.said);
    assert!(names.iter().all(|name| !name.contains("[network-manager")), "it does not name that profile");
    assert!(listed.is_empty(), "nothing was run");
    let filtered = run(EXAMPLE, &["--list", "transitions/change-"], &[]);
    let names: Vec<&str> = filtered.said.lines().collect();
    let expected = ["transitions/change-relay [static-file]: test", "transitions/change-servers [static-file]: test"];
    assert_eq!(names, expected, "{}", filtered.said);
}

#[test]
fn what_the_environment_says_wrongly_is_refused() {
    let ran = run(EXAMPLE, &[], &[("WATERTIGHT_SEED", "seven")]);
    assert_eq!(ran.output.status.code(), Some(64), "{}", ran.said);
    assert_eq!(ran.said, "WATERTIGHT_SEED is 'seven' and not a number; set it anew, or not at all\n");
    let ran = run(EXAMPLE, &["states/disconnected"], &[("WATERTIGHT_BUNDLE", "/proc/nowhere")]);
    assert_eq!(ran.output.status.code(), Some(64), "{}", ran.said);
    assert!(ran.said.contains("/proc/nowhere") && ran.said.contains("name another one"), "{}", ran.said);
}

#[test]
fn an_earlier_runs_case_is_not_touched() {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let bundle = tempfile::tempdir().expect("a folder");
    let folder = bundle.path().join("tiny-resolver/states/disconnected/static-file");
    fs::create_dir_all(&folder).expect("a new folder");
    fs::write(folder.join("precious.txt"), "not ours").expect("a new file");
    let path = bundle.path().to_str().expect("a plain name");
    let name = "states/disconnected [static-file]";
    let ran = run(EXAMPLE, &["--exact", name], &[("WATERTIGHT_BUNDLE", path)]);
    assert_eq!(ran.with("FAILED"), [name.to_owned()].into(), "{}", ran.said);
    assert!(ran.said.contains("holds an earlier run's case: nothing was run"), "{}", ran.said);
    assert_eq!(fs::read_dir(&folder).expect("it is still there").count(), 1, "nothing was added");
}

/// Copies the example elsewhere, as the tutorial's reader has it, and runs `cargo test` there.
#[test]
#[ignore = "builds everything once more, without this workspace's settings: minutes"]
fn the_example_is_a_repository_of_its_own() {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let workspace = watertight_tests::workspace().canonicalize().expect("the workspace is there");
    let elsewhere = tempfile::Builder::new().prefix("watertight-test-").tempdir().expect("a folder");
    let example = workspace.join("examples/tiny-resolver-backend");
    let read = |file: &str| fs::read_to_string(example.join(file)).expect("the example has that file");
    let write = |file: &str, text: &str| {
        let path = elsewhere.path().join(file);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("a new folder");
        fs::write(path, text).expect("a new file");
    };
    let dependency = workspace.join("conformance").display().to_string();
    write("Cargo.toml", &read("Cargo.toml").replace("../../conformance", &dependency));
    for file in ["src/lib.rs", "tests/conformance.rs"] {
        write(file, &read(file));
    }
    fs::copy(workspace.join("Cargo.lock"), elsewhere.path().join("Cargo.lock")).expect("the workspace has a lock file");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_") && name != "CARGO_HOME" || name == "NEXTEST" {
            command.env_remove(name);
        }
    }
    let output = command
        .args(["test", "--test", "conformance"])
        .current_dir(elsewhere.path())
        .env("CARGO_TARGET_DIR", elsewhere.path().join("target"))
        .stdin(Stdio::null())
        .output()
        .expect("cargo starts");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let failed: BTreeSet<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .map(str::trim_end)
        .collect();
    let expected: BTreeSet<&str> = NOT_AS_IT_WAS.iter().chain(&WRITTEN_IN_PLACE).map(|(name, _)| *name).collect();
    assert_eq!(failed, expected, "{said}");
}
