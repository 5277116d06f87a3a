//! `lockstep backup`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vmm::config::{BackupConfig, NetSpec};

use crate::exit::{Exit, usage};
use crate::options::{EngineArgs, ProcessArgs, SiteArgs, check_address};

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Where primaries, and status and console from other hosts, connect (TCP and UDP).
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Use this network device in the place of the primary's, in their order. May be repeated.
    #[arg(long, value_name = "NET")]
    net: Vec<String>,
    /// Reach this disk in the place of the primary's, in their order. May be repeated.
    #[arg(long, value_name = "DISK")]
    disk: Vec<String>,
    /// Reach the arbiter at this address and not at the primary's.
    #[arg(long, value_name = "HOST:PORT")]
    arbiter: Option<String>,
    /// After taking over, protect the VM with the `lockstep backup` at this address. May be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    backup: Vec<String>,
    /// Write a summary to FILE when a VM that was taken over has ended.
    #[arg(long, value_name = "FILE")]
    json_to: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    site: SiteArgs,
}

pub(crate) fn run(args: BackupArgs) -> Result<Exit> {
    let security = args.site.security_for("a backup")?;
    let parse = |net: &String| net.parse::<NetSpec>().map(|net| net.link).map_err(usage);
    let nets = args.net.iter().map(parse).collect::<Result<_>>()?;
    let disks = args.disk.iter().map(|disk| disk.parse().map_err(usage)).collect::<Result<_>>()?;
    args.backup.iter().try_for_each(|backup| check_address("--backup", backup))?;
    if let Some(arbiter) = &args.arbiter {
        check_address("--arbiter", arbiter)?;
    }
    let config = BackupConfig {
        listen: args.listen,
        nets,
        arbiter: args.arbiter,
        disks,
        backups: args.backup,
        engine: args.engine.kind(),
        site: args.process.site(&args.site, security, Some(args.listen))?,
    };
    args.json_to.as_deref().map(crate::run::check_writable).transpose()?;
    match vmm::backup::run(&config)? {
        Some(report) => crate::run::finish(&report, &args.engine, args.json_to.as_deref()),
        None => Ok(Exit::Done),
    }
}
