//! Foreign programs as peers and as measuring instruments, and what can be read off their output.

use crate::bins::peer;
use crate::guest::Console;
use crate::netns::Netns;
use crate::proc::Proc;
use crate::{Because, Done, trouble};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

/// What ping says at its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Replies seen.
    pub received: u32,
    /// Mean round trip in milliseconds; NaN when nothing came back.
    pub mean_ms: f64,
}

/// Reads the summary of iputils' or busybox's ping.
pub fn parse_ping(text: &str) -> Done<Ping> {
    let count = |before: &str| -> Option<u32> {
        text.lines()
            .find(|l| l.contains("packets transmitted"))?
            .split(',')
            .find(|p| p.contains(before))
            .and_then(|p| p.split_whitespace().next()?.parse().ok())
    };
    let (sent, received) =
        count("transmitted").zip(count("received")).because(format!("not ping's summary:\n{text}"))?;
    let times = text.lines().find(|l| l.contains("min/avg/max")).and_then(|l| l.split(" = ").nth(1));
    let mean_ms = times.and_then(|t| t.split('/').nth(1)?.parse().ok()).unwrap_or(f64::NAN);
    Ok(Ping { sent, received, mean_ms })
}

/// Pings from a guest; `options` are of busybox's ping, with at least an address.
pub fn ping_from_guest(guest: &Console, options: &str) -> Done<Ping> {
    parse_ping(&guest.run(&format!("ping {options}"), Duration::from_secs(60))?.text)
}

/// Pings from a namespace; `options` are of iputils' ping, with at least an address.
/// After its last question it waits for one interval or twice the longest answer only, whatever `-W` says. With a deadline
/// it waits for as many answers as were wanted, and goes on asking meanwhile: how many of the wanted ones came is counted
/// here.
pub fn ping_from(ns: &Netns, options: &str) -> Done<Ping> {
    let mut command = Command::new(peer("ping")?);
    let words: Vec<&str> = options.split_whitespace().collect();
    let count = words.iter().position(|w| *w == "-c").and_then(|i| words.get(i + 1)?.parse::<u32>().ok());
    let count = count.filter(|n| *n > 1 && !words.contains(&"-q"));
    if count.is_some() {
        command.args(["-w", "20"]);
    }
    command.args(words);
    let text = ns.run("ping", command, Duration::from_secs(60))?.text;
    let mut ping = parse_ping(&text)?;
    if let Some(sent) = count {
        let wanted = text.lines().filter_map(answered).filter(|n| (1..=u64::from(sent)).contains(n));
        let received = wanted.collect::<BTreeSet<_>>().len();
        ping = Ping { sent, received: u32::try_from(received).unwrap_or(u32::MAX), ..ping };
    }
    Ok(ping)
}

/// The number of the question that a line of iputils' ping says is answered.
fn answered(line: &str) -> Option<u64> {
    let number = line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok();
    line.contains(" time=").then_some(number)?
}

/// Waits until an address answers from a guest, and returns how long that took.
pub fn wait_until_reachable(guest: &Console, address: &str) -> Done {
    let script = format!(
        "for i in $(seq 100); do ping -c 1 -W 1 {address} >/dev/null && exit 0; usleep 50000; done; exit 1"
    );
    let outcome = guest.run(&script, Duration::from_secs(120))?;
    if outcome.code == 0 {
        Ok(())
    } else {
        Err(trouble(format!("{address} never answered the guest's pings")))
    }
}

/// A ping that goes on, by which the moments of replies are seen.
pub struct Pulse {
    proc: Proc,
}

/// Starts pinging from a namespace every `every`.
pub fn pulse(ns: &Netns, address: &str, every: Duration) -> Done<Pulse> {
    let mut command = Command::new(peer("ping")?);
    command.args(["-n", "-i", &every.as_secs_f64().to_string(), address]);
    Ok(Pulse { proc: ns.spawn("ping", command)? })
}

impl Pulse {
    /// The replies so far: when each was seen, and the number of its request.
    pub fn replies(&self) -> Vec<(Instant, u64)> {
        self.proc.lines().iter().filter_map(|l| Some((l.at, answered(&l.text)?))).collect()
    }

    /// Waits until there are `count` replies after the moment `from`.
    pub fn wait(&self, count: usize, from: Instant, within: Duration) -> Done {
        let until = Instant::now() + within;
        while self.replies().iter().filter(|(at, _)| *at > from).count() < count {
            if Instant::now() >= until {
                return Err(trouble(format!(
                    "not {count} replies to ping within {within:?}:\n{}",
                    self.proc.tail()
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// How long traffic was away after something was done at `from`: the longest time without a reply since then,
    /// counted from `from` or from the reply before. Waits until replies have come for a while.
    pub fn gap(&self, from: Instant, within: Duration) -> Done<Duration> {
        // Replies to requests that were under way do not show that anything works again.
        let asked = self.replies().last().map_or(0, |(_, n)| *n);
        let until = Instant::now() + within;
        let fresh =
            |all: &[(Instant, u64)]| all.iter().filter(|(at, n)| *at > from && *n > asked + 20).count();
        while fresh(&self.replies()) < 100 {
            if Instant::now() >= until {
                return Err(trouble(format!("no traffic again within {within:?}:\n{}", self.proc.tail())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let moments =
            std::iter::once(from).chain(self.replies().into_iter().map(|(at, _)| at).filter(|at| *at > from));
        let moments: Vec<Instant> = moments.collect();
        let gaps = moments.iter().zip(moments.iter().skip(1)).map(|(a, b)| b.duration_since(*a));
        gaps.max().because("no replies")
    }
}

/// An iperf3 server in a namespace, until dropped.
pub struct Server {
    _proc: Proc,
    /// Its TCP port.
    pub port: u16,
}

/// Starts an iperf3 server in a namespace.
pub fn iperf_server(ns: &Netns, port: u16) -> Done<Server> {
    let mut command = Command::new(peer("iperf3")?);
    command.args(["-s", "--forceflush", "-p", &port.to_string()]);
    let proc = ns.spawn("iperf3 -s", command)?;
    proc.wait_for("Server listening", Duration::from_secs(5))?;
    Ok(Server { _proc: proc, port })
}

/// The receiver's throughput in bit/s, from `iperf3 -J`.
pub fn parse_iperf(text: &str) -> Done<f64> {
    let start = text.find('{').because(format!("iperf3 printed no JSON:\n{text}"))?;
    let report: serde_json::Value = serde_json::from_str(text.get(start..).unwrap_or_default())
        .because(format!("iperf3's JSON:\n{text}"))?;
    if let Some(error) = report.get("error") {
        return Err(trouble(format!("iperf3: {error}")));
    }
    let paths = ["/end/sum_received/bits_per_second", "/end/sum/bits_per_second"];
    let found = paths.iter().find_map(|p| report.pointer(p)?.as_f64());
    found.because(format!("iperf3's JSON has no sum:\n{text}"))
}

/// Bytes that each stream brought to its receiver in each second, from `iperf3 -J` of the sender's or the receiver's side.
pub fn parse_iperf_streams(text: &str) -> Done<Vec<Vec<u64>>> {
    parse_iperf(text)?;
    let start = text.find('{').unwrap_or_default();
    let report: serde_json::Value =
        serde_json::from_str(text.get(start..).unwrap_or_default()).because("iperf3's JSON")?;
    let intervals =
        report.get("intervals").and_then(|i| i.as_array()).because("iperf3 reports no intervals")?;
    let mut streams: Vec<Vec<u64>> = Vec::new();
    for interval in intervals {
        let each =
            interval.get("streams").and_then(|s| s.as_array()).because("an interval without streams")?;
        streams.resize_with(streams.len().max(each.len()), Vec::new);
        for (all, s) in streams.iter_mut().zip(each) {
            all.push(s.get("bytes").and_then(serde_json::Value::as_u64).because("a stream without bytes")?);
        }
    }
    Ok(streams)
}

/// TCP from the guest to an iperf3 server, for `seconds`; `more` are further options (`-R` turns the direction round,
/// `-u -b 100M` is UDP). In bit/s as the receiver saw them.
pub fn iperf_from_guest(guest: &Console, address: &str, port: u16, seconds: u32, more: &str) -> Done<f64> {
    let command = format!("iperf3 -J -c {address} -p {port} -t {seconds} --connect-timeout 5000 {more}");
    let patience = Duration::from_secs(u64::from(seconds) + 30);
    parse_iperf(&guest.run(&command, patience)?.text)
}

/// The same from a namespace.
pub fn iperf_from(ns: &Netns, address: &str, port: u16, seconds: u32, more: &str) -> Done<f64> {
    let mut command = Command::new(peer("iperf3")?);
    command.args(["-J", "-c", address, "-p", &port.to_string(), "-t", &seconds.to_string()]);
    command.args(["--connect-timeout", "5000"]).args(more.split_whitespace());
    parse_iperf(&ns.run("iperf3 -c", command, Duration::from_secs(u64::from(seconds) + 30))?.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_pings_are_read() {
        let iputils = "3 packets transmitted, 2 received, 33% packet loss, time 2003ms\n\
                       rtt min/avg/max/mdev = 0.031/0.044/0.052/0.009 ms\n";
        let busybox = "3 packets transmitted, 3 packets received, 0% packet loss\n\
                       round-trip min/avg/max = 0.239/0.351/0.475 ms\n";
        let nothing = "1 packets transmitted, 0 packets received, 100% packet loss\n";
        assert_eq!(parse_ping(iputils).unwrap(), Ping { sent: 3, received: 2, mean_ms: 0.044 });
        assert_eq!(parse_ping(busybox).unwrap(), Ping { sent: 3, received: 3, mean_ms: 0.351 });
        assert!(parse_ping(nothing).unwrap().mean_ms.is_nan());
        assert!(parse_ping("ping: bad address").is_err());
    }

    #[test]
    fn iperf_errors_are_errors() {
        assert_eq!(parse_iperf(r#"{"end":{"sum_received":{"bits_per_second":12.5}}}"#).unwrap(), 12.5);
        assert!(parse_iperf(r#"{"error":"unable to connect"}"#).is_err());
        assert!(parse_iperf("iperf3: error").is_err());
    }
}
