//! `lockstep keys`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::exit::Exit;

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    /// The file to make. An existing one is never replaced.
    file: PathBuf,
}

pub(crate) fn run(args: &KeysArgs) -> Result<Exit> {
    vmm::key::generate(&args.file)?;
    let file = args.file.display();
    log::info!("{file} is the site's key: copy it to every host, and keep it from everybody else");
    Ok(Exit::Done)
}
