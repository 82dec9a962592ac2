//! The `netreeve-dataplane` program.
fn main() {}
