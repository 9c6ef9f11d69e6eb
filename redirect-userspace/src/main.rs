//! The `redirect` command: the node daemon and its tools.
fn main() {}
