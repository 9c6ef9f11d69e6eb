//! What the test shows, in the order of a user who installs redirect, uses it, and removes it.

pub mod plain;
