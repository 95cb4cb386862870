//! Probes of one window: planned first, then made, then written down, between two canaries.

use super::{
    CaseError, Sabotage,
    engine::{Engine, tag},
};
use crate::{
    agent::{
        Endpoint,
        wire::{
            Bind, DhcpVersion, HammerSpec, ListenProtocol, ListenSpec, OpenSpec, Outcome, ProbeSpec, Qtype, Shape, Via,
        },
    },
    history::{Cause, Event, PlannedProbe},
    judge::approved,
    probe::{Binding, How, Identity, Kind, Present, Who, catalogue},
    scenario::Profile,
    snapshot,
    testbed::plan::*,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use watertight_protocol::{Capability, State, method};

/// How long an attempt may wait for its answer, in milliseconds. An answer that comes ends the wait, and so does a refusal:
/// only a subject that drops in silence costs this much.
const ANSWER_MS: u64 = 700;
/// The same, where an answer must come: a busy machine is no finding.
const MUST_ANSWER_MS: u64 = 5000;
/// The same, where no answer can come.
const SILENT_MS: u64 = 100;
/// How long the first query of an old flow may wait.
const FLOW_ANSWER_MS: u64 = 1000;
/// A port of the client at which unsolicited packets are received, or not; no socket gets it by itself (ip_local_port_range).
const INBOUND_PORT: u16 = 20053;
/// How long an unsolicited packet may take from one end of a link to a socket at the other.
const INBOUND_WAIT: Duration = Duration::from_millis(150);
/// More identities than this are not imitated in one window.
const MOST_IDENTITIES: usize = 16;
/// Sends of one hammer that may reach the wire: enough to see any opening, few enough to store.
const HAMMER_BUDGET: u64 = 20_000;

impl Engine {
    /// The probes of this case.
    fn kinds(&self, identities: Vec<Identity>) -> Vec<Kind> {
        let relay_port = self.patch.relay_port.unwrap_or(RELAY_PORT);
        let known = self.known.borrow();
        let present = Present {
            user: self.user.is_some(),
            guest: self.guest.is_some(),
            search: self.plan.definition.testbed.search_domain,
            tunnel: known.state == Some(State::Connected) && !known.ended,
            identities,
            forwarder: self.plan.axes.profile.answers_locally(),
        };
        catalogue(&present, relay_port)
    }

    /// Opens, while nothing protects, one flow a kind for each window that may come: a refused TCP connection is over, so
    /// that each window needs its own.
    pub(super) async fn open_old_flows(&mut self) -> Result<(), CaseError> {
        let windows = self.plan.definition.steps.len() + 4;
        let flows = self
            .kinds(Vec::new())
            .into_iter()
            .flat_map(|kind| (1..=windows).filter_map(move |window| kind.old_flow(window)).collect::<Vec<_>>());
        let opening = flows.map(|(socket, protocol, server)| {
            let name = format!("{}-open-{socket}.{PROBE_ZONE}", tag(self.plan.nonce));
            self.root.client.open(OpenSpec {
                socket,
                protocol,
                server: Endpoint::from(server),
                bind: Bind::None,
                name,
                timeout_ms: FLOW_ANSWER_MS,
            })
        });
        for opened in futures::future::join_all(opening).await {
            if let Err(error) = opened {
                self.recorder.record(Event::Harness { problem: format!("an old flow was not opened: {error}") });
            }
        }
        Ok(())
    }

    /// Makes every kind of attempt once, and tries the services that must work in every state.
    pub(super) async fn probe_window(&mut self) -> Result<(), CaseError> {
        self.window += 1;
        let window = self.window;
        let identities = self.identities().await?;
        self.recorder.record(Event::Identities { identities: identities.clone() });
        self.markers.barrier(Cause::ProbesBegin);
        self.markers.canary(Cause::ProbesBegin);
        let kinds = self.kinds(identities);
        let tag = tag(self.plan.nonce);
        let planned: Vec<PlannedProbe> = kinds
            .iter()
            .map(|kind| PlannedProbe {
                id: format!("{window}-{}", kind.id),
                kind: kind.id.clone(),
                name: kind.name(&tag, window),
                target: kind.target(),
            })
            .collect();
        self.recorder.record(Event::Planned { probes: planned.clone() });
        let mut specs: [Vec<ProbeSpec>; 3] = Default::default();
        let skipped = (self.plan.sabotage == Some(Sabotage::SkippedProbe)).then_some("udp4-public-root");
        for (kind, planned) in kinds.iter().zip(&planned) {
            if window > 1 && skipped == Some(kind.id.as_str()) {
                continue;
            }
            let answer_ms = if self.must_answer(kind) { MUST_ANSWER_MS } else { answer_ms(kind) };
            specs[kind.who as usize].push(kind.spec(&planned.id, &planned.name, window, answer_ms));
        }
        // First: what they ask for is resolved afresh, and the probes would do it meanwhile.
        let mut services = self.services().await;
        services.extend(self.api().await);
        let [root, user, guest] = specs;
        let agents = [(Some(&self.root), root), (self.user.as_ref(), user), (self.guest.as_ref(), guest)];
        let attempts = futures::future::join_all(agents.into_iter().filter_map(|(agent, specs)| {
            let agent = agent?;
            (!specs.is_empty()).then(|| agent.client.probe(specs))
        }));
        let (attempts, inbound) = tokio::join!(attempts, self.inbound());
        for probed in attempts {
            let probed = probed?;
            for (id, attempt) in probed.attempts {
                if let (1, Outcome::Answered { .. }) = (window, &attempt.outcome) {
                    self.answered.extend(id.split_once('-').map(|(_, kind)| kind.to_owned()));
                }
                self.recorder.record(Event::Probe { id, attempt });
            }
        }
        for event in services.into_iter().chain(inbound) {
            self.recorder.record(event);
        }
        self.markers.canary(Cause::ProbesEnd);
        self.markers.barrier(Cause::ProbesEnd);
        Ok(())
    }

    /// Whether silence would be a finding: while nothing is restricted what was answered at first, while connected the
    /// approved servers and the system's resolver. It decides how long is waited, and nothing else.
    fn must_answer(&self, kind: &Kind) -> bool {
        let known = self.known.borrow();
        let running = self.subject.is_some() && !known.ended && !self.frozen;
        match known.state {
            // That a machine behind the client can work meanwhile is not required.
            Some(State::Connected) if kind.who == Who::Guest => false,
            Some(State::Connected) if running && !self.far.relay.is_silent() => {
                let approved = approved(&self.settings());
                let is_approved = |server: SocketAddr| {
                    let address = server.ip();
                    server.port() == 53
                        && (approved.tunnel.contains(&address) || approved.lan.iter().any(|lan| lan.address == address))
                };
                match kind.how {
                    How::System | How::Search | How::Kept => true,
                    How::Udp(server, Binding::Free) | How::Tcp(server, Binding::Free) => is_approved(server),
                    How::LinkLocal => is_approved(SocketAddr::new(LAN_LINK_LOCAL.into(), 53)),
                    _ => false,
                }
            }
            None | Some(State::Disconnected) if self.patch.lockdown != Some(true) => {
                // Old flows are not opened again.
                !matches!(kind.how, How::OldTcp(_) | How::OldUdp(_)) && self.answered.contains(&kind.id)
            }
            _ => false,
        }
    }

    /// Marks, users and groups that the client's ruleset or routing rules name: what has one claims to be the daemon's.
    async fn identities(&self) -> Result<Vec<Identity>, CaseError> {
        // What resolver services are set to names none of these.
        let scope = snapshot::Scope { profile: Profile::StaticFile, ..self.scope.clone() };
        let taken = self.topology.client.run(move || async move { snapshot::take(&scope).await }).await??;
        let texts = ["nftables", "rules"].map(|topic| taken.topics.get(topic).map_or("", String::as_str));
        let mut identities = identities_in(&texts.concat());
        // Without other users there is nobody to play.
        identities.retain(|identity| self.user.is_some() || matches!(identity, Identity::Mark(_)));
        Ok(identities)
    }

    /// Loopback, neighbours and DHCP must work in blocking states too (FWL-11).
    async fn services(&self) -> Vec<Event> {
        let agent = &self.root.client;
        let event =
            |service: &str, works: bool, detail: String| Event::Service { service: service.into(), works, detail };
        let failed = |service: &str, error: &dyn std::fmt::Display| Event::Harness {
            problem: format!("the service {service} was not tried: {error}"),
        };
        let neighbour = async |service: &'static str, address: IpAddr| match agent.neighbour(address, UPLINK).await {
            Ok(result) => event(service, result.ok, result.detail),
            Err(error) => failed(service, &error),
        };
        let lease = async |service: &'static str, version| match agent
            .dhcp(UPLINK, version, Duration::from_millis(MUST_ANSWER_MS))
            .await
        {
            Ok(result) => event(service, result.offered.is_some(), result.detail),
            Err(error) => failed(service, &error),
        };
        let loopback = async {
            match agent.loopback().await {
                Ok(result) => event("loopback", result.ok, result.detail),
                Err(error) => failed("loopback", &error),
            }
        };
        let results = tokio::join!(
            loopback,
            neighbour("neighbour4", LAN_V4.into()),
            neighbour("neighbour6", LAN_LINK_LOCAL.into()),
            lease("dhcp4", DhcpVersion::V4),
            lease("dhcp6", DhcpVersion::V6),
        );
        vec![results.0, results.1, results.2, results.3, results.4]
    }

    /// The API must be reachable in error and under lockdown (FWL-8, FWL-2), where the subject can be asked to try.
    async fn api(&mut self) -> Option<Event> {
        let state = self.known.borrow().state;
        let blocked =
            state == Some(State::Error) || (state == Some(State::Disconnected) && self.patch.lockdown == Some(true));
        let can = self.initialized.as_ref().is_some_and(|initialized| {
            initialized.known_capabilities().any(|capability| capability == Capability::ApiCheck)
        });
        if self.patch.api.is_none() || !blocked || !can || self.is_idle() {
            return None;
        }
        let answer = self.call(method::API_CHECK, serde_json::json!({}), super::engine::ANSWER).await;
        let reachable = answer.as_ref().is_ok_and(|answer| answer["reachable"] == serde_json::Value::Bool(true));
        let detail = match answer {
            Ok(answer) => format!("api_check answered {answer}"),
            Err(error) => error.to_string(),
        };
        Some(Event::Service { service: "api".into(), works: reachable, detail })
    }

    /// Unsolicited packets from the LAN: to the tunnel's address (FWL-15), and from port 53 (FWL-7). The same packet to the
    /// uplink's address from another port is the control.
    async fn inbound(&self) -> Vec<Event> {
        let window = self.window;
        let listening = self
            .root
            .client
            .listen(ListenSpec {
                id: format!("inbound-{window}"),
                protocol: ListenProtocol::Udp,
                address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
                port: INBOUND_PORT,
            })
            .await;
        let mut listening = match listening {
            Ok(listening) => listening,
            Err(error) => {
                return vec![Event::Harness { problem: format!("unsolicited packets were not tried: {error}") }];
            }
        };
        let cases = [
            ("tunnel-address", SocketAddr::new(LAN_V4.into(), 4053), IpAddr::from(TUNNEL_V4), false),
            ("from-port-53", SocketAddr::new(LAN_V4.into(), 53), IpAddr::from(CLIENT_V4), false),
            ("control", SocketAddr::new(LAN_V4.into(), 4054), IpAddr::from(CLIENT_V4), true),
        ];
        let specs: Vec<ProbeSpec> = cases
            .iter()
            .map(|(id, source, to, _)| ProbeSpec {
                id: format!("inbound-{window}-{id}"),
                name: format!("{}-in-{window}-{id}.{PROBE_ZONE}", tag(self.plan.nonce)),
                qtype: Qtype::A,
                via: Via::PacketSocket {
                    interface: crate::testbed::Topology::UPLINK.far.into(),
                    destination_mac: Some(crate::agent::MacAddress(CLIENT_MAC)),
                    source: *source,
                    destination: SocketAddr::new(*to, INBOUND_PORT),
                    shape: Shape::Plain,
                },
                timeout_ms: 10,
                as_uid: None,
                as_gid: None,
            })
            .collect();
        // One after the other: the control is the last.
        for spec in specs {
            let problem = match self.lan.client.probe(vec![spec]).await {
                Ok(probed) if probed.attempts.iter().all(|(_, attempt)| attempt.tried) && probed.missing.is_empty() => {
                    continue;
                }
                Ok(probed) => format!("{:?}{:?}", probed.attempts, probed.missing),
                Err(error) => error.to_string(),
            };
            return vec![Event::Harness { problem: format!("unsolicited packets were not sent: {problem}") }];
        }
        // The control was sent last: when it is there, so is everything that was let through. Where it is dropped too,
        // the deadline is the answer.
        let mut from = BTreeSet::new();
        let deadline = tokio::time::Instant::now() + INBOUND_WAIT;
        while let Ok(Some(received)) = tokio::time::timeout_at(deadline, listening.received.recv()).await {
            from.extend(received.from.map(|address| (address.port(), received.to.map(|to| to.ip()))));
            if cases.iter().any(|(_, source, to, control)| *control && from.contains(&(source.port(), Some(*to)))) {
                break;
            }
        }
        let _ = self.root.client.unlisten(&format!("inbound-{window}")).await;
        cases
            .iter()
            .map(|(id, source, to, control)| Event::Inbound {
                id: (*id).into(),
                to: to.to_string(),
                received: from.contains(&(source.port(), Some(*to))),
                control: *control,
            })
            .collect()
    }

    /// Starts a hammer for the step that begins.
    pub(super) async fn start_hammer(&self, index: usize) -> Result<String, CaseError> {
        let id = format!("step-{index}");
        let prefix = format!("{}-h{index}-", tag(self.plan.nonce));
        self.recorder.record(Event::HammerPlanned { id: id.clone(), prefix: prefix.clone() });
        let target = |address: IpAddr| Endpoint::from(SocketAddr::new(address, 53));
        let mut targets = vec![target(SINK_V4.into()), target(SINK_V6.into()), target(LAN_SINK_V4.into())];
        // What one state approves and the other does not shows when rules of the one outlast it.
        let approved = approved(&self.settings()).lan.into_iter().filter(|server| server.scope.is_none());
        targets.extend(approved.map(|server| target(server.address)));
        self.root
            .client
            .hammer_start(HammerSpec {
                id: id.clone(),
                targets,
                name_prefix: prefix,
                zone: PROBE_ZONE.into(),
                interface: None,
                max_sent: HAMMER_BUDGET,
            })
            .await?;
        Ok(id)
    }

    /// Stops it, and writes down what it did.
    pub(super) async fn stop_hammer(&self, id: String) -> Result<(), CaseError> {
        let report = self.root.client.hammer_stop(&id).await?;
        self.recorder.record(Event::Hammer { id, report });
        Ok(())
    }
}

/// Relay and API take DNS and never answer it: only a refusal could come.
fn answer_ms(kind: &Kind) -> u64 {
    let silent = [RELAY_V4.into(), API.ip()];
    // Port 853 is answered over TLS alone.
    let quic = |port| port == 853 && matches!(kind.how, How::Udp(..));
    let nobody =
        |server: SocketAddr| silent.contains(&server.ip()) || !matches!(server.port(), 53 | 853) || quic(server.port());
    if kind.server().is_some_and(nobody) { SILENT_MS } else { ANSWER_MS }
}

/// Numbers behind `mark`, `skuid` and `skgid` in a ruleset's text, and `fwmark` and `uidrange` in routing rules; zero, which is
/// everybody's mark and root's number, excepted.
fn identities_in(text: &str) -> Vec<Identity> {
    let mut identities = BTreeSet::new();
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || matches!(c, ',' | '{' | '}' | ';'))
        .filter(|word| !word.is_empty())
        .collect();
    for (at, word) in words.iter().enumerate() {
        let identity = match *word {
            "mark" | "fwmark" => Identity::Mark,
            "skuid" | "uidrange" => Identity::Uid,
            "skgid" => Identity::Gid,
            _ => continue,
        };
        // An operator may come first, and a set or a range may have several.
        let mut values =
            words[at + 1..].iter().skip_while(|value| matches!(**value, "==" | "!=" | "and" | "&")).peekable();
        while let Some(value) = values.next_if(|value| number(value).is_some()) {
            identities.extend(number(value).filter(|value| *value != 0).map(identity));
        }
    }
    identities.into_iter().take(MOST_IDENTITIES).collect()
}

/// The number that a value begins with: `7`, `0xca6c/0xffffffff`, `1000-1010`.
fn number(value: &str) -> Option<u32> {
    let value = value.split(['/', '-']).next().unwrap_or(value);
    match value.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::identities_in;
    use crate::probe::Identity::{Gid, Mark, Uid};

    #[test]
    fn what_rules_and_routing_rules_name_is_found() {
        assert_eq!(identities_in("meta mark 0x6d76 udp dport 51820 accept"), [Mark(0x6d76)]);
        assert_eq!(identities_in("meta mark != 0x1 drop\nmeta mark == 7 accept"), [Mark(1), Mark(7)]);
        assert_eq!(identities_in("100: from all not fwmark 0xca6c/0xffffffff lookup 51820"), [Mark(0xca6c)]);
        assert_eq!(
            identities_in("meta skuid { 998, 999 } accept\nmeta skgid 4242 accept"),
            [Uid(998), Uid(999), Gid(4242)]
        );
        assert_eq!(identities_in("from all uidrange 1000-1010 lookup 7"), [Uid(1000)]);
        assert!(identities_in("meta mark 0 accept").is_empty());
    }
}
