//! What XDP can do on each interface, as the kernel tells everybody (generic netlink family `netdev`, Linux 6.3:
//! `Documentation/netlink/specs/netdev.yaml`).
//!
//! Trust: the kernel. Promise: every length is checked all the same; an older kernel gives an error, not a guess.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// `NETDEV_XDP_ACT_BASIC`: a program can be attached in the driver.
pub(super) const BASIC: u64 = 1;
/// `NETDEV_XDP_ACT_REDIRECT`: and redirect, which AF_XDP needs.
pub(super) const REDIRECT: u64 = 2;
/// `NETDEV_XDP_ACT_XSK_ZEROCOPY`.
pub(super) const ZERO_COPY: u64 = 8;
/// `NETDEV_XDP_ACT_RX_SG`: frames longer than a chunk.
pub(super) const MULTI_BUFFER: u64 = 32;

/// `GENL_ID_CTRL` (`linux/genetlink.h`).
const CONTROL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 20;

/// XDP features by interface index.
///
/// # Errors
/// The kernel's; `NotFound` before Linux 6.3.
pub(super) fn features() -> io::Result<BTreeMap<u32, u64>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkGeneric)?;
    socket::setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let family = ask(&socket, CONTROL, CTRL_CMD_GETFAMILY, 0, &name)?
        .iter()
        .find_map(|m| number(attributes(m).get(&CTRL_ATTR_FAMILY_ID)?))
        .and_then(|id| u16::try_from(id).ok())
        .ok_or(io::ErrorKind::NotFound)?;
    let devices = ask(&socket, family, NETDEV_CMD_DEV_GET, NLM_F_DUMP, &[])?;
    Ok(devices.iter().filter_map(|m| device(m)).collect())
}

fn device(message: &[u8]) -> Option<(u32, u64)> {
    let all = attributes(message);
    let index = number(all.get(&NETDEV_A_DEV_IFINDEX)?)?;
    let features = number(all.get(&NETDEV_A_DEV_XDP_FEATURES)?)?;
    Some((u32::try_from(index).ok()?, features))
}

/// Sends one question; the attributes of each answer.
fn ask(socket: &OwnedFd, family: u16, command: u8, flags: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let length = u32::try_from(HEADERS + payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = Vec::new();
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[command, 1, 0, 0]);
    message.extend_from_slice(payload);
    socket::sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answers = Vec::new();
    loop {
        let mut buffer = vec![0; 65_536];
        let n = socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        buffer.truncate(n);
        if !take(&buffer, &mut answers)? || flags & NLM_F_DUMP == 0 {
            return Ok(answers);
        }
    }
}

/// Takes a datagram's messages. False: it was the last one.
fn take(mut bytes: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while let Some((header, _)) = bytes.split_first_chunk::<8>() {
        let [l0, l1, l2, l3, k0, k1, _, _] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let kind = u16::from_ne_bytes([k0, k1]);
        let message = bytes.get(..length).filter(|m| m.len() >= 16).ok_or(io::ErrorKind::InvalidData)?;
        match kind {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let code = message
                    .get(16..20)
                    .and_then(|b| b.first_chunk::<4>())
                    .map_or(0, |b| i32::from_ne_bytes(*b));
                return if code == 0 {
                    Ok(false)
                } else {
                    Err(io::Error::from_raw_os_error(code.saturating_neg()))
                };
            }
            _ => answers.push(message.get(HEADERS..).unwrap_or_default().to_vec()),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut out = Vec::new();
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn attributes(mut bytes: &[u8]) -> BTreeMap<u16, &[u8]> {
    let mut all = BTreeMap::new();
    while let Some(([l0, l1, k0, k1], _)) = bytes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let Some(value) = bytes.get(4..length) else { break };
        // The two highest bits say how it is nested and in which byte order.
        all.insert(u16::from_ne_bytes([*k0, *k1]) & 0x3fff, value);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// An integer of 2, 4 or 8 bytes.
fn number(value: &[u8]) -> Option<u64> {
    match *value {
        [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
        [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d]).into()),
        [a, b, c, d, e, f, g, h] => Some(u64::from_ne_bytes([a, b, c, d, e, f, g, h])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_for_lo() {
        // The family is there since 6.3; before, the answer is an error and no guess.
        match features() {
            Ok(all) => assert_eq!(all.get(&1), Some(&0), "lo has no XDP in a driver"),
            Err(e) => assert!(matches!(e.kind(), io::ErrorKind::NotFound), "{e}"),
        }
    }

    #[test]
    fn garbage_is_no_answer() {
        let mut answers = Vec::new();
        assert!(take(&[255; 40], &mut answers).is_err());
        assert!(take(&[8, 0, 0, 0, 0, 0, 0, 0], &mut answers).is_err());
        assert!(take(&[1, 2, 3], &mut answers).unwrap());
        assert!(attributes(&[3, 0, 1, 0, 9]).is_empty());
        assert!(attributes(&[200, 0, 1, 0, 9]).is_empty());
        assert_eq!(number(&[1]), None);
    }
}
