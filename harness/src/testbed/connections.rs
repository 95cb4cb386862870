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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::ErrorKind, net::Ipv4Addr, time::Duration};
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    #[tokio::test]
    async fn a_connection_that_is_open_at_both_ends_is_over() {
        let node = match Node::new("alone").await {
            Ok(node) => node,
            Err(error) if std::env::var_os("WATERTIGHT_REQUIRE_PRIVILEGES").is_some_and(|value| value == "1") => {
                panic!("{error}")
            }
            Err(error) => return println!("skipped: {error}"),
        };
        let opened = node.run(|| async {
            let route = Connection::<nlink::Route>::new()?;
            route.set_link_up("lo").await?;
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
            Ok::<_, nlink::Error>((near?, far?.0))
        });
        let (mut near, far) = opened.await.expect("the node runs").expect("a connection");

        end(&node).await.expect("the node runs");

        let read = node.run(|| async move { timeout(Duration::from_secs(5), near.read_u8()).await }).await;
        let outcome = read.expect("the node runs").expect("nothing is told while the connection is open");
        // By the kernel, or by the other end, if that was ended first.
        let how = outcome.expect_err("nobody sent anything").kind();
        assert!(matches!(how, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset), "{how}");
        drop(far);
    }
}
