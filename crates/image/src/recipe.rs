//! Recipes: what an image is made of. `docs/images.md` describes the format for people.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ImageError;
use crate::error::At;

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// One line for people.
    pub description: String,
    /// The Debian release, such as `bookworm`.
    pub suite: String,
    /// The package that has or depends on the kernel.
    pub kernel: String,
    /// The initrd.
    pub initrd: Initrd,
    /// The root disk, if the image has one.
    pub disk: Option<Disk>,
    /// How the machine is to be run.
    pub vm: Vm,
}

/// The first file system: enough to load drivers and go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initrd {
    /// Packages to take files from. They are unpacked, not configured.
    pub packages: Vec<String>,
    /// The files to take, as paths inside the packages.
    pub copy: Vec<PathBuf>,
    /// A folder beside the recipe whose content is laid over the initrd. It has to hold `init`.
    pub tree: PathBuf,
    /// Kernel modules to put in, with those that they depend on.
    pub modules: Vec<String>,
}

/// An ext4 file system with Debian packages installed in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The set of packages to begin with, in mmdebstrap's words, such as `minbase`.
    pub variant: String,
    /// Packages to install on top.
    pub packages: Vec<String>,
    /// The size of the disk.
    pub size_mib: u64,
    /// Folders beside the recipe whose content is laid over the installed system, in this order.
    #[serde(default)]
    pub tree: Vec<PathBuf>,
    /// Shell scripts beside the recipe that are run in the installed system, in this order.
    #[serde(default)]
    pub setup: Vec<PathBuf>,
    /// Whether the kernel's modules are installed too.
    #[serde(default)]
    pub kernel_modules: bool,
    /// Whether root may log in by ssh with the key `ssh_key` that is put beside the disk.
    #[serde(default)]
    pub ssh_key: bool,
}

/// How the machine is to be run: goes into `vm.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// Memory, in MiB.
    pub mem: u32,
    /// The kernel's command line.
    pub append: String,
}

impl Recipe {
    /// Reads and checks a recipe file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is not a recipe.
    pub fn read(path: &Path) -> Result<Recipe, ImageError> {
        let text = fs::read_to_string(path).at("read", path)?;
        Recipe::parse(&text).map_err(|reason| ImageError::Recipe { path: path.to_owned(), reason })
    }

    fn parse(text: &str) -> Result<Recipe, String> {
        let recipe: Recipe = toml::from_str(text).map_err(|error| error.to_string())?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Names end up as arguments of other programs, so they have to look like names.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_name("suite", &self.suite)?;
        check_name("kernel", &self.kernel)?;
        check_names("initrd.packages", &self.initrd.packages)?;
        check_names("initrd.modules", &self.initrd.modules)?;
        check_beside("initrd.tree", &self.initrd.tree)?;
        for path in &self.initrd.copy {
            check_beside("initrd.copy", path)?;
        }
        if let Some(disk) = &self.disk {
            check_name("disk.variant", &disk.variant)?;
            check_names("disk.packages", &disk.packages)?;
            for path in disk.tree.iter().chain(&disk.setup) {
                check_beside("disk", path)?;
            }
            if !(DISK_MIB_MIN..=DISK_MIB_MAX).contains(&disk.size_mib) {
                return Err(format!("disk.size_mib is not in {DISK_MIB_MIN}..={DISK_MIB_MAX}"));
            }
        }
        Ok(())
    }
}

fn check_names(field: &str, names: &[String]) -> Result<(), String> {
    names.iter().try_for_each(|name| check_name(field, name))
}

fn check_name(field: &str, name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_+.".contains(c);
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(good) {
        return Ok(());
    }
    Err(format!("{field}: {name:?} is not a name"))
}

fn check_beside(field: &str, path: &Path) -> Result<(), String> {
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_));
    if path.components().next().is_some() && path.components().all(inside) {
        return Ok(());
    }
    Err(format!("{field}: {path:?} has to be a relative path without \"..\""))
}

/// Less holds no system.
const DISK_MIB_MIN: u64 = 64;
/// More is a slip of the pen.
const DISK_MIB_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        description = "a test"
        suite = "bookworm"
        kernel = "linux-image-cloud-amd64"
        [initrd]
        packages = ["busybox-static"]
        copy = ["bin/busybox"]
        tree = "initrd"
        modules = ["virtio_blk"]
        [disk]
        variant = "minbase"
        packages = ["redis-server"]
        size_mib = 512
        [vm]
        mem = 256
        append = "console=ttyS0"
    "#;

    fn reason_for(from: &str, to: &str) -> String {
        let text = GOOD.replace(from, to);
        assert_ne!(text, GOOD, "{from:?} is not in the recipe");
        Recipe::parse(&text).unwrap_err()
    }

    #[test]
    fn a_recipe_is_read_as_written() {
        let recipe = Recipe::parse(GOOD).unwrap();
        assert_eq!(recipe.initrd.copy, [PathBuf::from("bin/busybox")]);
        assert_eq!(recipe.disk.unwrap().size_mib, 512);
        assert_eq!(recipe.vm.mem, 256);
    }

    #[test]
    fn a_misspelt_field_is_named() {
        assert!(reason_for("size_mib", "size_mb").contains("size_mb"));
    }

    #[test]
    fn a_package_that_would_be_an_option_is_refused() {
        assert!(reason_for("redis-server", "--mode=root").contains("disk.packages"));
        assert!(reason_for("redis-server", "a,b").contains("disk.packages"));
    }

    #[test]
    fn a_path_that_leaves_the_recipes_folder_is_refused() {
        assert!(reason_for(r#"tree = "initrd""#, r#"tree = "../x""#).contains("initrd.tree"));
        assert!(reason_for("bin/busybox", "/bin/busybox").contains("initrd.copy"));
    }

    #[test]
    fn a_disk_without_room_is_refused() {
        assert!(reason_for("512", "0").contains("size_mib"));
    }
}
