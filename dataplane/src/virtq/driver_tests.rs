use super::*;
use crate::mem::packed::Entry;
use crate::virtq::testing::{BUFS, Guest};
use crate::virtq::{Chains, Device};

fn terms(packed: bool) -> Terms {
    Terms { packed, ..Terms::default() }
}

fn one(g: &mut Guest) -> u16 {
    g.readable(&[(BUFS, 60)])
}

fn serve(dev: &mut Device) {
    let mut chains = Chains::default();
    dev.fetch(&mut chains, 64);
    dev.complete(chains.all());
}

#[test]
fn descriptors_are_lent_once_and_come_back() {
    for packed in [false, true] {
        let (mut g, mut dev) = Guest::new(8, &terms(packed));
        for _ in 0..100 {
            let a = one(&mut g);
            let b = g.readable(&[(BUFS, 1), (BUFS, 2), (BUFS, 3)]);
            let c = g.writable(&[(BUFS, 4); 4]);
            assert_eq!(g.driver.free(), 0);
            assert_eq!(g.driver.add(&[Buf { addr: BUFS, len: 1, write: false }]), None);
            assert_eq!(g.driver.add(&[]), None);
            assert_eq!(g.driver.take(), None);
            serve(&mut dev);
            for id in [a, b, c] {
                assert_eq!(g.driver.take(), Some((id, 0)));
            }
            assert_eq!((g.driver.take(), g.driver.free()), (None, 8));
        }
    }
}

#[test]
fn a_device_that_returns_what_it_was_not_lent() {
    let (mut g, _dev) = Guest::new(8, &terms(false));
    let id = one(&mut g);
    for (i, id) in [(0, 7), (1, id), (2, id)] {
        g.split().set_used_entry(i, id, 5);
    }
    g.split().set_used_idx(3);
    assert_eq!((g.driver.take(), g.driver.take()), (Some((id, 5)), None));
    assert_eq!(g.driver.free(), 8);
    g.split().set_used_idx(2);
    assert_eq!(g.driver.take(), None, "an index that goes back");

    let (mut g, _dev) = Guest::new(8, &terms(true));
    one(&mut g);
    let ring = g.driver.packed().unwrap();
    ring.set_entry(0, Entry { len: 5, id: 7, flags: 0x8080 });
    assert_eq!((g.driver.take(), g.driver.free()), (None, 7));
}
