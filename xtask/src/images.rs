//! The guest images that tests and measurements boot, in `target/images`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use image::{ImageError, Request};

use crate::process::{root, target_dir};

/// An image to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its folder in `target/images`.
    pub(crate) name: &'static str,
    /// Its recipe in `images`.
    recipe: &'static str,
    /// A kernel package in place of the recipe's.
    kernel: Option<&'static str>,
}

/// The shell in an initrd, which most tests boot.
pub(crate) const BARE: Wanted = Wanted { name: "bare", recipe: "bare", kernel: None };
/// The same with the kernel for any machine.
pub(crate) const BARE_GENERIC: Wanted =
    Wanted { name: "bare-generic", recipe: "bare", kernel: Some("linux-image-amd64") };
/// Redis and services for checks of byte streams.
pub(crate) const REDIS: Wanted = Wanted { name: "redis", recipe: "redis", kernel: None };
/// Debian under systemd with nginx and OpenSSH.
pub(crate) const SYSTEMD: Wanted = Wanted { name: "systemd", recipe: "systemd", kernel: None };
/// Debian under systemd with real programs and their tests.
pub(crate) const WORKBENCH: Wanted =
    Wanted { name: "workbench", recipe: "workbench", kernel: None };
/// The programs that `cargo xtask bench suite net` runs.
pub(crate) const SUITE: Wanted = Wanted { name: "suite", recipe: "suite", kernel: None };

/// What `cargo xtask test` boots.
pub(crate) const TEST: &[Wanted] = &[BARE, BARE_GENERIC, REDIS, SYSTEMD];

/// Builds those that are missing or out of date. Returns the folder that holds them all, which
/// tests get as `LOCKSTEP_IMAGES`.
pub(crate) fn ensure(wanted: &[Wanted]) -> Result<PathBuf> {
    let folder = target_dir().join("images");
    for image in wanted {
        let request = Request {
            recipe: root().join("images").join(image.recipe).with_extension("toml"),
            out: folder.join(image.name),
            kernel: image.kernel.map(str::to_owned),
            ..Request::default()
        };
        eprintln!("image {}", image.name);
        let built = match image::build(&request) {
            // Some run wrote to it. Nobody keeps data in the target folder.
            Err(ImageError::Changed { .. }) => image::build(&Request { force: true, ..request }),
            built => built,
        };
        built.with_context(|| format!("cannot build the image {}", image.name))?;
    }
    Ok(folder)
}
