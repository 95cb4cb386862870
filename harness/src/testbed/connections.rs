//! What is left of TCP connections when a case is over.

use crate::sandbox::{Node, SandboxError};
use nlink::{Connection, netlink::SockDiag, sockdiag::SocketFilter};

/// Ends every TCP connection of a node (sock_diag(7), SOCK_DESTROY).
///
/// A connection that is closed while its other end cannot be reached stays for minutes, and with it the network namespace, its
/// links and its neighbours, which count against limits that all namespaces share (`net.ipv6.neigh.default.gc_thresh3`). A kernel
/// without SOCK_DESTROY keeps them for that long.
pub(super) async fn end(node: &Node) -> Result<(), SandboxError> {
    let ended = node.run(|| async {
        let connection = Connection::<SockDiag>::new()?;
        connection.destroy_matching(&SocketFilter::tcp().build_inet()).await
    });
    match ended.await? {
        // One that was over by itself is an error too.
        Ok(ended) => {
            tracing::debug!("{}: {} connections ended, {} not", node.name(), ended.destroyed, ended.errors.len())
        }
        Err(error) => tracing::warn!("{}: its connections outlive the case for a while: {error}", node.name()),
    }
    Ok(())
}
