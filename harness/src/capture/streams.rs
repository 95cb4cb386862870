//! DNS messages that come in several TCP segments, so that no single frame shows what is asked.

use super::{
    decode::Decoded,
    dns::{DnsMessage, dns_over_tcp},
    packets::Transport,
};
use std::{collections::HashMap, net::IpAddr};

/// More bytes of a message than this are not waited for; a query has a few hundred.
const LONGEST: usize = 4096;
/// The header of a message (RFC 1035, section 4.1.1).
const SHORTEST: usize = 12;

/// Beginnings of messages, by stream and direction.
#[derive(Debug, Default)]
pub struct Streams {
    begun: HashMap<(IpAddr, u16, IpAddr, u16), Begun>,
}

#[derive(Debug)]
struct Begun {
    /// Sequence number of the byte that goes on.
    next: u32,
    bytes: Vec<u8>,
}

impl Streams {
    /// Takes the next frame of a link, in order, and gives back the message that it completes: one that began in an earlier
    /// segment, with all of its question there. What a single segment shows is [`Decoded::dns`].
    pub fn completes(&mut self, frame: &[u8], decoded: &Decoded) -> Option<DnsMessage> {
        let (Some(ip), Some(Transport::Tcp(tcp))) = (&decoded.ip, &decoded.transport) else { return None };
        let payload = decoded.payload(frame);
        if payload.is_empty() {
            return None;
        }
        let stream = (ip.src, tcp.sport, ip.dst, tcp.dport);
        if let Some(begun) = self.begun.get_mut(&stream) {
            // Sent again.
            if begun.next.wrapping_sub(tcp.seq) as i32 > 0 {
                return None;
            }
            if begun.next == tcp.seq {
                begun.bytes.extend_from_slice(payload);
                begun.next = begun.next.wrapping_add(payload.len() as u32);
                let found = dns_over_tcp(&begun.bytes);
                if found.is_some() || !is_beginning(&begun.bytes) {
                    self.begun.remove(&stream);
                }
                return found;
            }
            self.begun.remove(&stream);
        }
        if decoded.dns.is_none() && is_beginning(payload) {
            let next = tcp.seq.wrapping_add(payload.len() as u32);
            self.begun.insert(stream, Begun { next, bytes: payload.to_vec() });
        }
        None
    }
}

/// Whether these bytes may be the beginning of a message with its length in front (RFC 1035, section 4.2.2).
fn is_beginning(bytes: &[u8]) -> bool {
    match bytes.split_first_chunk::<2>() {
        None => true,
        Some((length, rest)) => {
            let length = usize::from(u16::from_be_bytes(*length));
            (SHORTEST..=LONGEST).contains(&length) && rest.len() < length
        }
    }
}
