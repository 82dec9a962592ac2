//! Bytes that must arrive as they were sent: streams between a guest and a namespace or another guest over TCP, compared
//! by SHA-256 at both ends. Each end's digest is made by a program of its own (`sha256sum`, busybox). For very many there
//! is a way there and back ([`there_and_back`]) where the guest makes none.

use crate::guest::Console;
use crate::netns::Netns;
use crate::{Because, Done, trouble};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a transfer may take.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long it may make no progress at all, on a busy machine.
const STALL: Duration = Duration::from_secs(60);
/// How long until it begins.
const ARRIVAL: Duration = Duration::from_secs(30);
/// Bytes written and read at once.
pub const CHUNK: usize = 1 << 16;

/// A transfer that arrived.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The digest, the same at both ends.
    pub digest: String,
    /// How long it took.
    pub took: Duration,
}

/// `sha256sum` fed through a pipe.
struct Digest(Child);

impl Digest {
    fn new() -> Done<Digest> {
        let mut command = Command::new("sha256sum");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Digest(command.spawn().because("start sha256sum")?))
    }

    fn add(&mut self, bytes: &[u8]) -> Done {
        self.0.stdin.as_mut().because("sha256sum's input")?.write_all(bytes).because("write to sha256sum")
    }

    fn finish(mut self) -> Done<String> {
        drop(self.0.stdin.take());
        let out = self.0.wait_with_output().because("sha256sum")?;
        first_word(&String::from_utf8_lossy(&out.stdout))
    }
}

fn first_word(text: &str) -> Done<String> {
    text.split_whitespace().next().map(str::to_owned).because("sha256sum said nothing")
}

/// Bytes without a pattern that any offload or checksum could mend: a xorshift generator.
pub struct Noise(u64);

impl Noise {
    /// A generator; the same seed gives the same bytes.
    pub fn new(seed: u64) -> Noise {
        Noise(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// Fills with the next bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let from = self.0.to_le_bytes();
            word.iter_mut().zip(from).for_each(|(to, from)| *to = from);
        }
    }
}

/// Sends `megabytes` MiB from a namespace to a guest, which fetches them from one of the namespace's addresses.
pub fn to_guest(far: &Netns, guest: &Console, address: IpAddr, megabytes: usize) -> Done<Sent> {
    let listener = far.enter(|| TcpListener::bind(SocketAddr::new(address, 7000)))?.because("listen")?;
    let began = Instant::now();
    let job = guest.start(&format!("proof-stream receive {address} 7000 | sha256sum"))?;
    let sent = far.enter(|| give(&accept(&listener)?, megabytes))??;
    let got = guest.finish(job, PATIENCE)?.ok("proof-stream | sha256sum in the guest")?;
    compare(sent, first_word(&got)?, began)
}

/// Sends `megabytes` MiB from a guest to one of a namespace's addresses.
pub fn from_guest(far: &Netns, guest: &Console, address: IpAddr, megabytes: usize) -> Done<Sent> {
    let listener = far.enter(|| TcpListener::bind(SocketAddr::new(address, 7001)))?.because("listen")?;
    let began = Instant::now();
    let job = guest.start(&format!("proof-stream send {address} 7001 {megabytes} | sha256sum"))?;
    let got = far.enter(|| take(&accept(&listener)?))??;
    let sent = guest.finish(job, PATIENCE)?.ok("proof-stream | sha256sum in the guest")?;
    compare(first_word(&sent)?, got, began)
}

/// Sends `megabytes` MiB from a namespace to a guest, which sends them back by the same connection meanwhile: all of them
/// pass both ways. Both digests are made outside, of what left and of what returned: a guest that is to hash as well
/// (User-Mode Linux has one processor) takes longer for that than for its network.
pub fn there_and_back(far: &Netns, guest: &Console, address: IpAddr, megabytes: usize) -> Done<Sent> {
    let listener = far.enter(|| TcpListener::bind(SocketAddr::new(address, 7003)))?.because("listen")?;
    let began = Instant::now();
    let job = guest.start(&format!("proof-stream mirror {address} 7003"))?;
    let stream = far.enter(|| accept(&listener))??;
    let both = round(&stream, megabytes);
    guest.finish(job, PATIENCE)?.ok("proof-stream in the guest")?;
    let (sent, got) = both?;
    compare(sent, got, began)
}

/// The same to a guest that sends back what comes to it, called at `there` from a namespace: a forward.
pub fn to_who_is_called(far: &Netns, there: SocketAddr, megabytes: usize) -> Done<Sent> {
    let began = Instant::now();
    let called = far.enter(|| TcpStream::connect_timeout(&there, STALL))?;
    let (sent, got) = round(&called.because(format!("connect to {there}"))?, megabytes)?;
    compare(sent, got, began)
}

/// Sends noise and takes what comes meanwhile, both to their ends; both digests.
fn round(stream: &TcpStream, megabytes: usize) -> Done<(String, String)> {
    std::thread::scope(|s| {
        let sender = s.spawn(|| give(stream, megabytes));
        let got = take(stream);
        Ok((sender.join().map_err(|_| trouble("the sender panicked"))??, got?))
    })
}

/// Sends `megabytes` MiB to a guest that has ended its own half of the connection by then.
pub fn to_guest_that_has_ended(
    far: &Netns,
    guest: &Console,
    address: IpAddr,
    megabytes: usize,
) -> Done<Sent> {
    let listener = far.enter(|| TcpListener::bind(SocketAddr::new(address, 7004)))?.because("listen")?;
    let began = Instant::now();
    let job = guest.start(&format!("proof-stream hear {address} 7004 | sha256sum"))?;
    let mut stream = far.enter(|| accept(&listener))??;
    stream.set_read_timeout(Some(STALL)).because("deadline")?;
    if stream.read(&mut [0]).because("wait for the guest's end")? > 0 {
        return Err(trouble("a byte of a guest that sends none"));
    }
    let sent = give(&stream, megabytes)?;
    let got = guest.finish(job, PATIENCE)?.ok("proof-stream | sha256sum in the guest")?;
    compare(sent, first_word(&got)?, began)
}

/// Sends `megabytes` MiB from a guest to who has ended his own half of the connection, which the guest has heard by then.
pub fn from_guest_after_an_end(
    far: &Netns,
    guest: &Console,
    address: IpAddr,
    megabytes: usize,
) -> Done<Sent> {
    let listener = far.enter(|| TcpListener::bind(SocketAddr::new(address, 7005)))?.because("listen")?;
    let began = Instant::now();
    let job = guest.start(&format!("proof-stream answer {address} 7005 {megabytes} | sha256sum"))?;
    let stream = far.enter(|| accept(&listener))??;
    stream.shutdown(Shutdown::Write).because("end")?;
    let got = take(&stream)?;
    let sent = guest.finish(job, PATIENCE)?.ok("proof-stream | sha256sum in the guest")?;
    compare(first_word(&sent)?, got, began)
}

/// Gives `megabytes` MiB to whoever comes first, and the end; their digest.
pub fn serve(listener: &TcpListener, megabytes: usize) -> Done<String> {
    give(&accept(listener)?, megabytes)
}

/// Takes all that whoever comes first sends; its digest.
pub fn hear(listener: &TcpListener) -> Done<String> {
    take(&accept(listener)?)
}

/// Sends noise and says that it was all; its digest.
fn give(mut stream: &TcpStream, megabytes: usize) -> Done<String> {
    stream.set_write_timeout(Some(STALL)).because("deadline")?;
    let (mut noise, mut digest) = (Noise::new(u64::from(std::process::id())), Digest::new()?);
    let mut chunk = vec![0; CHUNK];
    for _ in 0..megabytes * (1 << 20) / CHUNK {
        noise.fill(&mut chunk);
        digest.add(&chunk)?;
        stream.write_all(&chunk).because("send to the guest")?;
    }
    stream.shutdown(Shutdown::Write).because("end")?;
    digest.finish()
}

/// Receives until the end; its digest.
fn take(mut stream: &TcpStream) -> Done<String> {
    stream.set_read_timeout(Some(STALL)).because("deadline")?;
    let (mut digest, mut chunk) = (Digest::new()?, vec![0; CHUNK]);
    loop {
        let n = stream.read(&mut chunk).because("receive from the guest")?;
        if n == 0 {
            return digest.finish();
        }
        digest.add(chunk.get(..n).unwrap_or_default())?;
    }
}

/// Sends `megabytes` MiB from a guest to another at `address`, its own.
pub fn between(from: &Console, to: &Console, address: IpAddr, megabytes: usize) -> Done<Sent> {
    const PORT: u16 = 7002;
    let taking = to.start(&format!("proof-stream accept {address} {PORT} | sha256sum"))?;
    // Its kernel says when it listens (state 0A).
    let listens = format!("grep -q ':{PORT:04X} [0-9A-F:]* 0A ' /proc/net/tcp /proc/net/tcp6");
    to.ok(&format!(
        "for i in $(seq 500); do {listens} && exit 0; usleep 20000; done; echo nobody listens; exit 1"
    ))?;
    let began = Instant::now();
    let giving = from.start(&format!("proof-stream send {address} {PORT} {megabytes} | sha256sum"))?;
    let sent = from.finish(giving, PATIENCE)?.ok("proof-stream | sha256sum in the sending guest")?;
    let got = to.finish(taking, PATIENCE)?.ok("proof-stream | sha256sum in the receiving guest")?;
    compare(first_word(&sent)?, first_word(&got)?, began)
}

fn accept(listener: &TcpListener) -> Done<TcpStream> {
    listener.set_nonblocking(true).because("listener")?;
    let until = Instant::now() + ARRIVAL;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).because("stream")?;
                return Ok(stream);
            }
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(trouble(format!("the guest never connected: {e}"))),
        }
    }
}

fn compare(sent: String, got: String, began: Instant) -> Done<Sent> {
    if sent != got {
        return Err(trouble(format!("sent {sent}, received {got}")));
    }
    Ok(Sent { digest: sent, took: began.elapsed() })
}
