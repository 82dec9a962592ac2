//! Tables of command lines.

use super::*;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn line(rest: &str) -> Line {
    read(&words(&format!("qemu-system-x86_64 {rest}")))
}

#[test]
fn qemu_is_known_by_its_name() {
    for (command, at) in [
        ("qemu-system-x86_64 -m 1G", Some(0)),
        ("/usr/bin/qemu-system-aarch64", Some(0)),
        ("kvm -m 1", Some(0)),
        ("/usr/libexec/qemu-kvm", Some(0)),
        ("taskset -c 1 qemu-system-x86_64 -m 1", Some(3)),
        ("env A=b nice -n 5 /opt/qemu-system-x86_64", Some(5)),
        ("env QEMU=/usr/bin/qemu-system-x86_64 ./start.sh", None),
        ("env QEMU=/usr/bin/qemu-system-x86_64 qemu-system-x86_64", Some(2)),
        ("sudo -u kvm virt", None),
        ("cloud-hypervisor --kernel qemu-system-x86_64", None),
        ("sh -c qemu-system-x86_64", None),
        ("crosvm run", None),
    ] {
        assert_eq!(find(&words(command)), at, "{command}");
    }
    assert_eq!(find(&[]), None);
}

#[test]
fn memory_is_shared_where_that_is_sure() {
    let private = |why| Memory::Private(why);
    let unshared = private("it has a memory backend without share=on");
    let node = private("a NUMA node has no memory backend of its own");
    let table = [
        ("", Memory::Add(128 << 20)),
        ("-m 512", Memory::Add(512 << 20)),
        ("--m 512", Memory::Add(512 << 20)),
        ("-m 1G -m 2G", Memory::Add(2 << 30)),
        ("-m size=2g,slots=4,maxmem=8G", Memory::Add(2 << 30)),
        ("-m 1.5G", Memory::Add(3 << 29)),
        ("-m 4097K", Memory::Add(4104 << 10)),
        ("-m slots=2,maxmem=8G", Memory::Add(128 << 20)),
        ("-m x", private("the size in -m is not understood")),
        ("-m 0", private("the size in -m is not understood")),
        ("-m 1G -machine q35,accel=kvm -cpu host", Memory::Add(1 << 30)),
        ("-m 1G -mem-path /dev/hugepages", private("-mem-path gives memory that is not shared")),
        ("-m 1G -mem-prealloc -S", Memory::Add(1 << 30)),
        ("-readconfig a.cfg", private("-readconfig may say more of the memory")),
        ("-append -mem-path", Memory::Add(128 << 20)),
        ("-kernel -m -m 3M", Memory::Add(3 << 20)),
        ("-object memory-backend-memfd,id=a,size=1G -machine memory-backend=a", Memory::Shared),
        ("-object memory-backend-memfd,id=a,size=1G,share=on -M q35,memory-backend=a", Memory::Shared),
        ("-object memory-backend-memfd,id=a,size=1G,share=off -M memory-backend=a", unshared.clone()),
        ("-object memory-backend-ram,id=a,size=1G -M memory-backend=a", unshared.clone()),
        ("-object memory-backend-file,id=a,size=1G,mem-path=/x -M memory-backend=a", unshared.clone()),
        ("-object memory-backend-file,id=a,size=1G,mem-path=/x,share=on -M memory-backend=a", Memory::Shared),
        (
            r#"-object {"qom-type":"memory-backend-file","id":"a","share":true} -M memory-backend=a"#,
            Memory::Shared,
        ),
        (r#"-object {"qom-type":"memory-backend-file","id":"a"}"#, unshared.clone()),
        ("-m 1G -object memory-backend-ram,id=d,size=1G -device pc-dimm,memdev=d", unshared),
        ("-object rng-random,id=r -m 64", Memory::Add(64 << 20)),
        (
            "-object memory-backend-memfd,id=a,size=1G -numa node,memdev=a -numa dist,src=0,dst=1,val=20",
            Memory::Shared,
        ),
        ("-async-teardown -m 3M", Memory::Add(3 << 20)),
        ("-M q35,memory.size=2G", private("what is said of its memory is not understood")),
        (
            r#"-object {"qom-type":"memory-backend-ram","id":null}"#,
            private("what is said of its memory is not understood"),
        ),
        ("-m 1G,=", private("what is said of its memory is not understood")),
        ("-numa node", node.clone()),
        ("-object memory-backend-memfd,id=a,size=1G -numa node,memdev=a -numa node,cpus=1", node),
        ("-machine q35,confidential-guest-support=sev0", private("the guest's memory is encrypted")),
    ];
    for (rest, want) in table {
        assert_eq!(line(rest).memory, want, "{rest}");
    }
}

#[test]
fn memory_that_nobody_named_is_the_machines() {
    let memory = |text: &str| read(&words(text)).memory;
    let small = Memory::Add(128 << 20);
    for known in
        ["qemu-system-i386", "/usr/libexec/qemu-kvm", "qemu-system-s390x", "qemu-system-aarch64 -M virt-9.0"]
    {
        assert_eq!(memory(known), small, "{known}");
    }
    for other in ["qemu-system-ppc64", "qemu-system-loongarch64 -M virt", "qemu-system-aarch64 -M raspi3b"] {
        assert!(matches!(memory(other), Memory::Private(_)), "{other}");
        assert_eq!(memory(&format!("{other} -m 1G")), Memory::Add(1 << 30), "{other}");
    }
}

#[test]
fn the_machine_says_which_front_end() {
    let model = |text: &str| read(&words(text)).model.unwrap_or("none");
    assert_eq!(model("qemu-system-x86_64 -M q35"), "virtio-net-pci");
    assert_eq!(model("qemu-system-x86_64 -machine type=microvm,acpi=off"), "virtio-net-device");
    assert_eq!(model("qemu-system-x86_64 -M microvm -M acpi=off"), "virtio-net-device");
    assert_eq!(model("/usr/bin/qemu-system-s390x"), "virtio-net-ccw");
    assert_eq!(model("qemu-system-aarch64 -M virt"), "virtio-net-pci");
    assert_eq!(model("qemu-system-arm -M vexpress-a15"), "virtio-net-device");
    assert_eq!(model("qemu-system-m68k -M virt"), "virtio-net-device");
    for machine in [
        "x86_64 -M isapc",
        "aarch64 -M raspi3b",
        "arm -machine raspi0",
        "arm -M stm32vldiscovery",
        "riscv64 -M sifive_u",
        "riscv32 -M opentitan",
    ] {
        assert_eq!(model(&format!("qemu-system-{machine}")), "none", "{machine}");
    }
}

#[test]
fn networks_that_are_there_are_seen() {
    assert_eq!(line("-nic none").other, None);
    assert_eq!(line("-net none").other, None);
    assert_eq!(line("-nic user,hostfwd=tcp::1-:1").other.unwrap(), "-nic user,hostfwd=tcp::1-:1");
    let l = line("-netdev user,id=a -device e1000,netdev=a -daemonize");
    assert_eq!((l.netdevs, l.daemonize), (vec!["a".to_owned()], true));
    assert_eq!(l.other.unwrap(), "-netdev user,id=a");
    assert_eq!(l.fronts, [("e1000".to_owned(), "a".to_owned())]);
    assert_eq!(line("-net nic,model=virtio,netdev=net0").front("net0"), Some("virtio"));
    assert_eq!(line("-net nic -net user").front("net0"), None);
    assert_eq!(
        line(r#"-device {"driver":"virtio-net-pci","netdev":"net0"}"#).front("net0"),
        Some("virtio-net-pci")
    );
}

#[test]
fn kvm_need_not_be_named_to_a_qemu_that_is_named_after_it() {
    for (command, kvm) in [
        ("kvm -m 1G", true),
        ("/usr/libexec/qemu-kvm", true),
        ("qemu-kvm -accel tcg", false),
        ("qemu-kvm -machine q35,accel=tcg", false),
        ("qemu-kvm -accel kvm", true),
        ("qemu", false),
        ("qemu-system-x86_64 -enable-kvm", true),
    ] {
        assert_eq!(read(&words(command)).kvm, kvm, "{command}");
    }
}

#[test]
fn versions_are_read() {
    assert_eq!(
        Version::read("QEMU emulator version 10.0.3 (Debian 1:10.0.3+ds-1)\nCopyright"),
        Version(10, 0)
    );
    assert_eq!(Version::read("QEMU emulator version 7.2.17"), Version(7, 2));
    for text in ["", "version", "version x", "no"] {
        assert_eq!(Version::read(text), Version::UNKNOWN, "{text}");
    }
    let again = |a, b, vhost_user| Version(a, b).again(vhost_user);
    assert_eq!(
        (again(11, 1, true), again(9, 2, false), again(9, 1, true)),
        (",reconnect-ms=500", ",reconnect-ms=500", ",reconnect=1")
    );
    assert_eq!((again(7, 2, true), again(7, 2, false), again(0, 0, true)), (",reconnect=1", "", ""));
}

#[test]
fn what_is_added() {
    let version = Version::UNKNOWN;
    let attach = |rest: &str, vhost_user| {
        let a = Attach { id: "net0", path: "/r/a,b.sock", vhost_user, queues: 1, version, mtu: None };
        line(rest).attach(&a).join(" ")
    };
    assert_eq!(
        attach("-m 1G", true),
        "-chardev socket,id=netreeve-net0,path=/r/a,,b.sock -netdev vhost-user,id=net0,chardev=netreeve-net0 \
         -device virtio-net-pci,netdev=net0"
    );
    assert_eq!(
        attach("", false),
        "-netdev stream,id=net0,server=off,addr.type=unix,addr.path=/r/a,,b.sock -device virtio-net-pci,netdev=net0"
    );
    // The guest's own front-end stays, and another netdev of that name as well.
    assert!(!attach("-device virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01", true).contains("-device"));
    assert!(
        attach("-netdev user,id=net0 -device e1000,netdev=net0", true)
            .contains("-device virtio-net-pci,netdev=netreeve-net0")
    );
    assert!(
        attach("-netdev user,id=net0 -netdev user,id=netreeve-net0", false)
            .contains("-netdev stream,id=netreeve-net0-2,")
    );
    let new = Attach { id: "n", path: "/p", vhost_user: true, queues: 4, version: Version(10, 0), mtu: None };
    let words = line("").attach(&new).join(" ");
    assert!(
        words.contains("path=/p,reconnect-ms=500 -netdev vhost-user,id=n,chardev=netreeve-n,queues=4 "),
        "{words}"
    );
    assert!(words.ends_with("-device virtio-net-pci,netdev=n,mq=on"), "{words}");
    let old = Attach { vhost_user: false, queues: 1, version: Version(8, 2), mtu: Some(9000), ..new };
    let words = line("").attach(&old).join(" ");
    assert!(
        words.contains("addr.path=/p,reconnect=1 ") && words.ends_with("netdev=n,host_mtu=9000"),
        "{words}"
    );
    let oldest = |rest: &str| {
        let a =
            Attach { id: "n", path: "/p", vhost_user: true, queues: 1, version: Version(7, 2), mtu: None };
        line(rest).attach(&a).join(" ")
    };
    assert!(oldest("").ends_with("-device virtio-net-pci,netdev=n,vectors=0"));
    for kvm in ["-enable-kvm", "-machine q35,accel=kvm", "-accel kvm"] {
        assert!(oldest(kvm).ends_with("-device virtio-net-pci,netdev=n"), "{kvm}");
    }
    assert_eq!(
        line("-m 1G").share().join(" "),
        "-object memory-backend-memfd,id=netreeve-memory,size=1073741824,share=on -machine memory-backend=netreeve-memory"
    );
    assert!(line("-mem-path /x").share().is_empty());
}
