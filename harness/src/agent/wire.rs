//! The commands and events that the engine and the agent exchange: one JSON object a line. Types only; the agent's work is in
//! the other modules, the engine's side in [`client`](super::client). Both ends are always the same build.

mod attempt;
mod command;
mod event;
mod hammer;

pub use attempt::{Attempt, Outcome, Refusal, RefusalOrigin, Stage};
pub use command::{
    Bind, Command, DhcpVersion, Family, HammerSpec, ListenProtocol, ListenSpec, MAX_SPECS, OpenSpec, ProbeSpec,
    Protocol, Qtype, Shape, Via,
};
pub use event::{CheckResult, Event, LoopbackCheck, Received};
pub use hammer::{Gaps, HammerReport, HammerTarget, Run};
