//! What goes to somebody and comes back: datagrams of every size, those who send back whatever they hear, and what the
//! network says of a datagram that nobody takes. The guests' program (`proof-stream`) and the tests outside use the same.

use crate::transfer::{CHUNK, Noise};
use crate::{Because, Done, trouble};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Payloads of UDP in bytes: none, few, around what a packet of 1500 bytes holds in either family, what takes several, and
/// the most that IPv4 has.
pub const SIZES: &[u16] = &[0, 1, 2, 1231, 1452, 1453, 1472, 1473, 2961, 4001, 16_384, 65_507];

/// Room for the largest datagram of either family, and a byte that none may fill.
const ROOM: usize = 65_528;
/// How long one that is on its way is waited for, and how often it is sent: on a busy machine some are lost.
const WAIT: Duration = Duration::from_secs(1);
const TRIES: u32 = 20;

/// A socket of UDP's that is connected to somebody.
pub fn towards(there: SocketAddr) -> Done<UdpSocket> {
    let any: IpAddr =
        if there.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).because("bind")?;
    socket.connect(there).because(format!("connect to {there}"))?;
    Ok(socket)
}

/// Sends a datagram of each of [`SIZES`] to whom the socket is connected to; each has to come back as it was.
pub fn datagrams(socket: &UdpSocket) -> Done {
    socket.set_read_timeout(Some(WAIT)).because("deadline")?;
    SIZES.iter().try_for_each(|size| datagram(socket, *size))
}

fn datagram(socket: &UdpSocket, size: u16) -> Done {
    let mut sent = vec![0; size.into()];
    Noise::new(size.into()).fill(&mut sent);
    let (mut got, mut why) = (vec![0; ROOM], String::new());
    for _ in 0..TRIES {
        // An error is mostly that of the one before.
        let mut heard = socket.send(&sent).and_then(|_| socket.recv(&mut got));
        // What comes of a size that was before had been given up, and sent again.
        while matches!(heard, Ok(n) if n != sent.len()) {
            heard = socket.recv(&mut got);
        }
        match heard {
            Ok(n) if got.get(..n) == Some(sent.as_slice()) => return Ok(()),
            Ok(_) => return Err(trouble(format!("a datagram of {size} bytes came back as another"))),
            Err(e) if e.kind() == ErrorKind::WouldBlock => "nothing comes".clone_into(&mut why),
            Err(e) => {
                why = e.to_string();
                std::thread::sleep(WAIT / 10);
            }
        }
    }
    Err(trouble(format!("a datagram of {size} bytes does not come back: {why}")))
}

/// Sends back every datagram that comes, until told to end.
pub fn echo(socket: &UdpSocket, end: &AtomicBool) -> Done {
    socket.set_read_timeout(Some(WAIT / 10)).because("deadline")?;
    let mut got = vec![0; ROOM];
    while !end.load(Ordering::Relaxed) {
        let Ok((n, from)) = socket.recv_from(&mut got) else { continue };
        // Whoever misses it asks again.
        let _lost = socket.send_to(got.get(..n).unwrap_or_default(), from);
    }
    Ok(())
}

/// Sends back what a stream brings, to its end.
pub fn mirror(peer: &mut TcpStream) -> Done {
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = peer.read(&mut chunk).because("receive")?;
        if n == 0 {
            return Ok(());
        }
        peer.write_all(chunk.get(..n).unwrap_or_default()).because("send")?;
    }
}

/// Sends back what comes by TCP and by UDP to a port, at every address of either family, for ever.
pub fn serve(port: u16) -> Done {
    let datagrams = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).because("bind by UDP")?;
    let streams = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).because("listen by TCP")?;
    std::thread::spawn(move || echo(&datagrams, &AtomicBool::new(false)));
    loop {
        let (mut peer, _) = streams.accept().because("accept")?;
        // Of a visitor that breaks off nothing is wanted any more.
        std::thread::spawn(move || mirror(&mut peer));
    }
}

/// Sends a datagram a second where it will not be taken, so many times or until the kernel says something of it: its words,
/// or `nothing`. `all`: also what a socket hears only if it asks for it (`IP_RECVERR`, ip(7)).
pub fn told(there: SocketAddr, times: u32, all: bool) -> Done<String> {
    let socket = towards(there)?;
    match there {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &all),
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &all),
    }
    .because("ask for errors")?;
    socket.set_read_timeout(Some(WAIT)).because("deadline")?;
    for _ in 0..times {
        match socket.send(b"anybody?").and_then(|_| socket.recv(&mut [0; 8])) {
            Ok(_) => return Ok("an answer".to_owned()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Ok(e.to_string()),
        }
    }
    Ok("nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::over::Over;

    #[test]
    fn datagrams_of_every_size_come_back() {
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        near.connect(far.local_addr().unwrap()).unwrap();
        let end = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| echo(&far, &end).unwrap());
            let _over = Over(&end);
            datagrams(&near).unwrap();
        });
    }

    #[test]
    fn what_becomes_of_a_datagram_is_told() {
        // An address that nobody else here binds.
        let gone = UdpSocket::bind("127.77.0.1:0").unwrap().local_addr().unwrap();
        assert!(told(gone, 9, false).unwrap().starts_with("Connection refused"));
        let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(told(deaf.local_addr().unwrap(), 1, true).unwrap(), "nothing");
    }
}
