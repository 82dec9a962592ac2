//! The shape of the tree, checked: who may depend on whom, where `unsafe` may stand, how large things may be.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

use std::fs;
use std::path::{Path, PathBuf};

/// Own lines of the privileged helper, tests excluded, at most.
const HELPER_LINES: usize = 2550;
/// Lines of any file before its tests, at most.
const FILE_LINES: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file below `dir`, with its path from the root.
fn rust(dir: &str) -> Vec<(String, String)> {
    fn walk(at: &Path, out: &mut Vec<PathBuf>) {
        for e in fs::read_dir(at).unwrap().map(|e| e.unwrap().path()) {
            if e.is_dir() {
                if e.file_name().is_some_and(|n| n != "target") {
                    walk(&e, out);
                }
            } else if e.extension().is_some_and(|x| x == "rs") {
                out.push(e);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(dir), &mut paths);
    paths.sort();
    assert!(!paths.is_empty(), "{dir} holds no Rust file: has it moved?");
    let name = |p: &Path| p.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|p| (name(p), fs::read_to_string(p).unwrap())).collect()
}

fn product() -> Vec<(String, String)> {
    ["shared/src", "bpf/src", "helper/src", "dataplane/src"].iter().flat_map(|d| rust(d)).collect()
}

/// Files that are tests as a whole.
fn is_test(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/")
}

/// Lines before the tests in a file; a file of tests has none.
fn own_lines(path: &str, text: &str) -> usize {
    if is_test(path) {
        return 0;
    }
    text.lines().position(|l| l.trim_start().starts_with("#[cfg(test)]")).unwrap_or(text.lines().count())
}

#[test]
fn nobody_depends_on_whom_he_must_not_see() {
    let edges: [(&str, &[&str]); 4] = [
        ("shared", &["netreeve-bpf", "netreeve-helper", "netreeve-dataplane"]),
        ("bpf", &["netreeve-shared", "netreeve-helper", "netreeve-dataplane"]),
        ("helper", &["netreeve-dataplane"]),
        ("dataplane", &["netreeve-helper", "netreeve-bpf", "libbpf"]),
    ];
    for (package, never) in edges {
        let toml = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        let depends = toml.split_once("[dependencies]").map_or("", |(_, d)| d);
        for name in never {
            assert!(!depends.contains(name), "{package} must not depend on {name}");
        }
    }
}

#[test]
fn unsafe_stands_only_where_the_design_names_it_and_says_why() {
    let allowed = |p: &str| {
        p == "shared/src/channel.rs"
            || p == "shared/src/fdkind.rs"
            || p.starts_with("helper/src/sys")
            || p.starts_with("dataplane/src/sys")
            || p.starts_with("dataplane/src/mem/")
    };
    for (path, text) in product() {
        let own: Vec<&str> = text.lines().take(own_lines(&path, &text)).collect();
        for (n, line) in own.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let word =
                code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl");
            if !word {
                continue;
            }
            assert!(allowed(&path), "{path}:{}: unsafe does not belong here", n + 1);
            let before = own.get(n.saturating_sub(8)..=n).unwrap_or_default().join("\n");
            let said = before.contains("SAFETY") || before.contains("# Safety");
            assert!(said, "{path}:{}: unsafe without a SAFETY comment", n + 1);
        }
    }
}

#[test]
fn files_are_small_and_say_what_they_are() {
    for (path, text) in product() {
        let lines = own_lines(&path, &text);
        assert!(lines <= FILE_LINES, "{path} has {lines} lines before its tests, {FILE_LINES} at most");
        assert!(is_test(&path) || text.starts_with("//!"), "{path} does not open with what it is");
        for stub in ["todo!(", "unimplemented!("] {
            assert!(!text.contains(stub), "{path} holds a stub: {stub}");
        }
    }
}

#[test]
fn the_helper_stays_small() {
    let own = |(p, t): &(String, String)| {
        let lines = t.lines().take(own_lines(p, t));
        lines.map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("//")).count()
    };
    let all: usize = rust("helper/src").iter().map(own).sum();
    assert!(all <= HELPER_LINES, "the helper has {all} own lines, {HELPER_LINES} at most");
    println!("own lines of the helper, without tests, comments and blank lines: {all}");
}

#[test]
fn only_the_codec_names_the_serializer() {
    for (path, text) in product() {
        let names = text.lines().any(|l| l.contains("bincode::"));
        assert!(!names || path == "shared/src/codec.rs", "{path} names bincode; only the codec may");
    }
}
