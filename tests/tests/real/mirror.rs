//! QEMU's own mirror, with virtio-net headers, into a redirector of ours: what a guest left to its NIC to do (the checksums
//! of what it sends, and the cutting of it into segments) is done in what comes out.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use netreeve_tests::leftovers::Ground;
use netreeve_tests::scene::{PATIENCE, Road, Scene, USER};
use serde_json::Value;

use crate::House;
use crate::capture::{sum, tcp};

/// Lines of the text that the guest sends, a number each.
const LINES: u32 = 60_000;

/// The sequence number, the flags and the payload of a frame of the guest's TCP, all of which has to be right.
fn segment(frame: &mut Vec<u8>) -> Option<(u32, u8, Vec<u8>)> {
    assert!(frame.len() <= 1514, "a frame of {} bytes", frame.len());
    let (at, _) = tcp(frame)?;
    assert_eq!(sum(&frame[14..at]), 0xffff, "IP's checksum");
    frame.truncate(14 + usize::from(u16::from_be_bytes([frame[16], frame[17]])));
    let (_, pseudo) = tcp(frame)?;
    let whole = sum(&frame[at..]) + pseudo;
    assert_eq!((whole & 0xffff) + (whole >> 16), 0xffff, "TCP's checksum of {} bytes", frame.len());
    let seq = u32::from_be_bytes([frame[at + 4], frame[at + 5], frame[at + 6], frame[at + 7]]);
    let head = usize::from(frame[at + 12] >> 4) * 4;
    Some((seq, frame[at + 13], frame[at + head..].to_vec()))
}

/// What the guest sends over TCP, as the frames at the VM's end have it.
fn overheard(mut vm: &UnixStream, bytes: usize) -> Vec<u8> {
    let (mut first, mut text) = (None, Vec::new());
    while text.len() < bytes {
        let mut len = [0; 4];
        vm.read_exact(&mut len).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        vm.read_exact(&mut frame).unwrap();
        let Some((seq, flags, more)) = segment(&mut frame) else { continue };
        if flags & 2 != 0 {
            first = Some(seq.wrapping_add(1));
        }
        // What is sent again was here before; what QEMU has mirrored comes in order.
        let at = seq.wrapping_sub(first.expect("SYN comes first")) as usize;
        if !more.is_empty() && at <= text.len() {
            text.truncate(at);
            text.extend(more);
        }
    }
    text
}

#[test]
fn what_qemu_mirrors_with_headers_is_finished() {
    let ground = Ground::survey().unwrap();
    let scene = Scene::set(Road::Bridge).unwrap();
    scene
        .host
        .sh(&format!(
            "ip tuntap add dev nt0 mode tap vnet_hdr user {USER}
             ip addr add 10.88.0.1/24 dev nt0; ip link set nt0 up"
        ))
        .unwrap();
    let at = |id: &str| format!("server=on,addr.type=unix,addr.path={id}.sock");
    let netdevs = ["n0", "m0"].map(|id| format!("stream,id={id},{}", at(id)));
    let device = format!("stream,netdev=n0,id=vm,{}", at("vm"));
    let filter = "filter-redirector,id=f0,netdev=n0,queue=tx,indev=m0,vnet_hdr_support=on";
    let netdevs = netdevs.each_ref().map(String::as_str);
    let reeve = scene.run(&netdevs, &[&device], &["--stats", "--object", filter]).unwrap();
    let mut house = House { reeve, scene, ground };
    let [_net, vm] = ["n0.sock", "vm.sock"].map(|s| UnixStream::connect(house.scene.path(s)).unwrap());
    vm.set_read_timeout(Some(3 * PATIENCE)).unwrap();
    let chardev = format!("socket,id=c,path={}", house.scene.path("m0.sock").display());
    let mirror = "filter-mirror,id=f,netdev=n0,queue=rx,outdev=c,vnet_hdr_support=on";
    let guest = house
        .scene
        .qemu()
        .user(USER)
        .netdev("tap,id=n0,ifname=nt0,script=no,downscript=no")
        .words(&["-chardev", &chardev, "-object", mirror])
        .inside(&house.scene.host)
        .boot()
        .unwrap();
    guest.ok("ip link set eth0 up; ip addr add 10.88.0.2/24 dev eth0").unwrap();
    let listener = house.scene.host.enter(|| TcpListener::bind("10.88.0.1:7100")).unwrap().unwrap();
    let text: String = (1..=LINES).map(|n| format!("{n}\n")).collect();
    std::thread::scope(|s| {
        let reader = s.spawn(|| overheard(&vm, text.len()));
        let job = guest.start(&format!("seq 1 {LINES} | nc 10.88.0.1 7100")).unwrap();
        let mut got = String::new();
        listener.accept().unwrap().0.read_to_string(&mut got).unwrap();
        assert!(got == text, "{} bytes of {} at the host", got.len(), text.len());
        guest.finish(job, PATIENCE).unwrap().ok("nc in the guest").unwrap();
        assert!(reader.join().unwrap() == text.as_bytes());
    });
    guest.power_off(PATIENCE).unwrap();
    let said = house.reeve.proc.terminate(PATIENCE).unwrap().ok("netreeve run").unwrap();
    let line = said.lines().rfind(|l| l.contains("\"event\":\"stats\"")).expect("counters");
    let stats: Value = serde_json::from_str(line).unwrap();
    let count = |id: &str, what: &str| {
        let port = stats["ports"].as_array().unwrap().iter().find(|p| p["id"] == id).expect(id);
        port[what].as_u64().unwrap()
    };
    // There was something to do: more came out than had come in.
    let (came, went) = (count("m0", "rx_frames"), count("vm", "tx_frames"));
    assert!(came > 10 && went > came, "{came} frames came, {went} went: {line}");
}
