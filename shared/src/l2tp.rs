//! What makes a raw socket that of one L2TPv3 session (RFC 3931 §4.1.1), for whoever makes one: the helper, or a
//! supervisor that has the capability itself.
#![forbid(unsafe_code)]

/// IP's protocol number of L2TPv3.
pub const PROTOCOL: i32 = 115;

/// An instruction of a classic BPF program (`struct sock_filter` of `linux/filter.h`): code, jumps if true and if false,
/// constant.
pub type Instruction = (u16, u8, u8, u32);

// linux/bpf_common.h: X = length of an IPv4 header, A = word at X, A = word at 0, compare, end.
const LDX_HEADER: u16 = 0xb1;
const LD_WORD_BEHIND: u16 = 0x40;
const LD_WORD: u16 = 0x20;
const JEQ: u16 = 0x15;
const RET: u16 = 0x06;

/// Lets messages of this session through and no others. Over IPv4 a raw socket's packets begin with the IP header, of
/// whatever length; over IPv6 behind it.
#[must_use]
pub fn only_session(ipv6: bool, session: u32) -> [Instruction; 5] {
    let header = if ipv6 { (LD_WORD, 0, 0, 0) } else { (LDX_HEADER, 0, 0, 0) };
    let word = if ipv6 { (LD_WORD, 0, 0, 0) } else { (LD_WORD_BEHIND, 0, 0, 0) };
    [header, word, (JEQ, 0, 1, session), (RET, 0, 0, u32::MAX), (RET, 0, 0, 0)]
}
