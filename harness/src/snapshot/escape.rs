//! Bytes as readable text that loses nothing: what a snapshot writes, a later comparison can turn back into the very bytes.
//! Not for terminals (it knows no colours) and not for JSON.

use std::fmt::Write as _;

/// `bytes` on one line: printable ASCII and letters of any script as they are, `\\`, `\n`, `\r`, `\t`, other characters as
/// `\u{…}`, bytes that are not UTF-8 and control characters as `\xNN`.
pub fn line(bytes: &[u8]) -> String {
    escape(bytes, "")
}

/// [`line()`] without blanks (`\x20`), for a field of a line whose fields are separated by blanks; `\e` is nothing at all.
pub fn word(bytes: &[u8]) -> String {
    if bytes.is_empty() { r"\e".into() } else { escape(bytes, " ") }
}

/// [`line()`] between double quotes.
pub fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", escape(bytes, "\""))
}

/// The bytes behind an escaped text; `None` if it is not one.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let kind = rest.chars().next()?;
        rest = &rest[kind.len_utf8()..];
        match kind {
            '\\' => bytes.push(b'\\'),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'e' => {}
            'x' => {
                bytes.push(u8::from_str_radix(rest.get(..2)?, 16).ok()?);
                rest = &rest[2..];
            }
            'u' => {
                let (digits, after) = rest.strip_prefix('{')?.split_once('}')?;
                let char = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
                bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                rest = after;
            }
            _ => return None,
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

const LINE: &str = "    | ";
const NO_NEWLINE: &str = "    \\ no newline at the end";
const EMPTY: &str = "    (empty)";

/// A file's content, indented, a line a line, each ended by a newline. A missing final newline and an empty file are said,
/// and blanks at the end of a line are visible.
pub fn block(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return format!("{EMPTY}\n");
    }
    let (body, ended) = match bytes.strip_suffix(b"\n") {
        Some(body) => (body, true),
        None => (bytes, false),
    };
    let mut text = String::with_capacity(bytes.len() + bytes.len() / 4);
    for part in body.split(|byte| *byte == b'\n') {
        let escaped = line(part);
        let shown = escaped.trim_end_matches(' ');
        text.push_str(LINE);
        text.push_str(shown);
        text.extend(std::iter::repeat_n(r"\x20", escaped.len() - shown.len()));
        text.push('\n');
    }
    if !ended {
        text.push_str(NO_NEWLINE);
        text.push('\n');
    }
    text
}

/// The bytes that [`block()`] showed, from the indented lines of `text` (other lines are passed over); `None` if it has none.
pub fn unblock(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut found = false;
    for shown in text.lines() {
        if let Some(escaped) = shown.strip_prefix(LINE) {
            bytes.extend(unescape(escaped)?);
            bytes.push(b'\n');
            found = true;
        } else if shown == NO_NEWLINE {
            bytes.pop();
        } else if shown == EMPTY {
            found = true;
        }
    }
    found.then_some(bytes)
}

/// `bytes` in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn escape(bytes: &[u8], also: &str) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '\\' => text.push_str(r"\\"),
                '\n' => text.push_str(r"\n"),
                '\r' => text.push_str(r"\r"),
                '\t' => text.push_str(r"\t"),
                _ if char.is_ascii() && (char.is_ascii_control() || also.contains(char)) => {
                    let _ = write!(text, r"\x{:02x}", u32::from(char));
                }
                ' '..='~' => text.push(char),
                _ if char.is_alphanumeric() => text.push(char),
                _ => {
                    let _ = write!(text, r"\u{{{:x}}}", u32::from(char));
                }
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, r"\x{byte:02x}");
        }
    }
    text
}
