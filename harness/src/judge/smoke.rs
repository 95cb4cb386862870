//! What a failed smoke check leaves in a bundle, so that judging the bundle again gives the same verdict.

use super::{CaseVerdict, JudgeError};
use serde::{Deserialize, Serialize};
use std::{io, path::Path};

/// The file's name, in the folder of the case `smoke/protocol`.
pub const SMOKE_FILE: &str = "smoke.json";

#[derive(Debug, Serialize, Deserialize)]
struct Smoke {
    subject: String,
    problem: String,
}

/// Keeps what the smoke check did not like, and the verdict on it.
pub fn write_smoke(folder: &Path, subject: &str, problem: &str) -> io::Result<CaseVerdict> {
    let smoke = Smoke { subject: subject.into(), problem: problem.into() };
    std::fs::write(folder.join(SMOKE_FILE), serde_json::to_string_pretty(&smoke)? + "\n")?;
    let verdict = CaseVerdict::no_smoke(subject, problem);
    super::write_verdict(folder, &verdict)?;
    Ok(verdict)
}

/// Judges it again.
pub(super) fn judge_smoke(folder: &Path) -> Result<CaseVerdict, JudgeError> {
    let not_a_case = |problem: String| JudgeError::NotACase { folder: folder.into(), problem };
    let bytes = std::fs::read(folder.join(SMOKE_FILE)).map_err(|error| not_a_case(format!("{SMOKE_FILE}: {error}")))?;
    let smoke: Smoke = serde_json::from_slice(&bytes).map_err(|error| not_a_case(format!("{SMOKE_FILE}: {error}")))?;
    Ok(CaseVerdict::no_smoke(&smoke.subject, &smoke.problem))
}
