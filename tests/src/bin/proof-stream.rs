//! The guests' end of connections, because busybox's nc moves a kilobyte at a time and knows no datagrams.
//!
//! `proof-stream send ADDR PORT MIB` writes noise to a peer and the same to standard output, `proof-stream receive ADDR PORT`
//! writes what a peer sends to standard output, and so does `proof-stream accept ADDR PORT`, which waits for its peer.
//! Whoever wants a digest pipes that into a program of its own. `hear` is `receive` by one who has ended his own half
//! before, `answer` is `send` to one who has ended his. `proof-stream mirror ADDR PORT` sends a peer what it sends,
//! `proof-stream serve PORT` everybody, by TCP and UDP.
//!
//! `proof-stream datagrams ADDR PORT` sends datagrams of every size to who sends them back;
//! `proof-stream told ADDR PORT TIMES` says what comes of one that nobody takes, and `told-all` what comes of it to a
//! socket that asks for every error.
#![allow(clippy::print_stderr, reason = "a program of tests tells its trouble on standard error")]

use netreeve_tests::transfer::{CHUNK, Noise};
use netreeve_tests::{Because, Done, echo, trouble};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
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
        ["send", address, port, megabytes] => send(&mut connect(address, port)?, megabytes),
        ["answer", address, port, megabytes] => {
            let mut peer = connect(address, port)?;
            match peer.read(&mut [0]).because("wait for the other's end")? {
                0 => send(&mut peer, megabytes),
                _ => Err(trouble("a byte of one who sends none")),
            }
        }
        ["mirror", address, port] => echo::mirror(&mut connect(address, port)?),
        ["receive", address, port] => receive(&mut connect(address, port)?),
        ["hear", address, port] => {
            let mut peer = connect(address, port)?;
            peer.shutdown(Shutdown::Write).because("end")?;
            receive(&mut peer)
        }
        ["accept", address, port] => receive(&mut accept(address, port)?),
        ["serve", port] => echo::serve(port.parse().because("PORT")?),
        ["datagrams", address, port] => echo::datagrams(&echo::towards(place(address, port)?)?),
        [verb @ ("told" | "told-all"), address, port, times] => {
            let said =
                echo::told(place(address, port)?, times.parse().because("TIMES")?, *verb == "told-all")?;
            writeln!(std::io::stdout(), "{said}").because("write to standard output")
        }
        _ => Err(trouble(
            "usage: proof-stream send|answer ADDR PORT MIB | receive|hear|accept|mirror|datagrams ADDR PORT | serve PORT | \
             told|told-all ADDR PORT TIMES",
        )),
    }
}

fn place(address: &str, port: &str) -> Done<SocketAddr> {
    let address: IpAddr = address.parse().because(address)?;
    Ok(SocketAddr::new(address, port.parse().because(port)?))
}

fn connect(address: &str, port: &str) -> Done<TcpStream> {
    TcpStream::connect(place(address, port)?).because(format!("connect to {address} {port}"))
}

fn accept(address: &str, port: &str) -> Done<TcpStream> {
    let listener = TcpListener::bind(place(address, port)?).because(format!("listen at {address} {port}"))?;
    Ok(listener.accept().because("accept")?.0)
}

fn send(peer: &mut TcpStream, megabytes: &str) -> Done {
    let bytes = megabytes.parse::<usize>().because("MIB")? * (1 << 20);
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
