//! The programs that do the work: mmdebstrap, mke2fs, ssh-keygen.
//!
//! As root, mmdebstrap runs in a mount and a process-id namespace of its own, which the kernel takes
//! down with everything in it when the build ends for any reason. Without root it makes such
//! namespaces itself, and outlives us for a while if we are killed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base::Digest;

use crate::error::At;
use crate::{Disk, ImageError};

/// The host's programs, found and ready to run.
#[derive(Debug)]
pub(crate) struct Debian {
    root: bool,
    /// `PATH` with the folders for administrators, where Debian keeps mke2fs.
    path: OsString,
    suite: String,
    mirrors: Vec<String>,
    epoch: u32,
}

/// Where packages come from and what time files are to carry.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) suite: &'a str,
    pub(crate) mirrors: &'a [String],
    pub(crate) epoch: u32,
}

impl Debian {
    /// Looks for all the programs that a build needs, so that a long build does not fail at its end.
    pub(crate) fn find(source: &Source<'_>, disk: Option<&Disk>) -> Result<Debian, ImageError> {
        let root = rustix::process::geteuid().is_root();
        let path = search_path();
        let mut needed = vec![
            Needed { program: "mmdebstrap", package: "mmdebstrap" },
            Needed { program: "setpriv", package: "util-linux" },
            Needed { program: "unshare", package: "util-linux" },
        ];
        if !root {
            needed.push(Needed { program: "newuidmap", package: "uidmap" });
        }
        if let Some(disk) = disk {
            needed.push(Needed { program: "mke2fs", package: "e2fsprogs" });
            if disk.ssh_key {
                needed.push(Needed { program: "ssh-keygen", package: "openssh-client" });
            }
        }
        let mut missing: Vec<_> =
            needed.into_iter().filter(|needed| !is_in(&path, needed.program)).collect();
        if !Path::new(KEYRING).exists() {
            missing.push(Needed { program: KEYRING, package: "debian-archive-keyring" });
        }
        if !missing.is_empty() {
            let programs = missing.iter().map(|needed| needed.program).collect();
            let mut packages: Vec<_> = missing.iter().map(|needed| needed.package).collect();
            packages.dedup();
            return Err(ImageError::HostPackages { programs, packages });
        }
        Ok(Debian {
            root,
            path,
            suite: source.suite.to_owned(),
            mirrors: source.mirrors.to_vec(),
            epoch: source.epoch,
        })
    }

    /// Unpacks packages with all that they depend on, without installing them, into a tar file.
    pub(crate) fn unpack(&self, packages: &[&str], tar: &Path) -> Result<(), ImageError> {
        let mut mmdebstrap = self.mmdebstrap();
        mmdebstrap.args(["--variant=extract", "--format=tar"]);
        self.finish_mmdebstrap(mmdebstrap, packages, tar, "unpacking packages")
    }

    /// Installs a system, lays `overlay` over it and runs its setup script, into a tar file.
    pub(crate) fn install(
        &self,
        disk: &Disk,
        overlay: &Overlay<'_>,
        tar: &Path,
    ) -> Result<(), ImageError> {
        let mut mmdebstrap = self.mmdebstrap();
        mmdebstrap.arg(format!("--variant={}", disk.variant)).arg("--format=tar");
        for pattern in LEFT_OUT {
            mmdebstrap.arg(format!("--dpkgopt=path-exclude={pattern}"));
        }
        // Licences stay.
        mmdebstrap.arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
        let quoted = quote(overlay.tar);
        mmdebstrap.arg(format!("--customize-hook=tar-in {quoted} /"));
        if disk.kernel_modules {
            let version = overlay.kernel_version;
            mmdebstrap.arg(format!("--customize-hook=chroot \"$1\" depmod {version}"));
        }
        if !disk.setup.is_empty() {
            mmdebstrap.arg(format!(
                "--customize-hook=chroot \"$1\" /bin/sh /{SETUP} && rm \"$1/{SETUP}\""
            ));
        }
        let packages: Vec<&str> = disk.packages.iter().map(String::as_str).collect();
        self.finish_mmdebstrap(mmdebstrap, &packages, tar, "installing the disk's packages")
    }

    /// Makes an ext4 file system with the content of a tar file. `scratch` must not exist.
    pub(crate) fn make_disk(&self, job: &MakeDisk<'_>) -> Result<(), ImageError> {
        fs::create_dir(job.scratch).at("create folder", job.scratch)?;
        // Of /dev only the folder is taken: the guest's kernel fills it.
        let script = r#"
            tar --extract --file "$1" --directory "$2" --numeric-owner --same-owner \
                --preserve-permissions --xattrs --xattrs-include='*' --exclude='./dev/*'
            mke2fs -q -F -t ext4 -d "$2" -L root -U "$3" -J size=16 \
                -E "hash_seed=$3,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0" "$4" "$5"
            rm -r "$2"
        "#;
        let mut command = self.as_root();
        command.args(["sh", "-euc", script, "sh"]).arg(job.tar).arg(job.scratch);
        command.arg(uuid(&job.identity)).arg(job.disk).arg(format!("{}M", job.size_mib));
        run(command, "mke2fs", "making the disk")
    }

    /// Removes what a build left behind when it was killed; its files may belong to any user.
    pub(crate) fn remove_leftover(&self, folder: &Path) -> Result<(), ImageError> {
        let mut command = self.as_root();
        command.args(["rm", "-rf", "--"]).arg(folder);
        run(command, "rm", "removing what an earlier build left behind")
    }

    /// Makes a key pair for ssh: `path` and `path` with `.pub` after it.
    pub(crate) fn make_ssh_key(&self, path: &Path) -> Result<(), ImageError> {
        let mut command = self.command("ssh-keygen", Signal::Term);
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "lockstep image", "-f"]).arg(path);
        run(command, "ssh-keygen", "making a key for ssh")
    }

    fn mmdebstrap(&self) -> Command {
        if !self.root {
            let mut command = self.command("mmdebstrap", Signal::Term);
            command.arg("--mode=unshare");
            return command;
        }
        let mut command = self.command("unshare", Signal::Kill);
        command.args(["--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]);
        command.args(["--", "mmdebstrap", "--mode=root"]);
        command
    }

    fn finish_mmdebstrap(
        &self,
        mut command: Command,
        packages: &[&str],
        tar: &Path,
        purpose: &str,
    ) -> Result<(), ImageError> {
        command.args(["--architectures=amd64", "--components=main"]);
        command.arg("--aptopt=Acquire::Languages \"none\"");
        if !packages.is_empty() {
            command.arg(format!("--include={}", packages.join(",")));
        }
        command.arg("--").arg(&self.suite).arg(tar).args(&self.mirrors);
        if self.root {
            // What a killed build leaves behind is then beside its output, and the next build
            // removes it. Without root only mmdebstrap itself may remove its files.
            command.env("TMPDIR", tar.parent().expect("the tar file is in a folder"));
        }
        run(command, "mmdebstrap", purpose)
    }

    /// Runs what follows as root, or as what looks like root from inside a user namespace.
    fn as_root(&self) -> Command {
        if self.root {
            return self.command("env", Signal::Term);
        }
        let mut command = self.command("unshare", Signal::Kill);
        command.args(["--map-root-user", "--map-auto", "--fork", "--kill-child", "--"]);
        command
    }

    /// `program`, told to end with this signal when we end.
    fn command(&self, program: &str, signal: Signal) -> Command {
        let mut command = Command::new("setpriv");
        let signal = match signal {
            Signal::Kill => "KILL",
            Signal::Term => "TERM",
        };
        command.args(["--pdeathsig", signal, "--", program]);
        command.env("PATH", &self.path);
        command.env("LC_ALL", "C.UTF-8");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.env("SOURCE_DATE_EPOCH", self.epoch.to_string());
        command.env("E2FSPROGS_FAKE_TIME", self.epoch.to_string());
        command
    }
}

/// What is laid over an installed system.
#[derive(Debug)]
pub(crate) struct Overlay<'a> {
    pub(crate) tar: &'a Path,
    pub(crate) kernel_version: &'a str,
}

/// What `make_disk` needs to know.
#[derive(Debug)]
pub(crate) struct MakeDisk<'a> {
    pub(crate) tar: &'a Path,
    pub(crate) scratch: &'a Path,
    pub(crate) disk: &'a Path,
    pub(crate) size_mib: u64,
    /// Becomes the file system's UUID.
    pub(crate) identity: Digest,
}

/// The setup script's name in the system that it sets up.
pub(crate) const SETUP: &str = "lockstep-setup";

struct Needed {
    program: &'static str,
    package: &'static str,
}

/// What a child gets when its parent ends. A process-id namespace goes down with KILL. mmdebstrap
/// without root heeds neither in its children: should we be killed, it finishes and cleans up alone.
enum Signal {
    Kill,
    Term,
}

fn run(mut command: Command, program: &str, purpose: &str) -> Result<(), ImageError> {
    // Standard output is for our own answer, which may be JSON.
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    let started = command.status();
    let status =
        started.map_err(|source| ImageError::Start { program: program.to_owned(), source })?;
    if !status.success() {
        let (program, purpose) = (program.to_owned(), purpose.to_owned());
        return Err(ImageError::Program { program, purpose, status });
    }
    Ok(())
}

fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    // A folder with a colon in its name cannot be in PATH, so none that came from it has one.
    env::join_paths(env::split_paths(&path).chain(system)).unwrap_or(path)
}

fn is_in(path: &OsStr, program: &str) -> bool {
    env::split_paths(path).any(|folder| folder.join(program).is_file())
}

/// For mmdebstrap's own hooks, which split their arguments as a shell does.
fn quote(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

fn uuid(identity: &Digest) -> String {
    let hex = identity.to_string();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Manuals and translations, which a guest without a person at it does not need.
const LEFT_OUT: [&str; 4] =
    ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_makes_a_uuid() {
        let uuid = uuid(&Digest([0xab; 16]));
        assert_eq!(uuid, "abababab-abab-abab-abab-abababababab");
    }

    #[test]
    fn a_program_that_fails_is_named_with_its_purpose() {
        let error = run(Command::new("false"), "false", "trying").unwrap_err();
        assert!(error.to_string().starts_with("false failed while trying"), "{error}");
    }
}
