//! What ends the subject, stops it, or takes its tunnel's interface away.

use super::{
    CaseError,
    engine::{ANSWER, Engine},
    steps::TO_NOTICE,
};
use crate::{history::Event, scenario::Fault, subject::CallError, testbed::plan::CLIENT_TUNNEL};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;
use watertight_protocol::{State, method};

/// Two clean ends of a process: answered, then gone.
const TO_END: Duration = Duration::from_secs(30);

impl Engine {
    pub(super) async fn fault(&mut self, fault: Fault) -> Result<bool, CaseError> {
        let Some(subject) = self.subject.as_mut() else { return Ok(false) };
        let (signal, ends) = match fault {
            Fault::Kill => (Some(Signal::SIGKILL), true),
            Fault::Terminate => (Some(Signal::SIGTERM), true),
            Fault::Stop => (Some(Signal::SIGSTOP), false),
            Fault::Continue => (Some(Signal::SIGCONT), false),
            Fault::EndOfFile => (None, true),
        };
        if ends {
            *self.expected_end.lock().expect("no holder panics") = true;
        }
        self.killed = fault == Fault::Kill;
        self.frozen = fault == Fault::Stop;
        match signal {
            Some(signal) => {
                if let Err(error) = subject.process().signal(signal) {
                    self.recorder.record(Event::Harness { problem: format!("{signal} was not delivered: {error}") });
                    return Ok(false);
                }
            }
            None => subject.close_input(),
        }
        if ends { Ok(self.wait_for_end().await) } else { Ok(true) }
    }

    pub(super) async fn shut_down(&mut self) -> Result<bool, CaseError> {
        *self.expected_end.lock().expect("no holder panics") = true;
        let answered = self.call(method::SHUTDOWN, json!({}), ANSWER).await;
        if matches!(answered, Err(CallError::TimedOut { .. })) {
            return Ok(self.kill_after_hanging().await);
        }
        Ok(self.wait_for_end().await)
    }

    /// Waits for the end of the subject's process, and of the barrier that marks it.
    async fn wait_for_end(&mut self) -> bool {
        let mut known = self.known.subscribe();
        if timeout(TO_END, known.wait_for(|known| known.ended)).await.is_ok() {
            return true;
        }
        self.kill_after_hanging().await
    }

    async fn kill_after_hanging(&mut self) -> bool {
        self.recorder.record(Event::TimedOut {
            what: "the end of the subject's process".into(),
            after_ms: TO_END.as_millis() as u64,
            requirement: "RST-5".into(),
        });
        if let Some(subject) = &self.subject {
            let _ = subject.process().signal(Signal::SIGKILL);
            let mut known = self.known.subscribe();
            let _ = timeout(TO_END, known.wait_for(|known| known.ended)).await;
        }
        false
    }

    pub(super) async fn remove_tunnel(&mut self) -> Result<bool, CaseError> {
        let interface = CLIENT_TUNNEL;
        let removed = self
            .topology
            .client
            .run(move || async move {
                let connection = nlink::Connection::<nlink::Route>::new()?;
                connection.del_link(interface).await
            })
            .await?;
        if let Err(error) = removed {
            self.recorder.record(Event::Harness { problem: format!("{interface} was not removed: {error}") });
            return Ok(false);
        }
        // `connected` holds only while the interface exists; the subject settles in error or in connecting.
        let mut known = self.known.subscribe();
        let noticed = known.wait_for(|known| known.ended || known.state != Some(State::Connected));
        if self.reports_states() && timeout(TO_NOTICE, noticed).await.is_err() {
            self.recorder.record(Event::TimedOut {
                what: format!("a report that the tunnel is gone ('connected' without {interface})"),
                after_ms: TO_NOTICE.as_millis() as u64,
                requirement: "TRN-6".into(),
            });
        }
        Ok(true)
    }
}
