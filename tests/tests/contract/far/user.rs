//! The two ends of a `user` network: a server on the host, and a guest's stack of UDP.

use std::net::{SocketAddr, UdpSocket};

use super::{Bad, Far, Put, Room, Take, room};

/// A server on the host that a guest behind a `user` network talks with: it answers to where it heard from last.
pub(crate) struct Server {
    socket: UdpSocket,
    to: Option<SocketAddr>,
    room: Room,
}

impl Server {
    pub(crate) fn new(socket: UdpSocket) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self { socket, to: None, room: room() }
    }
}

impl Far for Server {
    fn put(&mut self, frame: &[u8]) -> Put {
        let Some(to) = self.to else { return Put::Lost };
        match self.socket.send_to(frame, to) {
            Ok(_) => Put::Gone,
            Err(_) => Put::Full,
        }
    }

    fn take(&mut self) -> Take {
        match self.socket.recv_from(&mut self.room) {
            Ok((n, from)) => {
                self.to = Some(from);
                Take::Frame(self.room[..n].to_vec())
            }
            Err(_) => Take::Nothing,
        }
    }
}

/// A guest's stack of UDP around a device's far end: what is put in goes in a datagram to the host's `port`, and what comes
/// from there is taken out.
pub(crate) struct Stack {
    inner: Box<dyn Far>,
    port: u16,
}

const OURS: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const GATEWAY: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const ADDRESS: [u8; 4] = [10, 0, 2, 15];
const HOST: [u8; 4] = [10, 0, 2, 2];

impl Stack {
    pub(crate) fn new(inner: Box<dyn Far>, port: u16) -> Self {
        Self { inner, port }
    }

    fn datagram(&self, payload: &[u8]) -> Vec<u8> {
        let len = payload.len() as u16;
        let mut ip =
            [&[0x45, 0][..], &(len + 28).to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0], &ADDRESS, &HOST]
                .concat();
        let sum: u32 = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        // From port 4000, without a checksum.
        let udp = [4000, self.port, len + 8, 0].map(u16::to_be_bytes).concat();
        [&GATEWAY[..], &OURS, &[8, 0], &ip, &udp, payload].concat()
    }

    /// The payload of a datagram from the server.
    fn open(&self, f: &[u8]) -> Option<Vec<u8>> {
        let is = f.len() >= 42 && f[12..15] == [8, 0, 0x45] && f[23] == 17 && f[26..30] == HOST;
        let from = is && f[34..36] == self.port.to_be_bytes();
        from.then(|| {
            let len = usize::from(u16::from_be_bytes([f[38], f[39]]));
            f[42..34 + len].to_vec()
        })
    }

    /// Answers who asks for our address.
    fn answer(&mut self, f: &[u8]) {
        if f.len() >= 42 && f[12..14] == [8, 6] && f[20..22] == [0, 1] && f[38..42] == ADDRESS {
            let head = [&f[6..12], &OURS, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
            let _full = self.inner.put(&[&head[..], &OURS, &ADDRESS, &f[22..32]].concat());
        }
    }
}

impl Far for Stack {
    fn put(&mut self, frame: &[u8]) -> Put {
        let datagram = self.datagram(frame);
        self.inner.put(&datagram)
    }

    fn take(&mut self) -> Take {
        loop {
            match self.inner.take() {
                Take::Frame(f) => match self.open(&f) {
                    Some(payload) => return Take::Frame(payload),
                    None => self.answer(&f),
                },
                other => return other,
            }
        }
    }

    fn go_on(&mut self) {
        self.inner.go_on();
    }

    fn garbage(&mut self) -> Option<Bad> {
        self.inner.garbage()
    }

    fn half_close(&mut self) -> bool {
        self.inner.half_close()
    }

    fn is_connected(&mut self) -> bool {
        self.inner.is_connected()
    }
}
