//! Benches: netreeve beside its raw limits and beside DPDK, in one run, with ratios.

pub mod case;
pub mod driver;
pub mod host;
pub mod load;
pub mod micro;
pub mod peer;
pub mod report;
pub mod runner;
pub mod tap;
pub mod tcp;
pub mod vring;
pub mod xdp;
pub mod xsk;
