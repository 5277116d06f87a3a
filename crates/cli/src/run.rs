//! `lockstep run`.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use base::{Nanos, VmId};
use clap::{Args, ValueEnum};
use ft::{Timing, TimingError};
use machine::{ClockMode, CpuModel, Off};
use serde::Deserialize;
use serde_json::json;
use vmm::config::{Compare, DiskSpec, NetSpec, Protection, RunConfig, check_name};
use vmm::key::Security;
use vmm::run::RunReport;
use vmm::{Ended, Totals};

use crate::exit::{Exit, usage};
use crate::options::{EngineArgs, ProcessArgs, SiteArgs, check_address};

const NAME_DEFAULT: &str = "vm";
const MIB: u64 = 1 << 20;
const RAM_MIB_DEFAULT: u64 = 512;
const RAM_MIB_MAX: u64 = 16 << 10;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A vm.toml whose fields are named as the flags; flags override it. File names in it are
    /// relative to it.
    #[arg(value_name = "VM.TOML")]
    file: Option<PathBuf>,
    #[command(flatten)]
    options: RunOptions,
}

/// A VM, by flags or in a file.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RunOptions {
    /// The VM's name; the same on all hosts. [default: "vm" if it is protected, else "vm-" and the process's number]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The kernel: a Linux bzImage, or a Multiboot or PVH ELF file.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// A disk: FILE (raw or qcow2) or nbd://HOST:PORT/EXPORT, with ,format=F, ,ro, ,snapshot or
    /// ,fencing=none behind it. May be repeated.
    #[arg(long, value_name = "DISK")]
    disk: Vec<String>,
    /// Let all writes to disks vanish at the end.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    snapshot: Option<bool>,
    /// The CPU: v3 (x86-64-v3: AVX2, BMI, FMA), or v2 (x86-64-v2), with ,+aes ,+pclmulqdq or ,+sha behind it. Any
    /// host runs any of them, but slowly what its own CPU lacks. [default: v3]
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// RAM in MiB. [default: 512]
    #[arg(long, value_name = "MIB")]
    mem: Option<u64>,
    /// Virtual CPUs: 1. There is no other number yet.
    #[arg(long, alias = "cpus", value_name = "COUNT")]
    #[serde(alias = "cpus")]
    smp: Option<u32>,
    /// A network device: tap:NAME, packet:INTERFACE, socket,connect=HOST:PORT, socket,listen=IP:PORT
    /// or socket,unix=PATH, with ,mac=M behind it. May be repeated.
    #[arg(long, value_name = "NET")]
    net: Vec<String>,
    /// Where guest time comes from. [default: real]
    #[arg(long, value_enum)]
    clock: Option<Clock>,
    /// What all randomness starts from with --clock virtual. [default: 0]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Record the run to FILE, for `lockstep replay`. It will hold the guest's secrets.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Run the guest on the interpreter and on the translator at once, whatever --engine says, and compare all
    /// their state after slices of random length. The run ends where they differ, with a report.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    compare: Option<bool>,
    /// With --compare, the most steps between two comparisons: 1 compares after each instruction, some tens
    /// after about every block. Needs --clock virtual to be of use. [default: about a millisecond]
    #[arg(long, value_name = "STEPS")]
    compare_every: Option<u64>,
    /// Give the guest QEMU's debug-exit port (0xf4): a byte n written there ends the run with exit
    /// status 2 n + 1.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    debug_exit: Option<bool>,
    /// End the run when the guest resets itself.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    no_reboot: Option<bool>,
    /// Write a summary of the run to FILE.
    #[arg(long, value_name = "FILE")]
    json_to: Option<PathBuf>,
    /// Protect the VM with the `lockstep backup` at this address. May be repeated: the next one is
    /// tried when one fails.
    #[arg(long, value_name = "HOST:PORT")]
    backup: Vec<String>,
    /// Who decides which side goes on: the address of `lockstep disk`.
    #[arg(long, value_name = "HOST:PORT")]
    arbiter: Option<String>,
    /// How soon silence counts as a failure: aggressive (0.3 s), default (1 s) or relaxed (3 s).
    #[arg(long, value_enum)]
    timing: Option<TimingProfile>,
    /// The same in milliseconds.
    #[arg(long, value_name = "MS", conflicts_with = "timing")]
    detection_ms: Option<u64>,
    /// Power on although another copy of the VM may run. You know that none does.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    force: Option<bool>,
    /// Answer status and console from other hosts at this address.
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    #[serde(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    #[serde(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    #[serde(flatten)]
    site: SiteArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Clock {
    /// Guest time follows real time.
    Real,
    /// Guest time is the step count, and waiting costs nothing: runs repeat bit for bit.
    Virtual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TimingProfile {
    Aggressive,
    Default,
    Relaxed,
}

pub(crate) fn run(args: RunArgs) -> Result<Exit> {
    let options = merge(args)?;
    let (json_to, engine) = (options.json_to.clone(), options.engine.clone());
    let config = check(options)?;
    json_to.as_deref().map(check_writable).transpose()?;
    let report = vmm::run::run(&config)?;
    finish(&report, &engine, json_to.as_deref())
}

/// Reports a VM's end, to people and to the summary.
pub(crate) fn finish(
    report: &RunReport,
    engine: &EngineArgs,
    json_to: Option<&Path>,
) -> Result<Exit> {
    let exit = match &report.ended {
        Ended::Guest(Off::DebugExit(value)) => Exit::Guest(*value),
        Ended::Guest(_) | Ended::Stopped => Exit::Done,
        Ended::Halted(ft::Halted::Lost(_) | ft::Halted::Deposed(_)) | Ended::Deposed(_) => {
            Exit::Lost
        }
        Ended::Halted(ft::Halted::PoweredOff) => Exit::Done,
        Ended::Halted(ft::Halted::Diverged(_)) | Ended::Different(_) => Exit::Diverged,
        Ended::Halted(_) | Ended::RecordingFailed(_) | Ended::Broken => Exit::Failed,
    };
    if let Some(path) = json_to {
        write_summary(path, report, exit)?;
    }
    if let Some(totals) = &report.totals {
        engine.tell(totals);
        if totals.comparisons > 0 {
            log::info!("two engines compared {} times, always equal", totals.comparisons);
        }
    }
    if !matches!(exit, Exit::Done | Exit::Guest(_)) {
        log::error!("{}", report.ended);
    }
    Ok(exit)
}

fn write_summary(path: &Path, report: &RunReport, exit: Exit) -> Result<()> {
    let totals = report.totals.as_ref();
    let seconds = report.elapsed.as_secs_f64();
    let summary = json!({
        "name": report.vm,
        "reason": report.ended.to_string(),
        "exit_status": exit.code(),
        "seconds": seconds,
        "instructions": totals.map(|totals| totals.icount),
        "guest_seconds": totals.map(|totals| Duration::from_nanos(totals.guest_ns).as_secs_f64()),
        "digest": totals.map(|totals| totals.digest.to_string()),
        "cpu": totals.map(|totals| totals.cpu.to_string()),
        "engine": totals.map(engine_name),
        "engines_compared": totals.map(|totals| totals.comparisons),
        "counts": totals.map(counts),
        "time": totals.map(|totals| named(&totals.time)),
        "left": totals.map(|totals| named(&totals.left)),
    });
    write_json(path, &summary)
}

fn named<N: AsRef<str>, V: Copy + Into<serde_json::Value>>(list: &[(N, V)]) -> serde_json::Value {
    list.iter().map(|(name, value)| (name.as_ref().to_owned(), (*value).into())).collect()
}

/// Refuses a file for a summary that could not be written at the end of a long run.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let was_there = path.exists();
    let open = || {
        std::fs::OpenOptions::new().append(true).create(true).open(path)?;
        if was_there { Ok(()) } else { std::fs::remove_file(path) }
    };
    open().with_context(|| format!("cannot write summary {}", path.display()))
}

/// What ran the guest, in summaries.
pub(crate) fn engine_name(totals: &Totals) -> &'static str {
    if totals.translated { "translator" } else { "interpreter" }
}

/// The counts as an object.
pub(crate) fn counts(totals: &Totals) -> serde_json::Value {
    totals.counts.iter().map(|(name, count)| (*name, *count)).collect()
}

/// Writes one JSON object and a line end.
pub(crate) fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let write = || {
        let mut file = std::fs::File::create(path)?;
        writeln!(file, "{value:#}")
    };
    write().with_context(|| format!("cannot write summary {}", path.display()))
}

/// The file's options under the flags'.
fn merge(args: RunArgs) -> Result<RunOptions> {
    let flags = args.options;
    let Some(path) = args.file else { return Ok(flags) };
    let file = read_file(&path)?;
    let several = |flags: Vec<String>, file| if flags.is_empty() { file } else { flags };
    Ok(RunOptions {
        name: flags.name.or(file.name),
        kernel: flags.kernel.or(file.kernel),
        initrd: flags.initrd.or(file.initrd),
        append: flags.append.or(file.append),
        disk: several(flags.disk, file.disk),
        snapshot: flags.snapshot.or(file.snapshot),
        cpu: flags.cpu.or(file.cpu),
        mem: flags.mem.or(file.mem),
        smp: flags.smp.or(file.smp),
        net: several(flags.net, file.net),
        clock: flags.clock.or(file.clock),
        seed: flags.seed.or(file.seed),
        record: flags.record.or(file.record),
        compare: flags.compare.or(file.compare),
        compare_every: flags.compare_every.or(file.compare_every),
        debug_exit: flags.debug_exit.or(file.debug_exit),
        no_reboot: flags.no_reboot.or(file.no_reboot),
        json_to: flags.json_to.or(file.json_to),
        backup: several(flags.backup, file.backup),
        arbiter: flags.arbiter.or(file.arbiter),
        timing: flags.timing.or(file.timing.filter(|_| flags.detection_ms.is_none())),
        detection_ms: flags.detection_ms.or(file.detection_ms.filter(|_| flags.timing.is_none())),
        force: flags.force.or(file.force),
        listen: flags.listen.or(file.listen),
        engine: flags.engine.or(file.engine),
        process: flags.process.or(file.process),
        site: flags.site.or(file.site),
    })
}

fn read_file(path: &Path) -> Result<RunOptions> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut options: RunOptions = toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.lines().count().max(1);
        usage(format!(
            "{} is no VM's description: line {line}: {}",
            path.display(),
            error.message()
        ))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for name in [
        &mut options.kernel,
        &mut options.initrd,
        &mut options.record,
        &mut options.json_to,
        &mut options.process.events,
        &mut options.site.key,
        &mut options.site.run_dir,
    ] {
        *name = name.take().map(|name| folder.join(name));
    }
    for disk in options.disk.iter_mut().filter(|disk| !disk.starts_with("nbd://")) {
        *disk = folder.join(&*disk).to_string_lossy().into_owned();
    }
    Ok(options)
}

/// The checked configuration.
fn check(options: RunOptions) -> Result<RunConfig> {
    let kernel = options.kernel.clone().ok_or_else(|| usage("--kernel is missing"))?;
    // A VM that nobody named can be found by its process; on two hosts it needs one name.
    let named = options.name.as_deref().or(options.arbiter.as_ref().map(|_| NAME_DEFAULT));
    let vm = match named {
        Some(name) => check_name(name).map_err(usage)?,
        None => VmId(format!("{NAME_DEFAULT}-{}", std::process::id())),
    };
    let cpu = options.cpu.as_deref().map_or(Ok(CpuModel::default()), str::parse);
    let cpu = cpu.map_err(|why| usage(format!("--cpu: {why}")))?;
    let mem = options.mem.unwrap_or(RAM_MIB_DEFAULT);
    if mem == 0 || mem > RAM_MIB_MAX {
        return Err(usage(format!("--mem {mem}: a VM has from 1 to {RAM_MIB_MAX} MiB of RAM")));
    }
    if let Some(count) = options.smp.filter(|count| *count != 1) {
        return Err(usage(format!(
            "--smp {count}: a VM has one virtual CPU; with more, their order of access to memory \
             would have to be recorded too, which Lockstep does not do"
        )));
    }
    let snapshot = options.snapshot == Some(true);
    let disks: Vec<DiskSpec> = options
        .disk
        .iter()
        .map(|disk| {
            let mut disk: DiskSpec = disk.parse().map_err(usage)?;
            disk.snapshot |= snapshot;
            if disk.snapshot && !options.backup.is_empty() {
                let why = "the backup would not have what the guest wrote";
                return Err(usage(format!("disk {disk}: no snapshot with --backup: {why}")));
            }
            Ok(disk)
        })
        .collect::<Result<_>>()?;
    let nets: Vec<NetSpec> =
        options.net.iter().map(|net| net.parse().map_err(usage)).collect::<Result<_>>()?;
    let clock = match options.clock.unwrap_or(Clock::Real) {
        Clock::Real => ClockMode::Real,
        Clock::Virtual => ClockMode::Virtual,
    };
    if options.seed.is_some() && clock == ClockMode::Real {
        return Err(usage("--seed is for --clock virtual; on the real clock no run repeats"));
    }
    let compare = comparison(&options)?;
    let protection = protection(&options, &disks, clock)?;
    let security = match options.site.security()? {
        Some(security) => security,
        None if protection.is_some() => options.site.security_for("a protected VM")?,
        None if options.listen.is_some() => options.site.security_for("--listen")?,
        // Nobody is talked to.
        None => Security::Plaintext,
    };
    let site = options.process.site(&options.site, security, options.listen)?;
    Ok(RunConfig {
        vm,
        mac_base: named.unwrap_or(NAME_DEFAULT).to_owned(),
        kernel,
        initrd: options.initrd,
        append: options.append.unwrap_or_default(),
        cpu,
        ram_bytes: mem * MIB,
        disks,
        nets,
        clock,
        seed: options.seed.unwrap_or(0),
        record: options.record,
        debug_exit: options.debug_exit == Some(true),
        no_reboot: options.no_reboot == Some(true),
        engine: options.engine.kind(),
        profile: options.engine.stats == Some(true),
        compare,
        protection,
        site,
    })
}

fn comparison(options: &RunOptions) -> Result<Option<Compare>> {
    let is_on = options.compare == Some(true);
    if is_on && !options.backup.is_empty() {
        return Err(usage("--compare is for a VM alone: a backup is a comparison of its own"));
    }
    match options.compare_every {
        Some(_) if !is_on => Err(usage("--compare-every is for --compare")),
        Some(0) => Err(usage("--compare-every 0: a comparison comes after at least one step")),
        every => Ok(is_on.then_some(Compare { every: every.unwrap_or(u64::MAX) })),
    }
}

fn protection(
    options: &RunOptions,
    disks: &[DiskSpec],
    clock: ClockMode,
) -> Result<Option<Protection>> {
    let timing = timing(options)?;
    let Some(arbiter) = &options.arbiter else {
        if !options.backup.is_empty() {
            return Err(usage(
                "--backup needs --arbiter: two hosts alone cannot decide safely which of them goes \
                 on; `lockstep disk` is an arbiter",
            ));
        }
        return Ok(None);
    };
    check_address("--arbiter", arbiter)?;
    options.backup.iter().try_for_each(|backup| check_address("--backup", backup))?;
    if clock == ClockMode::Virtual && !options.backup.is_empty() {
        return Err(usage("a protected VM needs --clock real: a backup watches its progress"));
    }
    let local = disks.iter().find(|disk| disk.is_local());
    if let Some(disk) = local.filter(|_| !options.backup.is_empty()) {
        return Err(usage(format!(
            "disk {disk} is a file of this host, which the backup could not reach; export it with \
             `lockstep disk` and name it as nbd://HOST:PORT/EXPORT"
        )));
    }
    let (backups, arbiter) = (options.backup.clone(), arbiter.clone());
    Ok(Some(Protection { backups, arbiter, timing, force: options.force == Some(true) }))
}

fn timing(options: &RunOptions) -> Result<Timing> {
    let timing = match (options.detection_ms, options.timing) {
        (Some(ms), _) => {
            Timing { detection: Nanos(ms.saturating_mul(1_000_000)), ..Timing::default() }
        }
        (None, Some(TimingProfile::Aggressive)) => Timing::aggressive(),
        (None, Some(TimingProfile::Relaxed)) => Timing::relaxed(),
        (None, Some(TimingProfile::Default) | None) => Timing::default(),
    };
    timing.check().map_err(|error: TimingError| usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use engines::EngineKind;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        args: RunArgs,
    }

    fn read(flags: &[&str]) -> Result<RunConfig> {
        let flags = Flags::try_parse_from([&["run"], flags].concat())?;
        check(merge(flags.args)?)
    }

    #[test]
    fn flags_override_the_file_and_its_names_are_relative_to_it() {
        let dir = std::env::temp_dir().join(format!("lockstep-options-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("vm.toml");
        let text = "name = 'web'\nkernel = 'k'\nmem = 64\ncpu = 'v3,+aes'\nsnapshot = true\ndisk = ['d.img']\n\
                    clock = 'virtual'\nhost_id = 'a'\nrun_dir = 'run'\nengine = 'translator'\nstats = true\n";
        std::fs::write(&file, text).unwrap();
        let file_name = file.to_str().unwrap();
        let config = read(&[file_name, "--mem", "128", "--snapshot=false"]);
        let other_engine = read(&[file_name, "--engine", "interpreter"]);
        std::fs::write(&file, "name = 'web'\nkernal = 'k'\n").unwrap();
        let misspelt = read(&[file.to_str().unwrap()]);
        std::fs::remove_dir_all(&dir).unwrap();
        let config = config.unwrap();
        let unsaid = read(&["--kernel", "k"]).unwrap();
        assert_eq!(unsaid.cpu, CpuModel::V3, "on every host");
        assert_eq!((config.vm.0.as_str(), config.ram_bytes), ("web", 128 * MIB));
        assert_eq!(config.cpu, CpuModel { aes: true, ..CpuModel::V3 });
        assert_eq!(config.kernel, dir.join("k"));
        assert_eq!(config.disks[0].place, dir.join("d.img").to_str().unwrap());
        assert!(!config.disks[0].snapshot);
        assert_eq!(config.clock, ClockMode::Virtual);
        assert_eq!(config.engine, EngineKind::Translator);
        assert_eq!(other_engine.unwrap().engine, EngineKind::Interpreter);
        let error = misspelt.unwrap_err().to_string();
        assert!(error.contains("kernal"), "{error}");
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        for (flags, word) in [
            (&["--mem", "1"][..], "--kernel"),
            (&["--kernel", "k", "--mem", "0"], "MiB"),
            (&["--kernel", "k", "--smp", "2"], "one virtual CPU"),
            (&["--kernel", "k", "--cpu", "v3,+avx512"], "+avx512"),
            (&["--kernel", "k", "--backup", "b:1"], "--arbiter"),
            (&["--kernel", "k", "--backup", "b:1", "--arbiter", "a:1"], "--key"),
            (&["--kernel", "k", "--arbiter", "a"], "HOST:PORT"),
            (&["--kernel", "k", "--net", "user"], "network"),
            (&["--kernel", "k", "--compare-every", "1"], "--compare"),
            (&["--kernel", "k", "--compare", "--compare-every", "0"], "at least one step"),
            (
                &["--kernel", "k", "--compare", "--backup", "b:1", "--arbiter", "a:1"],
                "for a VM alone",
            ),
            (&["--kernel", "k", "--name", "../x"], "name"),
            (&["--kernel", "k", "--detection-ms", "5", "--arbiter", "a:1"], "100 ms"),
            (
                &["--kernel", "k", "--backup", "b:1", "--arbiter", "a:1", "--disk", "d"],
                "lockstep disk",
            ),
            (
                &["--kernel", "k", "--backup", "b:1", "--arbiter", "a:1", "--clock", "virtual"],
                "--clock real",
            ),
        ] {
            let error = read(flags).unwrap_err().to_string();
            assert!(error.contains(word), "{flags:?}: {error}");
        }
    }
}
