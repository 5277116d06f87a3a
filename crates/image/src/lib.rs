//! Guest images from Debian packages: a kernel, an initrd and a root disk by recipe.
//!
//! A recipe is a TOML file that names packages ([`Recipe`]). [`build()`] makes a folder of it with
//! `vmlinuz`, `initrd.img`, `disk.img` where the recipe has a disk, and a `vm.toml` that
//! `lockstep run` takes as it is. The work is done by Debian's own tools, run as child processes:
//! `mmdebstrap` fetches and unpacks, `mke2fs` makes the file system. It works as root, and without
//! root where unprivileged user namespaces are allowed. Every mount is made inside a mount namespace
//! of its own, so none outlives the build, however it ends.
//!
//! The same packages give the same kernel and initrd, byte for byte. The disk has the same files and
//! identifiers, but its change times are those of the build.
//!
//! A finished folder carries a stamp of everything that went in. Building again with the same input
//! is then a look at the stamp; otherwise the new folder takes the old one's place in one step.
//! Newer versions of a package upstream are not looked for: that is what [`Request::force`] is for.

#![forbid(unsafe_code)]

mod build;
mod cpio;
mod debian;
mod error;
mod modules;
mod recipe;
mod stamp;
mod tree;

pub use build::{Image, Request, build};
pub use error::ImageError;
pub use recipe::{Disk, Initrd, Recipe, Vm};
