//! The testbed: client, router, internet and relay, each a network namespace, joined by veth, with no path to the host's
//! network. [`plan`] has the addresses, [`Topology`] the links, [`FarSide`] the servers.

mod configure;
mod connections;
mod far_side;
pub mod plan;
mod topology;

pub use far_side::{FarSide, FarSideError};
pub use topology::{Link, Topology, TopologyError};
