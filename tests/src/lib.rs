//! netreeve's proofs: namespaces, guests and peers as a library, used by the real-tier tests, by the demo and by the bench.
//!
//! It trusts the machine it runs on (root, Debian's tools) and nothing about netreeve itself: what the product says of
//! itself is compared with what the kernel and foreign programs say. Everything it makes is tied to a value whose drop
//! takes it away, and namespaces are held by descriptors only, so that even a killed test leaves no interface behind.
#![deny(unsafe_code)]

pub mod bench;
pub mod bins;
pub mod echo;
pub mod guest;
pub mod inspect;
pub mod leftovers;
pub mod netns;
pub mod over;
pub mod peers;
pub mod proc;
pub mod scene;
#[allow(
    unsafe_code,
    reason = "the one folder with raw AF_XDP, bpf(2) and shared memory, for the benches' raw limits"
)]
pub mod sys;
pub mod transfer;
pub mod trouble;

pub use trouble::{Because, Done, Trouble, trouble};
