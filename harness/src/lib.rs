//! Leak-testing and conformance harness for VPN DNS managers and firewalls.
//!
//! A case runs in namespaces of its own ([`sandbox`]), in a network that the harness owns ([`testbed`]); a subject is
//! walked through a scenario ([`scenario`], [`subject`], [`case`]) while everything is recorded ([`capture`], [`watch`],
//! [`history`], [`snapshot`]) and every kind of DNS attempt is made ([`probe`], [`agent`]); the recording is judged
//! afterwards, by a pure function ([`judge`]). `ARCHITECTURE.md` follows one case through all of it.

pub mod agent;
pub mod capture;
pub mod case;
pub mod coverage;
pub mod entry;
pub mod history;
pub mod judge;
pub mod layer;
pub mod probe;
pub mod profile;
pub mod report;
pub mod run;
pub mod sandbox;
pub mod scenario;
pub mod selfcheck;
pub mod snapshot;
pub mod spec;
pub mod subject;
pub mod testbed;
pub mod watch;
