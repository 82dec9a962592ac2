//! Benches: netreeve beside its raw limits and beside others, in one run, with ratios.
//!
//! `row` says what is measured; `runner`, `tcp`, `trip`, `idle` and `scale` measure it; `figures`, `report` and `plot` say
//! what came of it. The rest is tools: the machine (`host`), peers (`peer`), drivers and generators.

pub mod alone;
pub mod case;
pub mod datagram;
pub mod driver;
pub mod driver_tcp;
pub mod figures;
pub mod forward;
pub mod host;
pub mod idle;
pub mod load;
pub mod micro;
pub mod peer;
pub mod plot;
pub mod pump;
pub mod report;
pub mod rings;
pub mod row;
pub mod runner;
pub mod scale;
pub mod socket_load;
pub mod stand;
pub mod stream_stand;
pub mod tap;
pub mod tcp;
pub mod trip;
pub mod user;
pub mod user_driven;
pub mod user_load;
pub mod user_peer;
pub mod vring;
pub mod xdp;
pub mod xsk;
