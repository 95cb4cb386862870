//! Drives a subject through an adapter that speaks the adapter protocol, version 1.
//!
//! The adapter is a process inside the client machine. Whatever it does (die, hang, flood, talk nonsense) becomes a value
//! here; what it means is the judge's question. State notifications are handed on from the reading task itself, so that
//! a barrier frame follows a notification at once.

mod adapter;
mod smoke;

pub use adapter::{CallError, Pending, Subject, SubjectEvent};
pub use smoke::{SmokeFailure, smoke};

use serde::{Deserialize, Serialize};

/// How a subject is started inside the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectCommand {
    /// What it is called on the command line.
    pub name: String,
    /// Path inside the client, or `@self` for a subject that comes with the program.
    pub program: String,
    /// Arguments.
    pub arguments: Vec<String>,
    /// Variables beyond PATH and HOME.
    pub environment: Vec<(String, String)>,
}
