//! The entries of a program that runs cases.
//!
//! Everything that needs a process of its own is such a program, started again: a case, the client machine's first process,
//! what is started in there, probe agents, checks. Arguments that begin with `@` are these entries and no commands for people.
//! A program's own subjects are entries that it adds itself.

use std::{path::PathBuf, process::ExitCode};

/// Does what the entry among `arguments` (the program's own name first) asks for; `None` if there is none of the harness's.
///
/// Call it before any thread or runtime exists: these entries make namespaces.
pub fn run(arguments: &[&str]) -> Option<ExitCode> {
    Some(match arguments {
        [_, "@case"] => crate::run::case_main(),
        [_, "@client-init", root, layers @ ..] => {
            let layers: Vec<_> = layers.iter().map(PathBuf::from).collect();
            crate::sandbox::client_init_main(*root == "rootless", &layers)
        }
        [_, "@enter", pid, spec] => match pid.parse() {
            Ok(pid) => crate::sandbox::enter_main(pid, spec),
            Err(_) => ExitCode::from(64),
        },
        [_, "@agent"] => crate::agent::run(),
        [_, "@getaddrinfo", rest @ ..] => {
            crate::agent::getaddrinfo_main(rest.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        }
        [_, "@check", what] => crate::selfcheck::check_main(what),
        [_, "@smoke", spec] => crate::selfcheck::smoke_main(spec),
        _ => return None,
    })
}
