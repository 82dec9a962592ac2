//! The peer of a port that has none: nothing comes from it and nothing goes to it.
//!
//! Trust: there is nobody. Promise: it is down for ever, so whoever is on the other end of the lane is told so, is served
//! (a VMM attaches, a client connects), and what it gives is dropped and counted as its own.
#![forbid(unsafe_code)]

use std::io;

use crate::frame::Batch;
use crate::port::{Port, Traits, Watch};
use crate::stats::Stats;

/// Nobody.
#[derive(Debug, Default)]
pub struct Absent(Stats);

impl Port for Absent {
    fn traits(&self) -> Traits {
        Traits { up: false, ..Traits::default() }
    }

    fn watch(&self, _: &mut Watch) {}

    fn recv(&mut self, _: &mut Batch) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        Ok(b.len())
    }

    fn stats(&self) -> Stats {
        self.0
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.0
    }
}
