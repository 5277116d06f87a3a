//! Who runs the image's programs, and by which command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use engines::EngineKind;
use testbed::pair::ImageSettings;

use super::session::Meter;
use crate::site::{Site, text};

/// Who runs the image's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// This host, without any emulator.
    Native,
    Recording,
    Replay,
    Unrecorded,
    Qemu,
    QemuRecording,
    QemuReplay,
}

impl Subject {
    /// In the order in which they take turns. A replay follows the run that it replays.
    pub(crate) const ALL: [Subject; 7] = [
        Subject::Native,
        Subject::Recording,
        Subject::Replay,
        Subject::Unrecorded,
        Subject::Qemu,
        Subject::QemuRecording,
        Subject::QemuReplay,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Subject::Native => "native",
            Subject::Recording => "recording",
            Subject::Replay => "replay",
            Subject::Unrecorded => "not recording",
            Subject::Qemu => "QEMU",
            Subject::QemuRecording => "QEMU recording",
            Subject::QemuReplay => "QEMU replay",
        }
    }

    pub(crate) fn is_qemu(self) -> bool {
        matches!(self, Subject::Qemu | Subject::QemuRecording | Subject::QemuReplay)
    }

    pub(crate) fn meter(self) -> Meter {
        if self == Subject::Native { Meter::Workload } else { Meter::Process }
    }
}

/// The image, the programs and the files of all subjects.
pub(crate) struct Stage {
    lockstep: PathBuf,
    engine: EngineKind,
    /// More flags of `lockstep run`.
    run_flags: Vec<String>,
    image: PathBuf,
    settings: ImageSettings,
    work: PathBuf,
}

/// What a guest is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// The kernel's command line.
    pub(crate) append: String,
    /// What the guest's network device is on.
    pub(crate) net: Option<Net>,
}

/// Where a guest's frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Net {
    /// A TAP device.
    Tap(&'static str),
    /// A packet socket on an interface. QEMU has none.
    Packet(&'static str),
}

/// QEMU's program.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// The image's folder.
pub(crate) const IMAGE: &str = "suite";
/// The command line that Debian's kernel has where nobody says more than it needs.
const PLAIN_APPEND: &str = "console=ttyS0 root=/dev/vda";

impl Stage {
    /// With files in `work`.
    pub(crate) fn new(
        site: &Site,
        work: PathBuf,
        engine: EngineKind,
        run_flags: Vec<String>,
    ) -> Result<Stage> {
        if !nix::unistd::geteuid().is_root() || !is_real_root() {
            bail!("only root can run the image's programs natively: they are on a loop device");
        }
        let image = site.images.join(IMAGE);
        let settings = ImageSettings::read(&image).map_err(text)?;
        // Programs that run natively may write to it, as guests may to theirs.
        let copied = Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .args([&image.join("disk.img"), &work.join("native.img")])
            .status()
            .context("cannot run cp")?;
        if !copied.success() {
            bail!("cannot copy the disk of the image {IMAGE}");
        }
        let lockstep = site.lockstep.clone();
        Ok(Stage { lockstep, engine, run_flags, image, settings, work })
    }

    /// With this on the console, once the guest is up.
    pub(crate) fn start(&self, order: &str) -> Start {
        Start { append: with_order(&self.settings.append, order), net: None }
    }

    /// The same with a network device.
    pub(crate) fn start_with_network(&self, order: &str, net: Net) -> Start {
        Start { append: with_order(&self.settings.append_with_network(), order), net: Some(net) }
    }

    /// The same with nothing on the kernel's command line that it can do without: its self-tests run.
    pub(crate) fn plain_start(&self, order: &str) -> Start {
        Start { append: with_order(PLAIN_APPEND, order), net: None }
    }

    /// The emulator's command line.
    ///
    /// # Panics
    /// For [`Subject::Native`].
    pub(crate) fn guest(&self, subject: Subject, start: &Start) -> Result<Command> {
        Ok(match subject {
            Subject::Native => unreachable!("no guest runs natively"),
            Subject::Unrecorded => self.lockstep_run(start),
            Subject::Recording => {
                let mut command = self.lockstep_run(start);
                command.arg("--record").arg(self.recording());
                command
            }
            Subject::Replay => {
                let mut command = Command::new(&self.lockstep);
                command.args(["replay", "--console", "--engine", self.engine.name()]);
                command.arg(self.recording());
                command
            }
            Subject::Qemu => {
                let mut command = self.qemu(start);
                let disk = option_text(&self.image.join("disk.img"))?;
                command.arg("-drive");
                command.arg(format!("file={disk},if=none,id=disk,format=raw,snapshot=on"));
                command
            }
            Subject::QemuRecording => self.qemu_with_log(start, "record")?,
            Subject::QemuReplay => self.qemu_with_log(start, "replay")?,
        })
    }

    /// Where the last recording is.
    pub(crate) fn recording(&self) -> PathBuf {
        self.work.join("suite.log")
    }

    fn lockstep_run(&self, start: &Start) -> Command {
        let mut command = Command::new(&self.lockstep);
        command.arg("run").arg(self.image.join("vm.toml")).arg("--snapshot");
        command.args(["--engine", self.engine.name(), "--append", &start.append]);
        match start.net {
            Some(Net::Tap(tap)) => command.args(["--net", &format!("tap:{tap}")]),
            Some(Net::Packet(interface)) => command.args(["--net", &format!("packet:{interface}")]),
            None => &mut command,
        };
        command.args(&self.run_flags);
        command
    }

    fn qemu(&self, start: &Start) -> Command {
        let mut command = Command::new(QEMU);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "Nehalem-v1"]);
        command.args(["-m", &self.settings.mem.to_string(), "-serial", "stdio"]);
        command.arg("-kernel").arg(self.image.join("vmlinuz"));
        command.arg("-initrd").arg(self.image.join("initrd.img"));
        command.args(["-append", &start.append, "-device", "virtio-blk-pci,drive=disk"]);
        if let Some(Net::Tap(tap)) = start.net {
            let netdev = format!("tap,id=net,ifname={tap},script=no,downscript=no");
            command.args(["-netdev", &netdev, "-device", "virtio-net-pci,netdev=net"]);
        }
        command
    }

    /// QEMU's own record and replay. Its log does not hold the disk, so each run gets one as good as new.
    fn qemu_with_log(&self, start: &Start, what: &str) -> Result<Command> {
        let overlay = self.work.join("qemu.qcow2");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(self.image.join("disk.img"))
            .arg(&overlay)
            .status()
            .context("cannot run qemu-img")?;
        if !made.success() {
            bail!("qemu-img cannot make {}", overlay.display());
        }
        let (overlay, log) = (option_text(&overlay)?, option_text(&self.work.join("qemu.log"))?);
        let mut command = self.qemu(start);
        command.args(["-icount", &format!("shift=1,rr={what},rrfile={log}"), "-drive"]);
        command.arg(format!("file={overlay},if=none,id=image,format=qcow2"));
        command.args(["-drive", "driver=blkreplay,if=none,image=image,id=disk"]);
        if start.net.is_some() {
            command.args(["-object", "filter-replay,id=replay,netdev=net"]);
        }
        Ok(command)
    }

    /// A shell command line of the image's programs on this host. `command` runs a shell script. What it mounts
    /// is seen by it alone.
    pub(crate) fn native(&self, mut command: Command, order: &str, disk: NativeDisk) -> Command {
        let options = match disk {
            NativeDisk::Writable => "loop",
            NativeDisk::Shared => "loop,ro,noload",
        };
        let script = format!(
            "set -e\n\
             cd \"$1\" && mkdir -p root && mount -o {options} native.img root && cd root\n\
             mount -t proc proc proc && mount -t tmpfs tmp tmp && mount --rbind /dev dev\n\
             exec chroot . /usr/bin/env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin {order}"
        );
        command.args(["unshare", "--mount", "sh", "-c", &script, "sh"]).arg(&self.work);
        command
    }

    /// The image's folder.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }
}

/// What programs that run natively may do to the copy of the image's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NativeDisk {
    /// Anything; only one may use it at a time.
    Writable,
    /// Read it.
    Shared,
}

fn with_order(append: &str, order: &str) -> String {
    format!("{append} lockstep.run=\"{order}\"")
}

/// A path as a part of one of QEMU's options.
fn option_text(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("QEMU cannot take {}", path.display()))?;
    Ok(text.replace(',', ",,"))
}

/// False for the root of a user namespace, which may not use loop devices.
fn is_real_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// What QEMU says of itself; none if it is not installed.
pub(crate) fn qemu_version() -> Option<String> {
    let output = Command::new(QEMU).arg("--version").output().ok()?;
    version_of(&String::from_utf8_lossy(&output.stdout))
}

/// `10.0.2 (Debian 1:10.0.2+ds-2)` of the first line of `qemu-system-x86_64 --version`.
fn version_of(text: &str) -> Option<String> {
    let (_, version) = text.lines().next()?.split_once("version ")?;
    Some(version.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage() -> Stage {
        let settings = ImageSettings { append: "console=ttyS0".to_owned(), mem: 64 };
        Stage {
            lockstep: "/bin/lockstep".into(),
            engine: EngineKind::Auto,
            run_flags: vec!["--seed".to_owned(), "7".to_owned()],
            image: "/images/a,b".into(),
            settings,
            work: "/work".into(),
        }
    }

    fn line(command: &Command) -> String {
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        args.join(" ")
    }

    #[test]
    fn every_emulator_gets_the_same_kernel_command_line() {
        let stage = stage();
        let start = stage.start_with_network("suite gzip", Net::Tap("tap0"));
        assert!(start.append.ends_with("::eth0:off lockstep.run=\"suite gzip\""), "{start:?}");
        for subject in [Subject::Unrecorded, Subject::Recording, Subject::Qemu] {
            let line = line(&stage.guest(subject, &start).unwrap());
            assert!(line.contains(&start.append) && line.contains("tap0"), "{line}");
        }
    }

    #[test]
    fn more_flags_reach_lockstep_and_a_comma_in_a_path_reaches_qemu() {
        let (stage, start) = (stage(), stage().start("suite gzip"));
        let lockstep = line(&stage.guest(Subject::Unrecorded, &start).unwrap());
        assert!(lockstep.ends_with("--seed 7") && !lockstep.contains("--record"), "{lockstep}");
        let qemu = line(&stage.guest(Subject::Qemu, &start).unwrap());
        assert!(qemu.contains("file=/images/a,,b/disk.img,if=none"), "{qemu}");
    }

    #[test]
    fn qemus_version_is_read_from_its_first_line() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright\n";
        assert_eq!(version_of(text).unwrap(), "10.0.2 (Debian 1:10.0.2+ds-2)");
        assert_eq!(version_of("no such program"), None);
    }
}
