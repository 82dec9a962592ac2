//! Guests: real Linux kernels with a real virtio-net driver. [`Uml`](uml::Uml) is the everyday one, [`Qemu`](qemu::Qemu)
//! the one for compatibility. Both are steered over their console, by the same small init, see [`console`].

pub mod base64;
pub mod console;
pub mod cpio;
pub mod initramfs;
pub mod proving;
pub mod qemu;
pub mod uml;
pub mod vmms;

pub use console::{Console, Job};
pub use vmms::Vmm;
