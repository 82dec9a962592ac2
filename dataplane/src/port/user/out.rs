//! Small frames that wait for the guest: answers, acknowledgements, errors.
//!
//! Trust: none needed. Promise: bounded in frames and bytes; what does not fit is a counted drop, as on any link that is
//! full; memory of frames that went is used again.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use netreeve_shared::vnet::Vnet;

use super::bay::Bay;
use super::build;
use super::net::Net;
use crate::frame::Batch;
use crate::stats::{Reason, Stats};

/// Most frames that wait.
const FRAMES: usize = 1024;
/// Most bytes that wait.
const BYTES: usize = 1 << 20;
/// Buffers that are kept to be used again.
const KEPT: usize = 64;

/// The queue.
#[derive(Debug, Default)]
pub struct Out {
    waiting: VecDeque<(Vnet, Vec<u8>)>,
    bytes: usize,
    free: Vec<Vec<u8>>,
}

impl Out {
    /// Appends a frame given in parts. False: there is no room.
    pub fn push(&mut self, vnet: Vnet, parts: &[&[u8]]) -> bool {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        if self.waiting.len() >= FRAMES || self.bytes + len > BYTES {
            return false;
        }
        let mut frame = self.free.pop().unwrap_or_default();
        frame.clear();
        parts.iter().for_each(|p| frame.extend_from_slice(p));
        self.bytes += len;
        self.waiting.push_back((vnet, frame));
        true
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Frames that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Gives what there is room for. A frame whose guest is unknown becomes the question who that is; the frame is lost,
    /// and whoever wants it to arrive sends it again.
    pub(super) fn give(&mut self, bay: &mut Bay, b: &mut Batch, net: &Net, stats: &mut Stats) {
        while let Some((vnet, frame)) = self.waiting.front() {
            let unknown = frame.get(..6).is_some_and(|to| to == [0; 6]);
            let question = if unknown { build::question(net, frame) } else { None };
            let put = match &question {
                Some(question) => bay.place(b, stats, Vnet::default(), question),
                None => bay.place(b, stats, *vnet, frame),
            };
            if !put {
                return;
            }
            if unknown {
                stats.drop(Reason::Unreachable);
            }
            if let Some((_, frame)) = self.waiting.pop_front() {
                self.bytes -= frame.len();
                if self.free.len() < KEPT && frame.capacity() <= 4096 {
                    self.free.push(frame);
                }
            }
        }
    }
}
