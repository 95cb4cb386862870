//! The second witness: an nftables rule that counts what arrives on an interface, before anything else looks at it.
//! It keeps no frames and changes none.

use std::fmt;

use nlink::{
    Connection, Nftables,
    netlink::nftables::{
        BaseChain, Chain, Expr, Family, FilterHook, Object, ObjectState, PayloadBase, Policy, Priority, Register, Rule,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    error::{Error, NEEDS_NET_ADMIN},
    frame::LinkType,
    socket::{hardware, interface_index, packet_socket},
};

/// Name of the table, of family netdev, in the far end's namespace.
const TABLE: &str = "watertight_witness";

/// What the counter has counted since it was installed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witnessed {
    /// Frames.
    pub packets: u64,
    /// Bytes from the network header on: without the Ethernet header.
    pub bytes: u64,
}

/// A counter on the ingress hook of one interface. It lives as long as the namespace.
pub struct WitnessCounter {
    connection: Connection<Nftables>,
    interface: String,
    counter: String,
}

impl WitnessCounter {
    /// Installs the counter in the calling thread's network namespace. Do it before the near end of the link comes up,
    /// so that it counts from the first frame on. Must be called in a tokio runtime of that thread.
    pub async fn install(interface: &str) -> Result<Self, Error> {
        // Names of interfaces hold characters that names of chains may not.
        let chain = format!("ingress_{}", interface_index(interface)?);
        let failed = |cause| netlink_error("install the witness counter", interface, cause);
        let connection = Connection::<Nftables>::new().map_err(failed)?;
        // Nothing can come earlier than the lowest priority there is.
        let base = BaseChain::filter(FilterHook::ingress(interface), Priority::Custom(i32::MIN)).policy(Policy::Accept);
        let mut transaction = connection.transaction();
        // Counters of several interfaces share the table.
        if !connection.list_tables_in(Family::Netdev).await.map_err(failed)?.iter().any(|table| table.name == TABLE) {
            transaction = transaction.add_table(TABLE, Family::Netdev);
        }
        transaction = transaction
            .add_object(&Object::counter(TABLE, &chain).family(Family::Netdev))
            .add_chain(Chain::new(TABLE, chain.as_str()).map_err(failed)?.family(Family::Netdev).base(base));
        // Broadcast and multicast that this machine itself sends on the link is looped back through the hook, without
        // a link-layer header; it never was on the wire. Loading a byte of that header ends the rule for it.
        let mut rule = Rule::new(TABLE, &chain).family(Family::Netdev);
        if is_ethernet(interface)? {
            rule = rule.expr(Expr::Payload { dreg: Register::R0, base: PayloadBase::LinkLayer, offset: 12, len: 2 });
        }
        transaction = transaction.add_rule(rule.counter_named(&chain));
        transaction.commit(&connection).await.map_err(failed)?;
        Ok(Self { connection, interface: interface.to_owned(), counter: chain })
    }

    /// Reads the counter. Fails if somebody has removed it.
    pub async fn read(&self) -> Result<Witnessed, Error> {
        let objects = self
            .connection
            .list_objects_in(TABLE, Family::Netdev)
            .await
            .map_err(|cause| netlink_error("read the witness counter", &self.interface, cause))?;
        let state = objects.into_iter().find(|object| object.name == self.counter).map(|object| object.state);
        match state {
            Some(ObjectState::Counter { packets, bytes, .. }) => Ok(Witnessed { packets, bytes }),
            _ => Err(Error::CounterGone {
                interface: self.interface.clone(),
                table: TABLE,
                counter: self.counter.clone(),
            }),
        }
    }
}

fn is_ethernet(interface: &str) -> Result<bool, Error> {
    let hardware = hardware(&packet_socket(interface)?, interface)?;
    Ok(LinkType::of_hardware(hardware.hardware_type) == Some(LinkType::Ethernet))
}

impl fmt::Debug for WitnessCounter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WitnessCounter")
            .field("interface", &self.interface)
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

fn netlink_error(action: &'static str, interface: &str, cause: nlink::Error) -> Error {
    Error::Netlink { action, interface: interface.to_owned(), cause: Box::new(cause), advice: NEEDS_NET_ADMIN }
}
