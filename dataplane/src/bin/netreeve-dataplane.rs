//! The `netreeve-dataplane` program: started by the supervisor, never by hand; its descriptor 3 is the hand-over.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(netreeve_dataplane::engine::main())
}
