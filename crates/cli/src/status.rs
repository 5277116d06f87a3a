//! `lockstep status`.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::exit::Exit;
use crate::find::{FindArgs, Finder, Found};

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Only this VM.
    vm: Option<String>,
    /// Print JSON: an array with one object for each process.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    find: FindArgs,
}

pub(crate) fn run(args: &StatusArgs) -> Result<Exit> {
    let found = Finder::new(&args.find)?.find(args.vm.as_deref());
    if args.json {
        let processes: Vec<_> = found
            .iter()
            .map(|Found { place, status }| {
                let mut object = json!(status);
                object["place"] = json!(place.to_string());
                object
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&processes)?);
    } else {
        print(&found);
    }
    let missing = args.vm.is_some() && found.is_empty();
    if missing {
        log::error!("no process of VM {} answers", args.vm.as_deref().unwrap_or_default());
    }
    Ok(if missing { Exit::NotFound } else { Exit::Done })
}

fn print(found: &[Found]) {
    if found.is_empty() {
        println!("no VM answers here; name other hosts with --host");
        return;
    }
    println!(
        "{:<16} {:<22} {:<10} {:<14} {:>8} {:>6}",
        "VM", "PROCESS", "ROLE", "STATE", "LAG", "HELD"
    );
    for Found { place, status } in found {
        let vm = status.vm.as_deref().unwrap_or("-");
        let lag = format!("{} ms", status.lag_ns / 1_000_000);
        let (place, role, state, held) =
            (place.to_string(), &status.role, &status.state, status.held_outputs);
        println!("{vm:<16} {place:<22} {role:<10} {state:<14} {lag:>8} {held:>6}");
        for warning in &status.warnings {
            println!("  warning: {warning}");
        }
    }
}
