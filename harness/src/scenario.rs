//! Scenarios are data: ordered steps plus the requirements that they check, one TOML file each.
//!
//! The policy is not repeated in them: each window is judged by the state that it is in, and probes run in every window
//! without being asked for. `docs/scenarios.md` explains the format for people, `scenarios/scenario.schema.json` for
//! programs; the schema is generated from these types.

mod load;
mod matrix;

pub use load::{LoadError, load_directory, parse, suite};
pub use matrix::{Axes, Family, Manager, Matrix, Original, Profile};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use watertight_protocol::{Capability, State};

/// One scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// A sentence about the world that is true when the scenario passes.
    pub title: String,
    /// Ids of the requirements it checks.
    pub requirements: Vec<String>,
    /// Ids of the leak classes it provokes.
    #[serde(default)]
    pub classes: Vec<String>,
    /// Capabilities without which it is `UNSUPPORTED`.
    #[serde(default)]
    pub needs: Vec<Capability>,
    /// What is varied: a case for each combination.
    #[serde(default)]
    pub matrix: Matrix,
    /// Settings of all its cases.
    #[serde(default)]
    pub settings: SettingsPatch,
    /// The testbed's shape.
    #[serde(default)]
    pub testbed: TestbedOptions,
    /// Environment variables that the subject is started with.
    #[serde(default)]
    pub environment: std::collections::BTreeMap<String, String>,
    /// What happens, in order.
    #[serde(rename = "step")]
    pub steps: Vec<Step>,
}

/// Settings that differ from the defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SettingsPatch {
    /// Which servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsChoice>,
    /// Permit the local network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_lan: Option<bool>,
    /// Block while disconnected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<bool>,
    /// The families that the tunnel carries. When absent: both if the subject claims `ipv6`, else IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The relay's UDP port: 51820 or 53.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_port: Option<u16>,
    /// Where the client's API is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<ApiChoice>,
    /// `auto`, or one of the adapter's methods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_method: Option<String>,
}

impl Scenario {
    /// Capabilities without which a case is unsupported: the scenario's, and those of the case's own values.
    pub fn needs_of(&self, axes: &Axes) -> Vec<Capability> {
        let mut needs = self.needs.clone();
        needs.extend(axes.needs().into_iter().filter(|need| !self.needs.contains(need)));
        needs
    }

    /// What of it a subject lacks that says this of itself, in words. `None` if it can be tested.
    pub fn lacking(&self, axes: &Axes, capabilities: &[String], dns_methods: &[String]) -> Option<String> {
        let needs = self.needs_of(axes);
        let missing: Vec<String> =
            needs.iter().map(Capability::to_string).filter(|need| !capabilities.contains(need)).collect();
        if !missing.is_empty() {
            return Some(format!("the subject does not claim {}", missing.join(", ")));
        }
        let method = self.settings.dns_method.as_ref().filter(|method| *method != "auto")?;
        (!dns_methods.contains(method)).then(|| format!("the subject does not offer the DNS method {method}"))
    }
}

impl SettingsPatch {
    /// This patch with another on top.
    pub fn with(&self, other: &SettingsPatch) -> SettingsPatch {
        SettingsPatch {
            dns: other.dns.or(self.dns),
            allow_lan: other.allow_lan.or(self.allow_lan),
            lockdown: other.lockdown.or(self.lockdown),
            family: other.family.or(self.family),
            relay_port: other.relay_port.or(self.relay_port),
            api: other.api.or(self.api),
            dns_method: other.dns_method.clone().or_else(|| self.dns_method.clone()),
        }
    }
}

/// DNS settings that the testbed has servers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DnsChoice {
    /// The relay's resolvers.
    Default,
    /// An empty custom list, which means the default (DNS-4).
    CustomEmpty,
    /// Public servers, through the tunnel, both families.
    CustomTunnel,
    /// One public IPv4 server, through the tunnel.
    CustomTunnelV4,
    /// The relay's IPv4 resolver, named explicitly: a private address that is a tunnel server all the same (DNS-3).
    CustomGateway,
    /// The LAN's IPv4 resolver.
    CustomLan,
    /// The LAN's resolver by its unique local IPv6 address.
    CustomLanV6,
    /// The LAN's resolver by its link-local IPv6 address.
    CustomLinkLocal,
    /// A LAN and a public server, in this order.
    CustomMixed,
}

/// Where the API is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ApiChoice {
    /// TCP port 443.
    Https,
    /// TCP port 53 (FWL-8).
    Port53,
}

/// The testbed's shape.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TestbedOptions {
    /// A machine behind the client, whose traffic the client forwards.
    #[serde(default)]
    pub guest: bool,
    /// The local network has a domain, which the client's original configuration searches.
    #[serde(default)]
    pub search_domain: bool,
    /// NetworkManager has something to check its connectivity with, and does; on its profiles only.
    #[serde(default)]
    pub connectivity_check: bool,
}

/// One step. Exactly one key a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Ask the subject to connect, and wait for this state.
    Connect(State),
    /// Ask the subject to disconnect, and wait for this state.
    Disconnect(State),
    /// Ask the subject to enter the error state, and wait for this state.
    Block(State),
    /// Send a request without waiting for its answer or for a state.
    Send(Call),
    /// Wait for a state that nobody asks for now.
    Wait(State),
    /// Wait for the first change of this kind since the last request was sent.
    Await(Change),
    /// Change settings; the subject answers when they are in force.
    Configure(SettingsPatch),
    /// Do something to the subject's process.
    Fault(Fault),
    /// Start the subject again after a fault, with the same folder and settings.
    Restart(Nothing),
    /// Stop the subject in order, and wait for its end.
    Shutdown(Nothing),
    /// Change the relay's behaviour.
    Relay(RelayMode),
    /// Change the resolver file behind the subject's back.
    Tamper(Tamper),
    /// Change a link of the client.
    Link(LinkChange),
    /// Push routes to the client, as its network may.
    Routes(PushedRoutes),
    /// Do something to the profile's resolver service, or to what it was told, behind the subject's back.
    Service(ServiceChange),
    /// Probe once more, now.
    Probe(ProbeSet),
    /// Something that must hold now.
    Expect(Expected),
}

/// Changes of the client's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// A generation of the nftables ruleset.
    Ruleset,
    /// A version of the resolver file.
    ResolverFile,
    /// A link, address, route or rule.
    Network,
}

/// Requests that may be sent without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// Connect.
    Connect,
    /// Disconnect.
    Disconnect,
    /// Enter the error state.
    Block,
}

/// An empty table: the step has no options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Something done to the subject's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Fault {
    /// Killed, at once.
    #[serde(rename = "SIGKILL")]
    Kill,
    /// Asked to stop; its end is awaited.
    #[serde(rename = "SIGTERM")]
    Terminate,
    /// Frozen.
    #[serde(rename = "SIGSTOP")]
    Stop,
    /// Unfrozen.
    #[serde(rename = "SIGCONT")]
    Continue,
    /// Its standard input is closed, which means a clean stop; its end is awaited.
    #[serde(rename = "end-of-file")]
    EndOfFile,
}

/// What the relay does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RelayMode {
    /// Neither receives nor sends: a client is held in connecting.
    Silent,
    /// Answers.
    Normal,
}

/// Changes of the resolver file by an outsider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tamper {
    /// Written in place.
    Rewrite,
    /// Replaced by rename.
    Rename,
    /// Replaced by rename, corrected, replaced by rename again.
    RenameTwice,
    /// Deleted.
    Delete,
    /// Replaced by a symbolic link to another file.
    Symlink,
    /// Made immutable, or a read-only mount where that is not permitted: it cannot be written any more.
    Immutable,
    /// Writable again.
    Mutable,
}

/// Changes of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LinkChange {
    /// The tunnel interface is removed under the client.
    RemoveTunnel,
}

/// Routes that the network makes the client take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PushedRoutes {
    /// By DHCP options 121 and 249: both halves of IPv4, and single resolvers, by the LAN's router.
    Dhcp,
    /// By router advertisements: the same for IPv6.
    RouterAdvertisement,
    /// Networks of public resolvers, said to be on the LAN.
    LanPrefix,
    /// All of these.
    All,
    /// None of them any more.
    Withdrawn,
}

/// What an outsider does to a resolver service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceChange {
    /// Ends, and is started again.
    Restart,
    /// Forgets what it was told about the tunnel's link.
    WipeTunnelLink,
    /// Is told of another server for the uplink, as whoever configures it does when the network changes.
    ChangeUplink,
    /// Is told of the uplink's first servers again.
    RevertUplink,
    /// Ends.
    Stop,
    /// Is started, with what it has kept.
    Start,
    /// Does not answer any more (SIGSTOP).
    Freeze,
    /// Goes on (SIGCONT).
    Thaw,
    /// Fails when it is given a record (resolvconf).
    Break,
    /// Works again.
    Mend,
    /// Applies the uplink's profile anew (NetworkManager).
    Reapply,
    /// Asks the testbed's DHCP server again for the uplink's lease, which names other servers by then.
    RenewLease,
}

/// Which probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeSet {
    /// All that a window gets anyway.
    All,
}

/// Something that must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// Everything is as it was before the subject was started.
    Restored,
    /// As `restored`, with the resolver file as an outsider left it.
    RestoredOutsider,
    /// The resolver configuration is as it was; the firewall may still block.
    ResolverRestored,
    /// The resolver file names the approved servers and no other.
    Approved,
    /// The servers that the uplink was given meanwhile are those that the system asks.
    UplinkKept,
    /// The last answer was an error that says something.
    Error,
}
