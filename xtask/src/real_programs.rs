//! `cargo xtask soak real-programs`: the workbench image runs `real-programs` and powers off.
//!
//! The guest gets its order on the kernel's command line and answers on the serial console, so any
//! monitor can run it: `--vmm` names another one, for comparison.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process::{cargo, run as run_command, show, target_dir};
use crate::{images, packages};

/// How to run them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Programs to run; all when none is named.
    #[arg(value_parser = ["openssl", "gcc", "python", "sqlite", "perl"])]
    programs: Vec<String>,
    /// Take in more of each program: hours instead of minutes.
    #[arg(long)]
    full: bool,
    /// Another monitor's command line, with {kernel}, {initrd}, {append}, {disk} and {mem} in it.
    /// It has to keep the disk as it is and to put the guest's first serial port on its standard
    /// output.
    #[arg(long, value_name = "COMMAND")]
    vmm: Option<String>,
    /// Give up after so many minutes.
    #[arg(long, default_value_t = 120)]
    minutes: u64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    packages::ensure(&["image"])?;
    let image = Image::read(&images::ensure(&[images::WORKBENCH])?.join(images::WORKBENCH.name))?;
    let order = order(args);
    let append = format!("{} lockstep.run=\"{order}\"", image.vm.append);
    let mut command = match &args.vmm {
        Some(template) => from_template(template, &image, &append)?,
        None => lockstep(&image, &append)?,
    };

    let folder = target_dir().join("soak");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let log = folder.join("real-programs.log");
    eprintln!("+ {}", show(&command));
    eprintln!("the console goes to {}", log.display());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let vmm = command.spawn().with_context(|| format!("cannot run {}", show(&command)))?;
    let deadline = Instant::now() + Duration::from_secs(60 * args.minutes);
    let good = watch(Guest(vmm), &log, deadline)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn order(args: &Args) -> String {
    let size = if args.full { "full" } else { "quick" };
    let words = ["/usr/local/bin/real-programs", size].into_iter();
    words.chain(args.programs.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}

/// An image's folder and what its `vm.toml` says.
struct Image {
    folder: PathBuf,
    vm: Vm,
}

#[derive(Deserialize)]
struct Vm {
    kernel: String,
    initrd: String,
    append: String,
    mem: u64,
    disk: Vec<String>,
}

impl Image {
    fn read(folder: &Path) -> Result<Image> {
        let path = folder.join("vm.toml");
        let text = fs::read_to_string(&path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let vm = toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))?;
        Ok(Image { folder: folder.to_owned(), vm })
    }

    fn disk(&self) -> Result<PathBuf> {
        let disk = self.vm.disk.first().context("the image has no disk")?;
        Ok(self.folder.join(disk))
    }
}

fn lockstep(image: &Image, append: &str) -> Result<Command> {
    run_command(&mut cargo(["build", "--release", "--package", "lockstep"]))?;
    let mut command = Command::new(target_dir().join("release/lockstep"));
    command.arg("run").arg(image.folder.join("vm.toml"));
    // A host with other work must not make the guest's own timeouts expire.
    command.args(["--clock", "virtual", "--snapshot", "--append", append]);
    Ok(command)
}

/// Splits at spaces first, so a value with spaces in it stays one argument.
fn from_template(template: &str, image: &Image, append: &str) -> Result<Command> {
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let values = [
        ("{kernel}", path(image.folder.join(&image.vm.kernel))),
        ("{initrd}", path(image.folder.join(&image.vm.initrd))),
        ("{disk}", path(image.disk()?)),
        ("{mem}", image.vm.mem.to_string()),
        // Last, because it may hold anything.
        ("{append}", append.to_owned()),
    ];
    let mut words = template.split_whitespace().map(|word| {
        let replace = |word: String, (name, value): &(&str, String)| word.replace(name, value);
        values.iter().fold(word.to_owned(), replace)
    });
    let mut command = Command::new(words.next().context("--vmm is empty")?);
    command.args(words);
    Ok(command)
}

/// A monitor that does not outlive us.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended by itself
        let _ = self.0.wait();
    }
}

/// Follows the console to the guest's power-off. True if the guest said that all went well.
fn watch(mut guest: Guest, log: &Path, deadline: Instant) -> Result<bool> {
    let stdout = guest.0.stdout.take().expect("standard output is piped");
    let mut file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            if sender.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });

    let mut status = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                file.write_all(&line).with_context(|| format!("cannot write {}", log.display()))?;
                let line = String::from_utf8_lossy(&line);
                if let Some(at) = line.find("real-programs: ") {
                    println!("{}", line[at..].trim_end());
                }
                status = status.or(exit_status(&line));
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("the guest was not done in time; its console is in {}", log.display())
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    match status {
        Some(0) => Ok(true),
        Some(_) => Ok(false),
        None => bail!("the monitor ended before the guest was done; see {}", log.display()),
    }
}

/// What the guest says when its order is carried out.
fn exit_status(line: &str) -> Option<u32> {
    let (_, number) = line.split_once("lockstep.run: exit status ")?;
    number.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let vm = toml::from_str(
            "kernel = 'vmlinuz'\ninitrd = 'initrd.img'\nappend = 'a b'\nmem = 64\ndisk = ['d']",
        );
        Image { folder: "/image".into(), vm: vm.unwrap() }
    }

    fn sh(script: &str) -> Guest {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        Guest(command.spawn().unwrap())
    }

    fn watch_script(name: &str, script: &str, time: Duration) -> Result<bool> {
        let log = std::env::temp_dir().join(format!("real-programs-{name}-{}", std::process::id()));
        let result = watch(sh(script), &log, Instant::now() + time);
        fs::remove_file(&log).unwrap();
        result
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_value_with_spaces_stays_one_argument() {
        let command = from_template("vmm -m {mem} -a {append} file={disk}", &image(), "x {mem} y");
        let command = command.unwrap();
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(command.get_program(), "vmm");
        assert_eq!(args, ["-m", "64", "-a", "x {mem} y", "file=/image/d"]);
    }

    #[test]
    fn the_guests_own_exit_status_decides() {
        let good = "echo noise; echo 'lockstep.run: exit status 0'; echo off";
        assert!(watch_script("good", good, LONG).unwrap());
        assert!(!watch_script("bad", "echo 'lockstep.run: exit status 1'; exit 0", LONG).unwrap());
    }

    #[test]
    fn a_monitor_that_ends_early_is_an_error() {
        let error = watch_script("early", "echo booting", LONG).unwrap_err();
        assert!(error.to_string().contains("before the guest was done"));
    }

    #[test]
    fn a_guest_that_says_nothing_is_given_up() {
        let error = watch_script("silent", "exec sleep 600", Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("not done in time"));
    }
}
