//! Which marks, users and groups a firewall tells apart: read from the text of a snapshot, in which a rule is shown as nft
//! prints it, or expression by expression where that is not possible. What is read wrongly costs a probe that proves nothing;
//! what is overlooked may be a hole, so that what is not understood is taken for a value.

use super::Identity;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What makes an identity of a number.
type Key = fn(u32) -> Identity;
/// First and last number of a range.
type Span = (u32, u32);
/// One span for each field of a concatenation.
type Element = Vec<Span>;
/// Elements by table and name.
type Sets = HashMap<(usize, String), Vec<Element>>;

/// Which numbers a comparison is true of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Is,
    Not,
    Below,
    AtMost,
    Above,
    AtLeast,
}

/// What becomes of a value before it is compared: `(value & mask) ^ xor`.
#[derive(Clone, Copy, Default)]
struct Bits {
    mask: Option<u32>,
    xor: u32,
}

/// How sure it is that a rule means this identity; the first are imitated first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It is in the rule, or the rule is true of it and of little else.
    Named,
    /// The other end of a range, or what the rule is true of besides.
    Beside,
    /// Just outside of what the rule is true of.
    Outside,
    /// A number of a rule that was not understood.
    Guessed,
}

/// The identities that a ruleset and routing rules name, the likeliest first: every rule gets one before any gets two. Zero,
/// which is everybody's mark and root's number, excepted.
pub(crate) fn identities_in(text: &str) -> Vec<Identity> {
    let sets = sets_in(text);
    let mut table = 0;
    let mut ordered = BTreeMap::new();
    for (position, line) in text.lines().enumerate() {
        if line.starts_with("table ") {
            table += 1;
        }
        let line = line.trim_start();
        if ["set ", "map ", "element ", "elements "].iter().any(|start| line.starts_with(start)) {
            continue;
        }
        let mut rule = Rule { table, sets: &sets, found: Vec::new() };
        if line.starts_with("rule [ ") {
            rule.read_expressions(line);
        } else {
            rule.read_syntax(&tokens(line));
        }
        let mut seen = HashSet::new();
        rule.found.sort_by_key(|(rank, _)| *rank);
        let found = rule.found.into_iter().filter(|(_, identity)| seen.insert(*identity));
        for (nth, (rank, identity)) in found.enumerate() {
            ordered.insert((nth, rank, position), identity);
        }
    }
    let mut seen = HashSet::new();
    ordered.into_values().filter(|identity| seen.insert(*identity)).collect()
}

/// A rule that is read.
struct Rule<'a> {
    table: usize,
    sets: &'a Sets,
    found: Vec<(Rank, Identity)>,
}

impl Rule<'_> {
    /// As nft prints it, or ip-rule.
    fn read_syntax(&mut self, tokens: &[&str]) {
        let mut not_understood = Vec::new();
        for (at, token) in tokens.iter().enumerate() {
            let Some(key) = named_key(token) else { continue };
            let before = self.found.len();
            let field = fields_before(&tokens[..at]);
            self.read_condition(key, field, after_selectors(&tokens[at + 1..]));
            if self.found.len() == before {
                not_understood.push(key);
            }
        }
        let numbers: Vec<u32> = tokens.iter().filter_map(|token| span(token)).flat_map(|(a, b)| [a, b]).collect();
        self.guess(&not_understood, &numbers);
    }

    /// What stands behind a selector, of whose fields `key` is the one numbered `field`.
    fn read_condition(&mut self, key: Key, field: usize, mut rest: &[&str]) {
        let (mut op, mut bits) = (Op::Is, Bits::default());
        while let [token, after @ ..] = rest {
            rest = after;
            let operand = after.first().and_then(|token| span(token)).map(|(value, _)| value);
            match (*token, operand) {
                ("and" | "&", Some(mask)) => {
                    bits.mask = Some(mask);
                    rest = &after[1..];
                }
                ("xor" | "^", Some(xor)) => {
                    bits.xor ^= xor;
                    rest = &after[1..];
                }
                ("or" | "|", Some(_)) => rest = &after[1..],
                ("(" | ")" | "==" | "eq" | "set" | "map" | "vmap", _) => {}
                ("!=" | "ne", _) => op = Op::Not,
                ("<" | "lt", _) => op = Op::Below,
                ("<=" | "le", _) => op = Op::AtMost,
                (">" | "gt", _) => op = Op::Above,
                (">=" | "ge", _) => op = Op::AtLeast,
                ("{", _) => {
                    let end = after.iter().position(|token| *token == "}").unwrap_or(after.len());
                    return self.compare_elements(key, field, op, bits, &elements(&after[..end]));
                }
                (name, _) if name.starts_with('@') => {
                    let set = self.sets.get(&(self.table, name[1..].to_owned()));
                    return self.compare_elements(key, field, op, bits, set.map_or(&[], Vec::as_slice));
                }
                (value, _) => {
                    if let Some(span) = span(value) {
                        self.compare(key, op, bits, span);
                    }
                    return;
                }
            }
        }
    }

    /// Expression by expression, `[ name 1=hex 2=hex ]`, the attributes' numbers as in the kernel's header.
    fn read_expressions(&mut self, line: &str) {
        // What is in the registers since they were last looked at; nft looks at what it loads at once.
        let mut loaded: Vec<Option<Key>> = Vec::new();
        let (mut bits, mut swapped, mut looked_at) = (Bits::default(), false, false);
        let (mut keys, mut numbers) = (Vec::new(), Vec::new());
        for expression in line.split("[ ").skip(1) {
            let expression = expression.split(" ]").next().unwrap_or_default();
            let (name, rest) = expression.split_once(' ').unwrap_or((expression, ""));
            let attributes: HashMap<&str, &str> = rest.split(' ').filter_map(|pair| pair.split_once('=')).collect();
            let attribute = |kind: &str| attributes.get(kind).copied().unwrap_or_default();
            let integer = |kind: &str| u32::from_str_radix(attribute(kind), 16).ok();
            let values = |kind: &str| words(attribute(kind).get(8..).unwrap_or_default(), swapped);
            match name {
                "byteorder" => swapped = true,
                "bitwise" => {
                    bits = Bits {
                        mask: values("4").first().copied(),
                        xor: values("5").first().copied().unwrap_or_default(),
                    };
                }
                "cmp" | "range" => {
                    looked_at = true;
                    let op = match (name, integer("2")) {
                        (_, Some(1)) => Op::Not,
                        ("cmp", Some(2)) => Op::Below,
                        ("cmp", Some(3)) => Op::AtMost,
                        ("cmp", Some(4)) => Op::Above,
                        ("cmp", Some(5)) => Op::AtLeast,
                        _ => Op::Is,
                    };
                    let from = values("3");
                    let to = if name == "range" { values("4") } else { from.clone() };
                    numbers.extend(from.iter().chain(&to).copied());
                    let element: Element = from.into_iter().zip(to).collect();
                    self.compare_loaded(&loaded, op, bits, &[element]);
                }
                "lookup" => {
                    looked_at = true;
                    let op = if integer("5") == Some(1) { Op::Not } else { Op::Is };
                    let set = self.sets.get(&(self.table, string(attribute("1"))));
                    self.compare_loaded(&loaded, op, bits, set.map_or(&[], Vec::as_slice));
                }
                "match" => self.read_extension(&string(attribute("1")), &words(attribute("3"), false)),
                "immediate" => numbers.extend(values("2")),
                "counter" | "quota" | "limit" | "log" | "last" | "connlimit" | "reject" | "nat" | "masq" | "redir"
                | "queue" | "notrack" | "target" => {}
                // It writes what the packet has, and does not ask for it.
                "meta" | "ct" if attributes.contains_key(if name == "meta" { "3" } else { "4" }) => {
                    keys.extend(loaded_key(name, integer("2"), None));
                }
                _ => {
                    if std::mem::take(&mut looked_at) {
                        loaded.clear();
                        (bits, swapped) = (Bits::default(), false);
                    }
                    let key = loaded_key(name, integer("2"), integer("1"));
                    keys.extend(key);
                    loaded.push(key);
                }
            }
        }
        if self.found.is_empty() {
            self.guess(&keys, &numbers);
        }
    }

    /// An extension of iptables that nft has no words for: struct xt_mark_mtinfo1, struct xt_owner_match_info.
    fn read_extension(&mut self, name: &str, info: &[u32]) {
        match (name, info) {
            ("mark" | "connmark", [mark, mask, rest @ ..]) => {
                let op = if rest.first().is_some_and(|invert| invert & 0xff != 0) { Op::Not } else { Op::Is };
                self.compare(Identity::Mark, op, Bits { mask: Some(*mask), xor: 0 }, (*mark, *mark));
            }
            ("owner", [uid_min, uid_max, gid_min, gid_max, flags, ..]) => {
                let [matched, inverted, ..] = flags.to_ne_bytes();
                for (bit, key, span) in
                    [(1, Identity::Uid as Key, (*uid_min, *uid_max)), (2, Identity::Gid as Key, (*gid_min, *gid_max))]
                {
                    if matched & bit != 0 {
                        let op = if inverted & bit != 0 { Op::Not } else { Op::Is };
                        self.compare(key, op, Bits::default(), span);
                    }
                }
            }
            _ => {}
        }
    }

    /// Elements compared with all that is in the registers.
    fn compare_loaded(&mut self, loaded: &[Option<Key>], op: Op, bits: Bits, elements: &[Element]) {
        for (field, key) in loaded.iter().enumerate() {
            if let Some(key) = key {
                self.compare_elements(*key, field, op, bits, elements);
            }
        }
    }

    fn compare_elements(&mut self, key: Key, field: usize, op: Op, bits: Bits, elements: &[Element]) {
        for element in elements {
            match element.get(field) {
                Some(span) => self.compare(key, op, bits, *span),
                // Not the concatenation that was read.
                None => element.iter().for_each(|span| self.compare(key, op, bits, *span)),
            }
        }
    }

    /// Notes what a comparison is true of, and what it excepts: a rule may permit, or refuse all others.
    fn compare(&mut self, key: Key, op: Op, bits: Bits, (first, last): Span) {
        use Rank::{Beside, Named, Outside};
        let (next, previous) = (|value: u32| value.checked_add(1), |value: u32| value.checked_sub(1));
        let (first, last) = (first ^ bits.xor, last ^ bits.xor);
        let numbers = match (op, bits.mask) {
            (Op::Is, _) => [(Named, Some(first)), (Beside, Some(last))],
            (Op::Not, Some(mask)) => [(Named, Some(first)), (Beside, Some(first ^ (mask & mask.wrapping_neg())))],
            (Op::Not, None) => {
                self.note(key, Outside, previous(first));
                [(Named, Some(first)), (Beside, next(last))]
            }
            (Op::Below, _) => [(Named, previous(first)), (Outside, Some(first))],
            (Op::AtMost, _) => [(Named, Some(first)), (Outside, next(first))],
            (Op::Above, _) => [(Named, next(first)), (Outside, Some(first))],
            (Op::AtLeast, _) => [(Named, Some(first)), (Outside, previous(first))],
        };
        for (rank, number) in numbers {
            self.note(key, rank, number);
        }
    }

    fn guess(&mut self, keys: &[Key], numbers: &[u32]) {
        for key in keys {
            for number in numbers {
                self.note(*key, Rank::Guessed, Some(*number));
            }
        }
    }

    fn note(&mut self, key: Key, rank: Rank, number: Option<u32>) {
        self.found
            .extend(number.filter(|number| *number != 0).map(key).filter(can_be_taken).map(|found| (rank, found)));
    }
}

/// The last number is nobody's, and setfsuid(2) takes it for a question.
fn can_be_taken(identity: &Identity) -> bool {
    !matches!(identity, Identity::Uid(u32::MAX) | Identity::Gid(u32::MAX))
}

fn named_key(token: &str) -> Option<Key> {
    match token {
        "mark" | "fwmark" => Some(Identity::Mark),
        "skuid" | "uidrange" => Some(Identity::Uid),
        "skgid" => Some(Identity::Gid),
        _ => None,
    }
}

/// NFT_META_MARK, NFT_META_SKUID, NFT_META_SKGID, NFT_CT_MARK, NFT_SOCKET_MARK.
fn loaded_key(name: &str, second: Option<u32>, first: Option<u32>) -> Option<Key> {
    match (name, second, first) {
        ("meta", Some(3), _) | ("ct", Some(3), _) | ("socket", _, Some(1)) => Some(Identity::Mark),
        ("meta", Some(10), _) => Some(Identity::Uid),
        ("meta", Some(11), _) => Some(Identity::Gid),
        _ => None,
    }
}

/// How many fields of a concatenation stand before the one that these tokens lead to.
fn fields_before(tokens: &[&str]) -> usize {
    // A selector is at most three words, such as `ct original saddr`.
    let selector = tokens.iter().rev().take(3).take_while(|token| **token != "}");
    match selector.enumerate().find(|(_, token)| **token == ".") {
        Some((back, _)) => 1 + fields_before(&tokens[..tokens.len() - 1 - back]),
        None => 0,
    }
}

/// The tokens behind the other fields of a concatenation.
fn after_selectors<'a, 'b>(mut tokens: &'a [&'b str]) -> &'a [&'b str] {
    while let [".", after @ ..] = tokens {
        let is_word = |token: &&&str| token.starts_with(|c: char| c.is_ascii_alphabetic()) && !token.ends_with("map");
        let words = after.iter().take_while(is_word).count();
        tokens = &after[words..];
    }
    tokens
}

/// All named sets and maps, and those that the kernel numbers.
fn sets_in(text: &str) -> Sets {
    let mut sets = Sets::new();
    let mut table = 0;
    let mut lines = text.lines();
    let mut current: Option<(String, bool)> = None;
    let mut is_open = false;
    while let Some(line) = lines.next() {
        if line.starts_with("table ") {
            table += 1;
        }
        let all = tokens(line);
        match all.as_slice() {
            ["set" | "map", name, rest @ ..] => {
                current = Some(((*name).to_owned(), rest.contains(&"interval")));
                is_open = false;
            }
            ["chain", ..] => current = None,
            _ => {}
        }
        let Some((name, is_interval)) = &current else { continue };
        let set = sets.entry((table, name.clone())).or_default();
        if let ["element", key, rest @ ..] = all.as_slice() {
            let first = words(key, *is_interval);
            if rest.first() == Some(&"end-of-interval") {
                if let (true, [end], Some([last])) = (is_open, first.as_slice(), set.last_mut().map(Vec::as_mut_slice))
                {
                    last.1 = end.saturating_sub(1);
                }
                is_open = false;
                continue;
            }
            let last = match rest {
                ["-", key, ..] => words(key, *is_interval),
                _ => first.clone(),
            };
            set.push(first.into_iter().zip(last).collect());
            is_open = true;
        } else if let Some((_, start)) = line.split_once("elements = {") {
            let mut inside = start.to_owned();
            while !inside.contains('}') {
                let Some(line) = lines.next() else { break };
                inside.push_str(line);
            }
            set.extend(elements(&tokens(inside.split('}').next().unwrap_or_default())));
        }
    }
    sets
}

/// What stands between braces: `0x77 . udp : accept, 1000-1010`.
fn elements(tokens: &[&str]) -> Vec<Element> {
    tokens
        .split(|token| *token == ",")
        .map(|element| {
            let key = element.split(|token| *token == ":").next().unwrap_or_default();
            // What is no number is a field all the same.
            let fields = key.split(|token| *token == ".");
            fields.map(|field| field.first().and_then(|token| span(token)).unwrap_or_default()).collect()
        })
        .collect()
}

/// Words, and signs that stand for themselves wherever they are.
fn tokens(line: &str) -> Vec<&str> {
    const SIGNS: [char; 6] = ['{', '}', '(', ')', ',', ';'];
    line.split_whitespace()
        .flat_map(|word| word.split_inclusive(SIGNS))
        .flat_map(|part| match part.strip_suffix(SIGNS) {
            Some(word) => [word, &part[word.len()..]],
            None => [part, ""],
        })
        .filter(|token| !token.is_empty())
        .collect()
}

/// `7`, `0xca6c/0xffffffff`, `1000-1010`.
fn span(token: &str) -> Option<Span> {
    let token = token.split('/').next().unwrap_or(token);
    match token.split_once('-') {
        Some((first, last)) => Some((number(first)?, number(last)?)),
        None => number(token).map(|number| (number, number)),
    }
}

fn number(value: &str) -> Option<u32> {
    match value.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

/// Bytes in hex as numbers of four bytes: in network order, or the machine's own.
fn words(hex: &str, is_network_order: bool) -> Vec<u32> {
    let word = |bytes: &[u8]| {
        let number = u32::from_str_radix(str::from_utf8(bytes).ok()?, 16).ok()?;
        Some(if is_network_order { number } else { u32::from_ne_bytes(number.to_be_bytes()) })
    };
    hex.as_bytes().chunks_exact(8).filter_map(word).collect()
}

/// A name in hex, with its final NUL.
fn string(hex: &str) -> String {
    let byte = |bytes: &[u8]| u8::from_str_radix(str::from_utf8(bytes).ok()?, 16).ok();
    let bytes = hex.as_bytes().chunks_exact(2).filter_map(byte).take_while(|byte| *byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

#[cfg(test)]
mod tests;
