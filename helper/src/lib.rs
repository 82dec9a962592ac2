//! netreeve's privileged helper, as a library so that tests and fuzz targets reach its parts; the program is `main.rs`.
//!
//! The story is [`serve`]: hello ([`caller`]), read, judge ([`policy`]), provide ([`provide`]), reply. Around it: the
//! doors ([`entry`], [`daemon`], [`bridge_helper`]), the files ([`policy_file`], [`bridge_conf`]), the confinement
//! ([`confine`], [`privilege`]) and the log ([`audit`]).
//!
//! Trust: root's policy and the kernel; nobody else. Promise: a descriptor leaves only after a judgement; a capability
//! is in force only around one operation; whenever the helper dies, nothing is left behind.
#![deny(unsafe_code)]

pub mod accounts;
pub mod audit;
pub mod bridge_conf;
pub mod bridge_helper;
pub mod caller;
pub mod confine;
pub mod daemon;
pub mod entry;
pub mod explain;
pub mod names;
mod netlink;
pub mod policy;
pub mod policy_file;
pub mod privilege;
pub mod provide;
pub mod serve;
mod sys;
mod syscalls;
