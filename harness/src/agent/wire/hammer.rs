//! The report of a hammer.

use crate::agent::endpoint::Endpoint;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr};

/// What a hammer did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HammerReport {
    /// The hammer's name.
    pub id: String,
    /// Its sockets' own addresses.
    pub local: Vec<SocketAddr>,
    /// The first attempt.
    pub first_ns: u64,
    /// The last attempt.
    pub last_ns: u64,
    /// All attempts; they carry the numbers 0 to `attempts` − 1 in their names.
    pub attempts: u64,
    /// The attempts that the kernel took.
    pub sent_ok: u64,
    /// The attempts that found the send buffer full: no verdict of a firewall.
    pub busy: u64,
    /// The other failures, by error name.
    pub errors: BTreeMap<String, u64>,
    /// The same by target, in the order of the command.
    pub targets: Vec<HammerTarget>,
    /// The time from the start of one attempt to the start of the next: what the hammer could not see.
    pub gaps: Gaps,
    /// Intervals in which sends to a target had one outcome, oldest first; the first and the last 500.
    pub runs: Vec<Run>,
    /// The intervals between those that were too many to keep.
    pub runs_dropped: u64,
    /// When `max_sent` was reached; nothing was attempted after it.
    pub budget_spent_at: Option<u64>,
}

/// What a hammer did to one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HammerTarget {
    /// The target.
    pub target: Endpoint,
    /// All attempts.
    pub attempts: u64,
    /// The attempts that the kernel took.
    pub sent_ok: u64,
}

/// The distribution of a hammer's gaps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gaps {
    /// How many.
    pub count: u64,
    /// How many were longer than 5 µs.
    pub over_5us: u64,
    /// Their sum, in nanoseconds.
    pub total_ns: u64,
    /// The longest, in nanoseconds.
    pub max_ns: u64,
    /// When the longest ended.
    pub max_at_ns: u64,
    /// Counts by size: the first is below 1 µs, number n is from 2^(n−1) µs to below 2^n µs, the last takes the rest.
    pub log2_us: Vec<u64>,
}

/// An interval in which a hammer's sends to a target had one outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The target, by its place in the command.
    pub target: usize,
    /// The first attempt of the interval.
    pub from_ns: u64,
    /// The last attempt of the interval.
    pub to_ns: u64,
    /// Absent when the sends succeeded, else the name of the error.
    pub error: Option<String>,
    /// How many attempts.
    pub count: u64,
}
