//! The judge: may this caller have this?
//!
//! A pure function of policy, caller and request: no I/O, no clock, no state. Trust: the caller and the request are
//! hostile; the policy is root's. Promise: what no rule allows is refused; any matching `deny` beats every `allow`,
//! whatever their order; a rule is weighed as one whole record, terms of two rules are never added up. The judge says
//! by which line it decided; only the log may repeat that.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::net::IpAddr;

use netreeve_shared::ifname::IfName;
use netreeve_shared::prefix::Prefix;
use netreeve_shared::request::{BadRequest, ListenRequest, Request, Steer, TapRequest, XskRequest};

/// The asking process as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group ids, supplementary ones included.
    pub gids: Vec<u32>,
    /// Process id, for the log alone: it can be reused.
    pub pid: i32,
}

/// Whom a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everybody.
    Any,
    /// Members of a group.
    Gid(u32),
    /// One user.
    Uid(u32),
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Taps; the pattern is for their names, and only `*` fits one that the helper names.
    Tap,
    /// Taps in a bridge; the pattern is for the bridge's name.
    Bridge,
    /// AF_XDP sockets bound by the helper; the pattern is for the interface's name.
    Xsk,
    /// Unbound AF_XDP sockets pinned to the interface; the pattern is for its name.
    XskPinned,
    /// Raw sockets of L2TPv3 sessions; the pattern is for the peer's address.
    L2tp,
    /// Sockets at low ports; the pattern is for our address.
    Listen,
}

/// Which names a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `*`.
    All,
    /// `text*`.
    Prefix(String),
    /// One name.
    Exact(IfName),
    /// A block of addresses.
    Block(Prefix),
}

/// What a pattern is held against.
#[derive(Clone, Copy, Debug)]
enum Subject {
    /// A name, or its lack.
    Name(Option<IfName>),
    /// One address.
    Address(IpAddr),
    /// All addresses of a family; true: IPv6's.
    Family(bool),
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The rule's terms say how much.
    Allow,
    /// Whatever the request's size.
    Deny,
}

/// How much an `allow` allows. What is not given bounds nothing, and a right that is not given is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// `max=N`: taps that the caller may hold at once, over all rules.
    pub max: Option<u32>,
    /// `queues=N`: queues of one grant.
    pub queues: Option<u16>,
    /// `mtu=LOW-HIGH` in bytes. None: on a tap any, in a bridge only the bridge's own (a port's smaller MTU would
    /// lower the whole bridge's).
    pub mtu: Option<(u32, u32)>,
    /// `queue=FIRST-LAST`: which receive queues of the interface.
    pub queue: Option<(u16, u16)>,
    /// `session=LOW-HIGH` of L2TPv3, `port=LOW-HIGH` of a listener.
    pub number: Option<(u32, u32)>,
    /// `umem=BYTES`: UMEM that the caller's session may hold at once.
    pub umem: Option<u64>,
    /// `named=yes`: the caller may choose the tap's name.
    pub named: bool,
    /// `persist=yes`: the tap may stay when its last descriptor closes.
    pub persist: bool,
    /// `create=yes`: the bridge may be made if it is not there.
    pub create: bool,
    /// `isolated=yes`: the port must be isolated from other isolated ports.
    pub isolated: bool,
    /// `steer=macs`: only frames to named addresses, never the whole interface.
    pub steer_macs: bool,
}

/// One line of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Line number in the file, from 1.
    pub line: u32,
    /// Allow or deny.
    pub action: Action,
    /// Whom.
    pub who: Who,
    /// What.
    pub what: What,
    /// Which.
    pub pattern: Pattern,
    /// How much.
    pub terms: Terms,
}

/// One `limit` line. The most particular line that names a limit sets it (user before group before any), the lowest
/// among equals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Whom.
    pub who: Who,
    /// `sessions=N`: open at once.
    pub sessions: Option<u32>,
    /// `requests=N`: a second.
    pub requests: Option<u32>,
    /// `taps=N`: held at once.
    pub taps: Option<u32>,
    /// `umem=BYTES`: over all the user's sessions; what a socket counts for included.
    pub umem: Option<u64>,
}

/// What one user may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Sessions open at once.
    pub sessions: u32,
    /// Requests a second.
    pub requests: u32,
    /// Taps held at once, as the kernel counts them.
    pub taps: u32,
    /// Bytes of UMEM over all sessions; what a socket counts for included.
    pub umem: u64,
}

/// A user's quota when no `limit` line says otherwise.
pub const DEFAULT_QUOTA: Quota = Quota { sessions: 16, requests: 20, taps: 16, umem: 256 << 20 };

/// The whole policy. The default has no rule and so refuses everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Rules, in the file's order (which decides nothing but which line is named in the log).
    pub rules: Vec<Rule>,
    /// Limits.
    pub limits: Vec<Limit>,
}

/// Why the judge refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The `deny` of this line.
    Denied(u32),
    /// The `allow` of this line is about it, but not to this extent.
    Exceeds(u32, Term),
    /// No line is about it.
    NoRule,
    /// Its numbers are out of range.
    Bad(BadRequest),
}

/// The key of the term that a request exceeds, as the policy file spells it.
pub type Term = &'static str;

/// The judge's word: the line of the `allow` that covers the request (for a named tap in a bridge, the bridge's) and
/// what it leaves the caller of its quota, over all its sessions and with the request that is judged; or why not.
pub type Verdict = Result<(u32, Quota), Why>;

/// Judges one request. A ticket is nothing that a rule is about: its activation is judged as the request that it stands
/// for.
///
/// # Errors
/// The refusal's reason, for the log.
pub fn judge(policy: &Policy, caller: &Caller, request: &Request) -> Verdict {
    use Subject::{Address, Family, Name};
    request.check().map_err(Why::Bad)?;
    let (wants, denied_with): (&[(What, Subject)], _) = match request {
        Request::Activate(_) => return Err(Why::NoRule),
        Request::Xsk(x) => (&[(What::Xsk, Name(Some(x.interface)))], None),
        // Who may have no bound socket may have none that it binds itself.
        Request::XskPinned(x) => {
            let interface = Name(Some(x.interface));
            (&[(What::XskPinned, interface)], Some((What::Xsk, interface)))
        }
        Request::Tap(TapRequest { bridge: None, name, .. }) => (&[(What::Tap, Name(*name))], None),
        Request::Tap(TapRequest { bridge: Some(b), name, .. }) => match name {
            // A name of one's own choice is a right of `tap`, whatever bridge the tap joins.
            Some(_) => (&[(What::Bridge, Name(Some(b.name))), (What::Tap, Name(*name))], None),
            // Rules that forbid taps forbid them in bridges, too.
            None => (&[(What::Bridge, Name(Some(b.name)))], Some((What::Tap, Name(None)))),
        },
        Request::L2tp(l) => (&[(What::L2tp, Address(l.dst))], None),
        // A socket at every address of a family is one at each that a rule forbids.
        Request::Listen(ListenRequest { address, .. }) => {
            let all = address.is_unspecified().then_some((What::Listen, Family(address.is_ipv6())));
            (&[(What::Listen, Address(*address))], all)
        }
    };
    for rule in policy.rules.iter().filter(|r| r.action == Action::Deny) {
        if wants.iter().chain(&denied_with).any(|(what, which)| rule.is_about(caller, *what, *which)) {
            return Err(Why::Denied(rule.line));
        }
    }
    weigh(policy, caller, request, wants)
}

/// Judges a request and what else it amounts to, if anything: both have to be allowed, and the first says how much.
///
/// # Errors
/// As of [`judge`].
pub fn judge_both(policy: &Policy, caller: &Caller, request: &Request, more: Option<&Request>) -> Verdict {
    let word = judge(policy, caller, request)?;
    more.map_or(Ok(word), |more| judge(policy, caller, more).map(|_| word))
}

/// Finds for each thing wanted one `allow` that covers the request alone.
fn weigh(policy: &Policy, caller: &Caller, request: &Request, wants: &[(What, Subject)]) -> Verdict {
    let (mut line, mut quota) = (None, policy.quota(caller));
    for (what, which) in wants {
        let mut refusal = Why::NoRule;
        let allows = policy.rules.iter().filter(|r| r.action == Action::Allow);
        let mut about = allows.filter(|r| r.is_about(caller, *what, *which));
        let covering = about.find(|rule| match rule.terms.exceeded_by(*what, request) {
            None => true,
            Some(term) => {
                refusal = Why::Exceeds(rule.line, term);
                false
            }
        });
        let rule = covering.ok_or(refusal)?;
        line = line.or(Some(rule.line));
        quota.taps = rule.terms.max.unwrap_or(u32::MAX).min(quota.taps);
        quota.umem = rule.terms.umem.unwrap_or(u64::MAX).min(quota.umem);
    }
    line.map(|line| (line, quota)).ok_or(Why::NoRule)
}

impl Policy {
    /// What this caller may use up.
    #[must_use]
    pub fn quota(&self, caller: &Caller) -> Quota {
        let d = DEFAULT_QUOTA;
        Quota {
            sessions: self.limit(caller, d.sessions, |l| l.sessions),
            requests: self.limit(caller, d.requests, |l| l.requests),
            taps: self.limit(caller, d.taps, |l| l.taps),
            umem: self.limit(caller, d.umem, |l| l.umem),
        }
    }

    /// One limit of this caller's, or `default` where no line sets it.
    pub(crate) fn limit<T: Ord>(&self, caller: &Caller, default: T, of: impl Fn(&Limit) -> Option<T>) -> T {
        let about = self.limits.iter().filter(|l| l.who.is(caller));
        let named = about.filter_map(|l| Some((l.who.rank(), Reverse(of(l)?))));
        named.max().map_or(default, |(_, Reverse(value))| value)
    }
}

impl Who {
    fn is(self, caller: &Caller) -> bool {
        match self {
            Self::Any => true,
            Self::Uid(uid) => uid == caller.uid,
            Self::Gid(gid) => caller.gids.contains(&gid),
        }
    }

    /// How particular it is.
    fn rank(self) -> u8 {
        match self {
            Self::Any => 0,
            Self::Gid(_) => 1,
            Self::Uid(_) => 2,
        }
    }
}

impl Pattern {
    fn fits(&self, which: Subject) -> bool {
        match (self, which) {
            (Self::All, _) => true,
            (Self::Prefix(start), Subject::Name(Some(name))) => name.as_str().starts_with(start.as_str()),
            (Self::Exact(one), Subject::Name(Some(name))) => *one == name,
            (Self::Block(block), Subject::Address(address)) => block.covers(address),
            (Self::Block(block), Subject::Family(ipv6)) => block.is_ipv6() == ipv6,
            _ => false,
        }
    }
}

impl Rule {
    fn is_about(&self, caller: &Caller, what: What, which: Subject) -> bool {
        self.what == what && self.who.is(caller) && self.pattern.fits(which)
    }
}

impl Terms {
    /// The first term that the request exceeds.
    fn exceeded_by(&self, what: What, request: &Request) -> Option<Term> {
        let beyond = |n| self.number.is_some_and(|(low, high)| !(low..=high).contains(&n));
        let borders = match request {
            Request::Tap(tap) => self.tap_borders(what, tap),
            Request::Xsk(xsk) => self.xsk_borders(xsk, xsk.umem_bytes()),
            Request::XskPinned(xsk) => self.xsk_borders(xsk, 0),
            Request::Activate(_) => Vec::new(),
            Request::L2tp(l) => vec![(beyond(l.session), "session")],
            Request::Listen(l) => vec![(beyond(l.port.into()), "port")],
        };
        borders.into_iter().find(|(beyond, _)| *beyond).map(|(_, term)| term)
    }

    fn tap_borders(&self, what: What, tap: &TapRequest) -> Vec<(bool, Term)> {
        let mtu = match (tap.mtu, self.mtu) {
            (None, _) => true,
            (Some(mtu), Some((low, high))) => (low..=high).contains(&mtu),
            (Some(_), None) => what == What::Tap,
        };
        let own = what == What::Tap;
        let bridge = tap.bridge.as_ref().filter(|_| !own);
        vec![
            (self.queues.is_some_and(|most| tap.queues > most), "queues"),
            (!mtu, "mtu"),
            (own && tap.persist && !self.persist, "persist"),
            (own && tap.name.is_some() && !self.named, "named"),
            (bridge.is_some_and(|b| b.create && !self.create), "create"),
            (bridge.is_some_and(|b| self.isolated && !b.isolated), "isolated"),
        ]
    }

    fn xsk_borders(&self, xsk: &XskRequest, umem: u64) -> Vec<(bool, Term)> {
        let (first, last) = self.queue.unwrap_or((0, u16::MAX));
        let end = u32::from(xsk.start_queue) + u32::from(xsk.queues);
        vec![
            (self.queues.is_some_and(|most| xsk.queues > most), "queues"),
            (xsk.start_queue < first || end > u32::from(last) + 1, "queue"),
            (self.umem.is_some_and(|most| umem > most), "umem"),
            (self.steer_macs && matches!(xsk.steer, Steer::All), "steer"),
        ]
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
