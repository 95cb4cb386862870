//! The client's system bus: every call, answer and signal goes into the history, and after each of them, and after each
//! change of a link, what the resolver services are set to, if that changed.

use super::{Changes, WatchError};
use crate::{
    history::{Event, Noticed, Recorder},
    profile::{NetworkManagerSettings, ResolvedSettings, STUBS, connect_to_bus},
    sandbox::{Node, be_prompt},
    scenario::Profile,
};
use futures::{FutureExt, StreamExt};
use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
};
use tokio::sync::{oneshot, watch};
use zbus::{
    Connection, MatchRule, Message, MessageStream,
    fdo::{DBusProxy, MonitoringProxy},
    message::Type,
};

/// Text of a message's body that is kept, in characters.
const KEPT: usize = 1000;
/// The same, where it says what a link is to have: all of it is judged.
const KEPT_OF_LINKS: usize = 1 << 20;

/// Whether there was no answer in time.
fn is_timeout(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::InputOutput(source) if source.kind() == std::io::ErrorKind::TimedOut)
}

/// Services that configure links of their own, which is not the subject's doing.
const CONFIGURE_LINKS: [&str; 2] = ["org.freedesktop.NetworkManager", "org.freedesktop.network1"];

/// Starts both; the settings as they are now are in the history when this returns. Ends when the sender of `stopped` is gone.
/// Messages are noted on `prompt`, and nothing else is done there: when they come counts.
pub(super) async fn start(
    profile: Profile,
    prompt: &Node,
    recorder: Recorder,
    changes: watch::Sender<Changes>,
    asked: watch::Sender<Vec<String>>,
    stopped: oneshot::Receiver<()>,
) -> Result<(), WatchError> {
    let failed = |source| WatchError::Bus { source };
    let asking = connect_to_bus().await.map_err(failed)?;
    let own = asking.unique_name().map(|name| name.to_string()).unwrap_or_default();
    let owners = Owners::read(&asking).await.map_err(failed)?;
    // One that has much to tell does not hold up the other.
    let mut eyes = Vec::new();
    for service in [Looked::NetworkManager, Looked::Resolved].into_iter().filter(|service| service.is_in(profile)) {
        // What stands between programs and servers.
        let tell = (service == Looked::Resolved || !profile.has_resolved()).then(|| asked.clone());
        let mut looking = Looking { service, bus: asking.clone(), recorder: recorder.clone(), last: None, tell };
        looking.look(Noticed::now(), "start").await.map_err(failed)?;
        eyes.push(looking);
    }
    let (news, heard) = watch::channel(News::default());
    let stopped = stopped.map(|_| ()).shared();
    let until = stopped.clone();
    let noting = move || async move {
        be_prompt();
        tokio::task::spawn_local(super::stay_awake());
        let messages = monitor().await?;
        tokio::task::spawn_local(Noting { messages, own, owners, recorder }.run(news, until));
        Ok(())
    };
    prompt.run(noting).await?.map_err(failed)?;
    for looking in eyes {
        tokio::task::spawn_local(looking.run(heard.clone(), changes.subscribe(), stopped.clone()));
    }
    Ok(())
}

/// All messages that the bus passes on from now.
async fn monitor() -> zbus::Result<MessageStream> {
    let listening = connect_to_bus().await?;
    let monitoring = MonitoringProxy::new(&listening).await?;
    monitoring.become_monitor(&[] as &[MatchRule<'_>], 0).await?;
    Ok(MessageStream::from(listening))
}

/// Notes every message.
struct Noting {
    messages: MessageStream,
    own: String,
    owners: Owners,
    recorder: Recorder,
}

impl Noting {
    async fn run(mut self, news: watch::Sender<News>, stopped: impl Future<Output = ()>) {
        let mut stopped = pin!(stopped);
        loop {
            let message = tokio::select! {
                biased;
                () = &mut stopped => return,
                message = self.messages.next() => message,
            };
            match message {
                Some(Ok(message)) => {
                    let noticed = Noticed::now();
                    if let Some(cause) = note(&message, noticed, &self.own, &self.recorder, &mut self.owners) {
                        news.send_modify(|news| news.add(noticed, cause));
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

/// Messages that may have changed something.
#[derive(Debug, Default)]
struct News {
    /// How many there have been.
    count: u64,
    /// When the last ones came.
    times: VecDeque<Noticed>,
    /// The last one.
    cause: String,
}

impl News {
    /// So many times are kept: more than come while a service is asked for its settings.
    const KEPT: usize = 256;

    fn add(&mut self, noticed: Noticed, cause: String) {
        self.count += 1;
        self.times.push_back(noticed);
        if self.times.len() > Self::KEPT {
            self.times.pop_front();
        }
        self.cause = cause;
    }

    /// When the first one came that is not among the first `seen`.
    fn first_after(&self, seen: u64) -> Option<Noticed> {
        let unseen = usize::try_from(self.count.saturating_sub(seen)).unwrap_or(usize::MAX);
        self.times.get(self.times.len().saturating_sub(unseen)).copied()
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
        mut heard: watch::Receiver<News>,
        mut network: watch::Receiver<Changes>,
        stopped: impl Future<Output = ()>,
    ) {
        let mut stopped = pin!(stopped);
        let mut seen = network.borrow().network;
        let mut known = heard.borrow().count;
        loop {
            let (noticed, cause) = tokio::select! {
                biased;
                () = &mut stopped => return,
                changed = heard.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Whatever is seen now has changed after the first of them at the earliest.
                    let news = heard.borrow_and_update();
                    let first = news.first_after(known).unwrap_or_else(Noticed::now);
                    known = news.count;
                    (first, news.cause.clone())
                }
                changed = network.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let changes = *network.borrow_and_update();
                    if changes.network == seen {
                        continue;
                    }
                    seen = changes.network;
                    (changes.network_at.unwrap_or_else(Noticed::now), "network".to_owned())
                }
            };
            let looked = tokio::select! {
                biased;
                () = &mut stopped => return,
                looked = self.look(noticed, &cause) => looked,
            };
            // One that was stopped answers when it goes on, and how long that takes is the scenario's to say.
            let again = matches!(&looked, Err(error) if is_timeout(error));
            let looked = if again {
                tokio::select! {
                    biased;
                    () = &mut stopped => return,
                    looked = self.look(noticed, &cause) => looked,
                }
            } else {
                looked
            };
            if let Err(error) = looked {
                self.recorder.record(Event::Harness {
                    problem: format!("failed to ask the resolver service for its settings: {error}"),
                });
            }
        }
    }

    /// Records what it is set to, if that changed; `noticed` is the first that may have changed it.
    async fn look(&mut self, noticed: Noticed, cause: &str) -> zbus::Result<()> {
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
        self.recorder.record_noticed(noticed.read_now(), Event::Resolver { service, cause, asked, at, settings });
        Ok(())
    }
}

/// Records a message; gives back its summary if it may have changed something. What the harness itself asks is left out.
fn note(message: &Message, noticed: Noticed, own: &str, recorder: &Recorder, owners: &mut Owners) -> Option<String> {
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
    let kept = if link.is_some() { KEPT_OF_LINKS } else { KEPT };
    let cause = format!("{kind} {interface}.{member}");
    recorder.record_noticed(
        noticed,
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
            body: body.chars().take(kept).collect(),
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

/// The link that a call to systemd-resolved or systemd-networkd is about: its number is the first argument, or in the object's path,
/// behind an underscore and escaped where it is a digit (org.freedesktop.resolve1(5), org.freedesktop.network1(5)).
fn link(interface: &str, member: &str, path: &str, body: &zbus::message::Body) -> Option<String> {
    let index: u32 = match interface {
        "org.freedesktop.resolve1.Manager" | "org.freedesktop.network1.Manager" if member.contains("Link") => {
            body.deserialize_ignore_signature::<i32>().ok()?.try_into().ok()?
        }
        "org.freedesktop.resolve1.Link" | "org.freedesktop.network1.Link" => {
            let escaped = path.rsplit_once("/link/")?.1;
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

#[cfg(test)]
mod tests {
    use super::{News, Noticed};

    #[test]
    fn the_first_message_that_was_not_seen_is_told_even_among_many() {
        let mut news = News::default();
        assert_eq!(news.first_after(0), None);
        let noticed = |at: u64| Noticed { at, since: None };
        let first_after = |news: &News, seen| news.first_after(seen).map(|noticed| noticed.at);
        (1..=5).for_each(|t| news.add(noticed(t * 10), "signal".into()));
        assert_eq!(first_after(&news, 0), Some(10));
        assert_eq!(first_after(&news, 3), Some(40));
        assert_eq!(first_after(&news, 5), None);
        (6..=1000).for_each(|t| news.add(noticed(t * 10), "signal".into()));
        assert_eq!(first_after(&news, 999), Some(10_000));
        // More than are kept: the earliest that is known.
        assert_eq!(first_after(&news, 5), Some((1000 - News::KEPT as u64 + 1) * 10));
    }
}
