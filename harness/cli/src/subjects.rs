//! Subjects that come with the program: each is a process of its own, the same binary by another entry.

use std::{path::Path, process::ExitCode};
use watertight::subject::SubjectCommand;

/// The entry `@subject NAME …`.
pub fn run(name: &str, _rest: &[&str]) -> ExitCode {
    match name {
        "reference" => watertight_reference::main(),
        other => match other.split_once(':') {
            Some(("leaky", defect)) => watertight_leaky::main(defect),
            Some(("sound", variant)) => watertight_leaky::main_of_variant(variant),
            _ => ExitCode::from(64),
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
    let included = match name.split_once(':') {
        None => name == "reference",
        Some(("leaky", defect)) if watertight_leaky::defect(defect).is_none() => {
            return Err(format!("there is no defect '{defect}'; `watertight list defects` lists them"));
        }
        Some(("sound", variant)) if watertight_leaky::variant(variant).is_none() => {
            return Err(format!("there is no variant '{variant}'; `watertight list variants` lists them"));
        }
        Some((kind, _)) => matches!(kind, "leaky" | "sound"),
    };
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
    let path = Path::new(name);
    let full = path.canonicalize().map_err(|error| {
        format!(
            "--subject {name}: {error}; give `reference`, `leaky:DEFECT`, `sound:VARIANT`, or the path of an adapter"
        )
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
