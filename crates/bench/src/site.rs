//! What all measurements with `lockstep` processes share.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use testbed::pair::PairConfig;

/// Programs, images and folders.
pub(crate) struct Site {
    pub(crate) lockstep: PathBuf,
    pub(crate) images: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) detection_ms: u64,
}

impl Site {
    /// A pair of the redis image, with files of its own. `append` replaces the kernel's command line.
    pub(crate) fn pair(&self, name: &str, append: Option<String>) -> Result<PairConfig> {
        Ok(PairConfig {
            lockstep: self.lockstep.clone(),
            image: self.images.join("redis"),
            work: self.folder(name)?,
            detection_ms: self.detection_ms,
            append,
            run_flags: Vec::new(),
            detours: Default::default(),
            engines: None,
        })
    }

    /// A new folder for a run's files.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.work.join(name);
        std::fs::create_dir(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }
}

/// What `lockstep status` says of the VM; `command` is `lockstep` on its host.
pub(crate) fn status(mut command: Command) -> Result<Value> {
    let output =
        command.args(["status", "vm", "--json"]).output().context("cannot ask for status")?;
    let all: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!("lockstep status said: {}", String::from_utf8_lossy(&output.stderr))
    })?;
    match all.get(0) {
        Some(status) => Ok(status.clone()),
        None => bail!("no process of the VM answers"),
    }
}

/// A number of the status.
pub(crate) fn number(status: &Value, field: &str) -> Result<f64> {
    status[field].as_f64().with_context(|| format!("the status has no number {field}"))
}

/// The testbed's errors are texts.
pub(crate) fn text(error: String) -> anyhow::Error {
    anyhow!(error)
}
