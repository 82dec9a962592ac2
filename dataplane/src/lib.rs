//! netreeve's unprivileged part: the supervisor with its command line, and the sandboxed dataplane.
//!
//! The dataplane owns no name and no path, only descriptors that it was handed. Its modules point one way:
//! `worker → lane → {filter, offload} → port/* → virtq → frame → mem → sys`.
#![deny(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "the figures of tests are small and chosen"
    )
)]

pub mod cli;
pub mod engine;
pub mod fault;
pub mod filter;
pub mod frame;
pub mod handover;
pub mod landing;
pub mod lane;
#[allow(unsafe_code, reason = "memory that others change: the design's one place for it")]
pub mod mem;
pub mod offload;
pub mod port;
pub mod sandbox;
pub mod spec;
pub mod stage;
pub mod stats;
pub mod supervise;
#[allow(unsafe_code, reason = "system calls without a safe wrapper: the design's one place for them")]
pub mod sys;
pub mod virtq;
pub mod worker;
