//! `--explain`: what the policy would say to a request, and by which line. Runs without privilege, for whoever may read
//! the file.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use netreeve_shared::ifname::IfName;
use netreeve_shared::mac::Mac;
use netreeve_shared::request::{BridgeRequest, Request, Steer, TapRequest, XskRequest};

use crate::audit;
use crate::entry::{Stop, USAGE};
use crate::names::{Names, number};
use crate::policy::{Caller, Decision, judge};
use crate::policy_file::{DEFAULT_PATH, Source, Trust};

/// Answers the words after `--explain`: exit code and text.
///
/// # Errors
/// Wrong words, or a policy that cannot be read.
pub fn explain(words: &[&str]) -> Result<(u8, String), Stop> {
    let (path, words) = match words {
        ["--policy", path, rest @ ..] => (*path, rest),
        _ => (DEFAULT_PATH, words),
    };
    let (caller, words) = caller(words)?;
    let request = request(words)?;
    request.check().map_err(|bad| Stop::new(USAGE, format!("no such request: {bad}")))?;
    let mut source = Source::new(PathBuf::from(path), Trust::Anybody);
    let policy = source.policy().map_err(|why| Stop::new(78, why.join("\n")))?;
    let verdict = judge(policy, &caller, &request);
    let rule = audit::rule(path, verdict.why);
    Ok(if verdict.decision == Decision::Allow {
        let (taps, umem) = (verdict.max_taps, verdict.max_umem);
        (0, format!("allowed by {rule}; at once: {taps} taps, {umem} bytes of UMEM\n"))
    } else {
        (77, format!("denied; rule: {rule}\n"))
    })
}

fn caller<'a, 'b>(words: &'a [&'b str]) -> Result<(Caller, &'a [&'b str]), Stop> {
    let names = Names::system();
    let (mut uid, mut gids, mut rest) = (None, Vec::new(), words);
    while let [word, after @ ..] = rest {
        let id = match word.split_once('=') {
            Some(("uid" | "gid", n)) => number(n),
            Some(("user", name)) => names.user(name),
            Some(("group", name)) => names.group(name),
            _ => break,
        };
        let id = id.ok_or_else(|| Stop::new(USAGE, format!("nobody is called {word}")))?;
        if word.starts_with('u') {
            uid = Some(id)
        } else {
            gids.push(id)
        }
        rest = after;
    }
    let uid = uid.ok_or_else(|| Stop::new(USAGE, "--explain needs uid=N or user=NAME first"))?;
    Ok((Caller { uid, gids, pid: 0 }, rest))
}

fn request(words: &[&str]) -> Result<Request, Stop> {
    let usage = |text: String| Stop::new(USAGE, text);
    let [what, rest @ ..] = words else {
        return Err(usage("WHAT is missing (tap, bridge, xsk, xsk-pinned)".into()));
    };
    let name = |text: &str| IfName::new(text).map_err(|e| usage(format!("'{text}': {e}")));
    let (first, keys) = match rest {
        [first, keys @ ..] if !first.contains('=') => (Some(name(first)?), keys),
        keys => (None, keys),
    };
    let mut tap =
        TapRequest { name: None, persist: false, queues: 1, vnet_header: true, mtu: None, bridge: None };
    let target = first.ok_or_else(|| usage(format!("{what} needs a name")));
    match *what {
        "tap" => {
            tap.name = first;
            tap_keys(&mut tap, keys, name)?;
            Ok(Request::Tap(tap))
        }
        "bridge" => {
            tap.bridge = Some(BridgeRequest { name: target?, create: false, isolated: false });
            tap_keys(&mut tap, keys, name)?;
            Ok(Request::Tap(tap))
        }
        "xsk" => xsk(target?, keys).map(Request::Xsk),
        "xsk-pinned" => xsk(target?, keys).map(Request::XskPinned),
        _ => Err(usage(format!("'{what}' is none of tap, bridge, xsk, xsk-pinned"))),
    }
}

fn tap_keys(
    tap: &mut TapRequest,
    keys: &[&str],
    name: impl Fn(&str) -> Result<IfName, Stop>,
) -> Result<(), Stop> {
    for word in keys {
        match (word.split_once('='), &mut tap.bridge) {
            (Some(("name", text)), _) => tap.name = Some(name(text)?),
            (Some(("persist", "yes")), _) => tap.persist = true,
            (Some(("create", "yes")), Some(bridge)) => bridge.create = true,
            (Some(("isolated", "yes")), Some(bridge)) => bridge.isolated = true,
            (Some(("queues", n)), _) => tap.queues = small(n)?,
            (Some(("mtu", n)), _) => tap.mtu = Some(number(n).ok_or_else(|| unknown(word))?),
            _ => return Err(unknown(word)),
        }
    }
    Ok(())
}

fn xsk(interface: IfName, keys: &[&str]) -> Result<XskRequest, Stop> {
    let mut xsk = XskRequest {
        interface,
        mode: None,
        queues: 1,
        start_queue: 0,
        force_copy: false,
        ring: 2048,
        chunk: 2048,
        chunks: 4096,
        steer: Steer::All,
    };
    for word in keys {
        match word.split_once('=') {
            Some(("queues", n)) => xsk.queues = small(n)?,
            Some(("start-queue", n)) => xsk.start_queue = small(n)?,
            // Of one queue, in chunks of 2048 bytes.
            Some(("umem", n)) => xsk.chunks = number(n).ok_or_else(|| unknown(word))? / xsk.chunk,
            Some(("steer", "any")) => xsk.steer = Steer::All,
            Some(("steer", "macs")) => {
                let macs = vec![Mac([0x52, 0x54, 0, 0, 0, 1])];
                xsk.steer = Steer::Macs { macs, broadcast: false, multicast: false };
            }
            _ => return Err(unknown(word)),
        }
    }
    Ok(xsk)
}

fn small(text: &str) -> Result<u16, Stop> {
    number(text).and_then(|n| u16::try_from(n).ok()).ok_or_else(|| unknown(text))
}

fn unknown(word: &str) -> Stop {
    Stop::new(USAGE, format!("'{word}' is nothing that such a request has"))
}
