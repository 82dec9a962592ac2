//! Unit tests of the supervisor with a dataplane that is a shell script.
