//! What a scenario does to the profile's resolver service, or to what it was told, behind the subject's back.

use super::{CaseError, engine::Engine, steps::TO_CORRECTION};
use crate::{history::Event, profile::Services, scenario::ServiceChange, testbed::plan::CLIENT_TUNNEL};
use std::time::Duration;
use tokio::{sync::watch, time::timeout};

/// What is done to a service is seen within this time, or had been corrected before.
const NOTICED: Duration = Duration::from_millis(500);

impl Engine {
    /// Does it, and waits until what the service asks is what it asked before, where it is to be; the judge measures.
    pub(super) async fn change_service(&mut self, change: ServiceChange) -> Result<bool, CaseError> {
        let mut asked = self.watch.asked();
        let before = asked.borrow_and_update().clone();
        // A scenario that is broken off has not put it right itself.
        match change {
            ServiceChange::Stop => self.unmended.push(ServiceChange::Start),
            ServiceChange::Break => self.unmended.push(ServiceChange::Mend),
            mended => self.unmended.retain(|due| *due != mended),
        }
        // Before it is done: what comes of it may be seen at once.
        self.recorder.record(Event::ServiceChanged { change });
        match change {
            ServiceChange::Stop => {
                self.services.stop_resolved().await?;
                return Ok(self.service_is(&mut asked, "gone from the bus", |asked| asked.is_empty()).await);
            }
            ServiceChange::Break | ServiceChange::Mend => {
                let broken = change == ServiceChange::Break;
                self.topology.client.run(move || async move { Services::break_resolvconf(broken) }).await??;
                return Ok(true);
            }
            ServiceChange::Restart | ServiceChange::Start => {
                let folder = &self.plan.folder;
                let started = self.services.restart_resolved(&self.client, &self.topology.client, folder).await?;
                self.scope.ignore_pids.push(started.pid);
                self.recorder.record(Event::ServiceStarted(started));
                if change == ServiceChange::Start {
                    return Ok(self.service_is(&mut asked, "on the bus", |asked| !asked.is_empty()).await);
                }
            }
            ServiceChange::WipeTunnelLink => {
                let wiped = self.topology.client.run(|| async { Services::wipe_link(CLIENT_TUNNEL).await }).await?;
                if let Err(error) = wiped {
                    let problem = format!("the settings of {CLIENT_TUNNEL} were not wiped: {error}");
                    self.recorder.record(Event::Harness { problem });
                    return Ok(false);
                }
            }
        }
        // It may be corrected before anything else is seen.
        let _ = timeout(NOTICED, asked.wait_for(|now| *now != before)).await;
        let _ = timeout(TO_CORRECTION, asked.wait_for(|now| *now == before)).await;
        Ok(true)
    }

    /// Waits until what the resolver service asks is seen to be so.
    async fn service_is(
        &self,
        asked: &mut watch::Receiver<Vec<String>>,
        what: &str,
        is: impl FnMut(&Vec<String>) -> bool,
    ) -> bool {
        let seen = timeout(TO_CORRECTION, asked.wait_for(is)).await.is_ok_and(|seen| seen.is_ok());
        if !seen {
            self.recorder.record(Event::Harness { problem: format!("the resolver service was not seen to be {what}") });
        }
        seen
    }
}
