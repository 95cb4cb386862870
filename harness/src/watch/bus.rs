//! The client's system bus: every call, answer and signal goes into the history, and after each of them, and after each
//! change of a link, what the resolver services are set to, if that changed.

use super::{Changes, WatchError};
use crate::{
    history::{Event, Recorder, now},
    profile::{NetworkManagerSettings, ResolvedSettings, STUBS, connect_to_bus},
    scenario::Profile,
};
use futures::StreamExt;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};
use tokio::sync::{oneshot, watch};
use zbus::{Connection, MatchRule, Message, MessageStream, fdo::MonitoringProxy, message::Type};

/// Text of a message's body that is kept, in characters.
const KEPT: usize = 1000;

/// Starts both; the settings as they are now are in the history when this returns. Ends when the sender of `stopped` is gone.
pub(super) async fn start(
    profile: Profile,
    recorder: Recorder,
    changes: watch::Sender<Changes>,
    asked: watch::Sender<Vec<String>>,
    mut stopped: oneshot::Receiver<()>,
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
    let eye = Eye { profile, bus: asking, recorder: recorder.clone(), last: Rc::default(), asked };
    eye.look_at_network_manager("start").await.map_err(failed)?;
    eye.look_at_resolved("start").await.map_err(failed)?;
    // NetworkManager has much to tell; meanwhile nothing else is to be seen late.
    let (news, woken) = watch::channel(String::new());
    tokio::task::spawn_local(eye.clone().follow_network_manager(woken));
    let mut messages = MessageStream::from(listening);
    let mut network = changes.subscribe();
    tokio::task::spawn_local(async move {
        let mut seen = network.borrow().network;
        loop {
            let cause = tokio::select! {
                biased;
                _ = &mut stopped => return,
                message = messages.next() => match message {
                    Some(Ok(message)) => match note(&message, &own, &recorder) {
                        Some(cause) => cause,
                        None => continue,
                    },
                    Some(Err(error)) => {
                        recorder.record(Event::Harness { problem: format!("messages on the system bus were lost: {error}") });
                        return;
                    }
                    // The bus ended, with the machine or before it; what that means is in the services' records.
                    None => return,
                },
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
            news.send_replace(cause.clone());
            let looked = tokio::select! {
                biased;
                _ = &mut stopped => return,
                looked = eye.look_at_resolved(&cause) => looked,
            };
            if let Err(error) = looked {
                eye.failed(&error);
            }
        }
    });
    Ok(())
}

/// Records a message; gives back its summary if it may have changed something. What the harness itself asks is left out.
fn note(message: &Message, own: &str, recorder: &Recorder) -> Option<String> {
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
    let body = if body.is_empty() { String::new() } else { readable(&body) };
    let cause = format!("{kind} {interface}.{member}");
    recorder.record_at(
        now(libc::CLOCK_REALTIME),
        Event::Bus {
            message: kind.into(),
            serial: message.primary_header().serial_num().into(),
            reply_to: header.reply_serial().map(Into::into),
            sender,
            destination,
            path: text(header.path().map(ToString::to_string)),
            interface,
            member,
            error: header.error_name().map(ToString::to_string),
            body: body.chars().take(KEPT).collect(),
        },
    );
    // A call has changed nothing yet.
    (kind != "call").then_some(cause)
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

/// What asks the services, and remembers what they told.
#[derive(Clone)]
struct Eye {
    profile: Profile,
    bus: Connection,
    recorder: Recorder,
    last: Rc<RefCell<BTreeMap<&'static str, String>>>,
    /// Told whom the service asks that stands between programs and servers.
    asked: watch::Sender<Vec<String>>,
}

impl Eye {
    async fn look_at_resolved(&self, cause: &str) -> zbus::Result<()> {
        if !self.profile.has_resolved() {
            return Ok(());
        }
        let t = now(libc::CLOCK_REALTIME);
        let settings = ResolvedSettings::read(&self.bus).await?;
        let at = || STUBS.map(str::to_owned).to_vec();
        let view = settings.map(|settings| View { asked: settings.asked(), at: at(), text: settings.text() });
        self.told("systemd-resolved", cause, t, view);
        Ok(())
    }

    async fn look_at_network_manager(&self, cause: &str) -> zbus::Result<()> {
        if !self.profile.has_network_manager() {
            return Ok(());
        }
        let t = now(libc::CLOCK_REALTIME);
        let settings = NetworkManagerSettings::read_servers(&self.bus).await?;
        let view = settings.map(|settings| View { asked: settings.asked(), at: settings.at(), text: settings.text() });
        self.told("NetworkManager", cause, t, view);
        Ok(())
    }

    /// Looks again after news, until nobody sends any more.
    async fn follow_network_manager(self, mut news: watch::Receiver<String>) {
        while news.changed().await.is_ok() {
            let cause = news.borrow_and_update().clone();
            // The machine may end meanwhile, and the bus with it.
            let mut end = news.clone();
            let ended = async { while end.changed().await.is_ok() {} };
            let looked = tokio::select! {
                biased;
                looked = self.look_at_network_manager(&cause) => looked,
                () = ended => return,
            };
            if let Err(error) = looked {
                self.failed(&error);
            }
        }
    }

    fn told(&self, service: &'static str, cause: &str, t: u64, view: Option<View>) {
        let view = view.unwrap_or_else(|| View { text: "absent\n".into(), ..View::default() });
        if self.last.borrow().get(service) == Some(&view.text) {
            return;
        }
        self.last.borrow_mut().insert(service, view.text.clone());
        if service == "systemd-resolved" || !self.profile.has_resolved() {
            self.asked.send_replace(view.asked.clone());
        }
        let View { asked, at, text: settings } = view;
        let event = Event::Resolver { service: service.into(), cause: cause.into(), asked, at, settings };
        self.recorder.record_at(t, event);
    }

    fn failed(&self, error: &zbus::Error) {
        let problem = format!("failed to ask the resolver service for its settings: {error}");
        self.recorder.record(Event::Harness { problem });
    }
}

/// A service, seen at one moment.
#[derive(Default)]
struct View {
    asked: Vec<String>,
    at: Vec<String>,
    text: String,
}
