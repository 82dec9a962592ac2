//! The union by the declarations' own words; the kernel's view of it is tried in the `tests` crate.

use super::*;

/// Whether `u` allows `nr` with `args`, by the declarations' own words.
fn allows(u: &Union, nr: i64, args: [u64; 6]) -> bool {
    u.0.get(&nr).is_some_and(|alternatives| {
        alternatives.is_empty()
            || alternatives.iter().any(|a| a.iter().all(|c| args[usize::from(c.arg)] & c.mask == c.value))
    })
}

#[test]
fn core_alone_has_no_call_that_opens_anything() {
    let u = Union::of(&[]).unwrap();
    for nr in NEVER {
        assert!(!u.0.contains_key(nr), "{nr}");
    }
    for nr in CHECKED.iter().chain(OURS) {
        assert!(u.0.get(nr).is_none_or(|a| a.iter().all(|c| !c.is_empty())), "{nr}");
    }
    assert!(u.len() <= 20, "{}", u.len());
    u.compile(1).unwrap();
}

#[test]
fn memory_is_never_executable() {
    let u = Union::of(&[LOCKS]).unwrap();
    for prot in 0..16 {
        let wanted = prot & 4 == 0;
        assert_eq!(allows(&u, libc::SYS_mmap, [0, 0, prot, 0, 0, 0]), wanted);
        // Only musl's allocator changes what memory is for.
        let changed = wanted && !cfg!(target_env = "gnu");
        assert_eq!(allows(&u, libc::SYS_mprotect, [0, 0, prot, 0, 0, 0]), changed);
    }
}

#[test]
fn a_port_cannot_widen_what_the_sandbox_holds_shut() {
    for nr in NEVER.iter().chain(CHECKED).chain(OURS) {
        assert!(Union::of(&[&[Call::any(*nr)]]).is_err(), "{nr}");
    }
    const ZERO: &[Cond] = &[Cond::is(0, 0)];
    for nr in NEVER {
        let call = Call { nr: *nr, only: ZERO };
        assert!(Union::of(&[&[call]]).is_err(), "{nr}");
    }
    const WRITE_EXEC: &[Call] = &[Call::only(libc::SYS_mmap, &[Cond::is(2, 7)])];
    assert!(Union::of(&[WRITE_EXEC]).is_err());
    const KILL: &[Call] = &[Call::only(libc::SYS_tgkill, &[Cond::is(2, 9)])];
    assert!(Union::of(&[KILL]).is_err());
    // What it allows itself may be said again.
    assert_eq!(Union::of(&[CORE]).unwrap(), Union::of(&[]).unwrap());
}

#[test]
fn declarations_add_up() {
    const ONE: &[Call] = &[Call::only(libc::SYS_ioctl, &[Cond::is(1, 5)])];
    const TWO: &[Call] = &[Call::only(libc::SYS_ioctl, &[Cond::is(1, 6)]), Call::any(libc::SYS_fstat)];
    let u = Union::of(&[ONE, TWO, ONE]).unwrap();
    for request in 0..9 {
        assert_eq!(allows(&u, libc::SYS_ioctl, [0, request, 0, 0, 0, 0]), request == 5 || request == 6);
    }
    assert_eq!(u.0.get(&libc::SYS_ioctl).map(Vec::len), Some(2));
    assert!(allows(&u, libc::SYS_fstat, [7; 6]));
    assert_eq!(u.len(), Union::of(&[]).unwrap().len() + 2);
    // A call without conditions wins over the same with some, in either order.
    const ANY: &[Call] = &[Call::any(libc::SYS_shutdown)];
    const SOME: &[Call] = &[Call::only(libc::SYS_shutdown, &[Cond::is(1, 1)])];
    let both = Union::of(&[ANY, SOME]).unwrap();
    assert_eq!(both, Union::of(&[SOME, ANY]).unwrap());
    assert!(allows(&both, libc::SYS_shutdown, [0; 6]));
}
