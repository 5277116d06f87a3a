//! Options that several commands share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use base::Digest;
use clap::{Args, ValueEnum};
use engines::EngineKind;
use serde::Deserialize;
use vmm::Totals;
use vmm::config::Site;
use vmm::key::{Security, load};
use vmm::rundir::RunDir;

use crate::exit::usage;

/// Forms of instructions that are told of.
const FORMS_TOLD_MAX: usize = 24;

/// Which processes belong together, and how they know each other.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default)]
pub(crate) struct SiteArgs {
    /// The key file that all hosts share (see `lockstep keys`).
    #[arg(long, value_name = "FILE", env = "LOCKSTEP_KEY")]
    pub(crate) key: Option<PathBuf>,
    /// Talk to other hosts without encryption, so that anybody on the way can read and change the
    /// guest's memory. For tests and for networks that only the hosts can reach.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) insecure_plaintext: Option<bool>,
    /// Where processes of this host find each other (default: $XDG_RUNTIME_DIR/lockstep).
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_RUN_DIR")]
    pub(crate) run_dir: Option<PathBuf>,
}

impl SiteArgs {
    pub(crate) fn or(self, file: SiteArgs) -> SiteArgs {
        SiteArgs {
            key: self.key.or(file.key),
            insecure_plaintext: self.insecure_plaintext.or(file.insecure_plaintext),
            run_dir: self.run_dir.or(file.run_dir),
        }
    }

    pub(crate) fn run_dir(&self) -> RunDir {
        RunDir::new(self.run_dir.clone())
    }

    /// How to talk to other hosts; `None` if nothing was said about it.
    pub(crate) fn security(&self) -> Result<Option<Security>> {
        match (&self.key, self.insecure_plaintext == Some(true)) {
            (Some(_), true) => Err(usage("--key and --insecure-plaintext exclude each other")),
            (Some(path), false) => Ok(Some(Security::Key(Arc::new(load(path)?)))),
            (None, true) => Ok(Some(Security::Plaintext)),
            (None, false) => Ok(None),
        }
    }

    /// The same for those who cannot do without.
    pub(crate) fn security_for(&self, purpose: &str) -> Result<Security> {
        self.security()?.ok_or_else(|| {
            usage(format!(
                "{purpose} needs --key FILE (make one with `lockstep keys FILE` and copy it to all hosts)"
            ))
        })
    }
}

/// What a process with a VM shares with others.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default)]
pub(crate) struct ProcessArgs {
    /// What other hosts call this process, if it is not the address listened at.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Tells this host from others, which is needed only where several stand for hosts on one machine.
    #[arg(long, value_name = "ID", env = "LOCKSTEP_HOST_ID")]
    pub(crate) host_id: Option<String>,
    /// Append what happens to the VM, such as the steps of a failover, to FILE as JSON lines.
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
}

impl ProcessArgs {
    pub(crate) fn or(self, file: ProcessArgs) -> ProcessArgs {
        ProcessArgs {
            advertise: self.advertise.or(file.advertise),
            host_id: self.host_id.or(file.host_id),
            events: self.events.or(file.events),
        }
    }

    pub(crate) fn site(
        self,
        common: &SiteArgs,
        security: Security,
        listen: Option<SocketAddr>,
    ) -> Result<Site> {
        let host = match self.host_id {
            Some(id) => id,
            None => host::boot_id().context("cannot tell this host from others; try --host-id")?,
        };
        if let Some(advertise) = &self.advertise {
            check_address("--advertise", advertise)?;
        }
        Ok(Site {
            security,
            key_file: common.key.clone(),
            run_dir: common.run_dir(),
            host: Digest::of(host.as_bytes()),
            listen,
            advertise: self.advertise,
            events: self.events,
        })
    }
}

/// What runs the guest's code, and what is told of it.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default)]
pub(crate) struct EngineArgs {
    /// What runs the guest's code on this host. The guest cannot tell, and hosts of one VM may differ. [default: auto]
    #[arg(long, value_enum, env = engines::VARIABLE)]
    pub(crate) engine: Option<EngineName>,
    /// Say at the end who ran the guest's steps, what the caches did, which instructions translated code was left
    /// for, and what the time was spent on.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) stats: Option<bool>,
}

impl EngineArgs {
    pub(crate) fn or(self, file: EngineArgs) -> EngineArgs {
        EngineArgs { engine: self.engine.or(file.engine), stats: self.stats.or(file.stats) }
    }

    pub(crate) fn kind(&self) -> EngineKind {
        match self.engine {
            None | Some(EngineName::Auto) => EngineKind::Auto,
            Some(EngineName::Interpreter) => EngineKind::Interpreter,
            Some(EngineName::Translator) => EngineKind::Translator,
        }
    }

    /// Prints the counts if they were asked for.
    pub(crate) fn tell(&self, totals: &Totals) {
        if self.stats != Some(true) {
            return;
        }
        log::info!("{} of the guest's steps; in this process:", totals.icount);
        for (name, count) in &totals.counts {
            log::info!("{count:>16} {}", name.replace('_', " "));
        }
        if !totals.left.is_empty() {
            log::info!("instructions that the translator left to the interpreter one by one:");
        }
        for (form, count) in totals.left.iter().take(FORMS_TOLD_MAX) {
            log::info!("{count:>16} {form}");
        }
        if !totals.time.is_empty() {
            log::info!("what the machine's thread was at, in shares of the time:");
        }
        for (what, share) in &totals.time {
            log::info!("{:>14.1} % {}", 100.0 * share, what.replace('_', " "));
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EngineName {
    /// The fastest one that the host allows.
    Auto,
    /// The interpreter alone.
    Interpreter,
    /// The translator, and the interpreter for what it leaves.
    Translator,
}

/// Refuses what is not `HOST:PORT`.
pub(crate) fn check_address(flag: &str, addr: &str) -> Result<()> {
    if vmm::config::has_port(addr) {
        return Ok(());
    }
    Err(usage(format!("{flag} {addr}: expected HOST:PORT")))
}
