//! What the test shows, in the order of a user who installs redirect, uses it, and removes it.

pub mod capture;
pub mod install;
pub mod lifecycle;
pub mod plain;
pub mod removal;
