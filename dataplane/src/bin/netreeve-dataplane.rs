//! The `netreeve-dataplane` program: started by the supervisor, never by hand; its descriptor 3 is the hand-over.

fn main() {
    netreeve_dataplane::sys::process::leave(netreeve_dataplane::engine::main())
}
