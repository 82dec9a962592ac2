//! The archive that Linux unpacks as its first root file system: cpio, "newc" format
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fmt::Write;

/// An archive being written. All entries belong to root.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    dirs: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// Adds a directory and those above it; what is there already is left alone.
    pub fn dir(&mut self, path: &str) {
        if path.is_empty() || self.dirs.contains(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.dir(above);
        }
        self.dirs.insert(path.to_owned());
        self.entry(path, 0o040_755, (0, 0), &[]);
    }

    /// Adds a file, and the directories above it.
    pub fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.dir(path.rsplit_once('/').map_or("", |(above, _)| above));
        self.entry(path, 0o100_000 | permissions, (0, 0), contents);
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.dir(path.rsplit_once('/').map_or("", |(above, _)| above));
        self.entry(path, 0o020_600, (major, minor), &[]);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let links = 1;
        let mut head = String::from("070701");
        for field in [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            // Writing to a String cannot fail.
            let _ = write!(head, "{field:08x}");
        }
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// cpio(1) is the judge of what we write.
    #[test]
    fn cpio_reads_it() {
        let mut archive = Archive::default();
        archive.file("bin/tool", 0o755, b"12345");
        archive.file("bin/other", 0o600, b"");
        archive.device("dev/console", 5, 1);
        let mut cpio =
            Command::new("cpio").arg("-itv").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        cpio.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let listed = cpio.wait_with_output().unwrap();
        assert!(listed.status.success());
        let listed = String::from_utf8(listed.stdout).unwrap();
        let rows: Vec<Vec<&str>> = listed.lines().map(|l| l.split_whitespace().collect()).collect();
        let modes: Vec<(&str, &str)> = rows.iter().map(|r| (r[0], *r.last().unwrap())).collect();
        let expected = [
            ("drwxr-xr-x", "bin"),
            ("-rwxr-xr-x", "bin/tool"),
            ("-rw-------", "bin/other"),
            ("drwxr-xr-x", "dev"),
            ("crw-------", "dev/console"),
        ];
        assert_eq!(modes, expected);
        assert_eq!(rows[1][4], "5", "{listed}");
    }
}
