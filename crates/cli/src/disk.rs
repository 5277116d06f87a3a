//! `lockstep disk`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use disk::server::{Config, ExportSpec, Server};

use crate::exit::{Exit, usage};
use crate::options::check_address;

#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    /// Where hosts connect: disks by NBD, and the arbiter.
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
    /// Export a disk: NAME=FILE or NAME=nbd://HOST:PORT/EXPORT, with ,format=raw, ,format=qcow2 or ,ro
    /// behind it. May be repeated.
    #[arg(long, value_name = "NAME=FILE")]
    export: Vec<String>,
    /// Where to keep what must outlive a crash: who owns which VM, and who may write.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

pub(crate) fn run(args: DiskArgs) -> Result<Exit> {
    check_address("--listen", &args.listen)?;
    let exports = args
        .export
        .iter()
        .map(|export| export.parse::<ExportSpec>().map_err(usage))
        .collect::<Result<_>>()?;
    let server = Server::bind(&Config { listen: args.listen, exports, state: args.state })?;
    let handle = server.handle().context("cannot serve")?;
    log::info!("serving at {}", server.local_addr().context("cannot serve")?);
    host::signals::on_end_signal(move |_| handle.shutdown()).context("cannot handle signals")?;
    server.run();
    Ok(Exit::Done)
}
