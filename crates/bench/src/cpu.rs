//! How fast the interpreter is: integer workloads and Debian's boot, in this process.

use std::path::Path;

use anyhow::Result;
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

/// MIPS of each workload, and their median.
pub(crate) fn measure(bare: &Path) -> Result<Value> {
    let (mut guest, _) = Guest::boot(bare)?;
    guest.run(PREPARATION)?;
    println!("\nInterpreter: million guest steps per second of host CPU time");
    println!("  {:<12} {:>10} {:>8} {:>8}", "workload", "M steps", "s", "MIPS");
    let mut workloads = Vec::new();
    let mut all = Vec::new();
    for (name, command) in WORKLOADS {
        let cost = guest.run(command)?;
        let Cost { steps, cpu_s, .. } = cost;
        println!("  {name:<12} {:>10.1} {cpu_s:>8.2} {:>8.1}", steps as f64 / 1e6, cost.mips());
        workloads.push(json!({
            "name": name, "steps": steps, "cpu_seconds": cpu_s, "mips": cost.mips(),
        }));
        all.push(cost.mips());
    }
    println!("  {:<12} {:>28.1}", "median", median(&all));
    Ok(json!({ "workloads": workloads, "median_mips": median(&all) }))
}

/// From power-on to the shell's prompt.
pub(crate) fn measure_boot(bare: &Path, count: u32) -> Result<Value> {
    let boots = (0..count).map(|_| Ok(Guest::boot(bare)?.1)).collect::<Result<Vec<_>>>()?;
    let walls: Vec<f64> = boots.iter().map(|cost| cost.wall_s).collect();
    let cpus: Vec<f64> = boots.iter().map(|cost| cost.cpu_s).collect();
    let (steps, wall_s, cpu_s) = (boots[0].steps, median(&walls), median(&cpus));
    println!("\nBoot to shell, Debian's cloud kernel, virtual clock, median of {count}");
    println!("  {wall_s:.2} s ({cpu_s:.2} s of host CPU time), {:.1} M steps", steps as f64 / 1e6);
    Ok(json!({
        "steps": steps, "wall_seconds": wall_s, "cpu_seconds": cpu_s, "wall_seconds_each": walls,
    }))
}
