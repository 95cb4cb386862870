//! The record of one attempt.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// The record of one attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// When work on it began.
    pub started_ns: u64,
    /// The packet was handed to the kernel, the connect call made, or getaddrinfo called: the stimulus was given.
    pub tried: bool,
    /// When the send, or the connect call of TCP, had succeeded.
    pub sent_ns: Option<u64>,
    /// The socket's own address.
    pub local: Option<SocketAddr>,
    /// The id in the DNS header.
    pub dns_id: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// An answer to this very query arrived.
    Answered {
        /// The response code (RFC 1035, section 4.1.1); 0 for getaddrinfo.
        rcode: u16,
        /// The addresses in the answer.
        addresses: Vec<IpAddr>,
        /// Who answered; absent for getaddrinfo.
        from: Option<SocketAddr>,
        /// From the send to the answer, in microseconds.
        after_us: u64,
    },
    /// It was sent and nothing came back.
    NoAnswer {
        /// How long was waited, in milliseconds.
        waited_ms: u64,
        /// What was waited for.
        stage: Stage,
    },
    /// The kernel refused to send it.
    SendFailed {
        /// The error number.
        errno: i32,
        /// Its name, such as `EPERM`.
        name: String,
        /// What failed, in words.
        text: String,
        /// The unreachable message that came with the refusal (an nftables `reject` gives both).
        refusal: Option<Refusal>,
    },
    /// It was refused: by the far side, on the way, or by the kernel's routing.
    Refused(Refusal),
    /// getaddrinfo returned an error.
    ResolverError {
        /// The name of the code, such as `EAI_AGAIN`.
        code: String,
        /// Its text.
        text: String,
    },
    /// The attempt could not be made on this machine or in this moment; it never counts as tried.
    NotPossible {
        /// Why not.
        reason: String,
    },
}

/// What an unanswered attempt was waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The TCP connection.
    Connect,
    /// The TLS handshake.
    Handshake,
    /// The answer.
    Answer,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The name of the error, such as `ECONNREFUSED`.
    pub how: String,
    /// What was refused, in words.
    pub text: String,
    /// Where the refusal came from.
    pub origin: RefusalOrigin,
}

/// Where a refusal came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RefusalOrigin {
    /// The call itself failed: the kernel has no route, or one that refuses.
    Local,
    /// An ICMP or ICMPv6 message; a local firewall's comes from an address of the client's own.
    Icmp {
        /// The ICMP type.
        icmp_type: u8,
        /// The ICMP code.
        code: u8,
        /// Its sender.
        from: Option<IpAddr>,
    },
    /// A TCP reset or an ICMP message: of a connection the kernel does not tell which.
    Connection,
}
