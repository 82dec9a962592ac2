//! What a VM that does nothing costs: memory and wake-ups of the processes that serve it.
//!
//! Memory is the kernel's proportional set size (`smaps_rollup`): a page that several processes share counts in parts. What
//! is shared with guest and kernel (the guest's memory, an AF_XDP socket's frames and rings) is told apart, as `Pss_Shmem`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::case::{Case, Form, Path, Way, Who};
use super::driver::{Driver, Make};
use super::figures::{Miss, Taken};
use super::host;
use super::load::frame;
use super::peer::Ours;
use super::row::Value;
use super::runner::{Bench, connect, new_link, real, start, with};
use crate::netns::Netns;
use crate::proc::Proc;
use crate::{Because, Done, bins, trouble};

/// Between the last frame and the first look.
const SETTLE: Duration = Duration::from_secs(1);

/// The cost of some processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Proportional memory in bytes but for what is shared with others by name or descriptor.
    pub own: f64,
    /// All of it.
    pub all: f64,
    /// Wake-ups a second.
    pub wakes: f64,
}

impl Cost {
    /// As the figures of a row: MiB, MiB, 1/s.
    fn values(self) -> Vec<Value> {
        let mib = f64::from(1 << 20);
        [self.own / mib, self.all / mib, self.wakes].map(|value| Value { value, ..Value::default() }).to_vec()
    }
}

/// Watches these processes for `window`.
///
/// # Errors
/// One of them is gone.
pub fn watch(pids: &[i32], window: Duration) -> Done<Cost> {
    let (before, t) = (switches(pids), Instant::now());
    sleep(window);
    let wakes = real(switches(pids).saturating_sub(before)) / t.elapsed().as_secs_f64();
    let mut cost = Cost { wakes, ..Cost::default() };
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .because(format!("the memory of process {pid}"))?;
        let (all, shared) = pss(&text).because(format!("process {pid} has no Pss in smaps_rollup"))?;
        cost.all += all;
        cost.own += all - shared;
    }
    Ok(cost)
}

/// Memory of these processes in bytes that is theirs or a file's, each counted in full: all that is resident but memory
/// that is shared by name or descriptor, such as a guest's.
///
/// # Errors
/// One of them is gone.
pub fn resident(pids: &[i32]) -> Done<f64> {
    let mut all = 0.0;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).because(format!("process {pid}"))?;
        for name in ["RssAnon", "RssFile"] {
            let kib =
                text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next());
            let kib = kib.and_then(|k| k.parse::<f64>().ok());
            all += 1024.0 * kib.because(format!("process {pid} has no {name} in its status"))?;
        }
    }
    Ok(all)
}

/// Proportional memory in bytes, and how much of it is shared memory.
fn pss(text: &str) -> Option<(f64, f64)> {
    let of = |name: &str| -> Option<f64> {
        let rest = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        Some(rest.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
    };
    Some((of("Pss")?, of("Pss_Shmem")?))
}

/// How often the threads of these processes went to sleep so far: each sleep that ended was a wake-up.
fn switches(pids: &[i32]) -> u64 {
    let mut n = 0;
    for pid in pids {
        for t in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(t.path().join("status")).unwrap_or_default();
            let line = text.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            n += line.and_then(|l| l.trim().parse::<u64>().ok()).unwrap_or(0);
        }
    }
    n
}

/// Watches an idle VM for `window`.
///
/// # Errors
/// Something did not start, or it cannot be done here.
pub fn sample(bench: &mut Bench, path: Path, who: Who, window: Duration) -> Taken<Vec<Value>> {
    let cost = match who {
        Who::Netreeve => {
            bench.on_a_pair(path, |ours, socks, before| netreeve(path, ours, socks, before, window))?
        }
        Who::Passt => passt(window)?,
        Who::QemuUser => qemu_user(window)?,
        who => return Err(Miss::Skipped(format!("{} has no idle row", who.name()))),
    };
    Ok(cost.values())
}

fn netreeve(
    path: Path,
    ours: &Ours,
    socks: &[PathBuf; 2],
    before: &[String],
    window: Duration,
) -> Taken<Cost> {
    let case = Case { path, way: Way::Out, size: 64, form: Form::Split };
    with(start(&case, Who::Netreeve, socks, ours)?, |running| {
        if path == Path::Tap {
            new_link(before)?;
        }
        let [socket, _] = socks;
        let mut driver = connect(socket, Make::usual(true))?;
        busy_once(&mut driver);
        sleep(SETTLE);
        let process = running.process().because("netreeve is a process")?;
        Ok(watch(&host::family(process.pid()), window)?)
    })
}

/// Sends some thousand frames, so that what is measured has its working memory in hand.
pub fn busy_once(driver: &mut Driver) {
    let f = frame(64);
    for _ in 0..200 {
        driver.tx.send(&f, 32);
        sleep(Duration::from_micros(200));
    }
}

/// passt with a connection that says nothing. It wants an interface with addresses and a route.
fn passt(window: Duration) -> Taken<Cost> {
    let Ok(program) = bins::peer("passt") else {
        return Err(Miss::Skipped("passt is not installed (apt-get install passt)".to_owned()));
    };
    let world = Netns::new("passt's world")?;
    world.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up; ip addr add 192.0.2.2/24 dev up0
         ip route add default via 192.0.2.1")?;
    let at = std::env::temp_dir().join(format!("netreeve-bench-{}-passt", std::process::id()));
    fs::create_dir_all(&at).because(at.display())?;
    // It becomes nobody when root starts it.
    std::os::unix::fs::chown(&at, Some(65_534), Some(65_534)).because(at.display())?;
    let socket = at.join("sock");
    let mut c = Command::new(program);
    c.arg("--foreground").arg("--socket").arg(&socket);
    let p = world.spawn("passt", c)?;
    let result = (|| {
        crate::guest::uml::wait_for_socket(&socket, Duration::from_secs(5))
            .because(format!("passt said:\n{}", p.tail()))?;
        let _connected = UnixStream::connect(&socket).because("connect to passt")?;
        sleep(SETTLE);
        watch(&host::family(p.pid()), window)
    })();
    // An empty directory of the machine's temporary ones is no trouble.
    let _gone = fs::remove_dir_all(&at);
    Ok(result?)
}

/// What a QEMU with `-netdev user` has more than one without, both with no guest in them.
fn qemu_user(window: Duration) -> Taken<Cost> {
    let Ok(program) = bins::peer("qemu-system-x86_64") else {
        return Err(Miss::Skipped("QEMU is not installed".to_owned()));
    };
    let one = |netdev: &[&str]| -> Done<Cost> {
        let mut c = Command::new(&program);
        c.args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S"]).args(netdev);
        let mut p = Proc::spawn("QEMU", c)?;
        sleep(2 * SETTLE);
        if !p.alive() {
            return Err(trouble(format!("QEMU ended; it said:\n{}", p.tail())));
        }
        watch(&host::family(p.pid()), window)
    };
    let (without, with) = (one(&[])?, one(&["-netdev", "user,id=n0"])?);
    // Two runs differ by some pages; a difference below nothing is none.
    let more = |a: f64, b: f64| (a - b).max(0.0);
    Ok(Cost {
        own: more(with.own, without.own),
        all: more(with.all, without.all),
        wakes: more(with.wakes, without.wakes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_off_the_kernel() {
        let me = std::process::id().cast_signed();
        let c = watch(&[me], Duration::from_millis(10)).unwrap();
        assert!(c.own > 100_000.0 && c.all >= c.own && c.wakes >= 0.0, "{c:?}");
        assert_eq!(pss("Pss:  4 kB\nPss_Shmem: 1 kB\n"), Some((4096.0, 1024.0)));
        assert_eq!(pss("Rss: 4 kB\n"), None);
        let all = resident(&[me]).unwrap();
        assert!(all > c.own / 2.0 && all < 1e12, "{all}");
        assert!(resident(&[i32::MAX]).is_err());
        assert!(watch(&[i32::MAX], Duration::ZERO).is_err());
    }
}
