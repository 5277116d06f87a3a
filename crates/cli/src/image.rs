//! `lockstep image`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::exit::Exit;

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make a folder with kernel, initrd, disk and vm.toml from a recipe.
    Build(BuildArgs),
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// The recipe, such as images/redis.toml.
    recipe: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A kernel package in the place of the recipe's, such as linux-image-amd64.
    #[arg(long, value_name = "PACKAGE")]
    kernel: Option<String>,
    /// A package source in the place of Debian's own, as mmdebstrap takes it. May be repeated.
    #[arg(long, value_name = "SOURCE")]
    mirror: Vec<String>,
    /// Build even if the folder is up to date, and also if a guest has written to its disk.
    #[arg(long)]
    force: bool,
    /// Print what was built as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: ImageArgs) -> Result<Exit> {
    let ImageCommand::Build(args) = args.command;
    let built = image::build(&image::Request {
        recipe: args.recipe,
        out: args.out,
        kernel: args.kernel,
        mirrors: args.mirror,
        force: args.force,
    })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&built)?);
    } else {
        let how = if built.reused { "is up to date" } else { "is built" };
        println!("{} {how}: Linux {}", built.vm.display(), built.kernel_version);
    }
    Ok(Exit::Done)
}
