//! The example of an adapter that is not in Rust, `docs/adapter.py`, is a client that works: it passes what it claims to do.

use std::{
    fs,
    path::{Path, PathBuf},
};
use watertight::layer::{Place, WIREGUARD_GO};
use watertight_tests::{Bundle, Needs, missing, run, skip, workspace};

/// The script as an argument, since the client's root need not have this checkout in it; and its tunnel's program.
fn arguments(tunnel: &Path) -> Vec<String> {
    let script = fs::read_to_string(workspace().join("docs/adapter.py")).expect("the adapter is a text");
    let mut arguments = vec!["--subject".to_owned(), "/usr/bin/python3".into()];
    for argument in ["-c".to_owned(), script, tunnel.display().to_string()] {
        arguments.extend(["--subject-arg".to_owned(), argument]);
    }
    arguments
}

/// Where its tunnel's program is, or why it cannot be run.
fn tunnel() -> Result<PathBuf, String> {
    for (program, package) in [("bin/python3", "python3"), ("sbin/nft", "nftables"), ("bin/ip", "iproute2")] {
        if !Path::new("/usr").join(program).is_file() {
            return Err(format!("no /usr/{program}; Debian package {package}"));
        }
    }
    let folder = match WIREGUARD_GO.place() {
        Place::Machine => PathBuf::from("/"),
        Place::Folder(folder) => folder,
        Place::Missing => return Err(WIREGUARD_GO.missing()),
    };
    // What is below these folders is the client's own.
    if ["/tmp", "/var", "/run"].iter().any(|own| folder.starts_with(own)) {
        return Err(format!("{} cannot be seen in the client", folder.display()));
    }
    missing(Needs::Cases).map_or(Ok(folder.join("usr/bin/wireguard-go")), Err)
}

#[test]
fn it_is_short() {
    let script = fs::read_to_string(workspace().join("docs/adapter.py")).expect("the adapter is a text");
    assert!(script.lines().count() < 150, "{} lines", script.lines().count());
}

#[test]
fn it_speaks_the_protocol() {
    let tunnel = match tunnel() {
        Ok(tunnel) => tunnel,
        Err(reason) => return assert!(skip(Some(reason))),
    };
    let ran = run([vec!["smoke".to_owned()], arguments(&tunnel)].concat());
    assert_eq!(ran.code(), Some(0), "{}", ran.said);
    assert!(ran.said.starts_with("adapter.py 0.1 speaks the adapter protocol, version 1; "), "{}", ran.said);
}

#[test]
fn a_program_that_is_not_there_is_named() {
    if let Err(reason) = tunnel() {
        return assert!(skip(Some(reason)));
    }
    let ran = run([vec!["smoke".to_owned()], arguments(Path::new("/nowhere/wireguard-go"))].concat());
    assert_eq!(ran.code(), Some(1), "{}", ran.said);
    assert!(ran.said.contains("/nowhere/wireguard-go is not on this machine"), "{}", ran.said);
}

#[test]
fn it_passes_where_it_can() {
    let tunnel = match tunnel() {
        Ok(tunnel) => tunnel,
        Err(reason) => return assert!(skip(Some(reason))),
    };
    // Connecting and leaving; through every state; a relay that changes; a tunnel that goes; a file that cannot be written.
    let scenarios = [
        "states/connect-disconnect",
        "transitions/through-error",
        "transitions/change-relay",
        "transitions/tunnel-removed",
        "static-file/unwritable",
    ];
    let mut words = arguments(&tunnel);
    words.extend(["--case".to_owned(), "static-file".into(), "--case".into(), "static-file+default".into()]);
    words.extend(scenarios.iter().flat_map(|scenario| ["--scenario".to_owned(), (*scenario).into()]));
    let bundle = Bundle::record(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let report = bundle.report();
    let verdicts: Vec<String> = report
        .results
        .iter()
        .map(|result| format!("{} {}: {}", result.verdict, result.scenario, result.reason))
        .collect();
    assert_eq!(report.results.len(), scenarios.len(), "{verdicts:?}");
    assert!(verdicts.iter().all(|verdict| verdict.starts_with("PASS ")), "{verdicts:#?}\n{}", bundle.ran.said);
}
