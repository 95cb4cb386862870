//! What a scenario does to the profile's resolver service, or to what it was told, behind the subject's back.

use super::{
    CaseError,
    engine::{ANSWER, Engine, daemons},
    steps::TO_CORRECTION,
};
use crate::{history::Event, profile::Services, scenario::ServiceChange, testbed::plan::*};
use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::timeout};
use watertight_protocol::State;

/// What is done to a service is seen within this time, or had been corrected before.
const NOTICED: Duration = Duration::from_millis(500);

impl Engine {
    /// Does it, and waits until what the service asks is what it asked before; the judge measures.
    pub(super) async fn change_service(&mut self, change: ServiceChange) -> Result<bool, CaseError> {
        let mut asked = self.watch.asked();
        let before = asked.borrow_and_update().clone();
        // A scenario that is broken off has not put it right itself.
        match change {
            ServiceChange::Stop => self.unmended.push(ServiceChange::Start),
            ServiceChange::Freeze => self.unmended.push(ServiceChange::Thaw),
            ServiceChange::Break => self.unmended.push(ServiceChange::Mend),
            mended => self.unmended.retain(|due| *due != mended),
        }
        // Before it is done: what comes of it may be seen at once.
        self.recorder.record(Event::ServiceChanged { change });
        let (profile, node, folder) = (self.plan.axes.profile, &self.topology.client, &self.plan.folder);
        match change {
            ServiceChange::Stop => {
                self.services.stop_resolved().await?;
                return Ok(self.service_is(&mut asked, "gone from the bus", |asked| asked.is_empty()).await);
            }
            ServiceChange::Freeze | ServiceChange::Thaw => {
                self.services.freeze(profile, change == ServiceChange::Freeze)?;
                return Ok(true);
            }
            ServiceChange::Break | ServiceChange::Mend => {
                let broken = change == ServiceChange::Break;
                node.run(move || async move { Services::break_resolvconf(broken) }).await??;
                return Ok(true);
            }
            ServiceChange::Restart | ServiceChange::Start => {
                let started = match change {
                    ServiceChange::Start => self.services.start_resolved(&self.client, node, folder).await?,
                    _ => self.services.restart(profile, &self.client, node, folder).await?,
                };
                self.scope.services.extend(daemons(&self.topology.client, vec![started.pid]).await?);
                self.recorder.record(Event::ServiceStarted(started));
                if change == ServiceChange::Start {
                    return Ok(self.service_is(&mut asked, "on the bus", |asked| !asked.is_empty()).await);
                }
            }
            ServiceChange::ChangeUplink => return self.tell_uplink(&[LAN_SECOND_V4]).await,
            ServiceChange::RevertUplink => return self.tell_uplink(&[LAN_V4, ISP_V4]).await,
            ServiceChange::WipeTunnelLink => {
                let wiped = node.run(|| async { Services::wipe_link(CLIENT_TUNNEL).await }).await?;
                if let Err(error) = wiped {
                    let problem = format!("the settings of {CLIENT_TUNNEL} were not wiped: {error}");
                    self.recorder.record(Event::Harness { problem });
                    return Ok(false);
                }
            }
            ServiceChange::Reapply => self.services.reapply(&self.client, node, folder).await?,
            ServiceChange::RenewLease => return self.renew_lease().await,
        }
        // It may be corrected before anything else is seen.
        let _ = timeout(NOTICED, asked.wait_for(|now| *now != before)).await;
        let _ = timeout(TO_CORRECTION, asked.wait_for(|now| *now == before)).await;
        Ok(true)
    }

    async fn tell_uplink(&mut self, servers: &'static [Ipv4Addr]) -> Result<bool, CaseError> {
        let profile = self.plan.axes.profile;
        let (services, node) = (&self.services, &self.topology.client);
        services.tell_uplink(profile, &self.client, node, servers, &self.plan.folder).await?;
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

    /// Changes what leases say and has the uplink's renewed; waits until the resolver file is the subject's again, where it is not
    /// meanwhile. The judge measures.
    async fn renew_lease(&mut self) -> Result<bool, CaseError> {
        let (profile, node, folder) = (self.plan.axes.profile, &self.topology.client, &self.plan.folder);
        let mut versions = self.watch.versions();
        let mut acknowledged = self.far.acknowledged();
        let before = *acknowledged.borrow_and_update();
        self.far.change_lease();
        let started = self.services.renew_lease(profile, &self.client, node, folder).await?;
        if let Some(started) = started {
            self.scope.services.extend(daemons(&self.topology.client, vec![started.pid]).await?);
            self.recorder.record(Event::ServiceStarted(started));
        }
        if timeout(ANSWER, acknowledged.wait_for(|count| *count > before)).await.is_err() {
            let problem = format!("the lease of {UPLINK} was not renewed within {} s", ANSWER.as_secs());
            self.recorder.record(Event::Harness { problem });
            return Ok(false);
        }
        let words = |servers: [std::net::Ipv4Addr; 2]| servers.iter().map(ToString::to_string).collect();
        self.recorder.record(Event::LeaseRenewed { was: words(LEASED), is: words(RENEWED) });
        let connected = self.known.borrow().state == Some(State::Connected) && !self.known.borrow().ended;
        let new = LAN_SECOND_V4.to_string();
        // Who else would write the file now may do so a little later than the lease is had, or not at all.
        let written = versions.wait_for(|version| version.nameservers().contains(&new));
        let seen = timeout(NOTICED, written).await.is_ok();
        if connected && seen {
            let corrected = versions.wait_for(|version| {
                let servers = version.nameservers();
                !servers.is_empty() && !servers.contains(&new)
            });
            let began = Instant::now();
            if timeout(TO_CORRECTION, corrected).await.is_err() {
                self.recorder.record(Event::TimedOut {
                    what: "the correction of the resolver file".into(),
                    after_ms: began.elapsed().as_millis() as u64,
                    requirement: "STA-5".into(),
                });
            }
        }
        Ok(true)
    }
}
