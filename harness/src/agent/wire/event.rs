//! What the agent tells.

use super::{Attempt, HammerReport, Protocol};
use crate::agent::endpoint::MacAddress;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// What the agent tells. All times are nanoseconds of CLOCK_REALTIME, the clock of the kernel's packet timestamps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Answers `ping`.
    Pong {
        /// The command's.
        id: String,
        /// The agent's process id, as it sees it.
        pid: u32,
        /// The agent's effective user.
        uid: u32,
    },
    /// A probe is about to send; told before the packet leaves, so that frames can be told apart by port.
    Sending {
        /// The probe's.
        id: String,
        /// Now.
        at_ns: u64,
        /// The socket's own address; absent where the resolver picks it.
        local: Option<SocketAddr>,
        /// The id in the DNS header.
        dns_id: Option<u16>,
    },
    /// A probe is over.
    Probe {
        /// The probe's.
        id: String,
        /// What happened.
        attempt: Attempt,
    },
    /// Answers `open`.
    Opened {
        /// The flow's name.
        socket: String,
        /// Whether the flow is usable: its first query was answered.
        ok: bool,
        /// The socket's own address.
        local: Option<SocketAddr>,
        /// Why not.
        error: Option<String>,
    },
    /// Answers `close`.
    Closed {
        /// The flow's name.
        socket: String,
        /// Whether there was such a flow.
        existed: bool,
    },
    /// The hammer has made its first attempt.
    HammerStarted {
        /// The hammer's name.
        id: String,
        /// When it did.
        at_ns: u64,
        /// Its sockets' own addresses.
        local: Vec<SocketAddr>,
    },
    /// Answers `hammer_stop`.
    HammerReport(Box<HammerReport>),
    /// Answers `listen`.
    Listening {
        /// The listener's name.
        id: String,
        /// The bound addresses, one a socket.
        local: Vec<SocketAddr>,
    },
    /// A listener got something.
    Received(Received),
    /// Answers `unlisten`.
    Unlistened {
        /// The listener's name.
        id: String,
    },
    /// Answers `loopback`.
    Loopback {
        /// The command's.
        id: String,
        /// Whether no check failed.
        ok: bool,
        /// The failed checks, in words; empty when all is well.
        detail: String,
        /// The checks.
        checks: Vec<LoopbackCheck>,
    },
    /// Answers `neighbour`.
    Neighbour {
        /// The command's.
        id: String,
        /// Whether the neighbour became reachable.
        ok: bool,
        /// Its link-layer address.
        mac: Option<MacAddress>,
        /// What happened, in words.
        detail: String,
    },
    /// Answers `dhcp`.
    Dhcp {
        /// The command's.
        id: String,
        /// Whether the question was handed to the kernel.
        tried: bool,
        /// The address offered; absent when none came.
        offered: Option<IpAddr>,
        /// The server that offered it.
        server: Option<IpAddr>,
        /// What happened, in words.
        detail: String,
    },
    /// A command that could not be carried out. The agent goes on.
    Error {
        /// The id of the command, where one could be read.
        about: Option<String>,
        /// What failed, on what, and why.
        text: String,
    },
}

/// Something that arrived at a listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Received {
    /// The listener's name.
    pub id: String,
    /// UDP or TCP.
    pub protocol: Protocol,
    /// The sender.
    pub from: Option<SocketAddr>,
    /// The address it was sent to.
    pub to: Option<SocketAddr>,
    /// The link it arrived on; UDP only.
    pub interface: Option<String>,
    /// The first 64 bytes of the datagram, or of what the peer sent at once, as hexadecimal digits.
    pub bytes_hex: String,
    /// When the agent saw it.
    pub at_ns: u64,
}

/// One loopback check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoopbackCheck {
    /// Transport, address and kind of port, such as `udp 127.0.0.1 port 53`.
    pub name: String,
    /// How it ended.
    pub result: CheckResult,
    /// The error or the reason, in words; empty when passed.
    pub detail: String,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckResult {
    /// The message came back.
    Passed,
    /// It did not.
    Failed,
    /// The port could not be bound: not permitted, taken, or the family is not there.
    NotPossible,
}
