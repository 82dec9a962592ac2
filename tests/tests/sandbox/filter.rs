//! The filter as the kernel runs it: every rule lets through what it says, every condition stops what differs in one
//! bit, and every other number is fatal.

use crate::jail::{End, KILLED, enter, fork, give_up};
use crate::{every_port, sys};
use netreeve_dataplane::handover::Level;
use netreeve_dataplane::sandbox::Walls;
use netreeve_dataplane::sandbox::call::Cond;
use netreeve_dataplane::sandbox::seccomp::Union;

/// Beyond the last system call of Linux 6.18 on any architecture, with room for some years.
const LAST: i64 = 600;

/// uretprobe(2) and uprobe(2): the kernel takes them past every filter (Linux 6.14, 6.18) and refuses them itself
/// anywhere but in a trampoline that a tracer from outside has put there.
const PROBES: &[i64] = if cfg!(target_arch = "x86_64") { &[335, 336] } else { &[] };

/// Makes one call in a sealed process of its own. It may be the process's last.
fn made(walls: &Walls, nr: i64, args: impl Fn() -> [u64; 6]) -> End {
    let walls = walls.clone();
    let child = fork(|| {
        if let Err(e) = walls.seal(&every_port()) {
            give_up(&e.to_string());
        }
        let [a, b, c, d, e, f] = args();
        sys!(nr, a, b, c, d, e, f);
        0
    });
    child.wait()
}

/// Arguments that `conds` allow and that do no harm: descriptor -1, address -1, nothing to read or write.
fn allowed(nr: i64, conds: &[Cond]) -> [u64; 6] {
    let mut args = [u64::MAX, 0, 0, 0, 0, 0];
    // What is not to be something is something else already.
    for c in conds.iter().filter(|c| !c.not) {
        let arg = &mut args[usize::from(c.arg)];
        *arg = *arg & !c.mask | c.value;
    }
    if nr == libc::SYS_tgkill {
        args[0] = u64::from(std::process::id());
        args[1] = args[0];
    }
    args
}

fn allows(alternatives: &[Vec<Cond>], args: &[u64; 6]) -> bool {
    alternatives.is_empty()
        || alternatives
            .iter()
            .any(|a| a.iter().all(|c| (args[usize::from(c.arg)] & c.mask == c.value) != c.not))
}

/// Runs `f` behind walls and fails with the lines that it writes.
fn behind_walls(f: impl FnOnce(&Walls) -> Vec<String>) {
    let end = fork(|| {
        let trouble = f(&enter(Level::Full, &[]));
        if trouble.is_empty() { 0 } else { give_up(&trouble.join("\n")) }
    });
    assert_eq!(end.wait(), End::Code(0), "see standard error");
}

#[test]
fn every_rule_lets_through_what_it_says() {
    let union = Union::of(&every_port()).unwrap();
    behind_walls(|walls| {
        let mut trouble = Vec::new();
        for (nr, alternatives) in union.iter() {
            let none = [Vec::new()];
            let each = if alternatives.is_empty() { &none } else { alternatives };
            for conds in each {
                let end = made(walls, nr, || allowed(nr, conds));
                // A return from a signal that never came leads anywhere; `signals_come_and_go` has a real one.
                if nr == libc::SYS_rt_sigreturn {
                    continue;
                }
                // Two end the process by their nature.
                let expected = match nr {
                    libc::SYS_exit_group => End::Code(255),
                    libc::SYS_tgkill => End::Signal(libc::SIGABRT),
                    _ => End::Code(0),
                };
                if end != expected {
                    trouble.push(format!("call {nr} with {conds:?}: {end:?}"));
                }
            }
        }
        trouble
    });
}

extern "C" fn nothing(_: libc::c_int) {}

#[test]
fn signals_come_and_go() {
    let end = fork(|| {
        let handler: extern "C" fn(libc::c_int) = nothing;
        unsafe { libc::signal(libc::SIGABRT, handler as *const () as libc::sighandler_t) };
        if let Err(e) = enter(Level::Full, &[]).seal(&every_port()) {
            give_up(&e.to_string());
        }
        // To itself, handled, and back again.
        unsafe { libc::raise(libc::SIGABRT) }
    });
    assert_eq!(end.wait(), End::Code(0));
}

#[test]
fn every_condition_stops_what_differs_in_one_bit() {
    let union = Union::of(&every_port()).unwrap();
    behind_walls(|walls| {
        let (mut trouble, mut tried) = (Vec::new(), 0);
        for (nr, alternatives) in union.iter() {
            for conds in alternatives {
                for c in conds {
                    let bits = (0..64).map(|n| 1_u64 << n).filter(|bit| c.mask & bit != 0);
                    // What must not be is missed by being that, whatever the bits that do not count.
                    let bits: Vec<u64> = if c.not { vec![0, 1 << 32, 1 << 63] } else { bits.collect() };
                    for bit in bits {
                        let miss = || {
                            let mut args = allowed(nr, conds);
                            let arg = &mut args[usize::from(c.arg)];
                            *arg = if c.not { c.value | bit } else { *arg ^ bit };
                            args
                        };
                        if allows(alternatives, &miss()) {
                            continue;
                        }
                        tried += 1;
                        let end = made(walls, nr, miss);
                        if end != KILLED {
                            trouble.push(format!("call {nr}, {c:?} but bit {bit:#x}: {end:?}"));
                        }
                    }
                }
            }
        }
        // The address space is 32 or 64 bits wide, so there are some hundreds.
        if tried < 200 {
            trouble.push(format!("only {tried} near misses"));
        }
        trouble
    });
}

#[test]
fn only_itself_can_be_aborted() {
    behind_walls(|walls| {
        let mut trouble = Vec::new();
        for bit in 0..22 {
            let end = made(walls, libc::SYS_tgkill, || {
                let me = u64::from(std::process::id());
                [me ^ 1 << bit, me ^ 1 << bit, 6, 0, 0, 0]
            });
            if end != KILLED {
                trouble.push(format!("tgkill of pid with bit {bit} other: {end:?}"));
            }
        }
        trouble
    });
}

#[test]
fn every_other_number_is_fatal() {
    let union = Union::of(&every_port()).unwrap();
    let known: Vec<i64> = union.iter().map(|(nr, _)| nr).collect();
    let numbers = (0..=LAST).filter(|nr| !known.contains(nr) && !PROBES.contains(nr));
    let mut numbers: Vec<i64> = numbers.collect();
    numbers.extend([-1, 1000, 4096, 0xffff, i64::from(i32::MAX), i64::from(i32::MIN)]);
    if cfg!(target_arch = "x86_64") {
        // x32: every number, those that are allowed in the usual numbering as well.
        numbers.extend((0..=LAST).map(|nr| nr | 0x4000_0000));
    }
    behind_walls(|walls| {
        let ends = numbers.iter().map(|nr| (nr, made(walls, *nr, || [0; 6])));
        ends.filter(|(_, end)| *end != KILLED).map(|(nr, end)| format!("call {nr:#x}: {end:?}")).collect()
    });
}
