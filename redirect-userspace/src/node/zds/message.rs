//! The messages as they are on the wire: package `istio.workload.zds`, with the numbers of its fields.

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Version {
    NotUsed = 0,
    V1 = 1,
}

/// A proxy's first packet.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ZdsHello {
    #[prost(enumeration = "Version", tag = "1")]
    pub version: i32,
}

/// From the agent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadRequest {
    #[prost(oneof = "Payload", tags = "1, 2, 3, 5")]
    pub payload: Option<Payload>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Payload {
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

/// The only one with a descriptor beside it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AddWorkload {
    #[prost(string, tag = "1")]
    pub uid: String,
    #[prost(message, optional, tag = "2")]
    pub workload_info: Option<WorkloadInfo>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub service_account: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DelWorkload {
    /// Unlike in the other messages, number 2.
    #[prost(string, tag = "2")]
    pub uid: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SnapshotSent {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct KeepWorkload {
    #[prost(string, tag = "1")]
    pub uid: String,
}

/// From the proxy, to each request.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadResponse {
    #[prost(oneof = "Answer", tags = "1")]
    pub payload: Option<Answer>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Answer {
    #[prost(message, tag = "1")]
    Ack(Ack),
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ack {
    /// Empty: it is done.
    #[prost(string, tag = "1")]
    pub error: String,
}
