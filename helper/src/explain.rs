//! `--explain`: what the policy would say to a request, and by which line. Runs without privilege, for whoever may read
//! the file. The question is written like a rule: `user:alice group:kvm bridge br0 queues=2`.
#![forbid(unsafe_code)]

use std::path::Path;

use netreeve_shared::mac::Mac;
use netreeve_shared::request::{
    BridgeRequest, L2tpRequest, ListenRequest, Request, Steer, TapRequest, XskRequest,
};

use crate::audit;
use crate::entry::{Stop, usage};
use crate::names::Names;
use crate::policy::{Caller, Pattern, Quota, Rule, What, Who, judge_both};
use crate::policy_file::{DEFAULT_PATH, Trust, load, parse, who};
use crate::provide::amounts_to;

/// Answers the words after `--explain`: exit code and text.
///
/// # Errors
/// Wrong words, or a policy that cannot be read.
pub fn explain(words: &[&str]) -> Result<(u8, String), Stop> {
    let (path, mut words) = match words {
        ["--policy", path, rest @ ..] => (Path::new(*path), rest),
        _ => (Path::new(DEFAULT_PATH), words),
    };
    let names = Names::system();
    let mut caller = Caller { uid: u32::MAX, gids: Vec::new(), pid: 0 };
    while let [word, rest @ ..] = words {
        match who(Some(&word.replacen('=', ":", 1)), &names) {
            Ok(Who::Uid(uid)) => caller.uid = uid,
            Ok(Who::Gid(gid)) => caller.gids.push(gid),
            _ if caller.uid == u32::MAX => {
                return Err(usage(format!("'{word}' is no user (uid:N, user:NAME)")));
            }
            _ => break,
        }
        words = rest;
    }
    let asked = parse(&format!("allow any {}", words.join(" ")), &names);
    let asked = asked.map_err(|bad| usage(bad.iter().map(|b| b.why.as_str()).collect::<String>()))?;
    let request = asked.rules.first().and_then(request);
    let request =
        request.ok_or_else(|| usage("a bridge or an interface has a name, a peer or a port one address"))?;
    request.check().map_err(|bad| usage(format!("no such request: {bad}")))?;
    let policy = load(path, Trust::Anybody).map_err(|why| (78, why))?;
    let verdict = judge_both(&policy, &caller, &request, amounts_to(&request).as_ref());
    let rule = audit::rule(path, verdict);
    Ok(verdict.map_or((77, format!("denied; rule: {rule}\n")), |(_, Quota { taps, umem, .. })| {
        (0, format!("allowed by {rule}; at once: {taps} taps, {umem} bytes of UMEM\n"))
    }))
}

/// The request that would use up all that `rule` allows. (Queues: one, unless it says more.)
fn request(rule: &Rule) -> Option<Request> {
    let Rule { what, pattern, terms, .. } = rule;
    let name = if let Pattern::Exact(name) = pattern { Some(*name) } else { None };
    let address = if let Pattern::Block(block) = pattern { block.single() } else { None };
    let number = terms.number.map_or(1, |(low, _)| low);
    let queues = terms.queues.unwrap_or(1);
    Some(match what {
        What::Tap | What::Bridge => {
            let (persist, create, isolated) = (terms.persist, terms.create, terms.isolated);
            let (name, bridge) = match what {
                What::Bridge => (None, Some(BridgeRequest { name: name?, create, isolated })),
                _ => (name, None),
            };
            let mtu = terms.mtu.map(|(_, high)| high);
            Request::Tap(TapRequest { name, persist, queues, vnet_header: true, mtu, bridge })
        }
        What::Xsk | What::XskPinned => {
            let macs = vec![Mac([0x52, 0x54, 0, 0, 0, 1])];
            let some = Steer::Macs { macs, broadcast: false, multicast: false };
            let steer = if terms.steer_macs { some } else { Steer::All };
            let (mode, interface, force_copy, ring, chunk) = (None, name?, false, 2048, 2048);
            let start_queue = terms.queue.map_or(0, |(first, _)| first);
            let umem = terms.umem.unwrap_or(8 << 20) / u64::from(chunk) / u64::from(queues.max(1));
            let chunks = u32::try_from(umem).ok()?;
            let xsk =
                XskRequest { interface, mode, queues, start_queue, force_copy, ring, chunk, chunks, steer };
            if *what == What::Xsk { Request::Xsk(xsk) } else { Request::XskPinned(xsk) }
        }
        What::L2tp => Request::L2tp(L2tpRequest { src: address?, dst: address?, session: number }),
        What::Listen => {
            Request::Listen(ListenRequest { udp: false, address: address?, port: number.try_into().ok()? })
        }
    })
}
