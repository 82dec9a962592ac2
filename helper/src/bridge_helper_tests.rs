//! The command line, and what two files say together.

use super::*;
use crate::names::Names;

fn order() -> Order {
    Order { vnet_header: true, bridge: IfName::new("br0").unwrap(), fd: 7 }
}

#[test]
fn the_command_line_of_qemu() {
    assert_eq!(parse(&["--use-vnet", "--fd=7", "--br=br0"]), Ok(order()));
    assert_eq!(parse(&["--br=br0", "--fd=7"]), Ok(Order { vnet_header: false, ..order() }));
    let bad: [&[&str]; 9] = [
        &[],
        &["--br=br0"],
        &["--fd=7"],
        &["--br", "br0", "--fd=7"],
        &["--br=br0", "--fd=-1"],
        &["--br=br0", "--fd=7x"],
        &["--br=br0", "--fd=4294967296"],
        &["--br=br0", "--fd=7", "extra"],
        &["--br=br0", "--fd=7", "--help"],
    ];
    for arguments in bad {
        assert_eq!(parse(arguments), Err(USAGE.to_owned()), "{arguments:?}");
    }
    // CVE-2019-13164: the name that is judged is the name that is used.
    let long = parse(&["--br=br0123456789012345", "--fd=7"]).unwrap_err();
    assert!(long.contains("15 bytes"), "{long}");
}

#[test]
fn a_denial_in_either_file_is_final() {
    const POLICY: &str = policy_file::DEFAULT_PATH;
    let usual = Some(crate::policy::DEFAULT_QUOTA.taps);
    let table = [
        ("", "", None, "none"),
        ("allow br0", "", Some(u32::MAX), "top:1"),
        ("", "allow any bridge br0", usual, ":1"),
        ("allow br1", "allow any bridge br1", None, "none"),
        ("deny br0", "allow any bridge br0", None, "top:1"),
        ("allow br0", "deny uid:5 bridge *", None, ":1"),
        ("allow br0", "deny uid:5 tap *", None, ":1"),
        ("allow br0", "deny uid:6 bridge *", Some(u32::MAX), "top:1"),
        // Terms that this face cannot meet are no allowance.
        ("", "allow any bridge br0 isolated=yes", None, ":1(isolated)"),
        ("allow br0", "allow any bridge br0 isolated=yes", Some(u32::MAX), "top:1"),
        // How many is the policy's word, by whichever face one comes.
        ("", "allow any bridge br0 max=2", Some(2), ":1"),
        ("allow br0", "limit uid:5 taps=3", Some(3), "top:1"),
        ("allow br0", "allow any bridge br0\nlimit any taps=3", Some(3), ":1"),
    ];
    for (acl, policy, taps, place) in table {
        let acl = bridge_conf::read("top", &mut |_| Ok(acl.to_owned())).unwrap();
        let policy = policy_file::parse(policy, &Names::default()).unwrap();
        let caller = Caller { uid: 5, gids: vec![], pid: 1 };
        let said = verdict(&acl, &policy, &caller, &order());
        let place = if place.starts_with(':') { format!("{POLICY}{place}") } else { place.to_owned() };
        assert_eq!(said, (taps, place), "{policy:?}");
    }
}
