//! Makes one datagram one frame. Without this a veth passes on what segmentation offload leaves together: 32 datagrams
//! of one send are one frame everywhere, with one checksum that nobody has computed yet.

use nlink::netlink::{Connection, Ethtool};

use super::error::{Error, NEEDS_NET_ADMIN};

/// Turns off everything on one end of a veth that merges, splits or leaves checksums to a device that does not exist:
/// segmentation (GSO, TSO, UDP), receive merging (GRO) and checksum offload. Reads the features back and fails if one
/// stayed on. To be called for both ends, in the namespace of each, in a tokio runtime of that thread.
pub async fn quiet_veth(interface: &str) -> Result<(), Error> {
    let failed = |action| {
        move |cause| Error::Netlink {
            action,
            interface: interface.to_owned(),
            cause: Box::new(cause),
            advice: NEEDS_NET_ADMIN,
        }
    };
    let connection = Connection::<Ethtool>::new_async().await.map_err(failed("ask for offloads"))?;
    let features = connection.get_features_by_name(interface).await.map_err(failed("read the offloads"))?;
    let unwanted: Vec<String> = features
        .active_features()
        .into_iter()
        .filter(|feature| is_offload(feature) && features.is_changeable(feature))
        .map(str::to_owned)
        .collect();
    connection
        .set_features_by_name(interface, |change| unwanted.iter().fold(change, |change, name| change.disable(name)))
        .await
        .map_err(failed("turn off the offloads"))?;

    let features = connection.get_features_by_name(interface).await.map_err(failed("read back the offloads"))?;
    let stuck: Vec<&str> = features.active_features().into_iter().filter(|feature| is_offload(feature)).collect();
    if stuck.is_empty() {
        Ok(())
    } else {
        Err(Error::OffloadStuck { interface: interface.to_owned(), features: stuck.join(", ") })
    }
}

/// Whether the ethtool feature of this name changes how many frames there are or what is in them.
fn is_offload(feature: &str) -> bool {
    (feature.starts_with("tx-") && feature.contains("segmentation"))
        || feature.starts_with("tx-gso")
        || feature.starts_with("tx-checksum")
        || feature.starts_with("rx-gro")
        || feature == "rx-lro"
        || feature == "rx-udp-gro-forwarding"
}
