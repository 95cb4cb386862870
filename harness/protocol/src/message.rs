//! The messages: requests, answers, notifications and error codes.

use crate::{Capability, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// The longest line that either side may send, in bytes, its newline included.
pub const MAX_LINE_BYTES: usize = 1 << 20;
/// The most lines that an adapter may send in a second.
pub const MAX_LINES_PER_SECOND: usize = 10_000;

/// Names of methods and notifications.
pub mod method {
    /// First of all; carries [`super::InitializeParams`].
    pub const INITIALIZE: &str = "initialize";
    /// Carries [`crate::Settings`].
    pub const CONFIGURE: &str = "configure";
    /// Connect, or reconnect.
    pub const CONNECT: &str = "connect";
    /// Disconnect and restore.
    pub const DISCONNECT: &str = "disconnect";
    /// Enter the error state.
    pub const BLOCK: &str = "block";
    /// Asks for the state.
    pub const STATE: &str = "state";
    /// Talk to the API endpoint.
    pub const API_CHECK: &str = "api_check";
    /// Restore, answer, exit.
    pub const SHUTDOWN: &str = "shutdown";
    /// The adapter's one notification.
    pub const STATE_CHANGED: &str = "state_changed";
}

/// Error codes: JSON-RPC 2.0's, and one of the protocol's own.
pub mod code {
    /// The line is not JSON.
    pub const PARSE_ERROR: i64 = -32700;
    /// JSON, but not a request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// Unknown method: `UNSUPPORTED`.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// Bad settings, or an unknown protocol version.
    pub const INVALID_PARAMS: i64 = -32602;
    /// A method before `initialize`.
    pub const NOT_INITIALIZED: i64 = -32002;
    /// Anything else that failed; the message says what.
    pub const FAILED: i64 = -32000;
}

/// A request, harness to adapter. A notification has no `id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Always `2.0`.
    pub jsonrpc: String,
    /// Matches the answer to its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// One of [`method`].
    pub method: String,
    /// An object.
    #[serde(default)]
    pub params: Value,
}

/// An answer: `result` or `error`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Always `2.0`.
    pub jsonrpc: String,
    /// The request's.
    pub id: Value,
    /// What the method gave back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorObject>,
}

/// A line from the adapter: an answer has an `id` and no `method`, a notification a `method` and no `id`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Incoming {
    /// Present in answers.
    #[serde(default)]
    pub id: Option<Value>,
    /// Present in notifications.
    #[serde(default)]
    pub method: Option<String>,
    /// A notification's parameters.
    #[serde(default)]
    pub params: Value,
    /// An answer's result.
    #[serde(default)]
    pub result: Option<Value>,
    /// An answer's error.
    #[serde(default)]
    pub error: Option<ErrorObject>,
}

/// A JSON-RPC error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct ErrorObject {
    /// One of [`code`].
    pub code: i64,
    /// What failed, for people: the report prints it.
    pub message: String,
    /// More, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// What `initialize` carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InitializeParams {
    /// [`crate::PROTOCOL_VERSION`].
    pub protocol: u32,
    /// A folder for the adapter's own files; kept over a crash and restart, mode 0700.
    pub state_dir: PathBuf,
    /// The uplink at start.
    pub uplink: String,
}

/// What `initialize` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InitializeResult {
    /// The version the adapter speaks.
    pub protocol: u32,
    /// The subject's name.
    pub name: String,
    /// The subject's version.
    pub version: String,
    /// What it can do: names of [`Capability`], unknown ones are ignored.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// DNS methods that `dns_method` may name.
    #[serde(default)]
    pub dns_methods: Vec<String>,
}

impl InitializeResult {
    /// The capabilities that this version of the protocol knows.
    pub fn known_capabilities(&self) -> impl Iterator<Item = Capability> + '_ {
        Capability::ALL.into_iter().filter(|known| self.capabilities.iter().any(|name| *name == known.to_string()))
    }
}

/// What `state` answers, and what `state_changed` carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StateResult {
    /// The state.
    pub state: State,
}

/// What `api_check` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiCheckResult {
    /// Whether the API answered.
    pub reachable: bool,
}
