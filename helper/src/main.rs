//! netreeve's privileged helper: picks its door and serves.
fn main() {}
