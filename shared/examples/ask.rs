//! Asks the helper for one tap and holds it until standard input ends: all that a Rust VMM needs to do.
//!
//! `ask /run/netreeve/helper.sock [BRIDGE]`, or `ask --exec /usr/libexec/netreeve/netreeve-helper [BRIDGE]`
#![allow(clippy::print_stdout, reason = "an example shows what it got")]

use std::error::Error;
use std::io::Read;

use netreeve_shared::client::Helper;
use netreeve_shared::request::{BridgeRequest, Request, TapRequest};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let first = words.next().ok_or("which socket?")?;
    let mut helper = match first.as_str() {
        "--exec" => Helper::exec(words.next().ok_or("which program?")?.as_ref())?,
        path => Helper::connect(path.as_ref())?,
    };
    let bridge = words.next().map(|name| name.parse()).transpose()?;
    let bridge = bridge.map(|name| BridgeRequest { name, create: false, isolated: false });
    let tap = TapRequest { name: None, persist: false, queues: 1, vnet_header: true, mtu: None, bridge };
    let (grant, fds) = helper.ask(&Request::Tap(tap))?;
    println!("{grant:?}\n{fds:?}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
