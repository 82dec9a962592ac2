//! netreeve's XDP program, compiled, and the names in it.
