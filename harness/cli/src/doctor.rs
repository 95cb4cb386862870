//! What this machine can do, what is missing, how to get it. Every check tries the thing itself, in a process of its own.

use std::process::ExitCode;
use watertight::selfcheck;

struct Check {
    name: &'static str,
    /// `Ok` with what was found, or `Err` with what is wrong and what to do.
    result: Result<String, String>,
    needed: bool,
}

/// Prints everything; the exit code says whether cases can run.
pub fn run() -> ExitCode {
    let checks = checks();
    for check in &checks {
        match &check.result {
            Ok(found) => println!("ok       {:<28} {found}", check.name),
            Err(problem) if check.needed => println!("MISSING  {:<28} {problem}", check.name),
            Err(problem) => println!("absent   {:<28} {problem}", check.name),
        }
    }
    if checks.iter().any(|check| check.needed && check.result.is_err()) {
        println!("\nCases cannot run on this machine until what is MISSING is there.");
        return ExitCode::from(69);
    }
    println!("\nCases can run on this machine.");
    ExitCode::SUCCESS
}

/// Quietly, before cases are run.
pub fn check() -> Result<(), ExitCode> {
    let missing = selfcheck::missing();
    if missing.is_empty() {
        return Ok(());
    }
    for problem in missing {
        eprintln!("this machine cannot run cases: {problem}");
    }
    eprintln!("`watertight doctor` checks everything; nothing was run and nothing was left behind");
    Err(ExitCode::from(69))
}

fn checks() -> Vec<Check> {
    let needed = selfcheck::needed().into_iter().map(|(name, result)| Check { name, result, needed: true });
    let opinions = [
        Check { name: "nft, for second opinions", result: program("nft", "Debian package nftables"), needed: false },
        Check { name: "tshark, to read captures", result: program("tshark", "Debian package tshark"), needed: false },
    ];
    needed.chain(opinions).collect()
}

fn program(name: &str, package: &str) -> Result<String, String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .map(|path| path.display().to_string())
        .ok_or_else(|| format!("not on PATH; {package}"))
}
