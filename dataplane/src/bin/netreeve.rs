//! The `netreeve` program.
fn main() {}
