//! Bundles: made by a run of the program, read, copied and damaged.

use crate::program::{Ran, run};
use serde_json::Value;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use watertight::report::{CaseResult, ReportFile};

/// A bundle in a folder of its own, which goes with it.
#[derive(Debug)]
pub struct Bundle {
    folder: TempDir,
    /// How the run ended.
    pub ran: Ran,
}

impl Bundle {
    /// Runs the program with `arguments` (`run` and `--bundle` are added).
    pub fn record(arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("watertight-test-").tempdir().expect("a folder for the bundle");
        let path = folder.path().to_str().expect("temporary folders have plain names").to_owned();
        let ran = run([&["run", "--bundle", &path], arguments].concat());
        Self { folder, ran }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Its report.
    ///
    /// # Panics
    ///
    /// If there is none, with all that the program said.
    pub fn report(&self) -> ReportFile {
        let read = fs::read(self.path().join("report.json")).map_err(|error| error.to_string());
        read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string())).unwrap_or_else(
            |error| panic!("no report: {error}; the program ended with {}:\n{}", self.ran.status, self.ran.said),
        )
    }

    /// What the smoke check before the case found, where it found something.
    pub fn smoke(&self) -> Option<CaseResult> {
        self.report().results.into_iter().find(|result| result.scenario == "smoke")
    }

    /// The result of its only case, beside the smoke check's.
    ///
    /// # Panics
    ///
    /// If it has more or less than one.
    pub fn only_result(&self) -> CaseResult {
        let mut results = self.report().results;
        results.retain(|result| result.scenario != "smoke");
        assert_eq!(results.len(), 1, "one case was to be run:\n{}", self.ran.said);
        results.remove(0)
    }

    /// Its results that are not `PASS`, a line each.
    pub fn others(&self) -> Vec<String> {
        let results = self.report().results;
        let others = results.iter().filter(|result| result.verdict.as_str() != "PASS");
        others
            .map(|result| format!("{} {} [{}]: {}", result.verdict, result.scenario, result.case, result.reason))
            .collect()
    }

    /// Folders of its cases, sorted.
    pub fn cases(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(self.path(), &mut |path| {
            if path.file_name().is_some_and(|name| name == "history.jsonl") {
                found.extend(path.parent().map(Path::to_owned));
            }
        })
        .expect("the bundle is readable");
        found.sort();
        found
    }

    /// Keeps the folder, for somebody to look at it.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}

/// All captures below a folder, sorted.
pub fn pcapng_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(folder, &mut |path| {
        if path.extension().is_some_and(|ending| ending == "pcapng") {
            found.push(path.to_owned());
        }
    })
    .expect("the bundle is readable");
    found.sort();
    found
}

/// Replaces the events of a case's history by what `edit` makes of them.
pub fn edit_history(case: &Path, edit: impl FnOnce(&mut Vec<Value>)) {
    let path = case.join("history.jsonl");
    let text = fs::read_to_string(&path).expect("the case has a history");
    let mut events = text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    edit(&mut events);
    let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
    fs::write(&path, lines).expect("the copy is writable");
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, visit)?;
        } else {
            visit(&path);
        }
    }
    Ok(())
}
