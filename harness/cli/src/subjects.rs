//! Subjects that come with the program: each is a process of its own, the same binary by another entry.

use std::{path::Path, process::ExitCode};
use watertight::subject::SubjectCommand;

/// The entry `@subject NAME …`.
pub fn run(name: &str, _rest: &[&str]) -> ExitCode {
    match name {
        "reference" => watertight_reference::main(),
        leaky => match leaky.strip_prefix("leaky:") {
            Some(defect) => watertight_leaky::main(defect),
            None => ExitCode::from(64),
        },
    }
}

/// How to start what `--subject` names.
pub fn command(name: &str, arguments: &[String], environment: &[String]) -> Result<SubjectCommand, String> {
    let variables = environment
        .iter()
        .map(|name| match std::env::var(name) {
            Ok(value) => Ok((name.clone(), value)),
            Err(_) => Err(format!("--subject-env {name}: no such variable in this environment")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let included = name == "reference"
        || name.strip_prefix("leaky:").is_some_and(|defect| watertight_leaky::defect(defect).is_some());
    if included {
        let mut all = vec!["@subject".to_owned(), name.to_owned()];
        all.extend(arguments.iter().cloned());
        return Ok(SubjectCommand {
            name: name.replace(':', "-"),
            program: "@self".into(),
            arguments: all,
            environment: variables,
        });
    }
    if let Some(defect) = name.strip_prefix("leaky:") {
        return Err(format!("there is no defect '{defect}'; `watertight list defects` lists them"));
    }
    let path = Path::new(name);
    let full = path.canonicalize().map_err(|error| {
        format!("--subject {name}: {error}; give `reference`, `leaky:DEFECT`, or the path of an adapter")
    })?;
    if !full.is_file() {
        return Err(format!("--subject {name}: not a file"));
    }
    Ok(SubjectCommand {
        name: full.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        program: full.display().to_string(),
        arguments: arguments.to_vec(),
        environment: variables,
    })
}
