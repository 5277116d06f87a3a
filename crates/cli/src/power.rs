//! `lockstep power`.

use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use host::Wake;
use vmm::control::{PowerAction, Request};

use crate::exit::Exit;
use crate::find::{FindArgs, Finder};

#[derive(Debug, Args)]
pub(crate) struct PowerArgs {
    #[arg(value_enum)]
    action: Action,
    /// The VM.
    vm: String,
    #[command(flatten)]
    find: FindArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Action {
    /// Press the power button: the guest shuts itself down.
    Off,
    /// Press the reset button.
    Reset,
    /// Cut the power.
    Force,
}

pub(crate) fn run(args: &PowerArgs) -> Result<Exit> {
    let finder = Finder::new(&args.find)?;
    let owner = finder.owner(&args.vm)?;
    let wake = Arc::new(Wake::new()?);
    let mut client = finder.connect(&owner.place, Some(&args.vm), wake)?;
    let action = match args.action {
        Action::Off => PowerAction::Off,
        Action::Reset => PowerAction::Reset,
        Action::Force => PowerAction::Force,
    };
    client.ask(&Request::Power { action })?;
    Ok(Exit::Done)
}
