//! What netreeve's privileged helper and its clients say to each other.
//!
//! One message is one [`request::Request`] and is answered by one [`grant::Grant`], whose descriptors travel
//! in the same message, or by one [`refusal::Refusal`]. The transport is `AF_UNIX SOCK_SEQPACKET` ([`channel`]);
//! the bytes are made and read by [`codec`] alone; [`client`] is the whole asking side in one type.
//!
//! Trust: either end takes the other for hostile. Everything read is bounded before it is decoded, and
//! [`fdkind`] asks the kernel what a descriptor is before anybody relies on its label.
//! Promise: no path, no free text and no script travels here; names are [`ifname::IfName`], the rest is numbers
//! and enums.
#![deny(unsafe_code)]

pub mod channel;
pub mod client;
pub mod codec;
pub mod fdkind;
pub mod grant;
pub mod ifname;
pub mod kernel;
pub mod l2tp;
pub mod mac;
pub mod prefix;
pub mod refusal;
pub mod request;
pub mod vnet;
