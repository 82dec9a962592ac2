//! What plugs and switches of VDE say: any bytes are a request, an address, or an error; one that is read is written as it
//! was; a request that is cut anywhere is not whole yet, and one that is refused is refused from then on.
#![no_main]

use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::supervise::vde::words::{
    LONGEST, Place, SHORTEST, address, read_address, read_request, request,
};

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    // Mostly something that begins as it should.
    let said = match how % 4 {
        0 => rest.to_vec(),
        1 => [&request(u16::from(how), "/x".as_ref(), "")[..8], rest].concat(),
        2 => [&request(u16::from(how), "/x".as_ref(), "")[..14], rest].concat(),
        _ => [&request(u16::from(how), "/x".as_ref(), "")[..], rest].concat(),
    };
    match read_request(&said) {
        Ok(None) => assert!(said.len() < SHORTEST),
        Err(_) => assert!(read_request(&[&said[..], b"more"].concat()).is_err()),
        Ok(Some(r)) => {
            assert!(said.len() >= SHORTEST && said.len() <= LONGEST);
            for n in 0..SHORTEST {
                assert_eq!(read_request(&said[..n]), Ok(None));
            }
            assert!(r.description.chars().all(|c| c.is_ascii_graphic() || c == ' '));
            match &r.data {
                Place::File(path) => {
                    let again = request(r.port, path, &r.description);
                    assert_eq!(read_request(&again), Ok(Some(r)));
                }
                Place::Abstract(name) => assert!(name.as_abstract().is_some()),
            }
        }
    }
    if let Ok(a) = read_address(rest)
        && let Some(path) = a.path()
    {
        assert_eq!(read_address(&address(path.as_os_str().as_bytes())).unwrap().path(), Some(path));
    }
});
