//! How fast the CPU is with each engine: integer workloads and Debian's boot, in this process.

use std::path::Path;

use anyhow::Result;
use engines::EngineKind;
use serde_json::{Value, json};

use crate::guest::{Cost, Guest};
use crate::stats::median;

/// Makes what the workloads read; not measured.
const PREPARATION: &str = "seq 100000 170000 >/n && for i in 1 2 3; do cat /n; done >/n3";

/// Integer workloads: what the table calls them, and what is typed.
const WORKLOADS: [(&str, &str); 10] = [
    ("sha256sum", "for i in 1 2 3 4 5 6; do sha256sum /n3; done >/dev/null"),
    ("md5sum", "for i in $(seq 20); do md5sum /n3; done >/dev/null"),
    ("grep", "for i in 1 2 3; do grep '1.*5.*3' /n; done >/dev/null"),
    ("gzip", "gzip -c /n3 >/n3.gz"),
    ("gunzip", "for i in $(seq 6); do gunzip -c /n3.gz; done >/dev/null"),
    ("bzip2", "bzip2 -c /n >/n.bz2"),
    ("sort", "sort -r /n >/dev/null"),
    (
        "awk",
        "awk 'BEGIN { for (i = 0; i < 60000; i++) { a[i % 1000] += i * 7 } ; print a[999] }' >/dev/null",
    ),
    ("sh", "i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done"),
    ("sed", "sed -n 's/1\\([2-5]\\)/\\1-/gp' /n >/dev/null"),
];

/// MIPS of each workload by each engine, one after the other, and their medians.
pub(crate) fn measure(bare: &Path, engines: &[EngineKind]) -> Result<Value> {
    let mut guests = Vec::new();
    for kind in engines {
        let (mut guest, _) = Guest::boot(bare, *kind)?;
        guest.run(PREPARATION)?;
        guests.push(guest);
    }
    println!("\nMillion guest steps per second of host CPU time");
    print_head("workload", engines);
    let (mut workloads, mut all) = (Vec::new(), Vec::new());
    for (name, command) in WORKLOADS {
        let costs =
            guests.iter_mut().map(|guest| guest.run(command)).collect::<Result<Vec<Cost>>>()?;
        let steps = costs[0].steps;
        let row: Vec<f64> = costs.iter().map(Cost::mips).collect();
        print_row(name, steps, &row, 1.0);
        let of = |cost: &Cost| json!({ "cpu_seconds": cost.cpu_s, "mips": cost.mips() });
        workloads.push(json!({
            "name": name, "steps": steps, "engines": by_engine(engines, costs.iter().map(of)),
        }));
        all.push(row);
    }
    let medians: Vec<f64> = (0..engines.len())
        .map(|engine| median(&all.iter().map(|row| row[engine]).collect::<Vec<f64>>()))
        .collect();
    print_row("median", 0, &medians, 1.0);
    let counts = guests.iter().map(|guest| guest.counts());
    Ok(json!({
        "workloads": workloads,
        "median_mips": by_engine(engines, medians.iter().map(|mips| json!(mips))),
        "counts": by_engine(engines, counts),
    }))
}

/// From power-on to the shell's prompt, by each engine in turn.
pub(crate) fn measure_boot(bare: &Path, engines: &[EngineKind], count: u32) -> Result<Value> {
    let mut boots = vec![Vec::new(); engines.len()];
    for _ in 0..count {
        for (boots, kind) in boots.iter_mut().zip(engines) {
            boots.push(Guest::boot(bare, *kind)?.1);
        }
    }
    let median_of = |boots: &[Cost], what: fn(&Cost) -> f64| {
        median(&boots.iter().map(what).collect::<Vec<f64>>())
    };
    let walls: Vec<f64> = boots.iter().map(|boots| median_of(boots, |cost| cost.wall_s)).collect();
    let cpus: Vec<f64> = boots.iter().map(|boots| median_of(boots, |cost| cost.cpu_s)).collect();
    let steps = boots[0][0].steps;
    println!(
        "\nBoot to shell, Debian's cloud kernel, virtual clock, in seconds, median of {count}"
    );
    print_head("time", engines);
    print_row("wall", steps, &walls, -1.0);
    print_row("host CPU", steps, &cpus, -1.0);
    let each = (0..engines.len()).map(|engine| {
        let each: Vec<f64> = boots[engine].iter().map(|cost| cost.wall_s).collect();
        json!({
            "wall_seconds": walls[engine], "cpu_seconds": cpus[engine], "wall_seconds_each": each,
        })
    });
    Ok(json!({ "steps": steps, "engines": by_engine(engines, each) }))
}

fn by_engine(engines: &[EngineKind], values: impl Iterator<Item = Value>) -> Value {
    engines.iter().map(|kind| kind.name()).zip(values).collect()
}

fn print_head(what: &str, engines: &[EngineKind]) {
    let names: String = engines.iter().map(|kind| format!(" {:>11}", kind.name())).collect();
    let ratio = if engines.len() > 1 { "   ratio" } else { "" };
    println!("  {what:<12} {:>10}{names}{ratio}", "M steps");
}

/// One figure for each engine, and how many times as fast the last one is as the first. `better` is 1
/// where more is better, and -1 where less is.
fn print_row(name: &str, steps: u64, figures: &[f64], better: f64) {
    let steps = if steps == 0 { String::new() } else { format!("{:.1}", steps as f64 / 1e6) };
    let columns: String = figures.iter().map(|figure| format!(" {figure:>11.2}")).collect();
    let ratio = match figures {
        [first, .., last] => format!(" {:>7.2}", (last / first).powf(better)),
        _ => String::new(),
    };
    println!("  {name:<12} {steps:>10}{columns}{ratio}");
}
