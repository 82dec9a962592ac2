//! What plug and switch say to each other.
//!
//! | request | bytes | in the machine's order |
//! |---|---|---|
//! | magic `feedface`, version 3 | 4 + 4 | |
//! | what: 0, a new port, 1, its port 0; and above 8 bits the port that is wanted, 0: any | 4 | |
//! | the data socket's address | 110 | `struct sockaddr_un` |
//! | description | up to 127 | text |
//!
//! The answer is an address of 110 bytes, or the end of the connection where the port is taken or not for us.
//!
//! Trust: none in the other side. Promise: whatever bytes come are a word or an error, and nothing is kept of them but
//! what is said here.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::UnixAddr;

const MAGIC: u32 = 0xfeed_face;
const VERSION: u32 = 3;
/// Bytes of a `struct sockaddr_un`, and of the path in it.
pub const ADDRESS: usize = 110;
const SUN_PATH: usize = 108;
/// Bytes of a request without its description, which is how short it may be.
pub const SHORTEST: usize = 12 + ADDRESS;
/// Most bytes of a description.
const DESCRIPTION: usize = 127;
/// Most bytes of a request: as many as `vde_switch` reads.
pub const LONGEST: usize = 256;

/// A port is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The port that is wanted; 0: any.
    pub port: u16,
    /// Where the other side's data socket is.
    pub data: Place,
    /// How it appears in lists: printable.
    pub description: String,
}

/// Where a data socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file.
    File(PathBuf),
    /// A name in the abstract namespace.
    Abstract(UnixAddr),
}

/// A request for a port.
#[must_use]
pub fn request(port: u16, path: &Path, description: &str) -> Vec<u8> {
    let mut r = Vec::with_capacity(LONGEST);
    for word in [MAGIC, VERSION, u32::from(port) << 8] {
        r.extend(word.to_ne_bytes());
    }
    r.extend(address(path.as_os_str().as_bytes()));
    r.extend(printable(description.as_bytes()).bytes());
    r
}

/// Reads a request, as far as it has come. None: it is not whole.
///
/// # Errors
/// It is none, and why.
pub fn read_request(said: &[u8]) -> Result<Option<Request>, &'static str> {
    let word = |at: usize| said.get(at..at + 4).and_then(|b| b.first_chunk()).map(|b| u32::from_ne_bytes(*b));
    if word(0).is_some_and(|magic| magic != MAGIC) {
        return Err("it does not begin as a request of VDE does");
    }
    if word(4).is_some_and(|version| version != VERSION) {
        return Err("it is of another version than 3");
    }
    if word(8).is_some_and(|what| what & 0xff > 1) {
        return Err("it asks for no port");
    }
    let (Some(what), Some((socket, description))) =
        (word(8), said.get(12..).and_then(|rest| rest.split_at_checked(ADDRESS)))
    else {
        return Ok(None);
    };
    if said.len() > LONGEST {
        return Err("it is too long");
    }
    let port = u16::try_from(what >> 8).map_err(|_| "there is no such port")?;
    let bad = |_| "its data socket has no address";
    let data = read_address(socket).map_err(bad)?;
    let data = match data.path() {
        Some(path) => Place::File(path.to_owned()),
        None => Place::Abstract(data),
    };
    Ok(Some(Request { port, data, description: printable(description) }))
}

/// What may stand in a list, up to a NUL.
fn printable(text: &[u8]) -> String {
    let text = text.split(|b| *b == 0).next().unwrap_or_default();
    let text = text.iter().map(|b| char::from(*b)).filter(|c| c.is_ascii_graphic() || *c == ' ');
    text.take(DESCRIPTION).collect()
}

/// A `struct sockaddr_un`.
#[must_use]
pub fn address(path: &[u8]) -> [u8; ADDRESS] {
    let mut a = [0; ADDRESS];
    let family = u16::try_from(libc::AF_UNIX).unwrap_or(1).to_ne_bytes();
    let (f, p) = a.split_at_mut(2);
    f.copy_from_slice(&family);
    for (to, from) in p.iter_mut().zip(path.iter().take(SUN_PATH - 1)) {
        *to = *from;
    }
    a
}

/// The address in a `struct sockaddr_un`: a file's, or, where the path begins with NUL, a name in the abstract namespace,
/// padded with NULs as it stands.
///
/// # Errors
/// It is none.
pub fn read_address(raw: &[u8]) -> io::Result<UnixAddr> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "this is no address of a UNIX socket");
    let (family, path) = raw.split_first_chunk::<2>().ok_or_else(bad)?;
    if i32::from(u16::from_ne_bytes(*family)) != libc::AF_UNIX || path.len() != SUN_PATH {
        return Err(bad());
    }
    match path.split_first() {
        Some((0, name)) if name.iter().any(|b| *b != 0) => Ok(UnixAddr::new_abstract(name)?),
        Some((1.., _)) => {
            let path = path.split(|b| *b == 0).next().unwrap_or_default();
            Ok(UnixAddr::new(path)?)
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let path = b"/run/vde/1.ctl/007.fd";
        let a = read_address(&address(path)).unwrap();
        assert_eq!(a.path().unwrap().as_os_str().as_bytes(), path);
        let long = [b'y'; 107];
        assert_eq!(read_address(&address(&long)).unwrap().path().unwrap().as_os_str().as_bytes(), long);
        let mut name = address(b"");
        name[3..8].copy_from_slice(b"hello");
        let a = read_address(&name).unwrap();
        assert_eq!(a.as_abstract().unwrap()[..5], *b"hello");
        assert_eq!(a.as_abstract().unwrap().len(), 107, "clients bind the whole field");
        assert!(read_address(&address(b"")).is_err());
        assert!(read_address(&[0; 110]).is_err());
        assert!(read_address(b"").is_err());
    }

    #[test]
    fn requests_are_read_as_they_are_written_and_nothing_else_is_one() {
        let good = request(7, Path::new("/tmp/x"), "some\tbody \u{e9}");
        let want = Request { port: 7, data: Place::File("/tmp/x".into()), description: "somebody ".into() };
        assert_eq!(read_request(&good), Ok(Some(want)));
        for n in 0..SHORTEST {
            assert_eq!(read_request(&good[..n]), Ok(None), "{n} bytes");
        }
        assert_eq!(read_request(&good[..SHORTEST]).unwrap().unwrap().description, "");
        let with = |at: usize, b: &[u8]| {
            let mut r = good.clone();
            r[at..at + b.len()].copy_from_slice(b);
            read_request(&r)
        };
        assert!(with(0, b"x").is_err());
        assert!(with(4, &2_u32.to_ne_bytes()).is_err());
        assert!(with(8, &2_u32.to_ne_bytes()).is_err(), "no such kind");
        assert!(with(8, &(0x1_0000_u32 << 8).to_ne_bytes()).is_err(), "no such port");
        assert_eq!(with(8, &1_u32.to_ne_bytes()).unwrap().unwrap().port, 0);
        assert!(with(12, &[9]).is_err() && with(14, &[0; 108]).is_err(), "no address");
        let Place::Abstract(name) = with(14, b"\0xy").unwrap().unwrap().data else { panic!() };
        assert!(name.as_abstract().unwrap().starts_with(b"xy"));
        let long = [good.clone(), vec![b'z'; 200]].concat();
        assert!(read_request(&long).is_err());
        let cut = [&good[..SHORTEST], b"a\0b"].concat();
        assert_eq!(read_request(&cut).unwrap().unwrap().description, "a");
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_answered(said in prop::collection::vec(any::<u8>(), 0..300), head in any::<bool>()) {
            let said = if head { [&request(1, Path::new("/x"), "")[..12], &said].concat() } else { said };
            if let Ok(Some(r)) = read_request(&said) {
                prop_assert!(said.len() >= SHORTEST && r.description.len() <= DESCRIPTION);
            }
        }
    }
}
