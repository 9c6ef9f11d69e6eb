//! The proxy of captured pods.
pub mod route;
