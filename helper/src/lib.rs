//! netreeve's privileged helper.
