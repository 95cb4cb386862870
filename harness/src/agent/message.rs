//! DNS queries and the recognition of their answers. Plain queries: random id, recursion desired, no EDNS.

use super::wire::{Outcome, Qtype};
use hickory_proto::{
    op::{Message, MessageType, Query},
    rr::{Name, RData, RecordType},
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// A query that waits for its answer.
pub(super) struct Question {
    pub(super) id: u16,
    pub(super) bytes: Vec<u8>,
    query: Query,
}

impl Question {
    /// A query for `name`, which is taken as fully qualified.
    pub(super) fn new(name: &str, qtype: Qtype) -> Result<Self, String> {
        let mut name = Name::from_ascii(name).map_err(|error| format!("`{name}` is no DNS name: {error}"))?;
        name.set_fqdn(true);
        let record_type = match qtype {
            Qtype::A => RecordType::A,
            Qtype::Aaaa => RecordType::AAAA,
        };
        let query = Query::query(name, record_type);
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(query.clone());
        let bytes = message.to_vec().map_err(|error| format!("encode a query for {}: {error}", query.name()))?;
        Ok(Self { id: message.metadata.id, bytes, query })
    }

    /// The query with its length before it, as TCP wants it (RFC 1035, section 4.2.2).
    pub(super) fn framed(&self) -> Vec<u8> {
        // A query with one name is below 300 bytes.
        let length = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
        [&length.to_be_bytes(), &self.bytes[..]].concat()
    }

    /// What `bytes` answers to this very query; `None` when it is something else.
    pub(super) fn answer(&self, bytes: &[u8]) -> Option<Answer> {
        let message = Message::from_vec(bytes).ok()?;
        let matches = message.metadata.id == self.id
            && message.metadata.message_type == MessageType::Response
            && message.queries.first().is_none_or(|query| *query == self.query);
        matches.then(|| Answer {
            rcode: u16::from(message.metadata.response_code),
            addresses: message
                .answers
                .iter()
                .filter_map(|record| match &record.data {
                    RData::A(address) => Some(IpAddr::V4(address.0)),
                    RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                    _ => None,
                })
                .collect(),
        })
    }
}

/// What an answer says.
pub(super) struct Answer {
    rcode: u16,
    addresses: Vec<IpAddr>,
}

impl Answer {
    pub(super) fn outcome(self, from: Option<SocketAddr>, after: Duration) -> Outcome {
        Outcome::Answered { rcode: self.rcode, addresses: self.addresses, from, after_us: after.as_micros() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::OpCode;

    #[test]
    fn only_the_answer_to_this_query_counts() {
        let question = Question::new("one.probe.test", Qtype::A).unwrap();
        let query = Message::from_vec(&question.bytes).unwrap();
        assert!(query.metadata.recursion_desired && query.edns.is_none());
        assert_eq!(query.queries[0].name().to_string(), "one.probe.test.");
        assert!(question.answer(&question.bytes).is_none(), "an echo is no answer");

        let reply = |id, name: &str| {
            let mut message = Message::response(id, OpCode::Query);
            message.add_query(Query::query(name.parse().unwrap(), RecordType::A));
            message.to_vec().unwrap()
        };
        assert!(question.answer(&reply(question.id, "one.probe.test.")).is_some());
        assert!(question.answer(&reply(question.id ^ 1, "one.probe.test.")).is_none());
        assert!(question.answer(&reply(question.id, "two.probe.test.")).is_none());
        assert!(question.answer(b"no dns").is_none());
    }

    #[test]
    fn names_that_are_none_are_refused() {
        assert!(Question::new(&"x".repeat(64), Qtype::A).is_err());
    }
}
