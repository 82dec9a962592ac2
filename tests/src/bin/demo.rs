//! `make demo`: netreeve in front of your eyes. Real guests on AF_XDP, on a tap in a bridge and under QEMU, pinged and
//! measured; a dataplane killed; and what the kernel says of our processes. It needs root for the namespaces, changes
//! nothing outside them, and looks at its end whether it left anything behind.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a demonstration speaks to a person")]

use netreeve_tests::guest::Console;
use netreeve_tests::guest::uml::Uml;
use netreeve_tests::inspect::{Seen, capability_names, look};
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::{iperf_from_guest, iperf_server, ping_from, pulse, wait_until_reachable};
use netreeve_tests::scene::{
    BRIDGE, FAR4, FAR6, GUEST4, GUEST6, PATIENCE, Reeve, Road, Scene, UPLINK, USER, address,
};
use netreeve_tests::{Because, Done, proc, trouble};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The device of every guest: its VMM dials us.
const DEVICE: &str = "vhost-user,netdev=n0,path=vm.sock";
/// The host's own address on the way to the far side.
const OURS: &str = "10.77.0.9/24";
/// Seconds of each throughput measurement.
const SECONDS: u32 = 2;

/// One line of the first table.
struct Figures {
    what: &'static str,
    out: f64,
    back: f64,
    latency_ms: f64,
    recovery: Duration,
}

/// One line of the second.
struct Process {
    what: &'static str,
    seen: Seen,
}

/// What an act leaves for the tables.
struct Act {
    figures: Figures,
    processes: Vec<Process>,
}

fn main() -> ExitCode {
    // An interrupted demo takes its processes along; the namespaces follow their last process.
    proc::end_on_interrupt("demo", netreeve_tests::scene::remove_all);
    let began = Instant::now();
    match play() {
        Ok(()) => {
            println!("\nDone in {:.0} s.", began.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("\ndemo: {e}");
            ExitCode::FAILURE
        }
    }
}

fn play() -> Done {
    if !nix::unistd::geteuid().is_root() {
        return Err(trouble(
            "this makes network namespaces and interfaces, so it must be started by root: sudo make demo",
        ));
    }
    let ground = Ground::survey()?;
    by_one_line()?;
    let acts = [on_af_xdp()?, in_a_bridge()?, under_qemu()?];
    table_of_figures(&acts);
    table_of_processes(&acts);
    let left = ground.left(Duration::from_secs(5))?;
    if left.is_empty() {
        println!("\nLeft behind: no interface, no namespace, no BPF program or map, no process, no file.");
        return Ok(());
    }
    Err(trouble(format!("left behind: {}", left.join(", "))))
}

/// QEMU with a network out of nothing: no root, no helper, no option.
fn by_one_line() -> Done {
    println!("== A Debian kernel under QEMU (no KVM), an ordinary user, one line");
    let scene = Scene::set(Road::AfXdp)?;
    scene.host.sh(&format!("ip addr add {OURS} dev {UPLINK}"))?;
    let qemu = scene.qemu();
    let mut words = vec!["run".to_owned(), "--".to_owned(), qemu.program()?.display().to_string()];
    words.extend(qemu.arguments()?);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    println!("   $ netreeve run -- qemu-system-x86_64 ...");
    let mut command = scene.netreeve(&words);
    command.env("XDG_RUNTIME_DIR", scene.path(""));
    let guest = qemu.inside(&scene.host).boot_by(command)?;
    guest.ok("ip link set eth0 up
        printf '#!/bin/sh\\n[ $1 = bound ] && ip addr add $ip/$mask dev eth0 && ip route add default via $router\\n' >/tmp/up
        chmod +x /tmp/up; udhcpc -i eth0 -n -q -f -t 10 -T 1 -s /tmp/up")?;
    let lease = guest.ok("ip -4 -o addr show eth0")?;
    println!("   guest: {}", lease.split_whitespace().skip(2).take(2).collect::<Vec<_>>().join(" "));
    let server = iperf_server(&scene.far, 5201)?;
    let out = iperf_from_guest(&guest, FAR4, server.port, SECONDS, "")?;
    let back = iperf_from_guest(&guest, FAR4, server.port, SECONDS, "-R")?;
    println!("   iperf3: {} out, {} back", gigabits(out), gigabits(back));
    guest.power_off(PATIENCE)
}

/// A guest that has the uplink's receive queue to itself.
fn on_af_xdp() -> Done<Act> {
    println!("== A User-Mode Linux guest on {UPLINK}, by AF_XDP");
    let mut scene = Scene::set(Road::AfXdp)?;
    let reeve = raise(&mut scene, DEVICE)?;
    let guest = boot_uml(&scene)?;
    let act = measure("AF_XDP, UML guest", &scene, &reeve, &guest)?;
    guest.power_off()?;
    lower(scene, reeve)?;
    Ok(act)
}

/// A guest on a tap that the helper put into a bridge.
fn in_a_bridge() -> Done<Act> {
    println!("== A User-Mode Linux guest on a tap in the bridge {BRIDGE}");
    let mut scene = Scene::set(Road::Bridge)?;
    let reeve = raise(&mut scene, DEVICE)?;
    let guest = boot_uml(&scene)?;
    let act = measure("tap in a bridge, UML guest", &scene, &reeve, &guest)?;
    guest.power_off()?;
    lower(scene, reeve)?;
    Ok(act)
}

/// QEMU as the VMM, and a dataplane that dies under it.
fn under_qemu() -> Done<Act> {
    println!("== A Debian kernel under QEMU (no KVM) on a tap in the bridge {BRIDGE}");
    let mut scene = Scene::set(Road::Bridge)?;
    let reeve = raise(&mut scene, DEVICE)?;
    let began = Instant::now();
    let guest = scene.qemu().user(USER).vhost_user(&scene.path("vm.sock"), false).boot()?;
    println!("   guest: Linux {}, up after {:.1} s", guest.kernel()?, began.elapsed().as_secs_f64());
    address(&guest, "eth0", 2, 1500)?;
    wait_until_reachable(&guest, FAR4)?;
    let act = measure("tap in a bridge, QEMU guest", &scene, &reeve, &guest)?;
    guest.power_off(PATIENCE)?;
    lower(scene, reeve)?;
    Ok(act)
}

/// Helper and netreeve, ready.
fn raise(scene: &mut Scene, device: &str) -> Done<Reeve> {
    let policy = scene.policy();
    scene.help(&policy)?;
    println!("   helper: root, policy \"{}\"", policy.trim());
    let netdev = scene.netdev("n0");
    println!("   $ netreeve run --netdev {netdev} --device {device}");
    let reeve = scene.run(&[&netdev], &[device], &[])?;
    Ok(reeve)
}

/// Ends netreeve in order, and the scene.
fn lower(scene: Scene, mut reeve: Reeve) -> Done {
    let end = reeve.proc.terminate(PATIENCE)?;
    if end.code != 0 {
        return Err(trouble(format!("netreeve ended with code {}:\n{}", end.code, end.text)));
    }
    drop(scene);
    Ok(())
}

fn boot_uml(scene: &Scene) -> Done<netreeve_tests::guest::uml::Running> {
    let began = Instant::now();
    let guest = Uml::new().nic(&scene.path("vm.sock")).boot()?;
    println!("   guest: Linux {}, up after {:.1} s", guest.kernel()?, began.elapsed().as_secs_f64());
    address(&guest, "eth0", 2, 1500)?;
    wait_until_reachable(&guest, FAR4)?;
    Ok(guest)
}

fn measure(what: &'static str, scene: &Scene, reeve: &Reeve, guest: &Console) -> Done<Act> {
    let ping = ping_from(&scene.far, &format!("-n -c 50 -i 0.05 {GUEST4}"))?;
    let six = ping_from(&scene.far, &format!("-n -c 5 -i 0.1 {GUEST6}"))?;
    if ping.received != ping.sent || six.received != six.sent {
        return Err(trouble(format!("pings were lost: {ping:?} {six:?}")));
    }
    println!(
        "   ping: {} of {} over IPv4, {} of {} over IPv6",
        ping.received, ping.sent, six.received, six.sent
    );
    let server = iperf_server(&scene.far, 5201)?;
    let out = iperf_from_guest(guest, FAR4, server.port, SECONDS, "")?;
    let back = iperf_from_guest(guest, FAR6, server.port, SECONDS, "-R")?;
    println!("   iperf3: {} out over IPv4, {} back over IPv6", gigabits(out), gigabits(back));
    let helper = scene.helper()?.pid();
    let see = |what, pid| Ok(Process { what, seen: look(pid, helper)? });
    let processes = vec![
        see("helper", helper)?,
        see("netreeve (supervisor)", reeve.proc.pid())?,
        see("netreeve-dataplane", reeve.dataplane()?)?,
    ];
    let recovery = crash(scene, reeve)?;
    let figures = Figures { what, out, back, latency_ms: ping.mean_ms, recovery };
    Ok(Act { figures, processes })
}

/// Kills the dataplane and returns how long the guest was without network.
fn crash(scene: &Scene, reeve: &Reeve) -> Done<Duration> {
    let pulse = pulse(&scene.far, GUEST4, Duration::from_millis(5))?;
    pulse.wait(50, Instant::now(), PATIENCE)?;
    let old = reeve.dataplane()?;
    let from = Instant::now();
    kill(Pid::from_raw(old), Signal::SIGKILL).because("kill the dataplane")?;
    let gap = pulse.gap(from, PATIENCE)?;
    let new = reeve.dataplane()?;
    if new == old {
        return Err(trouble("the dataplane is still the one that was killed"));
    }
    println!(
        "   dataplane {old} killed; {new} took over, the guest's traffic was away for {} ms",
        gap.as_millis()
    );
    Ok(gap)
}

fn gigabits(bits: f64) -> String {
    format!("{:.2} Gbit/s", bits / 1e9)
}

fn table_of_figures(acts: &[Act]) {
    println!("\n{:<30}{:>15}{:>15}{:>12}{:>14}", "", "guest sends", "guest gets", "ping", "after a kill");
    for Figures { what, out, back, latency_ms, recovery } in acts.iter().map(|a| &a.figures) {
        let recovery = format!("{} ms", recovery.as_millis());
        let (out, back, ping) = (gigabits(*out), gigabits(*back), format!("{latency_ms:.2} ms"));
        println!("{what:<30}{out:>15}{back:>15}{ping:>12}{recovery:>14}");
    }
}

fn table_of_processes(acts: &[Act]) {
    println!("\nThe processes of the first guest, as /proc shows them:");
    for Process { what, seen } in acts.iter().take(1).flat_map(|a| &a.processes) {
        let seccomp = match (seen.seccomp, seen.filters) {
            (0, _) => "off".to_owned(),
            (_, 1) => "1 filter".to_owned(),
            (_, n) => format!("{n} filters"),
        };
        let apart = if seen.apart.is_empty() { "none".to_owned() } else { seen.apart.join(", ") };
        println!("  {what}: pid {}, uid {}, {} thread(s)", seen.pid, seen.uid, seen.threads);
        println!("    capabilities in force:   {}", capability_names(seen.caps.effective));
        println!("    capabilities to raise:   {}", capability_names(seen.caps.permitted));
        println!("    seccomp:                 {seccomp}, no new privileges: {}", seen.no_new_privs);
        println!("    namespaces of its own:   {apart}");
    }
}
