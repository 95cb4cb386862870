//! The client's system bus, for whoever looks at the services on it or tells them something. To be used inside the client.

use super::service::READY;
use futures::StreamExt;
use zbus::{
    Connection,
    fdo::DBusProxy,
    proxy::{CacheProperties, Proxy},
};

/// Where programs in the client find it.
const BUS_ADDRESS: &str = "unix:path=/run/dbus/system_bus_socket";

/// A connection to it.
pub(crate) async fn connect() -> zbus::Result<Connection> {
    zbus::connection::Builder::address(BUS_ADDRESS).method_timeout(READY).build().await
}

/// Returns when somebody owns the name.
pub(super) async fn wait_for_name(bus: &Connection, name: &'static str) -> zbus::Result<()> {
    let proxy = DBusProxy::new(bus).await?;
    let mut changes = proxy.receive_name_owner_changed_with_args(&[(0, name)]).await?;
    while !proxy.name_has_owner(name.try_into()?).await? {
        changes.next().await;
    }
    Ok(())
}

/// One interface of one object of a service, whose properties are asked for each time.
pub(super) async fn proxy<'a>(
    bus: &Connection,
    service: &'static str,
    path: &'a str,
    interface: &'a str,
) -> zbus::Result<Proxy<'a>> {
    zbus::proxy::Builder::new(bus)
        .destination(service)
        .path(path.to_owned())
        .interface(interface)
        .cache_properties(CacheProperties::No)
        .build()
        .await
}
