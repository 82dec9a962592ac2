//! A DHCPv6 client that is nobody's test program (ISC's), in a namespace on our pasta.

use super::Tree;
use crate::user::scene;
use netreeve_tests::leftovers::Ground;
use std::time::Duration;

/// Asks once the interface may speak, for as long as an answer may take.
fn asked(tree: &Tree<'_>, more: &str) -> String {
    let script = "ip link set t0 up
                  until ip -6 addr show dev t0 | grep fe80: | grep -qv tentative; do sleep 0.1; done
                  timeout 8 dhclient -6 -1 -v -lf /tmp/leases6 -pf /tmp/pid6 t0 2>&1 || true
                  ip -6 -o addr show dev t0 scope global; kill $(cat /tmp/pid6) || true; rm -f /tmp/leases6";
    tree.ok(&format!("pasta -a 2001:db8:7::20 -I t0 {more} -- sh -c '{script}'"))
}

#[test]
#[ignore = "it needs a Debian 13 beside the system: `make fronts` runs it"]
fn a_client_is_lent_the_address_that_was_given() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let tree = Tree::enter(&scene);
    let said = asked(&tree, "");
    assert!(said.contains("Bound to lease") && said.contains(" 2001:db8:7::20/"), "{said}");
    let said = asked(&tree, "--no-dhcpv6");
    assert!(said.contains("Solicit on t0"), "{said}");
    assert!(!said.contains("Bound to lease") && !said.contains(" 2001:db8:7::20/"), "{said}");
    tree.is_left();
    drop(tree);
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
}
