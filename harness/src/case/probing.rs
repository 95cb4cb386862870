//! Probes of one window: planned first, then made, then written down, between two canaries.

use super::{
    CaseError, Sabotage,
    engine::{Engine, tag},
};
use crate::{
    agent::{
        Endpoint,
        wire::{
            Bind, DhcpVersion, HammerSpec, ListenProtocol, ListenSpec, OpenSpec, Outcome, ProbeSpec, Protocol, Qtype,
            Shape, Via,
        },
    },
    history::{Cause, Event, PlannedProbe},
    judge::approved,
    probe::{Binding, How, Identity, Kind, Present, Who, catalogue, identities_in},
    snapshot,
    testbed::plan::*,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::try_join;
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
/// So many identities, the likeliest, are imitated over all protocols, the others over UDP and IPv4: a rule may permit any.
const MOST_THOROUGH: usize = 8;
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
        let mut kinds = catalogue(&present, relay_port);
        kinds.retain(|kind| is_worth_trying(kind, &present.identities));
        kinds
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
        self.watch.look().await?;
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
        self.watch.look().await?;
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
        let texts = self.topology.client.run(|| async { snapshot::deciding() }).await??;
        let mut identities = identities_in(&texts.concat());
        // Without other users there is nobody to play, nor with a number that nobody can have here.
        let has = |kind: &str, id: u32| self.user.is_some() && is_mapped(kind, id);
        identities.retain(|identity| match identity {
            Identity::Mark(_) => true,
            Identity::Uid(uid) => has("uid", *uid),
            Identity::Gid(gid) => has("gid", *gid),
        });
        identities.truncate(MOST_IDENTITIES);
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
        let listen = |family: u8, address: IpAddr| {
            let id = format!("inbound{family}-{window}");
            self.root.client.listen(ListenSpec { id, protocol: ListenProtocol::Udp, address, port: INBOUND_PORT })
        };
        let listening = try_join!(listen(4, Ipv4Addr::UNSPECIFIED.into()), listen(6, Ipv6Addr::UNSPECIFIED.into()));
        let (mut v4, mut v6) = match listening {
            Ok((v4, v6)) => (v4.received, v6.received),
            Err(error) => {
                return vec![Event::Harness { problem: format!("unsolicited packets were not tried: {error}") }];
            }
        };
        let cases = [
            ("tunnel-address", SocketAddr::new(LAN_V4.into(), 4053), IpAddr::from(TUNNEL_V4), false),
            ("tunnel-address6", SocketAddr::new(LAN_V6.into(), 4053), IpAddr::from(TUNNEL_V6), false),
            ("from-port-53", SocketAddr::new(LAN_V4.into(), 53), IpAddr::from(CLIENT_V4), false),
            ("control", SocketAddr::new(LAN_V4.into(), 4054), IpAddr::from(CLIENT_V4), true),
            ("control6", SocketAddr::new(LAN_V6.into(), 4054), IpAddr::from(CLIENT_V6), true),
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
        // One after the other: the controls are the last.
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
        // The controls were sent last: when they are there, so is everything that was let through. Where one is dropped too,
        // the deadline is the answer.
        let mut from = BTreeSet::new();
        let deadline = tokio::time::Instant::now() + INBOUND_WAIT;
        let mut next = async || {
            tokio::select! {
                Some(received) = v4.recv() => Some(received),
                Some(received) = v6.recv() => Some(received),
                else => None,
            }
        };
        while let Ok(Some(received)) = tokio::time::timeout_at(deadline, next()).await {
            from.extend(received.from.map(|address| (address.port(), received.to.map(|to| to.ip()))));
            let is_there =
                |(_, source, to, _): &(&str, SocketAddr, IpAddr, bool)| from.contains(&(source.port(), Some(*to)));
            if cases.iter().filter(|(.., control)| *control).all(is_there) {
                break;
            }
        }
        for family in [4, 6] {
            let _ = self.root.client.unlisten(&format!("inbound{family}-{window}")).await;
        }
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

/// All kinds are, except that the likeliest identities alone are imitated over all protocols.
fn is_worth_trying(kind: &Kind, identities: &[Identity]) -> bool {
    match &kind.how {
        How::Imitating(Protocol::Udp, server, _) if server.is_ipv4() => true,
        How::Imitating(_, _, identity) => identities.iter().take(MOST_THOROUGH).any(|likely| likely == identity),
        _ => true,
    }
}

/// Whether the user namespace, which is the agents' too, has a user or group of this number.
fn is_mapped(kind: &str, id: u32) -> bool {
    let map = std::fs::read_to_string(format!("/proc/thread-self/{kind}_map"));
    // Without the list, the attempt tells.
    map.map_or(true, |map| in_map(&map, id))
}

fn in_map(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(count))) = (numbers.next(), numbers.nth(1)) else { return false };
        id.checked_sub(first).is_some_and(|offset| offset < count)
    })
}

#[cfg(test)]
mod tests {
    use super::{How, Identity, Kind, Present, catalogue, in_map, is_worth_trying};

    #[test]
    fn only_numbers_that_the_user_namespace_has_are_taken() {
        let map = "         0       1000          1\n         1     100000      65535\n";
        assert!(in_map(map, 0) && in_map(map, 1) && in_map(map, 65535));
        assert!(!in_map(map, 65536));
        assert!(in_map("0 0 4294967295", 4_000_000_000));
    }

    #[test]
    fn the_first_identities_alone_are_imitated_over_all_protocols() {
        let identities: Vec<Identity> = (1..=16).map(Identity::Mark).collect();
        let kinds = catalogue(&Present { identities: identities.clone(), ..Present::default() }, 51820);
        let of = |identity: Identity| {
            let imitates = |kind: &&Kind| matches!(kind.how, How::Imitating(_, _, imitated) if imitated == identity);
            kinds.iter().filter(imitates).filter(|kind| is_worth_trying(kind, &identities)).count()
        };
        assert_eq!(identities.iter().map(|identity| of(*identity)).sum::<usize>(), 8 * 8 + 8 * 2);
        assert_eq!((of(Identity::Mark(8)), of(Identity::Mark(9))), (8, 2));
        assert!(kinds.iter().filter(|kind| kind.id.starts_with("udp6-")).all(|kind| is_worth_trying(kind, &[])));
    }
}
