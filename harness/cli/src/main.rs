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
    if let Some(code) = watertight::entry::run(&words) {
        return code;
    }
    match words.as_slice() {
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
