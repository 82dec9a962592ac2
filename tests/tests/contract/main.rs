//! The contract of every port with every device: one table ([`table`]), and a run of the real supervisor and its real,
//! sandboxed dataplane for each pair in it. Far ends are of this test's own ([`far`]): sockets, interfaces, a guest's
//! driver, a VDE switch and a plug.
//!
//! Nothing here is expected to be quick, and nothing is concluded from its not having happened yet: a frame that is dropped
//! is known by its counter and by the frame behind it. Needs root and iproute2.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    reason = "a test fails by panicking, and its figures are small and chosen"
)]

mod far;
mod frames;
mod pair;
mod stand;
mod table;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use netreeve_tests::scene::{Road, Scene, USER};
use netreeve_tests::{bins, proc};

use pair::Pair;
use table::{ADDRESSES, DEVICES, NETDEVS, NO_DEVICES, Row};

/// Pairs at a time: most of what each does is to wait for another process.
const AT_ONCE: usize = 4;
/// So many failures are enough to look at.
const ENOUGH: usize = 12;
/// A part of the names of the pairs that are wanted, as `netdev` or `netdev × device`; none: all.
const ONLY: &str = "NETREEVE_ONLY";

/// The kinds that this version has, as it prints them.
fn listed() -> BTreeSet<String> {
    let mut command = Command::new(bins::ours("netreeve").unwrap());
    command.args(["list", "--json"]);
    let said =
        proc::run("netreeve list", command, Duration::from_secs(20)).unwrap().ok("netreeve list").unwrap();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    said["ports"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_kind_that_there_is_stands_in_the_table() {
    let listed = listed();
    let netdevs: BTreeSet<String> = NETDEVS.iter().map(|r| r.kind.to_owned()).collect();
    assert_eq!(netdevs, listed, "kinds of netdev in the table, and those of `netreeve list`");
    let mut devices: BTreeSet<String> = DEVICES.iter().map(|r| r.kind.to_owned()).collect();
    for (kind, why) in NO_DEVICES {
        assert!(devices.insert((*kind).to_owned()), "{kind} is a device in the table, and is not: {why}");
    }
    assert_eq!(devices, listed, "kinds of device in the table, and those of `netreeve list`");
    for rows in [[NETDEVS, ADDRESSES].concat(), DEVICES.to_vec()] {
        let names: BTreeSet<String> = rows.iter().map(Row::name).collect();
        assert_eq!(names.len(), rows.len(), "a form stands in the table twice");
        for r in rows {
            let (gives, takes) = (r.gives, r.takes);
            let sound = r.can.0 <= gives.least && r.can.1 >= gives.most && gives.most < gives.above;
            assert!(sound && takes.least <= takes.most && takes.most < takes.above, "{}", r.name());
        }
    }
}

/// All that a pair is asked to do. Gives at which step it fails.
fn run(scene: &Scene, number: u16, rows: (&'static Row, &'static Row)) -> Result<(), String> {
    type Step = (&'static str, fn(&mut Pair<'_>));
    const STEPS: [Step; 5] = [
        ("sizes", |p| p.sizes()),
        ("floods", |p| p.floods()),
        ("half close", |p| p.half_closes()),
        ("garbage", |p| p.garbage()),
        ("a far end that comes back", |p| p.comes_back()),
    ];
    let failed = |step: &str, said: &str, e: Box<dyn std::any::Any + Send>| {
        let why =
            e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        format!("{step}: {}\n{said}", why.unwrap_or_default())
    };
    let mut pair = catch_unwind(AssertUnwindSafe(|| Pair::start(scene, number, rows)))
        .map_err(|e| failed("start", "", e))?;
    for (step, act) in STEPS {
        catch_unwind(AssertUnwindSafe(|| act(&mut pair))).map_err(|e| failed(step, &pair.said(), e))?;
    }
    let lives = catch_unwind(AssertUnwindSafe(|| pair.restart()))
        .map_err(|e| failed("restart of the dataplane", &pair.said(), e))?;
    if lives {
        catch_unwind(AssertUnwindSafe(|| pair.end_well())).map_err(|e| failed("end", "", e))?;
    }
    Ok(())
}

/// The host's namespace, with the helper in it and TCP's queues short, so that a flood needs not be long.
fn scene() -> Scene {
    let mut scene = Scene::set(Road::AfXdp).unwrap();
    scene
        .host
        .sh("for i in all default; do echo 1 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done
             echo 0 >/proc/sys/net/ipv6/conf/lo/disable_ipv6
             echo '4096 65536 65536' >/proc/sys/net/ipv4/tcp_rmem
             echo '4096 65536 65536' >/proc/sys/net/ipv4/tcp_wmem")
        .unwrap();
    scene.far.sh("for i in all default; do echo 1 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done").unwrap();
    let rights = ["tap ct* named=yes", "bridge cb*", "xsk cx*", "l2tpv3 127.0.0.0/8", "l2tpv3 fd55::/16"];
    let rules = rights.map(|r| format!("allow uid:{USER} {r}\n")).concat();
    scene.help(&(rules + "limit any sessions=200 requests=1000 taps=200 umem=1G\n")).unwrap();
    scene
}

#[test]
fn every_port_keeps_its_contract_with_every_device() {
    let only = std::env::var(ONLY).unwrap_or_default();
    let kinds = DEVICES.iter().enumerate().filter(|(i, d)| DEVICES[..*i].iter().all(|e| e.kind != d.kind));
    let kinds: Vec<&Row> = kinds.map(|(_, d)| d).collect();
    let all = NETDEVS.iter().flat_map(|n| DEVICES.iter().map(move |d| (n, d)));
    let by_address = ADDRESSES.iter().flat_map(|n| kinds.iter().map(move |d| (n, *d)));
    let pairs: Vec<_> = all.chain(by_address).collect();
    let pair_name = |(n, d): &(&Row, &Row)| format!("{} × {}", n.name(), d.name());
    let pairs: Vec<_> = pairs.into_iter().filter(|p| pair_name(p).contains(&only)).collect();
    assert!(!pairs.is_empty(), "no pair's name contains '{only}'");
    let scene = scene();
    let (next, failures, times) = (AtomicU16::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|s| {
        for _ in 0..AT_ONCE {
            s.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(rows) = pairs.get(usize::from(number)) else { return };
                    if failures.lock().unwrap().len() >= ENOUGH {
                        return;
                    }
                    let since = Instant::now();
                    if let Err(why) = run(&scene, number, *rows) {
                        failures.lock().unwrap().push(format!("{}: {why}", pair_name(rows)));
                    }
                    times.lock().unwrap().push((since.elapsed(), pair_name(rows)));
                }
            });
        }
    });
    for row in NETDEVS.iter().chain(ADDRESSES).chain(DEVICES) {
        let except = row.exceptions();
        eprintln!(
            "{}: {}",
            row.name(),
            if except.is_empty() { "all of it".to_owned() } else { except.join("; ") }
        );
    }
    for (kind, why) in NO_DEVICES {
        eprintln!("{kind} as a device: none, {why}");
    }
    let mut times = times.into_inner().unwrap();
    times.sort();
    for (took, pair) in times.iter().rev().take(5) {
        eprintln!("{took:.1?} {pair}");
    }
    eprintln!("{} pairs in {:.1?}", pairs.len(), began.elapsed());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} pairs:\n{}", failures.len(), pairs.len(), failures.join("\n\n"));
}
