//! A spool that a dataplane has written anything into: frames with their true lengths, or the reading ends; and what is
//! made of them is well-formed pcapng.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::mem::spool::{self, LONGEST, Reader};
use netreeve_dataplane::spec::filter::Format;
use netreeve_dataplane::stage::record::{HEAD, Head};
use netreeve_dataplane::supervise::capture::format::About;

/// Where the records begin, and so many of their bytes are written anew each time.
const PAGE: u64 = 4096;
const BYTES: usize = 4096;

fn word(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

/// Blocks that follow each other exactly, each with its length at both ends.
fn well_formed(mut b: &[u8]) {
    while !b.is_empty() {
        let len = word(b, 4) as usize;
        assert!(len >= 12 && len % 4 == 0 && len <= b.len());
        assert_eq!(word(b, len - 4) as usize, len);
        b = &b[len..];
    }
}

fuzz_target!(|data: &[u8]| {
    thread_local! { static MEMORY: std::os::fd::OwnedFd = spool::memory(1).unwrap(); }
    let Some((tail, rest)) = data.split_first_chunk::<4>() else { return };
    MEMORY.with(|memory| {
        let file = File::from(memory.try_clone().unwrap());
        // Mostly something that could be.
        let tail = u64::from(u32::from_le_bytes(*tail)) & if rest.len() % 3 == 0 { u64::MAX } else { 0xff8 };
        let mut bytes = rest[..rest.len().min(BYTES)].to_vec();
        bytes.resize(BYTES, 0);
        file.write_at(&bytes, PAGE).unwrap();
        file.write_at(&tail.to_le_bytes(), 0).unwrap();
        let mut reader = Reader::new(memory, 0, 1).unwrap();
        let about = About { format: Format::Pcapng, keep: 65536, port: "p".into(), kind: "tap".into(), queues: 2 };
        let mut out = Vec::new();
        about.begin(&mut out);
        for _ in 0..1000 {
            let Ok(Some(record)) = reader.peek() else { break };
            assert!(record.len() + 4 <= LONGEST);
            let Some(head) = Head::read(&record) else { break };
            assert!(head.kept <= record.len() - HEAD && head.kept <= head.len);
            about.frame(&mut out, &head, 1, |to| {
                record.skip(HEAD).copy_out(to);
            });
            reader.pass(record.len());
            if out.len() > 1 << 20 {
                break;
            }
        }
        reader.give_back();
        about.statistics(&mut out, reader.counts(), 1, 0, u64::MAX);
        well_formed(&out);
    });
});
