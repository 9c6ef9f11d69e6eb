//! Build, test, demo and bench commands of redirect.
fn main() {}
