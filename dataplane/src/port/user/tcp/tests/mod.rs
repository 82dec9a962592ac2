//! The room without sockets: scenes by hand, and bytes in = bytes out under anything that may happen.

mod cases;
mod endings;
mod flood;
mod late;
mod later;
mod model;
mod random;
mod scene;
mod store;
