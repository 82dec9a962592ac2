//! A `user` network as a hub's member, as QEMU's users have it, with two guests in one network.

use std::process::Command;

use netreeve_tests::bins;
use netreeve_tests::proc::Proc;

use crate::support::{Dir, PATIENCE, Vm};

/// Who has 10.0.2.2? Tell 10.0.2.`host`, whose Ethernet address ends in that number.
fn question(host: u8) -> Vec<u8> {
    let mac = [2, 0, 0, 0, 0, host];
    let fixed: &[u8] = &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    let mut f = [&[0xff; 6], &mac[..], fixed, &mac, &[10, 0, 2, host], &[0; 6], &[10, 0, 2, 2]].concat();
    f.resize(60, 0);
    f
}

/// The next frame that is an answer to a question about an Ethernet address.
fn answer(vm: &mut Vm) -> Vec<u8> {
    loop {
        let f = vm.recv();
        if f[12..14] == [8, 6] && f[21] == 2 {
            return f;
        }
    }
}

#[test]
fn a_user_network_in_a_hub_serves_every_guest() {
    let dir = Dir::new();
    let mut command = Command::new(bins::ours("netreeve").unwrap());
    command.args(["run", "--json", "--netdev", "user,id=user0"]);
    command.args(["--netdev", "hubport,id=h0,hubid=0,netdev=user0,learning=on"]);
    for n in ["1", "2"] {
        command.arg("--netdev").arg(format!("hubport,id=h{n},hubid=0,learning=on"));
        let at = dir.at(n);
        command.arg("--device").arg(format!("stream,netdev=h{n},server=on,addr.type=unix,addr.path={at}"));
    }
    let mut proc = Proc::spawn("netreeve", command).unwrap();
    proc.wait_for("\"ready\"", PATIENCE).unwrap();
    let mut guests = ["1", "2"].map(|n| Vm::at(&dir.at(n)));
    for (vm, host) in guests.iter_mut().zip([15, 16]) {
        vm.send(&question(host));
        let said = answer(vm);
        // To this guest, from the network's gateway.
        assert_eq!(said[..6], [2, 0, 0, 0, 0, host]);
        assert_eq!(said[28..32], [10, 0, 2, 2]);
    }
    let end = proc.terminate(PATIENCE).unwrap();
    assert_eq!(end.code, 0, "{}", end.text);
}
