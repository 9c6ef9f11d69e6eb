//! Carries captured connections: routes are decided here, bytes copied.

pub mod authority;
pub mod ports;
pub mod route;
