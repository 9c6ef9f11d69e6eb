//! ZDS: our agent drives a proxy that is not ours, and our proxy is driven by an agent that is not ours.

mod background;
mod client;
mod driven;
mod proxy;
mod server;
mod serving;
