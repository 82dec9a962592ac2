//! The guests' end of a transfer, because busybox's nc moves a kilobyte at a time: `proof-stream send ADDR PORT MIB`
//! writes noise to a peer and the same to standard output, `proof-stream receive ADDR PORT` writes what a peer sends to
//! standard output, and so does `proof-stream accept ADDR PORT`, which waits for its peer. Whoever wants a digest pipes
//! that into a program of its own. `proof-stream mirror ADDR PORT` sends a peer what it sends.
#![allow(clippy::print_stderr, reason = "a program of tests tells its trouble on standard error")]

use netreeve_tests::transfer::{CHUNK, Noise};
use netreeve_tests::{Because, Done, trouble};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("proof-stream: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Done {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["send", address, port, megabytes] => {
            let megabytes: usize = megabytes.parse().because("MIB")?;
            send(&mut connect(address, port)?, megabytes * (1 << 20))
        }
        ["mirror", address, port] => mirror(&mut connect(address, port)?),
        ["receive", address, port] => receive(&mut connect(address, port)?),
        ["accept", address, port] => receive(&mut accept(address, port)?),
        _ => Err(trouble(
            "usage: proof-stream send ADDR PORT MIB | receive ADDR PORT | accept ADDR PORT | mirror ADDR PORT",
        )),
    }
}

fn place(address: &str, port: &str) -> Done<(IpAddr, u16)> {
    Ok((address.parse().because(address)?, port.parse().because(port)?))
}

fn connect(address: &str, port: &str) -> Done<TcpStream> {
    TcpStream::connect(place(address, port)?).because(format!("connect to {address} {port}"))
}

fn accept(address: &str, port: &str) -> Done<TcpStream> {
    let listener = TcpListener::bind(place(address, port)?).because(format!("listen at {address} {port}"))?;
    Ok(listener.accept().because("accept")?.0)
}

fn send(peer: &mut TcpStream, bytes: usize) -> Done {
    let mut out = std::io::stdout().lock();
    let mut noise = Noise::new(u64::from(std::process::id()));
    let mut chunk = vec![0; CHUNK];
    for _ in 0..bytes / CHUNK {
        noise.fill(&mut chunk);
        peer.write_all(&chunk).because("send")?;
        out.write_all(&chunk).because("write to standard output")?;
    }
    Ok(())
}

fn receive(peer: &mut TcpStream) -> Done {
    let mut out = std::io::stdout().lock();
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = peer.read(&mut chunk).because("receive")?;
        if n == 0 {
            return out.flush().because("write to standard output");
        }
        out.write_all(chunk.get(..n).unwrap_or_default()).because("write to standard output")?;
    }
}

fn mirror(peer: &mut TcpStream) -> Done {
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = peer.read(&mut chunk).because("receive")?;
        if n == 0 {
            return Ok(());
        }
        peer.write_all(chunk.get(..n).unwrap_or_default()).because("send")?;
    }
}
