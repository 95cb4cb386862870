//! Wireshark, a second opinion: it reads the captures, agrees on the number of frames, and shows a finding on its frame.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Stdio},
};
use watertight::judge::Finding;
use watertight_tests::{Bundle, Needs, missing, pcapng_files, skip};

#[test]
fn tshark_counts_the_same_frames_in_every_capture() {
    if skip(missing(Needs::Cases).or_else(no_tshark)) {
        return;
    }
    let bundle = Bundle::record(&["--scenario", "states/connect-disconnect", "--case", "static-file+default"]);
    assert_eq!(bundle.ran.code(), Some(0), "{}", bundle.ran.said);
    let files = pcapng_files(bundle.path());
    let links: Vec<_> = files.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
    assert_eq!(links, ["tunnel", "uplink"], "a capture for each link");
    for path in &files {
        let frames = watertight::capture::read(path).expect("a whole capture").frames.len();
        assert!(frames > 0, "{} has frames", path.display());
        assert_eq!(tshark(path, &["-e", "frame.number"]).len(), frames, "{}", path.display());
    }
}

#[test]
fn tshark_shows_each_finding_on_its_frame() {
    if skip(missing(Needs::Cases).or_else(no_tshark)) {
        return;
    }
    let defect = watertight_leaky::defect("ipv6-unfiltered").expect("it is planted");
    let bundle =
        Bundle::record(&["--subject", "leaky:ipv6-unfiltered", "--scenario", defect.scenario, "--case", defect.case]);
    let findings = bundle.only_result().findings;
    let case = &bundle.cases()[0];
    let expected: BTreeSet<(&str, u64)> = findings
        .iter()
        .filter_map(|finding| finding.evidence.as_ref())
        .map(|evidence| (evidence.link.as_str(), evidence.frame + 1))
        .collect();
    assert!(!expected.is_empty(), "the defect has findings with frames: {findings:?}");
    for link in ["uplink", "tunnel"] {
        let path = case.join(format!("{link}.pcapng"));
        let frames = watertight::capture::read(&path).expect("a whole capture").frames.len();
        assert_eq!(
            tshark(&path, &["-e", "frame.number"]).len(),
            frames,
            "comments change no count: {}",
            path.display()
        );
        let shown = tshark(&path, &["-Y", "frame.comment", "-e", "frame.number", "-e", "frame.comment"]);
        let numbers: BTreeSet<u64> = shown.iter().filter_map(|line| line.split('\t').next()?.parse().ok()).collect();
        let wanted = expected.iter().filter(|(of, _)| *of == link).map(|(_, frame)| *frame).collect();
        assert_eq!(numbers, wanted, "frames with comments on {link}: {shown:?}");
        for line in &shown {
            let said = |finding: &&Finding| line.contains(&format!("\t{} {}: ", finding.verdict, finding.requirement));
            assert!(findings.iter().any(|finding| said(&finding)), "the comment is a finding's: {line}");
        }
    }
}

fn no_tshark() -> Option<String> {
    let found = Command::new("tshark").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("tshark --version ended with {status}")),
        Err(error) => Some(format!("tshark cannot be started ({error}); Debian package tshark")),
    }
}

/// One line a frame.
fn tshark(path: &Path, fields: &[&str]) -> Vec<String> {
    let output = Command::new("tshark").arg("-n").arg("-r").arg(path).args(["-T", "fields"]).args(fields).output();
    let output = output.expect("tshark starts");
    assert!(output.status.success(), "tshark on {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}
