//! The Debian packages that the commands need on the host, from `packages.txt`.
//!
//! Root gets them installed; anybody else gets the one line that root has to type.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;

/// What `cargo xtask test` needs.
pub(crate) const TEST: &[&str] = &["image", "lab", "test"];
/// What `cargo xtask demo`, `cargo xtask soak` and `cargo xtask bench` need.
pub(crate) const TRIALS: &[&str] = &["image", "lab"];

/// What `cargo xtask soak compare` needs besides.
pub(crate) const COMPARE: &[&str] = &["compare"];

/// Makes sure that the packages of these groups are installed.
pub(crate) fn ensure(groups: &[&str]) -> Result<()> {
    let missing = missing(&listed(LIST, groups))?;
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root()? {
        bail!("packages are missing; as root, run:\n  {}", apt_line(&missing));
    }
    process::run(apt().arg("update"))?;
    process::run(apt().args(["install", "--yes", "--no-install-recommends"]).args(&missing))
}

/// apt-get, which asks nothing.
pub(crate) fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).arg("--quiet");
    command
}

fn apt_line(packages: &[&str]) -> String {
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

/// The packages of `list` that belong to one of `groups`, in the list's order, each once.
fn listed<'a>(list: &'a str, groups: &[&str]) -> Vec<&'a str> {
    let mut packages = Vec::new();
    for line in list.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let (group, package) = line.split_once(' ').expect("packages.txt: command package");
        if groups.contains(&group) && !packages.contains(&package) {
            packages.push(package);
        }
    }
    packages
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Abbrev} ${Package}\n"])
        .args(packages)
        .output()
        .with_context(|| {
            let packages = packages.join(" ");
            format!("cannot run dpkg-query; this needs Debian's packages {packages}")
        })?;
    // A package that dpkg has never heard of is named on standard error only.
    let installed = String::from_utf8_lossy(&output.stdout);
    let is_installed = |package: &&str| installed.lines().any(|l| l == format!("ii  {package}"));
    Ok(packages.iter().copied().filter(|package| !is_installed(package)).collect())
}

pub(crate) fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output().context("cannot run id")?;
    Ok(output.stdout.trim_ascii() == b"0")
}

const LIST: &str = include_str!("../packages.txt");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_lists_its_packages_once() {
        let list = "# what for\n\ntest b\nimage a\ntest a\nbench c\n";
        assert_eq!(listed(list, &["test", "image"]), ["b", "a"]);
    }

    #[test]
    fn every_line_of_the_list_names_a_group_and_a_package() {
        for group in ["image", "test"] {
            let _ = listed(LIST, &[group]); // panics at a line without both
        }
    }

    #[test]
    fn a_package_that_nobody_has_is_missing() {
        let missing = missing(&["dpkg", "no-such-package-anywhere"]).unwrap();
        assert_eq!(missing, ["no-such-package-anywhere"]);
    }
}
