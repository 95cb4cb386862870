//! The smoke check: before any scenario, an adapter shows that it speaks the protocol and refuses what it must.
//!
//! A subject that does not refuse an unknown method would make every `UNSUPPORTED` a guess.

use super::{CallError, Subject};
use serde_json::json;
use std::time::Duration;
use watertight_protocol::{
    InitializeParams, InitializeResult, PROTOCOL_VERSION, Settings, State, StateResult, code, method,
};

/// What the smoke check did not like.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("smoke check: {check}: expected {expected}, got {actual}")]
pub struct SmokeFailure {
    /// What was checked.
    pub check: &'static str,
    /// What the protocol says.
    pub expected: String,
    /// What the adapter did.
    pub actual: String,
}

const LIMIT: Duration = Duration::from_secs(10);

/// Checks refusals, the answer to `initialize`, and the first state. Leaves the adapter initialized, unless it failed.
pub async fn smoke(
    subject: &mut Subject,
    params: &InitializeParams,
    settings: &Settings,
) -> Result<InitializeResult, SmokeFailure> {
    refused(subject, "a method before initialize", method::CONNECT, json!({}), code::NOT_INITIALIZED).await?;
    let mut future = serde_json::to_value(params).expect("a plain structure");
    future["protocol"] = json!(999_999);
    refused(subject, "an unknown protocol version", method::INITIALIZE, future, code::INVALID_PARAMS).await?;
    let answer = subject.call(method::INITIALIZE, params, LIMIT).await;
    let result: InitializeResult = match answer.map(serde_json::from_value) {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => return Err(failure("the answer to initialize", "protocol, name and version", error)),
        Err(error) => return Err(failure("the answer to initialize", "a result", error)),
    };
    if result.protocol != PROTOCOL_VERSION {
        return Err(failure("the answer to initialize", &format!("protocol {PROTOCOL_VERSION}"), result.protocol));
    }
    refused(subject, "an unknown method", "watertight_no_such_method", json!({}), code::METHOD_NOT_FOUND).await?;
    let mut bad = serde_json::to_value(settings).expect("a plain structure");
    bad["tunnel"]["endpoint"] = json!("not an endpoint");
    refused(subject, "bad settings", method::CONFIGURE, bad, code::INVALID_PARAMS).await?;
    match subject.call(method::STATE, json!({}), LIMIT).await.map(serde_json::from_value::<StateResult>) {
        Ok(Ok(answer)) if answer.state == State::Disconnected => {}
        Ok(Ok(answer)) => return Err(failure("the state after initialize", "disconnected", answer.state)),
        Ok(Err(error)) => return Err(failure("the state after initialize", "disconnected", error)),
        Err(error) => return Err(failure("the state after initialize", "disconnected", error)),
    }
    Ok(result)
}

async fn refused(
    subject: &mut Subject,
    check: &'static str,
    name: &str,
    params: serde_json::Value,
    expected: i64,
) -> Result<(), SmokeFailure> {
    match subject.call(name, params, LIMIT).await {
        Err(CallError::Refused { error, .. }) if error.code == expected => Ok(()),
        Err(error) => Err(failure(check, &format!("error {expected}"), error)),
        Ok(result) => Err(failure(check, &format!("error {expected}"), format!("the result {result}"))),
    }
}

fn failure(check: &'static str, expected: &str, actual: impl ToString) -> SmokeFailure {
    SmokeFailure { check, expected: expected.into(), actual: actual.to_string() }
}
