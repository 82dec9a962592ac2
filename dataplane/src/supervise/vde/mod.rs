//! VDE's protocol, version 3, at both of its ends: a plug in somebody's switch, and a switch that others plug into.
//!
//! Room by room: [`words`] (what is said), [`plug`] (our place in a switch), [`home`] (a switch's directory and its
//! sockets), [`switch`] (who asks for a port of ours, and is given one), `clients` (their ports in the dataplane).
//!
//! The switch listens at `DIR/ctl`. Whoever wants a port of it connects there, binds a datagram socket, and says in one
//! message where that is and which port it wants; the switch answers with the address of the port's own datagram socket.
//! One datagram is one frame. The connection stays open and silent: its end is the end of the port, on either side.
//!
//! The supervisor keeps connection and data socket: a dataplane gets a copy of the latter, and its successor the same.
#![forbid(unsafe_code)]

mod clients;
pub mod home;
pub mod plug;
pub mod switch;
pub mod words;

pub use plug::{Plug, Step, open};
pub use switch::{Client, Switch};
