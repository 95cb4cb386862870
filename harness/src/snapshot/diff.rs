//! Canonical texts taken apart and put beside each other: unified diffs, what was added and what is missing. Knows the shape of
//! the topics' text, not what a difference means.

use std::collections::BTreeMap;

use similar::TextDiff;

/// A unified diff of two canonical texts. They are escaped already, so every byte is visible.
pub fn unified(topic: &str, before: &str, after: &str) -> String {
    TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(2)
        .header(&format!("before/{topic}"), &format!("after/{topic}"))
        .to_string()
}

/// A text's paragraphs by their first word: a line at the left margin, and the indented lines that follow it.
pub fn by_key(text: &str) -> BTreeMap<&str, &str> {
    paragraphs(text).map(|paragraph| (paragraph.split([' ', '\n']).next().unwrap_or_default(), paragraph)).collect()
}

/// A line at the left margin and the indented lines that follow it.
pub fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = rest.len();
        for (at, _) in rest.match_indices('\n') {
            if !rest[at + 1..].starts_with(' ') {
                end = at + 1;
                break;
            }
        }
        let (paragraph, after) = rest.split_at(end);
        rest = after;
        Some(paragraph)
    })
}

/// Lines that are in one text only, each as often as it is there more than in the other: missing, then added.
pub fn lines<'a>(before: &'a str, after: &'a str) -> (Vec<&'a str>, Vec<&'a str>) {
    let mut count: BTreeMap<&str, i64> = BTreeMap::new();
    before.lines().for_each(|line| *count.entry(line).or_default() -= 1);
    after.lines().for_each(|line| *count.entry(line).or_default() += 1);
    let (mut missing, mut added) = (Vec::new(), Vec::new());
    for (line, count) in count {
        let list = if count < 0 { &mut missing } else { &mut added };
        list.extend(std::iter::repeat_n(line, count.unsigned_abs() as usize));
    }
    (missing, added)
}

/// Whether `part` is `whole` with lines left out.
pub fn is_within(part: &str, whole: &str) -> bool {
    let mut whole = whole.lines();
    part.lines().all(|wanted| whole.any(|line| line == wanted))
}

/// `3 left over: a, b, …`; nothing for an empty list.
pub fn some_of(what: &str, list: &[&str]) -> Option<String> {
    const SHOWN: usize = 3;
    if list.is_empty() {
        return None;
    }
    let shown = list.iter().take(SHOWN).map(|line| format!("`{}`", line.trim())).collect::<Vec<_>>().join(", ");
    let more = if list.len() > SHOWN { ", …" } else { "" };
    Some(format!("{} {what}: {shown}{more}", list.len()))
}
