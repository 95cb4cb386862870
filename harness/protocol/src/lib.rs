//! Watertight's adapter protocol, version 1: what a harness and an adapter say to each other.
//!
//! JSON-RPC 2.0, one message a line, UTF-8, over the adapter's standard input and output. This crate holds the types
//! only: it drives nothing and judges nothing. `docs/adapter-protocol.md` has the whole story.

mod message;
mod settings;
mod state;

pub use message::{
    ApiCheckResult, ErrorObject, Incoming, InitializeParams, InitializeResult, MAX_LINE_BYTES, MAX_LINES_PER_SECOND,
    Request, Response, StateResult, code, method,
};
pub use settings::{ApiEndpoint, Dns, IpProtocol, Server, Settings, SettingsError, Tunnel, TunnelKind};
pub use state::{Capability, State};

/// The version of the protocol that this crate speaks.
pub const PROTOCOL_VERSION: u32 = 1;
