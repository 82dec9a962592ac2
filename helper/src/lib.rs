//! netreeve's privileged helper.

mod netlink;
pub mod privilege;
pub mod provide;
mod sys;
