//! What is not allowed is refused, shortly to the caller and with rule and line to root; and what the processes may do is
//! what DESIGN says, by `/proc`'s own word.

use std::process::Command;

use crate::{DEVICE, house};
use netreeve_tests::bins::ours;
use netreeve_tests::guest::uml::Uml;
use netreeve_tests::inspect::look;
use netreeve_tests::scene::{BRIDGE, PATIENCE, Road, Scene, USER};

fn run_once(scene: &Scene) -> (i32, String) {
    let socket = scene.helper_socket();
    let netdev = scene.netdev("n0");
    let command = scene.netreeve(&[
        "run",
        "--helper-socket",
        socket.to_str().unwrap(),
        "--netdev",
        &netdev,
        "--device",
        DEVICE,
    ]);
    let outcome = scene.host.run("netreeve", command, PATIENCE).unwrap();
    (outcome.code, outcome.text)
}

#[test]
fn the_caller_learns_no_rule_and_root_does() {
    let policies = ["", "allow uid:1 bridge br0\n", "deny any bridge br*\nallow any bridge br0\n"];
    for policy in policies {
        let mut scene = Scene::set(Road::Bridge).unwrap();
        scene.help(policy).unwrap();
        let (code, said) = run_once(&scene);
        assert_eq!(code, 77, "{said}");
        assert!(said.contains("denied") && !said.contains("br*") && !said.contains(":1"), "{said}");
        let log = scene.helper().unwrap().text();
        assert!(log.contains(&USER.to_string()) && log.contains(BRIDGE), "{log}");
        if policy.starts_with("deny") {
            assert!(log.contains("line") || log.contains("policy.conf:1"), "{log}");
        }
        assert_eq!(scene.host.links().unwrap().len(), 2);
    }
}

#[test]
fn without_a_helper_the_message_says_what_to_do() {
    let scene = Scene::set(Road::Bridge).unwrap();
    let (code, said) = run_once(&scene);
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("helper.sock"), "{said}");
}

#[test]
fn more_than_there_are_descriptors_is_refused_before_anything_is_opened() {
    let path = std::env::temp_dir().join(format!("netreeve-refused-{}", std::process::id()));
    let device = format!("stream,netdev=n0,server=on,addr.type=unix,addr.path={}", path.display());
    let run = |options: &str| {
        let netdev = format!("user,id=n0{options}");
        let words = ["run", "--netdev", &netdev, "--device", &device];
        let shell = ["-c", "ulimit -n 2048; exec \"$@\"", "sh"];
        let command = Command::new("sh").args(shell).arg(ours("netreeve").unwrap()).args(words).output();
        let out = command.unwrap();
        assert!(out.status.code() == Some(69) && !path.exists(), "{out:?}");
        String::from_utf8(out.stderr).unwrap()
    };
    let said = run(",flows=4000:200");
    let why = "port 'n0': flows=4000:200 take 5032 descriptors, and nothing here may have more than 2048 descriptors";
    assert!(said.contains(why) && said.contains("\n  to do: give flows="), "{said}");
    let said = run(",hostfwd=tcp+try:127.77.9.1:1-1500-:1,hostfwd=udp+try:127.77.9.1:1-1500-:1");
    assert!(said.contains("listen at 3000 ports") && said.contains("(ulimit -Hn 3512)"), "{said}");
}

#[test]
fn nobody_holds_more_than_he_needs() {
    for road in [Road::AfXdp, Road::Bridge] {
        let house = house(road, DEVICE, 1500);
        let guest = Uml::new().nic(&house.scene.path("vm.sock")).boot().unwrap();
        let beside = house.scene.helper().unwrap().pid();
        let helper = look(beside, beside).unwrap();
        assert_eq!(
            (helper.caps.effective, helper.caps.inheritable, helper.caps.ambient),
            (0, 0, 0),
            "{helper:?}"
        );
        // NET_BIND_SERVICE, NET_ADMIN, NET_RAW, IPC_LOCK, BPF and nothing else.
        assert_eq!(
            helper.caps.permitted & !(1 << 10 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 39),
            0,
            "{helper:?}"
        );
        assert!(helper.no_new_privs && helper.seccomp == 2, "{helper:?}");
        let supervisor = look(house.reeve.proc.pid(), beside).unwrap();
        assert_eq!((supervisor.uid, supervisor.caps.permitted), (USER, 0), "{supervisor:?}");
        let dataplane = look(house.reeve.dataplane().unwrap(), beside).unwrap();
        let caps = dataplane.caps;
        assert_eq!(
            (caps.effective, caps.permitted, caps.inheritable, caps.ambient, caps.bounding),
            (0, 0, 0, 0, 0)
        );
        assert!(dataplane.no_new_privs && dataplane.seccomp == 2, "{dataplane:?}");
        assert_ne!(dataplane.uid, 0);
        // No pid: dataplane/src/sandbox says why.
        for kind in ["user", "mnt", "net", "ipc", "uts"] {
            assert!(
                dataplane.apart.iter().any(|k| k == kind),
                "the dataplane shares our {kind}: {dataplane:?}"
            );
        }
        guest.power_off().unwrap();
        house.end();
    }
}
