//! Finds DNS by what a message is made of, on any port. Nothing here knows which DNS is allowed.

use hickory_proto::{
    op::Query,
    rr::RecordType,
    serialize::binary::{BinDecodable, BinDecoder},
};

/// Bytes of the header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;
/// More questions than this are not read: no resolver asks so many at once, and time stays bounded.
const MOST_QUESTIONS: u16 = 64;
/// Class bit with which multicast DNS asks for a unicast answer (RFC 6762, section 5.4).
const UNICAST_RESPONSE: u16 = 0x8000;

/// A DNS message (RFC 1035, section 4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsMessage {
    /// Message id.
    pub id: u16,
    /// Whether it is a response.
    pub is_response: bool,
    /// Operation: 0 query, 1 inverse query, 2 status, 4 notify, 5 update, 6 stateful.
    pub opcode: u8,
    /// Response code: 0 no error, 3 no such name, ...
    pub rcode: u8,
    /// Names asked for (lower case, no final dot, the root is empty) and query types.
    pub questions: Vec<(String, u16)>,
    /// Number of records in the answer section.
    pub answers: u16,
}

impl DnsMessage {
    /// One line: `query p12.probe.test A` or `response p12.probe.test A, 1 answer`.
    pub fn summary(&self) -> String {
        let mut text = if self.is_response { "response".to_owned() } else { "query".to_owned() };
        for (name, kind) in &self.questions {
            let name = if name.is_empty() { "." } else { name };
            text.push_str(&format!(" {name} {}", RecordType::from(*kind)));
        }
        if self.is_response {
            text.push_str(&match (self.rcode, self.answers) {
                (0, 1) => ", 1 answer".to_owned(),
                (0, answers) => format!(", {answers} answers"),
                (rcode, _) => format!(", response code {rcode}"),
            });
        }
        text
    }
}

/// Reads a payload as exactly one DNS message, as in a UDP datagram. Strict enough that tunnel packets and random
/// bytes are not DNS: the operation must be one that exists, every question must have a type and a class that can be
/// asked for, and the sections must end where the payload ends.
pub fn dns_message(payload: &[u8]) -> Option<DnsMessage> {
    parse(payload, true)
}

/// The same for the first fragment of a datagram: records may be missing at the end, questions may not, and what
/// follows the message is not looked at.
pub(super) fn dns_fragment(payload: &[u8]) -> Option<DnsMessage> {
    parse(payload, false)
}

/// Reads the payload of one TCP segment: messages with a length in front (RFC 1035, section 4.2.2), of which the last
/// may go on in the next segment, or a bare message, when the length was sent in a segment of its own. Questions of
/// all messages are in the one that is returned. Messages cut within the question are not found; `names_in` finds them.
pub fn dns_over_tcp(payload: &[u8]) -> Option<DnsMessage> {
    let mut found: Option<DnsMessage> = None;
    let mut rest = payload;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let message = match after.get(..length) {
            Some(whole) => dns_message(whole),
            None => dns_fragment(after),
        };
        let Some(message) = message else { break };
        match &mut found {
            Some(found) => found.questions.extend(message.questions),
            None => found = Some(message),
        }
        rest = after.get(length..).unwrap_or_default();
    }
    found.or_else(|| dns_message(payload))
}

/// Whether `bytes` contain the name or label `needle`, as text or in wire form (length bytes for dots), in any mixture
/// of upper and lower case. Works on whole frames of whatever protocol; an empty needle is in nothing. For a probe,
/// search its unique first label: the rest of a name may be compressed away.
pub fn names_in(bytes: &[u8], needle: &str) -> bool {
    let text = needle.trim_end_matches('.').as_bytes();
    if text.is_empty() {
        return false;
    }
    // In wire form each dot is the length of the label that follows, so one pass can look for both.
    let mut wire = text.to_vec();
    let mut label = 0;
    for position in (0..text.len()).rev() {
        if text[position] == b'.' {
            wire[position] = label;
            label = 0;
        } else {
            label = label.saturating_add(1);
        }
    }
    bytes.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text) || window.eq_ignore_ascii_case(&wire))
}

/// Finds a query (one question, no records but additional ones) anywhere in `bytes`, whatever it is wrapped in and
/// whatever follows it. The fixed counts and a name of letters, digits, hyphens and underscores keep random bytes and
/// ciphertext out: such a header comes up by chance once in 2^48 positions. Queries for the root are not found.
pub fn query_in(bytes: &[u8]) -> Option<DnsMessage> {
    // Questions, answers, authorities and the high byte of additionals (RFC 1035, section 4.1.1).
    const COUNTS: [u8; 7] = [0, 1, 0, 0, 0, 0, 0];
    (4..bytes.len().saturating_sub(COUNTS.len())).filter(|at| bytes[*at..].starts_with(&COUNTS)).find_map(|at| {
        let message = parse(&bytes[at - 4..], false)?;
        let name = &message.questions.first()?.0;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        (!message.is_response && !name.is_empty() && name.bytes().all(is_name)).then_some(message)
    })
}

fn parse(payload: &[u8], whole: bool) -> Option<DnsMessage> {
    let field = |at: usize| payload.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let (id, flags) = (field(0)?, field(2)?);
    let [questions, answers, authorities, additionals] = [field(4)?, field(6)?, field(8)?, field(10)?];
    let is_response = flags & 0x8000 != 0;
    let opcode = (flags >> 11 & 0xf) as u8;
    let rcode = (flags & 0xf) as u8;
    let records = u32::from(answers) + u32::from(authorities) + u32::from(additionals);
    let plausible = matches!(opcode, 0..=2 | 4..=6)
        && questions <= MOST_QUESTIONS
        && match (is_response, questions) {
            // Only stateful operations (RFC 8490) do without a question.
            (false, 0) => opcode == 6 && records == 0,
            // Multicast answers have none, nor have refusals of what was not understood.
            (true, 0) => records > 0 || (rcode != 0 && payload.len() == HEADER),
            (false, _) => rcode == 0,
            (true, _) => true,
        };
    if !plausible {
        return None;
    }

    let mut decoder = BinDecoder::new(payload);
    decoder.read_slice(HEADER).ok()?;
    let mut names = Vec::with_capacity(usize::from(questions));
    for _ in 0..questions {
        let query = Query::read(&mut decoder).ok()?;
        let kind = u16::from(query.query_type());
        if kind == 0 || !is_class(query.query_class().into()) {
            return None;
        }
        let mut name = query.name().to_lowercase().to_ascii();
        if name.ends_with('.') {
            name.pop();
        }
        names.push((name, kind));
    }
    let end = skip_records(payload, decoder.index(), records);
    let message = DnsMessage { id, is_response, opcode, rcode, questions: names, answers };
    match end {
        // What a stateful operation carries is not made of records.
        Some(at) if at == payload.len() || opcode == 6 => Some(message),
        _ if !whole && questions > 0 => Some(message),
        _ => None,
    }
}

/// Steps over resource records (RFC 1035, section 4.1.3); `None` if they go on beyond the payload.
fn skip_records(payload: &[u8], mut at: usize, records: u32) -> Option<usize> {
    for _ in 0..records {
        loop {
            match *payload.get(at)? {
                0 => {
                    at += 1;
                    break;
                }
                pointer if pointer & 0xc0 == 0xc0 => {
                    at += 2;
                    break;
                }
                label if label & 0xc0 == 0 => at += 1 + usize::from(label),
                _ => return None,
            }
        }
        // Type, class and time to live come before the length.
        let length = payload.get(at + 8..at + 10)?;
        at += 10 + usize::from(u16::from_be_bytes([length[0], length[1]]));
    }
    (at <= payload.len()).then_some(at)
}

/// Whether a question can have this class (RFC 6895, section 3.2).
fn is_class(class: u16) -> bool {
    matches!(class & !UNICAST_RESPONSE, 1 | 3 | 4 | 254 | 255)
}
