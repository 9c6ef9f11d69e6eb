//! ZDS, the protocol between Istio's node agent and ztunnel: which pods a proxy is to carry, each with its network namespace as
//! a descriptor. Both sides of it: [`server`] drives a proxy that is not ours, [`client`] lets another agent drive ours.
//!
//! One packet of a `SOCK_SEQPACKET` socket is one protobuf message. The proxy says hello, the agent sends all pods, says that
//! these were all, and goes on with what changes; each request waits for its answer, for nothing in an answer says what it is to.

pub mod client;
mod convert;
mod message;
mod packet;
pub mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

/// For how long Istio's agent waits for an answer, and takes the next one for it afterwards.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What a proxy is told of a pod, beside its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
}
