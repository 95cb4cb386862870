//! Finds a copy of the original resolver file among the files that a subject left in its state directory. Only for originals
//! that say enough: a copy of an empty or tiny file cannot be told from chance.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::base85;
use super::diff::paragraphs;
use super::escape::{hex, unblock};

/// Shorter originals, and shorter lines, prove nothing.
const TELLING: usize = 8;

/// A file that holds the original, and in what form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Its path in the client, as in the topic.
    pub path: String,
    /// How the original is in it.
    pub form: &'static str,
    /// Its paragraph in the topic.
    pub paragraph: String,
}

/// The files in a topic "state_dir" that hold `original`.
pub fn copies(original: &[u8], state_dir: &str) -> Vec<Copy> {
    let trimmed = original.trim_ascii_end();
    if trimmed.len() < TELLING {
        return Vec::new();
    }
    let forms = forms(trimmed);
    let lines = telling_lines(trimmed);
    let whole = hex(&Sha256::digest(original));
    paragraphs(state_dir)
        .filter_map(|paragraph| {
            let path = paragraph.split(' ').next().unwrap_or_default().to_owned();
            let form = match unblock(paragraph) {
                Some(content) => held(&content, &forms, &lines)?,
                None => paragraph.lines().next()?.ends_with(&format!(" sha256 {whole}")).then_some("byte for byte")?,
            };
            Some(Copy { path, form, paragraph: paragraph.to_owned() })
        })
        .collect()
}

fn held(content: &[u8], forms: &[(&'static str, Vec<u8>)], lines: &[&[u8]]) -> Option<&'static str> {
    if let Some((form, _)) = forms.iter().find(|(_, needle)| contains(content, needle)) {
        return Some(form);
    }
    // What is encoded may be in a quoted string, and broken into lines in either.
    let unquoted = unquoted(content);
    let joined = |text: &[u8]| text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<u8>>();
    for view in [joined(content), joined(&unquoted), unquoted] {
        if let Some((form, _)) = forms.iter().find(|(_, needle)| contains(&view, needle)) {
            return Some(form);
        }
    }
    (!lines.is_empty() && lines.iter().all(|line| contains(content, line))).then_some("line by line")
}

/// The original in the encodings in which programs store bytes.
fn forms(original: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let numbers = |separator: &str| original.iter().map(u8::to_string).collect::<Vec<_>>().join(separator).into_bytes();
    let mut forms = vec![
        ("byte for byte", original.to_vec()),
        ("in hexadecimal", hex(original).into_bytes()),
        ("in hexadecimal", hex(original).to_uppercase().into_bytes()),
        ("as a list of numbers", numbers(",")),
        ("as a list of numbers", numbers(", ")),
    ];
    if let Ok(text) = std::str::from_utf8(original)
        && let Ok(quoted) = serde_json::to_string(text)
    {
        forms.push(("as a quoted string", quoted.trim_matches('"').as_bytes().to_vec()));
    }
    for needle in base85::needles(original) {
        if needle.len() >= TELLING {
            forms.push(("in base85", needle));
        }
    }
    // Bytes in the middle of something encoded may start at each of three positions of a group; of what is encoded at that
    // position, only the groups that depend on nothing else are looked for.
    for shift in 0..3 {
        let shifted = [vec![0; shift], original.to_vec()].concat();
        let inner = |text: String| {
            let text = text.into_bytes();
            let first = if shift == 0 { 0 } else { 4 };
            let last = shifted.len() / 3 * 4;
            text[first.min(last)..last].to_vec()
        };
        for needle in [inner(STANDARD_NO_PAD.encode(&shifted)), inner(URL_SAFE_NO_PAD.encode(&shifted))] {
            if needle.len() >= TELLING {
                forms.push(("in base64", needle));
            }
        }
    }
    forms
}

/// The lines that configure something; none if no name server is among them.
fn telling_lines(original: &[u8]) -> Vec<&[u8]> {
    let lines: Vec<&[u8]> = original
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !matches!(line.first(), None | Some(b'#' | b';')))
        .collect();
    let telling = lines.iter().any(|line| line.len() >= TELLING && line.starts_with(b"nameserver"));
    if telling { lines } else { Vec::new() }
}

/// Every escape of a JSON string (RFC 8259, section 7) as what it stands for, wherever the strings are.
fn unquoted(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(content.len());
    let mut rest = content;
    while let Some((byte, after)) = rest.split_first() {
        let (shown, length) = match (byte, after.first()) {
            (b'\\', Some(b'n')) => (b'\n', 2),
            (b'\\', Some(b'r')) => (b'\r', 2),
            (b'\\', Some(b't')) => (b'\t', 2),
            (b'\\', Some(quoted @ (b'"' | b'\\' | b'/'))) => (*quoted, 2),
            (b'\\', Some(b'u')) => {
                let digits = after.get(1..5).and_then(|digits| std::str::from_utf8(digits).ok());
                digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).map_or((b'\\', 1), |byte| (byte, 6))
            }
            _ => (*byte, 1),
        };
        bytes.push(shown);
        rest = &rest[length..];
    }
    bytes
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::escape::block;

    const ORIGINAL: &[u8] = b"# by hand\nnameserver 192.168.1.1\noptions edns0\n";

    const PYTHONS: [&str; 4] = [
        r##"BOqdVAZTH3WD0I!ZDn(1a&~2MATc>IE-^MZE-@}K3U6?9X>V?GAZ283b1(`"##,
        r##",9UH@+D>2$A.!3_D.Rd"Ecu#7+>Gl3/ho7D/hnt5$?'m*Bl@m1+D#)$F"dq"##,
        "<~,9UH@+D>2$A.!3_D.Rd\"Ecu#7+>G\nl3/ho7D/hnt5$?'m*Bl@m1+D#)$F\"d\nq~>",
        r##"boQDvazth3wd0i.zdN^1A=#2matC(ie?]mze?[$k3u6)9x(v)gaz283B1^}3"##,
    ];
    const PYTHONS_BEHIND_OTHERS: [&str; 10] = [
        r##"VIv@7c_3(EZe$8>VQpn|WpZ|9av(7|GA=PTI4&_RF$!;RbZKvHb0B48ZgVgSAYpD~AZ>4QWd"##,
        r##"@3Zn(Gp$d/DIa)l@;TRsATDs*EZd(s1+k:>3%cp<0a_i<FD5Z2F!,%)DK@K=+CT.u+Dl%;AH"##,
        r##"VPYd7VtF8FVQyp!ZeeX@b7gXNWpW@fIWjIWHaIRZE-?ykaCB*JZgU`IWNvdX3Ls%_WFT#Ca%B"##,
        r##"@:CH(@X0)0@;]T_DIIBnF(KB8ATAnJ3AN3A2E3<D/hm]OE-,f4DK?q3A8ZHB$6WbpA0>`-Eb,"##,
        r##"VPaz=AYyqSXkl(-3T|O-Wpib6c4cxPF*!0WF*Z0ZF)lF*Z*X*JZ*FrSWn^x1FbW`HZe$>BZ*pY"##,
        r##"@:E^k+C]U=BOPdh$>s9hATMF'G%G\:0f_!A0fD!D0eP0fDfBf4Df0V=ARo\"0FAq2DIal,DfTC"##,
        r##"VPa!sBOqdVAZTH3WD0I!ZDn(1a&~2MATc>IE-^MZE-@}K3U6?9X>V?GAZ283b1(`ZVQyp~ZEtdA"##,
        r##"@:E_W,9UH@+D>2$A.!3_D.Rd"Ecu#7+>Gl3/ho7D/hnt5$?'m*Bl@m1+D#)$F"dqD@;]TuD/XH+"##,
        r##"0000003#q`c_3(EZe$8>VQpn|WpZ|9av(7|GA=PTI4&_RF$!;RbZKvHb0B48ZgVgSAYpD~AZ>4QWd"##,
        r##"z!$`UqGp$d/DIa)l@;TRsATDs*EZd(s1+k:>3%cp<0a_i<FD5Z2F!,%)DK@K=+CT.u+Dl%;AH"##,
    ];
    const PYTHONS_OF_OTHERS: [&str; 2] = [
        r##"BOqdVAZTH3WD0I!ZDn(1a&~2MATcm5HZ(3UE-?ykaCB*JZgU`IWNvdX3I"##,
        r##",9UH@+D>2$A.!3_D.Rd"Ecu#7+>GQ&2Dd$?/hm]OE-,f4DK?q3A8ZHB$3"##,
    ];

    fn found(content: &[u8]) -> Option<&'static str> {
        let topic = format!("/state dir 0700 0:0\n/state/file file 0600 0:0 size 1 sha256 00\n{}", block(content));
        copies(ORIGINAL, &topic).first().map(|copy| copy.form)
    }

    #[test]
    fn finds_the_original_in_every_form() {
        assert_eq!(found(ORIGINAL), Some("byte for byte"));
        assert_eq!(found(&[b"prefix", ORIGINAL, b"suffix"].concat()), Some("byte for byte"));
        assert_eq!(found(hex(ORIGINAL).as_bytes()), Some("in hexadecimal"));
        let json = serde_json::json!({"original": String::from_utf8_lossy(ORIGINAL)}).to_string();
        assert_eq!(found(json.as_bytes()), Some("as a quoted string"));
        let json = serde_json::json!({"original": ORIGINAL}).to_string();
        assert_eq!(found(json.as_bytes()), Some("as a list of numbers"));
        for prefix in ["", "a", "ab", "abc"] {
            let bytes = [prefix.as_bytes(), ORIGINAL, b"after"].concat();
            assert_eq!(found(STANDARD_NO_PAD.encode(bytes).as_bytes()), Some("in base64"), "behind {prefix:?}");
        }
        assert_eq!(found(b"options edns0\nnameserver 192.168.1.1\n"), Some("line by line"));
        // Broken into lines, as programs for mail do.
        let wrapped = |text: &str| text.as_bytes().chunks(20).collect::<Vec<_>>().join(&b"\r\n"[..]);
        assert_eq!(found(&wrapped(&STANDARD_NO_PAD.encode(ORIGINAL))), Some("in base64"));
        assert_eq!(found(&wrapped(&hex(ORIGINAL))), Some("in hexadecimal"));
    }

    /// What Python's base64 module made of the original (`b85encode`, `a85encode`, `a85encode` with lines and frame) and what
    /// ZeroMQ's rfc:32 says of it.
    #[test]
    fn finds_the_original_in_base85() {
        for text in PYTHONS {
            assert_eq!(found(text.as_bytes()), Some("in base85"), "{text}");
            let json = serde_json::json!({ "original": text }).to_string();
            assert_eq!(found(json.as_bytes()), Some("in base85"), "{json}");
            let html_safe = json.replace('<', r"\u003c").replace('>', r"\u003e").replace('&', r"\u0026");
            assert_eq!(found(html_safe.as_bytes()), Some("in base85"), "{html_safe}");
        }
        for text in PYTHONS_BEHIND_OTHERS {
            assert_eq!(found(text.as_bytes()), Some("in base85"), "{text}");
        }
        for text in PYTHONS_OF_OTHERS {
            assert_eq!(found(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn raises_no_false_alarm() {
        assert_eq!(found(b""), None);
        assert_eq!(found(b"{\"servers\": [\"192.168.1.1\"]}"), None);
        assert_eq!(found(b"nameserver 10.64.0.1\noptions edns0\n"), None);
        assert_eq!(copies(b"\n", "/state/file file 0600 0:0 size 1 sha256 00\n    | \n"), []);
    }

    #[test]
    fn finds_a_large_original_by_its_digest() {
        let original = vec![b'#'; 1 << 20];
        let topic =
            format!("/state/big file 0600 0:0 size {} sha256 {}\n", original.len(), hex(&Sha256::digest(&original)));
        assert_eq!(copies(&original, &topic)[0].path, "/state/big");
    }
}
