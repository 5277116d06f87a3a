//! QEMU for comparison, as new as Debian has it for the release on this host: from its backports.
//!
//! The host's package sources stay as they are: apt gets a folder of sources and one for lists of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::packages::{apt, is_root};
use crate::process::{self, target_dir};

const PACKAGE: &str = "qemu-system-x86";
/// The release of QEMU that figures are compared with, or a later one.
const MAJOR_MIN: u32 = 10;

/// Installs it. Without root, or where there is no such package, it says so and leaves the host as it is.
pub(crate) fn try_install() {
    if has_enough(installed().as_deref()) {
        return;
    }
    if let Err(error) = install() {
        eprintln!("xtask: no QEMU {MAJOR_MIN} for comparison: {error:#}");
    }
}

fn install() -> Result<()> {
    let os_release =
        fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let release = codename(&os_release).context("this is no release of Debian")?;
    let suite = format!("{release}-backports");
    if !is_root()? {
        bail!("as root, run apt-get install --target-release {suite} {PACKAGE}");
    }
    let folder = target_dir().join("apt");
    let (sources, lists) = (folder.join("sources"), folder.join("lists"));
    copy_sources(Path::new("/etc/apt/sources.list.d"), &sources)?;
    fs::create_dir_all(lists.join("partial")).context("cannot make a folder for apt")?;
    let entry = format!(
        "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: {suite}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    fs::write(sources.join("lockstep-backports.sources"), entry)
        .context("cannot write a source")?;
    let apt = || {
        let mut command = apt();
        command.arg("-o").arg(format!("Dir::Etc::sourceparts={}", sources.display()));
        command.arg("-o").arg(format!("Dir::State::lists={}", lists.display()));
        command
    };
    process::run(apt().arg("update"))?;
    let how = ["install", "--yes", "--no-install-recommends", "--target-release", &suite, PACKAGE];
    process::run(apt().args(how))
}

/// The host's own sources, because QEMU needs packages of the release, too.
fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) }; // all may be in sources.list
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", from.display()))?.path();
        if let Some(name) = path.file_name().filter(|_| path.is_file()) {
            fs::copy(&path, to.join(name))
                .with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

/// What the program says of itself.
fn installed() -> Option<String> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn has_enough(version: Option<&str>) -> bool {
    let major = version
        .and_then(|text| text.split_once("version "))
        .and_then(|(_, version)| version.split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major >= MAJOR_MIN)
}

/// The release's name in Debian's `os-release`.
fn codename(os_release: &str) -> Option<&str> {
    let value = |key: &str| {
        let value = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(|value| value.trim_matches('"'))
    };
    (value("ID")? == "debian").then(|| value("VERSION_CODENAME"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_qemu_is_not_enough() {
        let text = |version| format!("QEMU emulator version {version} (Debian)\nCopyright");
        assert!(has_enough(Some(&text("10.0.2"))));
        assert!(has_enough(Some(&text("11.1.0"))));
        assert!(!has_enough(Some(&text("7.2.22"))));
        assert!(!has_enough(Some("what")));
        assert!(!has_enough(None));
    }

    #[test]
    fn only_debian_has_a_release_to_take_it_for() {
        let debian = "PRETTY_NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(debian), Some("bookworm"));
        assert_eq!(codename("ID=fedora\nVERSION_CODENAME=\"\"\n"), None);
        assert_eq!(codename("ID=debian\n"), None);
    }
}
