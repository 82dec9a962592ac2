//! The policy file: any text; a policy that reads must refuse a caller whom no line names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netreeve_helper::names::Names;
use netreeve_helper::policy_file;

fuzz_target!(|data: &[u8]| {
    let names = Names::parse("root:x:0:0::/:/\nalice:x:1000:1000::/:/\n", "kvm:x:7:alice\n");
    if let Ok(text) = std::str::from_utf8(data) {
        match policy_file::parse(text, &names) {
            Ok(policy) => assert!(policy.rules.len() + policy.limits.len() <= text.lines().count()),
            Err(bad) => assert!(bad.iter().all(|b| b.line >= 1 && !b.why.is_empty()) && !bad.is_empty()),
        }
    }
});
