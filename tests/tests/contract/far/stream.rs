//! One end of a stream's connection, in every framing.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::{Bad, Far, MOST, PATIENCE, Put, RECV, SEND, Take, is_full};

/// How frames stand in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Qemu,
    Little16,
    Big16,
    Vnet,
}

/// Bytes of the virtio-net header.
const HEADER: u32 = 12;

impl Framing {
    fn wire(self, frame: &[u8]) -> Vec<u8> {
        let len = frame.len() as u32;
        match self {
            Self::Qemu => [&len.to_be_bytes()[..], frame].concat(),
            Self::Little16 => [&(len as u16).to_le_bytes()[..], frame].concat(),
            Self::Big16 => [&(len as u16).to_be_bytes()[..], frame].concat(),
            Self::Vnet => {
                let lengths = [len + HEADER, HEADER].map(u32::to_be_bytes).concat();
                [&lengths[..], &[0; HEADER as usize], frame].concat()
            }
        }
    }

    /// Bytes before the frame that stands first, and its own; none: they are not here.
    fn lengths(self, b: &[u8]) -> Option<(usize, usize)> {
        let wide = |at: usize| b.get(at..at + 4).map(|w| u32::from_be_bytes(w.try_into().unwrap()) as usize);
        let short = || b.first_chunk::<2>().copied();
        Some(match self {
            Self::Qemu => (4, wide(0)?),
            Self::Little16 => (2, u16::from_le_bytes(short()?).into()),
            Self::Big16 => (2, u16::from_be_bytes(short()?).into()),
            Self::Vnet => {
                let (all, header) = (wide(0)?, wide(4)?);
                assert_eq!(header, HEADER as usize, "the header's length");
                (8 + header, all - header)
            }
        })
    }

    /// What a peer that keeps to the framing never says, and what is made of it.
    fn garbage(self) -> (Vec<u8>, Bad) {
        let ends = Bad { reason: "oversize", ends: true };
        match self {
            Self::Qemu => ((MOST as u32 + 1).to_be_bytes().to_vec(), ends),
            // A header that is longer than what it stands in.
            Self::Vnet => ([5_u32, HEADER].map(u32::to_be_bytes).concat(), ends),
            Self::Little16 | Self::Big16 => (vec![0; 2], Bad { reason: "runt", ends: false }),
        }
    }
}

/// One end of a stream's connection.
pub(crate) struct Stream {
    fd: OwnedFd,
    framing: Framing,
    /// What was put in and is not sent.
    out: Vec<u8>,
    came: Vec<u8>,
    ended: bool,
}

impl Stream {
    pub(crate) fn new(fd: impl Into<OwnedFd>, framing: Framing) -> Self {
        Self { fd: fd.into(), framing, out: Vec::new(), came: Vec::new(), ended: false }
    }

    /// Sends what is left. None: nobody is there; false: some is still left.
    fn flush(&mut self) -> Option<bool> {
        while !self.out.is_empty() {
            match send(self.fd.as_raw_fd(), &self.out, SEND) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(e) if is_full(e) => return Some(false),
                Err(_) => return None,
            }
        }
        Some(true)
    }

    fn say(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
        let until = Instant::now() + PATIENCE;
        while self.flush() == Some(false) {
            assert!(Instant::now() < until, "nobody reads the stream");
        }
    }
}

impl Far for Stream {
    fn put(&mut self, frame: &[u8]) -> Put {
        match self.flush() {
            None => return Put::Lost,
            Some(false) => return Put::Full,
            Some(true) => self.out = self.framing.wire(frame),
        }
        match self.flush() {
            None => Put::Lost,
            Some(_) => Put::Gone,
        }
    }

    fn take(&mut self) -> Take {
        self.go_on();
        loop {
            if let Some((before, len)) = self.framing.lengths(&self.came)
                && self.came.len() >= before + len
            {
                assert!(len > 0, "an empty frame");
                let frame = self.came[before..before + len].to_vec();
                self.came.drain(..before + len);
                return Take::Frame(frame);
            }
            let mut more = [0; 16384];
            match recv(self.fd.as_raw_fd(), &mut more, RECV) {
                Ok(n) if n > 0 => self.came.extend(&more[..n]),
                Err(e) if is_full(e) => return Take::Nothing,
                Ok(_) | Err(_) => {
                    self.ended = true;
                    return Take::End;
                }
            }
        }
    }

    fn go_on(&mut self) {
        let _lost = self.flush();
    }

    fn garbage(&mut self) -> Option<Bad> {
        let (bytes, bad) = self.framing.garbage();
        self.say(&bytes);
        Some(bad)
    }

    fn half_close(&mut self) -> bool {
        self.say(&[]);
        shutdown(self.fd.as_raw_fd(), Shutdown::Write).unwrap();
        true
    }

    fn is_connected(&mut self) -> bool {
        let peek = RECV | MsgFlags::MSG_PEEK;
        self.ended |= match recv(self.fd.as_raw_fd(), &mut [0; 1], peek) {
            Ok(n) => n == 0,
            Err(e) => !is_full(e),
        };
        !self.ended
    }
}
