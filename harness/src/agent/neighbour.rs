//! Asks the kernel to resolve a neighbour: ARP (RFC 826) or neighbour discovery (RFC 4861), as the kernel itself does it.

use super::{
    endpoint::{MacAddress, interface_index},
    wire::Event,
};
use futures::StreamExt;
use nlink::netlink::{
    Connection, InterfaceRef, MessageBuilder, NetworkEvent, Result, Route, RtnetlinkGroup,
    neigh::{Neighbor, NeighborConfig, NeighborState, ntf},
    types::neigh::{NdMsg, NdaAttr},
};
use std::{net::IpAddr, time::Duration};

/// The kernel asks three times, a second apart; one that answers at all answers the first or the second time.
const DEADLINE: Duration = Duration::from_millis(1500);

/// Resolves a neighbour afresh.
pub(super) fn resolve(id: String, address: IpAddr, interface: &str) -> Event {
    let what = format!("resolve {address} on {interface}");
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start a runtime: {error}"))
        .and_then(|runtime| runtime.block_on(resolve_now(address, interface)));
    match result {
        Ok(mac) => Event::Neighbour { id, ok: true, mac, detail: "reachable".into() },
        Err(text) => Event::Neighbour { id, ok: false, mac: None, detail: format!("{what}: {text}") },
    }
}

async fn resolve_now(address: IpAddr, interface: &str) -> std::result::Result<Option<MacAddress>, String> {
    let index = interface_index(interface).map_err(|error| error.to_string())?;
    let connect = || Connection::<Route>::new().map_err(|error| format!("open a netlink socket: {error}"));
    let (control, watch) = (connect()?, connect()?);
    let known = control.get_neighbors().await.map_err(|error| format!("list neighbours: {error}"))?;
    let permanent = known.iter().any(|neighbour| {
        neighbour.ifindex() == index
            && neighbour.destination() == Some(&address)
            && neighbour.state() == NeighborState::Permanent
    });
    if permanent {
        return Err("there is a permanent entry, which is never resolved".into());
    }
    control
        .del_neighbor_if_exists(Neighbor::with_index(index, address))
        .await
        .map_err(|error| format!("delete the old entry: {error}"))?;
    // Not earlier: the deletion is told as a failure of the old entry.
    watch.subscribe(&[RtnetlinkGroup::Neigh]).map_err(|error| format!("subscribe to neighbour events: {error}"))?;
    control
        .replace_neighbor(Use { interface: InterfaceRef::Index(index), address })
        .await
        .map_err(|error| format!("ask the kernel to use it: {error}"))?;

    let mut events = watch.into_events().await;
    // Somebody's packet may have had it resolved since it was deleted; then there is nothing more to be told.
    let known = control.get_neighbors().await.map_err(|error| format!("list neighbours: {error}"))?;
    let resolved = known.iter().find(|neighbour| {
        neighbour.ifindex() == index
            && neighbour.destination() == Some(&address)
            && neighbour.state() == NeighborState::Reachable
    });
    if let Some(neighbour) = resolved {
        let mac = neighbour.lladdr().and_then(|mac| <[u8; 6]>::try_from(mac).ok());
        return Ok(mac.map(MacAddress));
    }
    let reachable = async {
        while let Some(event) = events.next().await {
            let Ok(NetworkEvent::NewNeighbor(neighbour)) = event else { continue };
            if neighbour.ifindex() != index || neighbour.destination() != Some(&address) {
                continue;
            }
            match neighbour.state() {
                NeighborState::Reachable => {
                    let mac = neighbour.lladdr().and_then(|mac| <[u8; 6]>::try_from(mac).ok());
                    return Ok(mac.map(MacAddress));
                }
                NeighborState::Failed => return Err("nobody answered".into()),
                _ => {}
            }
        }
        Err("the kernel's events ended".into())
    };
    tokio::time::timeout(DEADLINE, reachable)
        .await
        .unwrap_or_else(|_| Err(format!("not reachable within {} ms", DEADLINE.as_millis())))
}

/// An entry in use: the kernel resolves it at once (NTF_USE, rtnetlink(7)).
struct Use {
    interface: InterfaceRef,
    address: IpAddr,
}

impl NeighborConfig for Use {
    fn interface_ref(&self) -> &InterfaceRef {
        &self.interface
    }

    fn family(&self) -> u8 {
        (if self.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
    }

    fn write_add(&self, builder: &mut MessageBuilder, index: u32) -> Result<()> {
        let mut header = NdMsg::new().with_family(self.family()).with_ifindex(index.cast_signed());
        header.ndm_flags = ntf::USE;
        self.write(builder, &header);
        Ok(())
    }

    fn write_delete(&self, builder: &mut MessageBuilder, index: u32) -> Result<()> {
        let header = NdMsg::new().with_family(self.family()).with_ifindex(index.cast_signed());
        self.write(builder, &header);
        Ok(())
    }
}

impl Use {
    fn write(&self, builder: &mut MessageBuilder, header: &NdMsg) {
        builder.append(header);
        match self.address {
            IpAddr::V4(address) => builder.append_attr(NdaAttr::Dst as u16, &address.octets()),
            IpAddr::V6(address) => builder.append_attr(NdaAttr::Dst as u16, &address.octets()),
        }
    }
}
