//! The sandbox: what the dataplane locks itself into once it holds its descriptors.

pub mod call;
