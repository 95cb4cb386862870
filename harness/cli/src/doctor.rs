//! What this machine can do, what is missing, how to get it. Every check tries the thing itself, in a process of its own.

use std::process::{Command, ExitCode, Stdio};

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
    let missing: Vec<Check> = checks().into_iter().filter(|check| check.needed && check.result.is_err()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for check in missing {
        let Err(problem) = check.result else { continue };
        eprintln!("this machine cannot run cases: {}: {problem}", check.name);
    }
    eprintln!("`watertight doctor` checks everything; nothing was run and nothing was left behind");
    Err(ExitCode::from(69))
}

fn checks() -> Vec<Check> {
    vec![
        Check { name: "operating system", result: operating_system(), needed: true },
        Check { name: "namespaces", result: probe("namespaces"), needed: true },
        Check { name: "TUN (/dev/net/tun)", result: probe("tun"), needed: true },
        Check { name: "nf_tables", result: probe("nftables"), needed: true },
        Check { name: "packet capture ring", result: probe("ring"), needed: true },
        Check { name: "private root (overlay)", result: probe("root"), needed: true },
        Check { name: "nft, for second opinions", result: program("nft", "Debian package nftables"), needed: false },
        Check { name: "tshark, to read captures", result: program("tshark", "Debian package tshark"), needed: false },
    ]
}

fn operating_system() -> Result<String, String> {
    if !cfg!(target_os = "linux") {
        return Err("cases in namespaces run on Linux only".into());
    }
    let name = nix::sys::utsname::uname().map_err(|error| error.to_string())?;
    Ok(format!("Linux {}", name.release().to_string_lossy()))
}

/// Runs one of the harness's own self-checks in a process of its own.
fn probe(what: &str) -> Result<String, String> {
    let output = Command::new("/proc/self/exe")
        .args(["@check", what])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("this program could not be started again: {error}"))?;
    let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(words) } else { Err(words) }
}

fn program(name: &str, package: &str) -> Result<String, String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .map(|path| path.display().to_string())
        .ok_or_else(|| format!("not on PATH; {package}"))
}
