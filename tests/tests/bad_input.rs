//! Bad input: an adapter that is none, a scenario that is none, a command line that names what is not there. Each is a clear
//! message, a documented exit code, and never a pass or a hang.
//!
//! Adapters are given as arguments of /bin/sh: the client's /tmp and /var are its own, and a script there would not be seen.

use std::{fs, path::Path};
use watertight_tests::{Bundle, Needs, missing, run, skip};

/// A case with a subject that breaks the protocol is `FAILED`, and goes on to its final checks.
fn failed_with(script: &str, words: &[&str]) {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let bundle = Bundle::record(
        &[&["--scenario", "states/disconnected", "--profile", "static-file"], shell(script).as_slice()].concat(),
    );
    let result = bundle.only_result();
    let said = format!("{} ({:?}): {}", result.verdict, result.findings, result.reason);
    assert_eq!((result.verdict.as_str(), bundle.ran.code()), ("FAILED", Some(1)), "{said}\n{}", bundle.ran.said);
    for words in words {
        assert!(bundle.ran.said.contains(words), "expected '{words}' in\n{}", bundle.ran.said);
    }
    let smoke = bundle.smoke().expect("the smoke check before the scenario refuses it too");
    assert_eq!((smoke.case.as_str(), smoke.verdict.as_str()), ("protocol", "FAILED"), "{}", smoke.reason);
    let history = fs::read_to_string(bundle.cases()[0].join("history.jsonl")).expect("the case has a history");
    assert!(history.contains(r#""kind":"snapshot","folder":"after""#), "the last comparison was made");
}

/// The smoke check refuses it, and says what was expected and what came.
fn refused_by_smoke(script: &str, words: &[&str]) {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let ran = run([&["smoke"], shell(script).as_slice()].concat());
    assert_eq!(ran.code(), Some(1), "{}", ran.said);
    for words in words {
        assert!(ran.said.contains(words), "expected '{words}' in\n{}", ran.said);
    }
}

fn shell(script: &str) -> [&str; 6] {
    ["--subject", "/bin/sh", "--subject-arg", "-c", "--subject-arg", script]
}

#[test]
fn an_adapter_that_is_no_program_is_failed_with_the_kernels_words() {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let bundle =
        Bundle::record(&["--scenario", "states/disconnected", "--case", "static-file", "--subject", "/etc/hostname"]);
    assert_eq!(bundle.only_result().verdict.as_str(), "FAILED", "{}", bundle.ran.said);
    assert_eq!(bundle.ran.code(), Some(1), "{}", bundle.ran.said);
    let log = fs::read_to_string(bundle.cases()[0].join("subject.log")).expect("the case has a subject's log");
    assert!(log.contains("failed to start '/etc/hostname': "), "{log}");
}

#[test]
fn an_adapter_that_exits_at_once_is_failed() {
    failed_with("exit 3", &["its process ended", "3"]);
}

#[test]
fn an_adapter_that_refuses_the_protocol_is_failed_with_its_own_words() {
    // As the protocol says, it waits for another `initialize`; the case has none, so that here it ends instead.
    let refuse = r#"read line; id=$(expr "$line" : '.*"id":\([0-9]*\)')
        echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"error\":{\"code\":-32602,\"message\":\"only version 7 is spoken here\"}}""#;
    failed_with(refuse, &["only version 7 is spoken here"]);
    refused_by_smoke(
        refuse,
        &["smoke check: a method before initialize", "expected error -32002", "only version 7 is spoken here"],
    );
}

#[test]
fn an_adapter_that_talks_nonsense_is_failed() {
    failed_with("echo hello; exec cat >/dev/null", &["a line that is not JSON", "hello"]);
}

#[test]
fn an_adapter_that_answers_what_nobody_asked_is_failed() {
    let script = r#"echo '{"jsonrpc":"2.0","id":77,"result":{}}'; exec cat >/dev/null"#;
    failed_with(script, &["an answer to nothing", "77"]);
}

#[test]
fn an_adapter_that_floods_is_failed() {
    failed_with(r#"exec yes '{"jsonrpc":"2.0","method":"x"}'"#, &["more than 10000 lines within a second"]);
}

#[test]
fn an_adapter_that_sends_a_line_without_end_is_failed() {
    failed_with("exec cat /dev/zero", &["a line longer than 1048576 bytes"]);
}

#[test]
fn an_adapter_that_hangs_is_refused_by_the_smoke_check_in_time() {
    refused_by_smoke(
        "exec cat >/dev/null",
        &["smoke check: a method before initialize", "was not answered within 10 s"],
    );
}

#[test]
fn an_adapter_that_accepts_everything_is_refused_by_the_smoke_check() {
    let accept = r#"while read line; do
        id=$(expr "$line" : '.*"id":\([0-9]*\)')
        echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{}}"
    done"#;
    refused_by_smoke(accept, &["smoke check: a method before initialize", "expected error -32002", "the result {}"]);
}

/// Nothing is run: the program ends with 64, and says `words`.
fn refused(arguments: &[&str], words: &[&str]) {
    let ran = run(arguments);
    // miette breaks lines where they get long, and puts a bar before what follows.
    let said = ran.said.replace("\n  │ ", " ").replace("\n  ╰─▶ ", " ").replace("\n      ", " ");
    assert_eq!(ran.code(), Some(64), "{arguments:?}: {said}");
    for words in words {
        assert!(said.contains(words), "{arguments:?}: expected '{words}' in\n{said}");
    }
}

/// Runs a folder of scenarios with one file in it.
fn refused_scenario(text: &str, words: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder for scenarios");
    fs::create_dir(folder.path().join("mine")).expect("a new folder");
    fs::write(folder.path().join("mine/one.toml"), text).expect("a new file");
    refused(&["run", "--scenarios", folder.path().to_str().expect("a plain name")], words);
    refused(&["list", "scenarios", "--scenarios", folder.path().to_str().expect("a plain name")], words);
}

const HEAD: &str = "title = \"A title\"\nrequirements = [\"FWL-1\"]\n";

#[test]
fn a_scenario_with_an_unknown_key_is_refused_with_file_line_and_what_is_allowed() {
    refused_scenario(
        &format!("{HEAD}colour = \"red\"\n[[step]]\nconnect = \"connected\"\n"),
        &["mine/one.toml:3: ", "unknown field `colour`", "`title`", "`requirements`", "`step`"],
    );
}

#[test]
fn a_scenario_with_an_unknown_step_is_refused_with_file_line_and_what_is_allowed() {
    refused_scenario(
        &format!("{HEAD}[[step]]\nconnect = \"connected\"\n[[step]]\nreboot = {{}}\n"),
        &["mine/one.toml:6: ", "unknown variant `reboot`", "`connect`", "`restart`", "`expect`"],
    );
}

#[test]
fn a_scenario_with_an_unknown_state_is_refused_with_file_line_and_what_is_allowed() {
    refused_scenario(
        &format!("{HEAD}[[step]]\nconnect = \"up\"\n"),
        &["mine/one.toml:4: ", "unknown variant `up`", "`connected`", "`error`"],
    );
}

#[test]
fn a_scenario_with_an_unknown_requirement_is_refused_with_file_line_and_where_to_look() {
    refused_scenario(
        "title = \"A title\"\nrequirements = [\"FWL-1\",\n  \"FWL-99\"]\n[[step]]\nconnect = \"connected\"\n",
        &["mine/one.toml:3: ", "unknown requirement 'FWL-99'", "watertight list requirements"],
    );
}

#[test]
fn a_scenario_that_checks_nothing_is_refused() {
    refused_scenario(
        "title = \"A title\"\nrequirements = []\n[[step]]\nconnect = \"connected\"\n",
        &["mine/one.toml:", "at least one requirement"],
    );
}

#[test]
fn a_scenario_that_is_not_toml_is_refused_with_file_and_line() {
    refused_scenario(&format!("{HEAD}[[step\n"), &["mine/one.toml:3: "]);
}

#[test]
fn a_bundle_folder_that_is_not_empty_is_refused_and_untouched() {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let precious = folder.path().join("precious.txt");
    fs::write(&precious, "not ours").expect("a new file");
    let path = folder.path().to_str().expect("a plain name");
    refused(
        &["run", "--scenario", "states/disconnected", "--bundle", path],
        &["is not empty", "nothing in it was touched"],
    );
    assert_eq!(fs::read_to_string(&precious).expect("it is still there"), "not ours");
    assert_eq!(fs::read_dir(folder.path()).expect("it is still there").count(), 1, "nothing was added");
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let nowhere = "/nowhere/adapter";
    refused(
        &["smoke", "--subject", nowhere],
        &[nowhere, "No such file", "`reference`", "leaky:DEFECT", "the path of an adapter"],
    );
    refused(&["run", "--subject", "leaky:nothing"], &["no defect 'nothing'", "watertight list defects"]);
    refused(&["smoke", "--subject", "/etc"], &["/etc: not a file"]);
    refused(
        &["smoke", "--subject-env", "WATERTIGHT_NO_SUCH"],
        &["--subject-env WATERTIGHT_NO_SUCH", "no such variable"],
    );
    refused(&["explain", "FWL-99"], &["'FWL-99' is no requirement", "watertight list"]);
    refused(&["judge", "/nowhere/bundle"], &["/nowhere/bundle", "No such file"]);
    refused(&["run", "--scenarios", "/nowhere/scenarios"], &["/nowhere/scenarios", "No such file"]);
}

#[test]
fn a_scenario_or_case_that_no_name_matches_is_refused_and_no_bundle_is_begun() {
    if skip(missing(Needs::Cases)) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let bundle = folder.path().join("bundle");
    let path = bundle.to_str().expect("a plain name");
    refused(
        &["run", "--scenario", "states/sleeping", "--bundle", path],
        &["no case matches", "watertight list scenarios"],
    );
    refused(&["run", "--sabotage", "nothing", "--bundle", path], &["unknown variant `nothing`", "`tiny-ring`"]);
    assert!(!Path::new(path).exists(), "a bundle was begun although nothing could be run");
}

#[test]
fn a_command_line_that_is_wrong_ends_with_the_code_for_it_and_not_with_a_verdicts() {
    refused(&["run", "--partition", "3/2"], &["'3/2' is not K/N with 1 ≤ K ≤ N"]);
    refused(&["run", "--partition", "half"], &["'half' is not K/N"]);
    refused(&["dance"], &["unrecognized subcommand 'dance'"]);
    refused(&["run", "--colour", "red"], &["unexpected argument '--colour'"]);
    refused(&[], &["Usage: "]);
    for asked in ["--help", "--version"] {
        let ran = run([asked]);
        assert_eq!(ran.code(), Some(0), "{asked}: {}", ran.said);
    }
}

#[test]
fn every_id_is_explained() {
    for (id, words) in [
        ("FWL-5", "checked by: "),
        ("W01", "seen in: "),
        ("LEAK", "The evidence is a frame"),
        ("states/connect-disconnect", "connect"),
        ("ipv6-unfiltered", "caught by "),
        ("2", "inconclusive"),
    ] {
        let ran = run(["explain", id]);
        assert_eq!(ran.code(), Some(0), "{id}: {}", ran.said);
        assert!(ran.said.contains(words), "{id}: expected '{words}' in\n{}", ran.said);
    }
}
