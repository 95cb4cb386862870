//! The `watertight` program: one self-contained binary with the harness, the suite, the reference subject and the leaky ones.
//!
//! The program starts itself again for everything that runs in a process of its own: arguments that begin with `@` are
//! those entries and no commands for people.

mod args;
mod commands;
mod doctor;
mod progress;
mod subjects;
mod terminal;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // Before any thread or runtime exists: these entries make namespaces.
    match words.as_slice() {
        [_, "@case"] => watertight::run::case_main(),
        [_, "@client-init", root, layers @ ..] => {
            let layers: Vec<_> = layers.iter().map(std::path::PathBuf::from).collect();
            watertight::sandbox::client_init_main(*root == "rootless", &layers)
        }
        [_, "@enter", pid, spec] => match pid.parse() {
            Ok(pid) => watertight::sandbox::enter_main(pid, spec),
            Err(_) => ExitCode::from(64),
        },
        [_, "@agent"] => watertight::agent::run(),
        [_, "@getaddrinfo", rest @ ..] => {
            watertight::agent::getaddrinfo_main(rest.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        }
        [_, "@check", what] => watertight::selfcheck::check_main(what),
        [_, "@smoke", spec] => watertight::selfcheck::smoke_main(spec),
        [_, "@subject", name, rest @ ..] => subjects::run(name, rest),
        _ => match args::Arguments::try_parse() {
            Ok(arguments) => commands::run(arguments),
            Err(error) => {
                let wrong = error.use_stderr();
                let _ = error.print();
                if wrong { ExitCode::from(64) } else { ExitCode::SUCCESS }
            }
        },
    }
}
