//! netreeve's vhost-user port alone, without a wire: it drops what the guest sends, or gives the guest frames that it makes.
//! What DPDK's testpmd does with one `net_vhost` in its modes rxonly and txonly.
//!
//! The loop is the benches' own; what is measured in it is the product's port, unchanged, outside of the sandbox.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use netreeve_dataplane::frame::{Batch, MIN_FRAME};
use netreeve_dataplane::port::{Interest, Port, Watch, vhost_user};

use crate::{Because, Done, sys, trouble};

/// Turns between two looks at the front end's messages.
const TURNS: u32 = 1024;
/// Frames made in a turn: testpmd's burst here.
const BURST: usize = 64;

/// Serves front ends on `listener` until `stop`.
///
/// # Errors
/// The port died.
pub fn serve(listener: UnixListener, makes: Option<&[u8]>, stop: &AtomicBool) -> Done {
    let plan = vhost_user::Plan { queues: 1, server: true, mac: None, mtu: None, hide: 0 };
    let mut queues = vhost_user::open(&plan, vec![listener.into()]).because("the vhost-user port")?;
    let port = queues.first_mut().because("a port has a queue")?;
    let (mut b, mut turns) = (Batch::new(), 0_u32);
    while !stop.load(Ordering::Relaxed) {
        if !port.traits().up || turns.is_multiple_of(TURNS) {
            listen(port.as_mut())?;
        }
        turns = turns.wrapping_add(1);
        b.clear();
        match makes {
            None => {
                port.recv(&mut b).because("receive")?;
                let n = b.len();
                port.release(&b, n);
            }
            Some(frame) => {
                fill(&mut b, frame)?;
                port.send(&b).because("send")?;
            }
        }
    }
    Ok(())
}

/// A batch of copies of a frame that fits into a head.
fn fill(b: &mut Batch, frame: &[u8]) -> Done {
    let len = u32::try_from(frame.len()).ok().filter(|n| *n >= MIN_FRAME);
    let len = len.because("a frame's length")?;
    for _ in 0..BURST.min(b.room()) {
        let Some(f) = b.push() else { break };
        f.set_head(frame);
        f.len = len;
        if f.head().len() != frame.len() {
            return Err(trouble("this frame is longer than a head"));
        }
    }
    Ok(())
}

/// Tells the port of its descriptors that are ready.
fn listen(port: &mut dyn Port) -> Done {
    let mut watch = Watch::default();
    port.watch(&mut watch);
    for &(fd, why) in watch.fds() {
        if sys::is_ready(fd, why == Interest::Takes) {
            port.event(fd, why).because("the port's event")?;
        }
        if why == Interest::Control && !port.traits().up {
            // Its descriptors may be others now.
            break;
        }
    }
    Ok(())
}
