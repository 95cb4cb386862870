//! What bytes look like somewhere inside a text in base85: four bytes as five digits, in the alphabets that programs use. For
//! searching only; nothing here decodes.

/// RFC 1924, as git and Python's `b85encode` use it.
const RFC1924: &[u8; 85] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
/// ZeroMQ's (rfc.zeromq.org, 32).
const Z85: &[u8; 85] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
/// btoa's and Adobe's, from `!` to `u`.
const ASCII85_FIRST: u8 = b'!';
/// Adobe's short forms of a group: four zeros, and with some programs four blanks.
const ASCII85_SHORT: [(u32, u8); 2] = [(0, b'z'), (0x2020_2020, b'y')];

/// The texts of which one is in whatever holds `bytes` in base85, wherever in it they begin: of each of the four positions in a
/// group, the groups that depend on nothing else.
pub fn needles(bytes: &[u8]) -> Vec<Vec<u8>> {
    let ascii85 = |digit: usize| ASCII85_FIRST + digit as u8;
    let in_all = |groups: &[u8]| {
        [
            encode(groups, &[], |digit| RFC1924[digit]),
            encode(groups, &[], |digit| Z85[digit]),
            encode(groups, &ASCII85_SHORT[..1], ascii85),
            encode(groups, &ASCII85_SHORT, ascii85),
        ]
    };
    let mut needles: Vec<Vec<u8>> = (0..4)
        // Those that share their first group with what is before them begin with the next.
        .filter_map(|before| bytes.get((4 - before) % 4..))
        .flat_map(in_all)
        .collect();
    needles.sort();
    needles.dedup();
    needles
}

/// Whole groups alone.
fn encode(bytes: &[u8], short: &[(u32, u8)], digit: impl Fn(usize) -> u8) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len() / 4 * 5);
    for group in bytes.chunks_exact(4) {
        let value = group.iter().fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
        match short.iter().find(|(of, _)| *of == value) {
            Some((_, short)) => text.push(*short),
            None => text.extend([4, 3, 2, 1, 0].map(|power| digit((value / 85_u32.pow(power) % 85) as usize))),
        }
    }
    text
}
