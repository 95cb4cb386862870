//! Reads scenario files: the suite that is embedded in the program, and a user's own.
//!
//! An error names file, line and what is allowed there.

use super::Scenario;
use crate::spec;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// A scenario that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Not TOML, or an unknown key, step or value.
    #[error("{file}:{line}: {problem}")]
    Syntax {
        /// The file.
        file: String,
        /// From 1.
        line: usize,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// An id that the specification does not have.
    #[error("{file}:{line}: unknown {what} '{id}'; {allowed}")]
    UnknownId {
        /// The file.
        file: String,
        /// From 1.
        line: usize,
        /// `requirement` or `leak class`.
        what: &'static str,
        /// The id.
        id: String,
        /// What to do.
        allowed: String,
    },
    /// A folder or file that cannot be read.
    #[error("failed to read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// Parses one scenario; `file` is its name in errors.
pub fn parse(file: &str, text: &str) -> Result<Scenario, LoadError> {
    let scenario: Scenario = toml::from_str(text).map_err(|error| LoadError::Syntax {
        file: file.into(),
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        problem: error.message().to_owned(),
    })?;
    let line = |id: &str| text.find(&format!("\"{id}\"")).map_or(1, |at| line_of(text, at));
    for id in &scenario.requirements {
        if spec::requirement(id).is_none() {
            return Err(LoadError::UnknownId {
                file: file.into(),
                line: line(id),
                what: "requirement",
                id: id.clone(),
                allowed: "`watertight list requirements` lists them".into(),
            });
        }
    }
    for id in &scenario.classes {
        if spec::leak_class(id).is_none() {
            return Err(LoadError::UnknownId {
                file: file.into(),
                line: line(id),
                what: "leak class",
                id: id.clone(),
                allowed: "scenarios/leak-classes.toml lists them".into(),
            });
        }
    }
    if scenario.requirements.is_empty() {
        return Err(LoadError::Syntax {
            file: file.into(),
            line: 1,
            problem: "`requirements` is empty: a scenario names at least one requirement that it checks".into(),
        });
    }
    Ok(scenario)
}

/// The suite that the program carries, by id.
pub fn suite() -> Result<BTreeMap<String, Scenario>, LoadError> {
    watertight_scenarios::SCENARIOS
        .iter()
        .map(|(id, text)| Ok(((*id).to_owned(), parse(&format!("scenarios/{id}.toml"), text)?)))
        .collect()
}

/// All `*.toml` below a folder; a path without its ending is the id.
pub fn load_directory(folder: &Path) -> Result<BTreeMap<String, Scenario>, LoadError> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        let failed = |source| LoadError::Read { path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?.path();
            if entry.is_dir() {
                open.push(entry);
            } else if entry.extension().is_some_and(|ending| ending == "toml") {
                let text =
                    fs::read_to_string(&entry).map_err(|source| LoadError::Read { path: entry.clone(), source })?;
                let scenario = parse(&entry.display().to_string(), &text)?;
                let id = entry.strip_prefix(folder).unwrap_or(&entry).with_extension("");
                found.insert(id.display().to_string(), scenario);
            }
        }
    }
    Ok(found)
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].matches('\n').count() + 1
}
