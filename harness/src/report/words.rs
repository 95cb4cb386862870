//! A finding in words, for people: what was required, what was seen, when, and where the evidence is.

use crate::{
    judge::{CaseVerdict, Finding, SMOKE_FILE},
    spec,
};
use std::{fmt::Write, path::Path};

/// The most lines of a finding's detail that are shown.
const DETAIL: usize = 12;

/// The lines below a finding's headline. `folder` is the case's in the bundle.
pub fn finding(case: &CaseVerdict, finding: &Finding, folder: &Path) -> String {
    let mut lines = String::new();
    let mut line = |name: &str, text: &dyn std::fmt::Display| {
        let _ = writeln!(lines, "  {name:<13}{text}");
    };
    if let Some(requirement) = spec::requirement(&finding.requirement) {
        line("requirement", &requirement.text);
    }
    let times = if finding.count == 1 { "" } else { "s" };
    line("seen", &format_args!("{} ({} time{times})", finding.summary, finding.count));
    line("when", &finding.window);
    let class = spec::leak_class(&finding.class).map_or("", |class| class.name.as_str());
    line("leak class", &format_args!("{} {class}", finding.class));
    match &finding.evidence {
        Some(evidence) => line(
            "evidence",
            &format_args!(
                "{}, frame {} in Wireshark",
                folder.join(format!("{}.pcapng", evidence.link)).display(),
                evidence.frame + 1
            ),
        ),
        None => {
            let files = [SMOKE_FILE, "history.jsonl"].map(|name| folder.join(name));
            let file = files.into_iter().find(|file| file.is_file());
            line("evidence", &file.unwrap_or(folder.to_owned()).display());
        }
    }
    for detail in finding.detail.iter().flat_map(|detail| detail.lines()).take(DETAIL) {
        let _ = writeln!(lines, "    {detail}");
    }
    if !case.replay.is_empty() {
        let _ = writeln!(lines, "  {:<13}{}", "replay", case.replay);
    }
    lines
}
