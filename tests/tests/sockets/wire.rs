//! A running `netreeve` whose wire's both ends, and whose control socket, are the test's.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use netreeve_tests::bins;
use netreeve_tests::proc::Proc;

use crate::support::{Dir, PATIENCE, Vm, greeting, until};

/// Both ends of a wire of two streams, `n0` and `vm`, and the control socket.
pub(crate) struct Wire {
    pub(crate) proc: Proc,
    pub(crate) net: Vm,
    pub(crate) vm: Vm,
    events: Vec<String>,
    control: BufReader<UnixStream>,
}

impl Wire {
    pub(crate) fn new(dir: &Dir, more: &[String]) -> Self {
        let (n, v, c) = (dir.at("n"), dir.at("v"), dir.at("c"));
        let mut command = Command::new(bins::ours("netreeve").unwrap());
        command.args([
            "run",
            "--json",
            "--stats",
            "--sandbox",
            "seccomp",
            "--hotplug",
            "all",
            "--control",
            &c,
        ]);
        command.arg("--netdev").arg(format!("stream,id=n0,server=on,addr.type=unix,addr.path={n}"));
        command.arg("--device").arg(format!("stream,netdev=n0,id=vm,server=on,addr.type=unix,addr.path={v}"));
        command.args(more);
        let proc = Proc::spawn("netreeve", command).unwrap();
        proc.wait_for("\"ready\"", PATIENCE).unwrap();
        let control = UnixStream::connect(c).unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let (net, vm) = (Vm::at(&n), Vm::at(&v));
        let mut wire = Self { proc, net, vm, events: Vec::new(), control: BufReader::new(control) };
        wire.ask("qmp_capabilities", "{}");
        wire.settle();
        wire
    }

    /// The answer to a command.
    pub(crate) fn ask(&mut self, command: &str, arguments: &str) -> String {
        let text = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments},\"id\":7}}\n");
        self.control.get_mut().write_all(text.as_bytes()).unwrap();
        loop {
            let line = self.line();
            if line.contains("\"id\":7") {
                return line;
            }
            self.events.push(line);
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.control.read_line(&mut line).unwrap() > 0, "{}", self.proc.text());
        line
    }

    /// The next event in which all of these words stand; others before it are passed over.
    pub(crate) fn event(&mut self, words: &[&str]) -> String {
        let is_it = |line: &String| words.iter().all(|w| line.contains(w));
        if let Some(at) = self.events.iter().position(is_it) {
            return self.events.drain(..=at).next_back().unwrap();
        }
        self.events.clear();
        loop {
            let line = self.line();
            if is_it(&line) {
                return line;
            }
        }
    }

    pub(crate) fn done(&mut self, command: &str, arguments: &str) {
        let said = self.ask(command, arguments);
        assert!(said.contains("\"return\""), "{command} {arguments}: {said}");
    }

    /// Waits until frames pass.
    pub(crate) fn settle(&mut self) {
        let quiet = Duration::from_millis(50);
        until("frames to the VM", || {
            self.net.send(&greeting());
            self.vm.greeted(quiet)
        });
        until("frames from the VM", || {
            self.vm.send(&greeting());
            self.net.greeted(quiet)
        });
        self.vm.drain(quiet);
    }

    pub(crate) fn ports(&mut self) -> String {
        self.ask("netreeve-query-ports", "{}")
    }
}
