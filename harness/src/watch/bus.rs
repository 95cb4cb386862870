//! The client's system bus: every call, answer and signal goes into the history, and after each of them, and after each
//! change of a link, what the resolver services are set to, if that changed.

use super::{Changes, WatchError};
use crate::{
    history::{Event, Recorder, now},
    profile::{NetworkManagerSettings, ResolvedSettings, STUBS, connect_to_bus},
    scenario::Profile,
};
use futures::{FutureExt, StreamExt};
use std::{collections::HashMap, pin::pin};
use tokio::sync::{oneshot, watch};
use zbus::{
    Connection, MatchRule, Message, MessageStream,
    fdo::{DBusProxy, MonitoringProxy},
    message::Type,
};

/// Text of a message's body that is kept, in characters.
const KEPT: usize = 1000;

/// Services that configure links of their own, which is not the subject's doing.
const CONFIGURE_LINKS: [&str; 2] = ["org.freedesktop.NetworkManager", "org.freedesktop.network1"];

/// Starts both; the settings as they are now are in the history when this returns. Ends when the sender of `stopped` is gone.
pub(super) async fn start(
    profile: Profile,
    recorder: Recorder,
    changes: watch::Sender<Changes>,
    asked: watch::Sender<Vec<String>>,
    stopped: oneshot::Receiver<()>,
) -> Result<(), WatchError> {
    let failed = |source| WatchError::Bus { source };
    let asking = connect_to_bus().await.map_err(failed)?;
    let listening = connect_to_bus().await.map_err(failed)?;
    let own = asking.unique_name().map(|name| name.to_string()).unwrap_or_default();
    MonitoringProxy::new(&listening)
        .await
        .map_err(failed)?
        .become_monitor(&[] as &[MatchRule<'_>], 0)
        .await
        .map_err(|error| failed(error.into()))?;
    let owners = Owners::read(&asking).await.map_err(failed)?;
    // One that has much to tell does not hold up the other.
    let mut eyes = Vec::new();
    for service in [Looked::NetworkManager, Looked::Resolved].into_iter().filter(|service| service.is_in(profile)) {
        // What stands between programs and servers.
        let tell = (service == Looked::Resolved || !profile.has_resolved()).then(|| asked.clone());
        let mut looking = Looking { service, bus: asking.clone(), recorder: recorder.clone(), last: None, tell };
        looking.look("start").await.map_err(failed)?;
        eyes.push(looking);
    }
    // To look takes a while, and messages are noted when they come: their time and place in the history count.
    let (news, heard) = watch::channel(String::new());
    let stopped = stopped.map(|_| ()).shared();
    let noting = Noting { messages: MessageStream::from(listening), own, owners, recorder };
    tokio::task::spawn_local(noting.run(news, stopped.clone()));
    for looking in eyes {
        tokio::task::spawn_local(looking.run(heard.clone(), changes.subscribe(), stopped.clone()));
    }
    Ok(())
}

/// Notes every message.
struct Noting {
    messages: MessageStream,
    own: String,
    owners: Owners,
    recorder: Recorder,
}

impl Noting {
    async fn run(mut self, news: watch::Sender<String>, stopped: impl Future<Output = ()>) {
        let mut stopped = pin!(stopped);
        loop {
            let message = tokio::select! {
                biased;
                () = &mut stopped => return,
                message = self.messages.next() => message,
            };
            match message {
                Some(Ok(message)) => {
                    if let Some(cause) = note(&message, &self.own, &self.recorder, &mut self.owners) {
                        news.send_replace(cause);
                    }
                }
                Some(Err(error)) => {
                    self.recorder
                        .record(Event::Harness { problem: format!("messages on the system bus were lost: {error}") });
                    return;
                }
                // The bus ended, with the machine or before it; what that means is in the services' records.
                None => return,
            }
        }
    }
}

/// A service whose settings are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looked {
    Resolved,
    NetworkManager,
}

impl Looked {
    fn is_in(self, profile: Profile) -> bool {
        match self {
            Looked::Resolved => profile.has_resolved(),
            Looked::NetworkManager => profile.has_network_manager(),
        }
    }
}

/// Looks at a service's settings when there is news, once for all that has come meanwhile.
struct Looking {
    service: Looked,
    bus: Connection,
    recorder: Recorder,
    /// What it was last seen to be set to.
    last: Option<String>,
    /// Told whom it asks.
    tell: Option<watch::Sender<Vec<String>>>,
}

impl Looking {
    async fn run(
        mut self,
        mut heard: watch::Receiver<String>,
        mut network: watch::Receiver<Changes>,
        stopped: impl Future<Output = ()>,
    ) {
        let mut stopped = pin!(stopped);
        let mut seen = network.borrow().network;
        loop {
            let cause = tokio::select! {
                biased;
                () = &mut stopped => return,
                changed = heard.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    heard.borrow_and_update().clone()
                }
                changed = network.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = network.borrow_and_update().network;
                    if now == seen {
                        continue;
                    }
                    seen = now;
                    "network".to_owned()
                }
            };
            let looked = tokio::select! {
                biased;
                () = &mut stopped => return,
                looked = self.look(&cause) => looked,
            };
            if let Err(error) = looked {
                self.recorder.record(Event::Harness {
                    problem: format!("failed to ask the resolver service for its settings: {error}"),
                });
            }
        }
    }

    async fn look(&mut self, cause: &str) -> zbus::Result<()> {
        let t = now(libc::CLOCK_REALTIME);
        let (service, view) = match self.service {
            Looked::Resolved => {
                let settings = ResolvedSettings::read(&self.bus).await?;
                let at = || STUBS.map(str::to_owned).to_vec();
                let view = settings.map(|settings| View { asked: settings.asked(), at: at(), text: settings.text() });
                ("systemd-resolved", view)
            }
            Looked::NetworkManager => {
                let settings = NetworkManagerSettings::read_servers(&self.bus).await?;
                let view =
                    settings.map(|settings| View { asked: settings.asked(), at: settings.at(), text: settings.text() });
                ("NetworkManager", view)
            }
        };
        let view = view.unwrap_or_else(|| View { text: "absent\n".into(), ..View::default() });
        if self.last.as_ref() == Some(&view.text) {
            return Ok(());
        }
        self.last = Some(view.text.clone());
        if let Some(tell) = &self.tell {
            tell.send_replace(view.asked.clone());
        }
        let View { asked, at, text: settings } = view;
        let (service, cause) = (service.into(), cause.into());
        self.recorder.record_at(t, Event::Resolver { service, cause, asked, at, settings });
        Ok(())
    }
}

/// Records a message; gives back its summary if it may have changed something. What the harness itself asks is left out.
fn note(message: &Message, own: &str, recorder: &Recorder, owners: &mut Owners) -> Option<String> {
    let header = message.header();
    let text = |value: Option<String>| value.unwrap_or_default();
    let sender = text(header.sender().map(ToString::to_string));
    let destination = text(header.destination().map(ToString::to_string));
    if sender == own || destination == own {
        return None;
    }
    let kind = match message.message_type() {
        Type::MethodCall => "call",
        Type::MethodReturn => "return",
        Type::Error => "error",
        Type::Signal => "signal",
    };
    let interface = text(header.interface().map(ToString::to_string));
    let member = text(header.member().map(ToString::to_string));
    let body = message.body();
    if kind == "signal" && member == "NameOwnerChanged" {
        owners.changed(&body);
    }
    let path = text(header.path().map(ToString::to_string));
    let link = if kind == "call" { link(&interface, &member, &path, &body) } else { None };
    let body = if body.is_empty() { String::new() } else { readable(&body) };
    let cause = format!("{kind} {interface}.{member}");
    recorder.record_at(
        now(libc::CLOCK_REALTIME),
        Event::Bus {
            message: kind.into(),
            serial: message.primary_header().serial_num().into(),
            reply_to: header.reply_serial().map(Into::into),
            service: owners.by_unique_name.get(&sender).cloned(),
            link,
            sender,
            destination,
            path,
            interface,
            member,
            error: header.error_name().map(ToString::to_string),
            body: body.chars().take(KEPT).collect(),
        },
    );
    // A call has changed nothing yet.
    (kind != "call").then_some(cause)
}

/// Who owns the names of services that configure links.
struct Owners {
    by_unique_name: HashMap<String, String>,
}

impl Owners {
    async fn read(bus: &Connection) -> zbus::Result<Self> {
        let proxy = DBusProxy::new(bus).await?;
        let mut by_unique_name = HashMap::new();
        for name in CONFIGURE_LINKS {
            match proxy.get_name_owner(name.try_into()?).await {
                Ok(owner) => drop(by_unique_name.insert(owner.to_string(), name.to_owned())),
                Err(zbus::fdo::Error::NameHasNoOwner(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { by_unique_name })
    }

    fn changed(&mut self, body: &zbus::message::Body) {
        // What is no such signal changes nothing.
        let Ok((name, _, new)) = body.deserialize::<(String, String, String)>() else { return };
        if CONFIGURE_LINKS.contains(&name.as_str()) {
            self.by_unique_name.retain(|_, known| *known != name);
            if !new.is_empty() {
                self.by_unique_name.insert(new, name);
            }
        }
    }
}

/// The link that a call to systemd-resolved is about: its number is the first argument, or in the object's path, behind an
/// underscore and escaped where it is a digit (org.freedesktop.resolve1(5)).
fn link(interface: &str, member: &str, path: &str, body: &zbus::message::Body) -> Option<String> {
    let index: u32 = match interface {
        "org.freedesktop.resolve1.Manager" if member.contains("Link") => {
            body.deserialize_ignore_signature::<i32>().ok()?.try_into().ok()?
        }
        "org.freedesktop.resolve1.Link" => {
            let escaped = path.strip_prefix("/org/freedesktop/resolve1/link/")?;
            let digits = match escaped.strip_prefix('_') {
                Some(rest) => {
                    let first = u8::from_str_radix(rest.get(..2)?, 16).ok()?;
                    format!("{}{}", char::from(first), rest.get(2..)?)
                }
                None => escaped.to_owned(),
            };
            digits.parse().ok()?
        }
        _ => return None,
    };
    let name = nix::net::if_::if_indextoname(index).ok()?.to_string_lossy().into_owned();
    // nix 0.31 takes the null pointer of a failure for a success, with an empty name.
    (!name.is_empty()).then_some(name)
}

fn readable(body: &zbus::message::Body) -> String {
    match body.deserialize::<zbus::wire::Structure<'_>>() {
        Ok(structure) => format!("{structure}"),
        Err(_) => match body.deserialize::<zbus::wire::Variant<'_>>() {
            Ok(value) => format!("{value}"),
            Err(error) => format!("({}, not read: {error})", body.signature()),
        },
    }
}

/// A service, seen at one moment.
#[derive(Default)]
struct View {
    asked: Vec<String>,
    at: Vec<String>,
    text: String,
}
