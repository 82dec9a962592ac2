//! Every kind of request through the real program, locked in by its own Landlock rules and system call filter: a call
//! that the work needs and the filter does not know would kill it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use netreeve_shared::client::{AskError, Helper};
use netreeve_shared::grant::Grant;
use netreeve_shared::refusal::Refusal;
use netreeve_shared::request::{BridgeRequest, Request, TapRequest, XdpMode, XskRequest};

use crate::support::*;
use crate::xsk::{detaches, request};

const POLICY: &str = "allow any tap * max=99 queues=16 mtu=65521 named=yes persist=yes\n\
                      allow any bridge * max=99 queues=16 mtu=65521\n\
                      allow any bridge br9 create=yes\n\
                      allow any xsk * queues=8 queue=0-63 umem=64M\nallow any xsk-pinned * queues=8 queue=0-63\n\
                      limit any requests=1000/s sessions=9 taps=99 umem=64M\n";

struct Service {
    child: Child,
    directory: PathBuf,
}

impl Service {
    fn start(tag: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("nt-provide-{tag}-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let (socket, policy) = (directory.join("sock"), directory.join("policy"));
        std::fs::write(&policy, POLICY).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_netreeve-helper"));
        command.arg("--listen").arg(&socket).arg("--policy").arg(&policy).stderr(Stdio::inherit());
        Self { child: command.spawn().unwrap(), directory }
    }

    fn connect(&self) -> Helper {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match Helper::connect(&self.directory.join("sock")) {
                Ok(helper) => return helper,
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
                Err(why) => panic!("{why}"),
            }
        }
    }

    fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn ask(helper: &mut Helper, request: &Request) -> (Grant, Vec<OwnedFd>) {
    helper.ask(request).unwrap_or_else(|why| panic!("{request:?}: {why:?}"))
}

#[test]
fn every_request_is_served_by_a_helper_that_is_locked_in() {
    namespace();
    for pair in
        ["v0 type veth peer name v1", "w0 mtu 9000 type veth peer name w1 mtu 9000", "br0 type bridge"]
    {
        ip(&format!("link add {pair}"));
    }
    let mut service = Service::start("every");
    let mut helper = service.connect();
    let bridge = |text, create| BridgeRequest { name: name(text), create, isolated: false };
    let taps = [
        tap_request(),
        TapRequest { queues: 16, mtu: Some(9000), ..tap_request() },
        TapRequest { bridge: Some(bridge("br0", false)), ..tap_request() },
        TapRequest { bridge: Some(bridge("br9", true)), ..tap_request() },
        TapRequest { name: Some(name("keep")), persist: true, vnet_header: false, ..tap_request() },
    ];
    let kept: Vec<_> = taps.into_iter().map(|t| ask(&mut helper, &Request::Tap(t))).collect();
    for (interface, mode) in
        [("v0", None), ("v0", Some(XdpMode::Skb)), ("w0", Some(XdpMode::Native)), ("w0", None)]
    {
        let asked = XskRequest { interface: name(interface), mode, ..request() };
        let (grant, fds) = ask(&mut helper, &Request::Xsk(asked));
        let Grant::Xsk(grant) = grant else { panic!("{grant:?}") };
        let live = ask(&mut helper, &Request::Activate(grant.ticket));
        drop((fds, live));
        assert!(detaches(interface));
    }
    let pinned = ask(&mut helper, &Request::XskPinned(request()));
    // Refusals of the kernel, found and undone in the same confinement.
    for asked in [
        Request::Tap(TapRequest { name: Some(name("br0")), ..tap_request() }),
        Request::Tap(TapRequest { bridge: Some(bridge("none", false)), ..tap_request() }),
        Request::Xsk(XskRequest { interface: name("lo"), ..request() }),
        Request::Xsk(XskRequest { start_queue: 60, ..request() }),
        Request::Activate(99),
    ] {
        let refused = helper.ask(&asked).unwrap_err();
        assert!(
            matches!(refused, AskError::Refused(why) if why != Refusal::Denied),
            "{asked:?}: {refused:?}"
        );
    }
    assert!(service.alive());
    drop(helper);
    assert!(detaches("v0"), "a pinned grant ends with its session");
    drop((kept, pinned));
    ip("link del keep");
    ip("link del br9");
    only(&["br0", "v0", "v1", "w0", "w1"]);
    assert!(service.alive());
}
