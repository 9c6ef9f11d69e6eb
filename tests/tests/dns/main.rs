//! DNS of captured pods: who answers what, and what the app sees of it.

mod fixture;
mod forwarded;
mod lifecycle;
mod netfilter;
mod of_the_mesh;
mod sockets;
