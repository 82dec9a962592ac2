//! The XDP program: loaded for one grant, its sockets inserted, attached by a `bpf_link` in a mode that we name.
//!
//! Trust: the object is our own (crate `bpf`); what it is told comes from a checked request. Promise: the program's and
//! the maps' descriptors never leave this process; the link's does, and the program stays attached exactly as long as
//! a copy of that lives.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder};
use netreeve_bpf as bpf;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::{Steer, XdpMode};
use nix::errno::Errno;

use super::xsk::Sockets;
use super::{At, failed};
use crate::sys;

// linux/if_link.h
const SKB_MODE: u32 = 1 << 1;
const DRV_MODE: u32 = 1 << 2;

/// A loaded program with its maps.
pub(crate) struct Program {
    object: Object,
}

impl Program {
    /// Loads the program and tells it which frames are the guest's. Needs `privilege::PROGRAM`.
    pub(crate) fn load(held: &Sockets) -> Result<Self, Refusal> {
        // libbpf prints to stderr by default; our log has one line a decision, and the errno says why.
        libbpf_rs::set_print(None);
        let mut object =
            ObjectBuilder::default().open_memory(bpf::object()).map_err(refused(Step::LoadProgram))?;
        let first_queue = held.request.start_queue.into();
        let (config, macs): (_, &[_]) = match held.request.steer {
            Steer::All => (bpf::Config { first_queue, all: true, broadcast: false, multicast: false }, &[]),
            Steer::Macs { ref macs, broadcast, multicast } => {
                (bpf::Config { first_queue, all: false, broadcast, multicast }, macs)
            }
        };
        for mut map in object.maps_mut() {
            let told = match map.name().to_str() {
                Some(bpf::CONFIG) => map.set_initial_value(&config.to_bytes()),
                Some(bpf::SOCKETS) => map.set_max_entries(held.request.queues.into()),
                _ => Ok(()),
            };
            told.map_err(refused(Step::LoadProgram))?;
        }
        let chosen = if held.frags { bpf::REDIRECT_FRAGS } else { bpf::REDIRECT };
        for mut program in object.progs_mut() {
            let wanted = program.name() == chosen;
            program.set_autoload(wanted);
        }
        let program = Self { object: object.load().map_err(refused(Step::LoadProgram))? };
        for mac in macs {
            let [a, b, c, d, e, g] = mac.0;
            program.update(bpf::STATIONS, &[a, b, c, d, e, g, 0, 0], &[1]).at(Step::LoadProgram)?;
        }
        Ok(program)
    }

    /// Gives the frames of the `slot`th queue to `socket`.
    pub(crate) fn insert(&self, slot: u32, socket: BorrowedFd<'_>) -> nix::Result<()> {
        self.update(bpf::SOCKETS, &slot.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes())
    }

    /// Attaches the program. No mode: in the driver, or else in the stack (QEMU's rule), unless somebody else's program
    /// is in the way. What was judged is a name: the interface must still have it.
    pub(crate) fn attach(&self, held: &Sockets) -> Result<(OwnedFd, XdpMode), Refusal> {
        if super::xsk::find(held.request.interface)?.index != held.ifindex {
            return Err(failed(Step::FindInterface, Errno::EXDEV));
        }
        let named = held.request.mode;
        match self.attach_in(held.ifindex, named.unwrap_or(XdpMode::Native)) {
            Err(Refusal::Failed { .. }) if named.is_none() => self.attach_in(held.ifindex, XdpMode::Skb),
            answer => answer,
        }
    }

    fn attach_in(&self, ifindex: u32, mode: XdpMode) -> Result<(OwnedFd, XdpMode), Refusal> {
        let program = self.object.progs().find(libbpf_rs::Program::autoload);
        let program = program.ok_or(failed(Step::Attach, Errno::ENOENT))?;
        let flags = if mode == XdpMode::Native { DRV_MODE } else { SKB_MODE };
        match sys::xdp_link(program.as_fd(), ifindex, flags) {
            Err(Errno::EBUSY | Errno::EEXIST) => Err(Refusal::Busy),
            answer => Ok((answer.at(Step::Attach)?, mode)),
        }
    }

    fn update(&self, map: &str, key: &[u8], value: &[u8]) -> nix::Result<()> {
        let map = self.object.maps().find(|m| m.name() == map).ok_or(Errno::ENOENT)?;
        map.update(key, value, MapFlags::ANY).map_err(|_| Errno::last())
    }
}

/// libbpf leaves the kernel's error in errno; libbpf-rs hands out only a rough kind of it.
fn refused(step: Step) -> impl Fn(libbpf_rs::Error) -> Refusal {
    move |_| failed(step, Errno::last())
}
