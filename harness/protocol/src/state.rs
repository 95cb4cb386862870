//! The states of a tunnel, and what an adapter may say that it can do.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A tunnel state, as the adapter reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No tunnel. With lockdown all DNS is blocked, without it nothing is restricted.
    Disconnected,
    /// The tunnel is being made: everything but the relay endpoint is blocked.
    Connecting,
    /// The tunnel is up: DNS goes to the approved servers only.
    Connected,
    /// The tunnel is being taken down: blocked until the original configuration is back.
    Disconnecting,
    /// Something failed: blocked, without a tunnel.
    Error,
}

impl State {
    /// All states, in the order of a tunnel's life.
    pub const ALL: [State; 5] =
        [State::Disconnected, State::Connecting, State::Connected, State::Disconnecting, State::Error];

    /// The word that the protocol uses.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Disconnected => "disconnected",
            State::Connecting => "connecting",
            State::Connected => "connected",
            State::Disconnecting => "disconnecting",
            State::Error => "error",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something a subject says it can do. A scenario names what it needs; what is missing is `UNSUPPORTED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// A custom list of DNS servers.
    CustomDns,
    /// Custom servers on the local network.
    LanDns,
    /// Blocking while disconnected.
    Lockdown,
    /// Traffic to the local network while the tunnel is up.
    AllowLan,
    /// The `block` request.
    ErrorState,
    /// Restoring after SIGKILL and a restart.
    CrashRecovery,
    /// Noticing and correcting outside changes of the resolver configuration.
    WatchesChanges,
    /// Excluding processes from the tunnel.
    SplitTunnel,
    /// `state_changed` notifications.
    ReportsStates,
    /// Restoring on SIGTERM.
    RestoresOnSigterm,
    /// The `api_check` request.
    ApiCheck,
    /// IPv6 in the tunnel.
    Ipv6,
}

impl Capability {
    /// Every capability of protocol version 1.
    pub const ALL: [Capability; 12] = [
        Capability::CustomDns,
        Capability::LanDns,
        Capability::Lockdown,
        Capability::AllowLan,
        Capability::ErrorState,
        Capability::CrashRecovery,
        Capability::WatchesChanges,
        Capability::SplitTunnel,
        Capability::ReportsStates,
        Capability::RestoresOnSigterm,
        Capability::ApiCheck,
        Capability::Ipv6,
    ];
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
