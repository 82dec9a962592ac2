//! `--explain`: what the policy would say to a request, and by which line. Runs without privilege, for whoever may read
//! the file. The question is written like a rule: `user:alice group:kvm bridge br0 queues=2`.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use netreeve_shared::ifname::IfName;
use netreeve_shared::mac::Mac;
use netreeve_shared::request::{BridgeRequest, Request, Steer, TapRequest, XskRequest};

use crate::audit;
use crate::entry::{Stop, usage};
use crate::names::Names;
use crate::policy::{Caller, Decision, Pattern, Rule, What, Who, judge};
use crate::policy_file::{DEFAULT_PATH, Source, Trust, parse, who};

/// Answers the words after `--explain`: exit code and text.
///
/// # Errors
/// Wrong words, or a policy that cannot be read.
pub fn explain(words: &[&str]) -> Result<(u8, String), Stop> {
    let (path, mut words) = match words {
        ["--policy", path, rest @ ..] => (*path, rest),
        _ => (DEFAULT_PATH, words),
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
    let request =
        asked.rules.first().and_then(request).ok_or_else(|| usage("a bridge or an interface has a name"))?;
    request.check().map_err(|bad| usage(format!("no such request: {bad}")))?;
    let policy = Source::new(PathBuf::from(path), Trust::Anybody).policy();
    let policy = policy.map_err(|why| (78, why.join("\n")))?;
    let verdict = judge(&policy, &caller, &request);
    let rule = audit::rule(path, verdict.why);
    Ok(if verdict.decision == Decision::Allow {
        let (taps, umem) = (verdict.max_taps, verdict.max_umem);
        (0, format!("allowed by {rule}; at once: {taps} taps, {umem} bytes of UMEM\n"))
    } else {
        (77, format!("denied; rule: {rule}\n"))
    })
}

/// The request that would use up all that `rule` allows. (Queues: one, unless it says more.)
fn request(rule: &Rule) -> Option<Request> {
    let Rule { what, pattern, terms, .. } = rule;
    let name = if let Pattern::Exact(name) = pattern { Some(*name) } else { None };
    let queues = terms.queues.unwrap_or(1);
    Some(match what {
        What::Tap | What::Bridge => {
            let (create, isolated) = (terms.create, terms.isolated);
            let bridge = |name: IfName| BridgeRequest { name, create, isolated };
            let in_bridge = *what == What::Bridge;
            Request::Tap(TapRequest {
                name: name.filter(|_| !in_bridge),
                persist: terms.persist,
                queues,
                vnet_header: true,
                mtu: terms.mtu.map(|(_, high)| high),
                bridge: if in_bridge { Some(bridge(name?)) } else { None },
            })
        }
        What::Xsk | What::XskPinned => {
            let macs = vec![Mac([0x52, 0x54, 0, 0, 0, 1])];
            let xsk = XskRequest {
                interface: name?,
                mode: None,
                queues,
                start_queue: terms.queue.map_or(0, |(first, _)| first),
                force_copy: false,
                ring: 2048,
                chunk: 2048,
                chunks: u32::try_from(terms.umem.unwrap_or(8 << 20) / 2048 / u64::from(queues.max(1)))
                    .ok()?,
                steer: if terms.steer_macs {
                    Steer::Macs { macs, broadcast: false, multicast: false }
                } else {
                    Steer::All
                },
            };
            if *what == What::Xsk { Request::Xsk(xsk) } else { Request::XskPinned(xsk) }
        }
    })
}
