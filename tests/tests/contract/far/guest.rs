//! A guest's driver.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netreeve_tests::bench::driver::{Driver, Make};
use nix::sys::socket::{recv, send};

use super::{Bad, Far, PATIENCE, Put, RECV, Room, SEND, Take, is_full, room};

/// A guest's driver, with a pair of rings.
pub(crate) struct Guest {
    driver: Option<Driver>,
    path: PathBuf,
    room: Room,
}

impl Guest {
    pub(crate) fn new(path: PathBuf, packed: bool) -> Self {
        let make = Make { rx: 64, tx: 64, packed, large: true, ..Make::usual(false) };
        let driver = Driver::connect(&path, make).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { driver: Some(driver), path, room: room() }
    }
}

impl Far for Guest {
    fn put(&mut self, frame: &[u8]) -> Put {
        let Some(d) = self.driver.as_mut() else { return Put::Lost };
        if d.tx.send(frame, 1) == 1 { Put::Gone } else { Put::Full }
    }

    fn take(&mut self) -> Take {
        let Some(d) = self.driver.as_mut() else { return Take::End };
        let mut frame = None;
        d.rx.recv_copy(1, &mut self.room, |f| frame = Some(f.to_vec()));
        match frame {
            Some(frame) => Take::Frame(frame),
            None if d.is_connected() => Take::Nothing,
            None => Take::End,
        }
    }

    /// A front end that says what is no message. The driver's own connection makes room for it.
    fn garbage(&mut self) -> Option<Bad> {
        self.driver = None;
        let s = UnixStream::connect(&self.path).unwrap();
        let until = Instant::now() + PATIENCE;
        let _all = send(s.as_raw_fd(), &[0xff; 64], SEND);
        while matches!(recv(s.as_raw_fd(), &mut [0; 64], RECV), Err(e) if is_full(e)) {
            assert!(Instant::now() < until, "a connection of nonsense is kept");
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(Bad { reason: "protocol", ends: true })
    }

    fn is_connected(&mut self) -> bool {
        self.driver.as_ref().is_some_and(Driver::is_connected)
    }
}
