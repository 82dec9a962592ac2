//! Commands and what becomes of them.

use super::*;

fn config(netdevs: &[&str]) -> Config {
    let netdevs: Vec<String> = netdevs.iter().map(|n| (*n).to_owned()).collect();
    Config::read(&netdevs, &[], None).unwrap()
}

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn text(words: &[OsString]) -> String {
    words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_qemu_gets_what_attaches_it() {
    let mut config = Config::with_user(&[]).unwrap();
    // None of that name exists: its version is unknown.
    let mut command = words("/nonexistent/qemu-system-x86_64 -m 1G -nic none");
    let attached = complete(&mut config, &mut command).unwrap();
    let line = text(&command);
    let dir = attached.dir.as_ref().unwrap().0.clone();
    let sock = dir.join("net0.sock").display().to_string();
    assert!(
        line.starts_with("/nonexistent/qemu-system-x86_64 -m 1G -nic none -object memory-backend-memfd,"),
        "{line}"
    );
    assert!(
        line.contains(&format!("-chardev socket,id=netreeve-net0,path={sock} -netdev vhost-user,id=net0")),
        "{line}"
    );
    assert_eq!((config.ports.len(), config.wires.len(), config.warnings.len()), (2, 1, 0));
    assert_eq!(config.ports[1].kind.name(), "vhost-user");
    assert_eq!(attached.notes.len(), 1, "{:?}", attached.notes);
    drop(attached);
    assert!(!dir.exists());
}

#[test]
fn memory_that_is_not_shared_makes_it_a_stream() {
    let mut config = config(&["user,id=a"]);
    let mut command = words("/nonexistent/qemu-system-x86_64 -mem-path /dev/hugepages");
    let attached = complete(&mut config, &mut command).unwrap();
    let line = text(&command);
    assert!(
        line.contains("-netdev stream,id=a,server=off") && line.ends_with("netdev=a,host_mtu=65520"),
        "{line}"
    );
    assert!(!line.contains("memory-backend"), "{line}");
    assert!(attached.notes[0].contains("-mem-path gives memory that is not shared"), "{:?}", attached.notes);
    config.settle();
    assert!(matches!(&config.ports[0].kind, Kind::User(u) if u.mtu == Some(65_520)));
}

#[test]
fn placeholders_name_the_device() {
    let mut c = Config::with_user(&[]).unwrap();
    let mut command = words("cloud-hypervisor --net vhost_user=true,socket={vhost-user} --x {{stream");
    let attached = complete(&mut c, &mut command).unwrap();
    let sock = attached.dir.as_ref().unwrap().0.join("net0.sock");
    assert_eq!(
        text(&command),
        format!("cloud-hypervisor --net vhost_user=true,socket={} --x {{{{stream", sock.display())
    );
    assert_eq!(c.ports[1].kind.name(), "vhost-user");

    let mut two = config(&["stream,id=a,addr.type=fd,addr.str=7", "stream,id=b,addr.type=fd,addr.str=8"]);
    let mut command = words("x --one={a.stream} --two {b.dgram} {stream}");
    let attached = complete(&mut two, &mut command).unwrap();
    assert_eq!(
        two.ports.iter().map(|p| p.kind.name()).collect::<Vec<_>>(),
        ["stream", "stream", "stream", "dgram"]
    );
    assert!(text(&command).ends_with("b.sock {stream}"), "several netdevs: only a full name is one");
    assert!(attached.notes.is_empty());

    let mut both = Config::with_user(&[]).unwrap();
    let fault = complete(&mut both, &mut words("x {stream} {vhost-user}")).unwrap_err();
    assert_eq!((fault.exit, fault.why.as_str()), (Exit::Usage, "netdev 'net0' has one device"));
}

#[test]
fn others_are_left_alone() {
    let mut c = Config::with_user(&[]).unwrap();
    let mut command = words("sleep 1");
    let attached = complete(&mut c, &mut command).unwrap();
    assert!(attached.dir.is_none() && text(&command) == "sleep 1" && c.unjoined().count() == 1);

    let mut joined = Config::with_user(&["vhost-user,path=/p".to_owned()]).unwrap();
    let mut command = words("qemu-system-x86_64 -m 1");
    let attached = complete(&mut joined, &mut command).unwrap();
    assert!(attached.dir.is_none() && text(&command) == "qemu-system-x86_64 -m 1");

    let mut c = Config::with_user(&[]).unwrap();
    let fault = complete(&mut c, &mut words("qemu-system-x86_64 -daemonize")).unwrap_err();
    assert_eq!(fault.exit, Exit::Usage);
}

#[test]
fn a_command_with_a_network_of_its_own_gets_another_only_if_that_is_asked_for() {
    let theirs =
        ["-netdev user,id=net0 -device virtio-net-pci,netdev=net0", "-nic user", "-net nic -net user"];
    for own in theirs {
        let mut c = Config::with_user(&[]).unwrap();
        let mut command = words(&format!("/nonexistent/qemu-system-x86_64 -m 1G {own}"));
        let before = command.clone();
        let fault = complete(&mut c, &mut command).unwrap_err();
        assert_eq!((fault.exit, &command), (Exit::Usage, &before));
        assert!(fault.what.contains(own.split(" -device").next().unwrap().rsplit("nic ").next().unwrap()));
    }
    // Whoever asks has both, each with its own name and front-end: theirs says nothing of ours.
    for own in ["-netdev user,id=net0 -device e1000,netdev=net0", "-nic user,id=net0"] {
        let mut c = config(&["user,id=net0,net=10.0.3.0/24"]);
        let mut command = words(&format!("/nonexistent/qemu-system-x86_64 -m 1G {own}"));
        let attached = complete(&mut c, &mut command).unwrap();
        assert_eq!((c.ports[1].kind.name(), attached.notes.len()), ("vhost-user", 2), "{:?}", attached.notes);
        let line = text(&command);
        assert!(line.contains("vhost-user,id=netreeve-net0,chardev=netreeve-net0"), "{line}");
        assert!(line.ends_with("-device virtio-net-pci,netdev=netreeve-net0"), "{line}");
    }
    // Whoever names the netdev that nobody has made means ours.
    let mut c = Config::with_user(&[]).unwrap();
    let mut command = words(
        "/nonexistent/qemu-system-x86_64 -device virtio-net-pci,netdev=net0 -netdev tap,id=t -device e1000,netdev=t",
    );
    assert_eq!(complete(&mut c, &mut command).unwrap().notes.len(), 2);
    assert_eq!(c.ports[1].kind.name(), "vhost-user");
}

#[test]
fn a_guest_that_is_to_be_saved_or_migrated_gets_a_stream() {
    for option in ["-loadvm first", "-incoming defer", "-only-migratable"] {
        let mut c = Config::with_user(&[]).unwrap();
        let mut command = words(&format!("/nonexistent/qemu-system-x86_64 -m 1G {option}"));
        let attached = complete(&mut c, &mut command).unwrap();
        let word = option.split(' ').next().unwrap();
        assert!(
            attached.notes[0].contains("by stream") && attached.notes[0].contains(word),
            "{:?}",
            attached.notes
        );
        assert!(
            c.ports[1].kind.name() == "stream" && !text(&command).contains("memory-backend"),
            "{command:?}"
        );
    }
    let mut c = Config::with_user(&[]).unwrap();
    let attached = complete(&mut c, &mut words("/nonexistent/qemu-system-x86_64 -m 1G")).unwrap();
    assert!(attached.notes[0].contains("without savevm and migration"), "{:?}", attached.notes);
}

#[test]
fn a_machine_without_pci_needs_its_own_nic() {
    let mut c = Config::with_user(&[]).unwrap();
    let mut command = words("/nonexistent/qemu-system-x86_64 -M isapc -m 16");
    let fault = complete(&mut c, &mut command).unwrap_err();
    assert_eq!(fault.exit, Exit::Usage);
    assert!(fault.why.contains("neither PCI") && fault.fix.contains("ne2k_isa,netdev=net0"), "{fault}");
    let mut c = Config::with_user(&[]).unwrap();
    let mut command = words("/nonexistent/qemu-system-x86_64 -M isapc -device ne2k_isa,netdev=net0");
    let _attached = complete(&mut c, &mut command).unwrap();
    assert!(text(&command).ends_with("net0.sock") && c.ports[1].kind.name() == "stream", "{command:?}");
}

/// A QEMU that is a script, whose own children live on with what it wrote to.
#[test]
fn whoever_a_program_leaves_behind_is_not_waited_for() {
    let text = said(Command::new("/bin/sh").args(["-c", "sleep 30 & echo version 9.2.1 $!"])).unwrap();
    let left = text.split_whitespace().last().unwrap().parse().unwrap();
    // It is there still: it was not waited for.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), nix::sys::signal::SIGKILL).unwrap();
    assert_eq!(Version::read(&text), Version::read("version 9.2"));
    assert!(said(&mut Command::new("/nonexistent/qemu")).is_err());
}

/// A frame longer than Ethernet's is none to them: e1000 and rtl8139 drop it.
#[test]
fn nics_that_are_no_virtio_net_get_frames_of_ethernets_length() {
    let mtu = |netdev: &str, device: &str| {
        let mut c = config(&[netdev]);
        let mut command =
            words(&format!("/nonexistent/qemu-system-x86_64 -mem-path /x -device {device},netdev=a"));
        let _attached = complete(&mut c, &mut command).unwrap();
        assert!(!text(&command).contains("host_mtu"), "{}", text(&command));
        c.settle();
        let Kind::User(u) = &c.ports[0].kind else { panic!() };
        u.mtu.unwrap()
    };
    assert_eq!((mtu("user,id=a", "e1000"), mtu("user,id=a", "rtl8139")), (1500, 1500));
    assert_eq!((mtu("user,id=a,mtu=4000", "e1000"), mtu("user,id=a", "virtio-net-pci")), (4000, 65_520));
}

#[test]
fn the_front_end_that_is_there_decides() {
    let by = |device: &str| {
        let mut c = Config::with_user(&[]).unwrap();
        let mut command =
            words(&format!("/nonexistent/qemu-system-x86_64 -m 1G -device {device},netdev=net0"));
        let _attached = complete(&mut c, &mut command).unwrap();
        c.ports[1].kind.name()
    };
    assert_eq!((by("virtio-net"), by("virtio-net-pci"), by("e1000")), ("vhost-user", "vhost-user", "stream"));
}
