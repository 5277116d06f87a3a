//! The steps of a build.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use base::{Digest, Digester};
use rustix::fs::RenameFlags;
use serde::Serialize;

use crate::debian::{Debian, MakeDisk, Overlay, SETUP, Source};
use crate::error::At;
use crate::modules::Modules;
use crate::stamp::{self, Found, Stamp};
use crate::tree::{Entry, Tree};
use crate::{Disk, ImageError, Recipe, cpio};

/// What to build, and where.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The recipe's file.
    pub recipe: PathBuf,
    /// The folder to make.
    pub out: PathBuf,
    /// A kernel package to use in place of the recipe's.
    pub kernel: Option<String>,
    /// Package sources in place of Debian's own, as mmdebstrap takes them.
    pub mirrors: Vec<String>,
    /// Build even if the folder is up to date, and also if a guest has written to its disk.
    pub force: bool,
}

/// A finished image folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Image {
    /// The machine's description for `lockstep run`.
    pub vm: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The version of the kernel.
    pub kernel_version: String,
    /// The initrd.
    pub initrd: PathBuf,
    /// The disks; none if the system lives in the initrd.
    pub disk: Vec<PathBuf>,
    /// The private key that root's ssh login takes, if the recipe asks for one.
    pub ssh_key: Option<PathBuf>,
    /// Whether the folder was up to date, so that nothing was built.
    pub reused: bool,
}

/// Builds an image, or finds that it is there already.
///
/// The folder appears whole or not at all, and replaces an older one in one step. Progress is told
/// on standard error.
///
/// # Errors
///
/// If the recipe is wrong, programs are missing on this host or fail, the packages do not have what
/// the recipe expects, or the folder holds something that must not be replaced.
pub fn build(request: &Request) -> Result<Image, ImageError> {
    let input = Input::read(request)?;
    let out = std::path::absolute(&request.out).at("find", &request.out)?;
    let _lock = lock(&out)?;
    let found = stamp::find(&out, request.force)?;
    if let Found::Image(stamp) = &found
        && stamp.input == input.digest().to_string()
        && !request.force
    {
        return Ok(image(&out, &input.recipe, stamp, true));
    }

    let source =
        Source { suite: &input.recipe.suite, mirrors: &request.mirrors, epoch: input.epoch };
    let debian = Debian::find(&source, input.recipe.disk.as_ref())?;
    let partial = beside(&out, ".partial");
    debian.remove_leftover(&partial)?;
    fs::create_dir(&partial).at("create folder", &partial)?;
    let built = build_in(&partial, &input, &debian);
    if built.is_err() {
        let _ = debian.remove_leftover(&partial); // the next build tries again
    }
    let stamp = built?;
    if found == Found::Nothing {
        fs::rename(&partial, &out).at("put the image at", &out)?;
    } else {
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, &partial, here, &out, RenameFlags::EXCHANGE)
            .map_err(std::io::Error::from)
            .at("put the image at", &out)?;
        fs::remove_dir_all(&partial).at("remove folder", &partial)?;
    }
    Ok(image(&out, &input.recipe, &stamp, false))
}

/// Everything of a build that comes from this host.
struct Input {
    name: String,
    recipe: Recipe,
    initrd_tree: Tree,
    disk_tree: Tree,
    epoch: u32,
    mirrors: Vec<String>,
}

impl Input {
    fn read(request: &Request) -> Result<Input, ImageError> {
        let path = &request.recipe;
        let wrong = |reason| ImageError::Recipe { path: path.clone(), reason };
        let mut recipe = Recipe::read(path)?;
        if let Some(kernel) = &request.kernel {
            recipe.kernel.clone_from(kernel);
            recipe.check().map_err(wrong)?;
        }
        if let Some(mirror) = request.mirrors.iter().find(|mirror| mirror.starts_with('-')) {
            return Err(wrong(format!("{mirror:?} is not a mirror")));
        }
        let name = path.file_stem().and_then(|stem| stem.to_str());
        let name = name.ok_or_else(|| wrong("its name is not UTF-8".to_owned()))?.to_owned();

        let folder = path.parent().unwrap_or(Path::new(""));
        let initrd_tree = Tree::read(&folder.join(&recipe.initrd.tree))?;
        if !initrd_tree.contains("init") {
            return Err(wrong(format!("{} has no init", recipe.initrd.tree.display())));
        }
        let mut disk_tree = Tree::default();
        if let Some(disk) = &recipe.disk {
            for tree in &disk.tree {
                disk_tree.extend(Tree::read(&folder.join(tree))?);
            }
            let mut script = Vec::new();
            for setup in &disk.setup {
                let path = folder.join(setup);
                script.extend(fs::read(&path).at("read", &path)?);
            }
            if !script.is_empty() {
                disk_tree.insert_file(SETUP, script);
            }
        }
        let mirrors = request.mirrors.clone();
        Ok(Input { name, recipe, initrd_tree, disk_tree, epoch: epoch(), mirrors })
    }

    fn digest(&self) -> Digest {
        let mut digester = Digester::default();
        digester.update_u64(BUILDER_VERSION);
        digester.update(self.name.as_bytes());
        digester.update(toml::to_string(&self.recipe).expect("plain data").as_bytes());
        digester.update_u64(self.epoch.into());
        for mirror in &self.mirrors {
            digester.update(mirror.as_bytes());
        }
        for tree in [&self.initrd_tree, &self.disk_tree] {
            for (path, entry) in tree.iter() {
                digester.update(path.as_bytes());
                let (kind, content): (u64, &[u8]) = match entry {
                    Entry::Folder => (0, &[]),
                    Entry::File { content, executable: false } => (1, content),
                    Entry::File { content, executable: true } => (2, content),
                    Entry::Link { target } => (3, target.as_bytes()),
                };
                digester.update_u64(kind);
                digester.update(content);
            }
            digester.update_u64(u64::MAX); // ends a tree
        }
        digester.finish()
    }
}

fn build_in(folder: &Path, input: &Input, debian: &Debian) -> Result<Stamp, ImageError> {
    let recipe = &input.recipe;
    let boot_tar = folder.join("boot.tar");
    let mut packages = vec![recipe.kernel.as_str()];
    packages.extend(recipe.initrd.packages.iter().map(String::as_str));
    debian.unpack(&packages, &boot_tar)?;
    let boot = Boot::read(&boot_tar, input)?;

    write(&folder.join(KERNEL), &boot.kernel)?;
    let initrd = initrd_tree(&boot, input)?;
    write(&folder.join(INITRD), &cpio::archive(&initrd, input.epoch))?;
    if let Some(disk) = &recipe.disk {
        build_disk(folder, input, disk, debian, &boot)?;
    }
    fs::remove_file(&boot_tar).at("remove", &boot_tar)?;
    write(&folder.join(VM), vm_toml(input).as_bytes())?;

    let mut stamp = Stamp::new(input.digest(), &boot.kernel_version);
    for name in [KERNEL, INITRD, VM].into_iter().chain(recipe.disk.as_ref().map(|_| DISK)) {
        stamp.add(folder, name)?;
    }
    stamp.write(folder)?;
    Ok(stamp)
}

/// What the build takes from the unpacked packages.
struct Boot {
    tar: PathBuf,
    kernel: Vec<u8>,
    kernel_version: String,
    modules: Modules,
    /// The files that the recipe wants copied.
    copied: BTreeMap<String, Vec<u8>>,
}

impl Boot {
    fn read(tar: &Path, input: &Input) -> Result<Boot, ImageError> {
        let wanted: Vec<_> = input.recipe.initrd.copy.iter().map(|path| plain(path)).collect();
        let mut kernels = BTreeMap::new();
        let mut modules = Modules::default();
        let mut copied = BTreeMap::new();
        let file = File::open(tar).at("open", tar)?;
        let mut archive = tar::Archive::new(file);
        for entry in archive.entries_with_seek().at("read", tar)? {
            let mut entry = entry.at("read", tar)?;
            let path = plain(&entry.path().at("read", tar)?);
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let mut content = || -> Result<Vec<u8>, ImageError> {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).at("read", tar)?;
                Ok(content)
            };
            if let Some(version) = path.strip_prefix("boot/vmlinuz-") {
                kernels.insert(version.to_owned(), content()?);
            } else if path.starts_with("lib/modules/") && path.ends_with(".ko") {
                modules.add(&path, content()?);
            } else if path.starts_with("lib/modules/") && path.ends_with("/modules.builtin") {
                modules.add_builtin(&String::from_utf8_lossy(&content()?));
            } else if wanted.contains(&path) {
                copied.insert(path, content()?);
            }
        }

        let short = |what| ImageError::Packages { recipe: input.name.clone(), what };
        if let Some(path) = wanted.iter().find(|path| !copied.contains_key(*path)) {
            return Err(short(format!("no file {path}")));
        }
        let count = kernels.len();
        let mut kernels = kernels.into_iter();
        let (Some((kernel_version, kernel)), None) = (kernels.next(), kernels.next()) else {
            return Err(short(format!("{count} kernels instead of one")));
        };
        Ok(Boot { tar: tar.to_owned(), kernel, kernel_version, modules, copied })
    }
}

/// A path inside a package, whether or not the package has moved to `/usr`.
fn plain(path: &Path) -> String {
    let path = path.to_string_lossy();
    let path = path.strip_prefix("./").unwrap_or(&path);
    path.strip_prefix("usr/").unwrap_or(path).to_owned()
}

fn initrd_tree(boot: &Boot, input: &Input) -> Result<Tree, ImageError> {
    let mut tree = Tree::default();
    for folder in ["dev", "mnt", "proc", "root", "run", "sys", "tmp"] {
        tree.insert(folder, Entry::Folder);
    }
    for (path, content) in &boot.copied {
        tree.insert(path, Entry::File { content: content.clone(), executable: true });
    }
    for module in &input.recipe.initrd.modules {
        let order = boot
            .modules
            .load_order(module)
            .map_err(|what| ImageError::Packages { recipe: input.name.clone(), what })?;
        // The initrd's init reads it: what to load for this module, in order.
        let list: String = order.iter().map(|name| format!("{name}\n")).collect();
        tree.insert_file(&format!("lib/modules/{module}.load"), list);
        for name in &order {
            tree.insert_file(&format!("lib/modules/{name}.ko"), boot.modules.content(name));
        }
    }
    tree.extend(input.initrd_tree.clone());
    Ok(tree)
}

fn build_disk(
    folder: &Path,
    input: &Input,
    disk: &Disk,
    debian: &Debian,
    boot: &Boot,
) -> Result<(), ImageError> {
    let mut tree = input.disk_tree.clone();
    if disk.ssh_key {
        let key = folder.join(SSH_KEY);
        debian.make_ssh_key(&key)?;
        let public = beside(&key, ".pub");
        tree.insert_file("root/.ssh/authorized_keys", fs::read(&public).at("read", &public)?);
    }
    let overlay_tar = folder.join("overlay.tar");
    write_overlay(&overlay_tar, &tree, disk.kernel_modules.then_some(&boot.tar), input.epoch)?;
    let overlay = Overlay { tar: &overlay_tar, kernel_version: &boot.kernel_version };
    let root_tar = folder.join("root.tar");
    debian.install(disk, &overlay, &root_tar)?;
    debian.make_disk(&MakeDisk {
        tar: &root_tar,
        scratch: &folder.join("root"),
        disk: &folder.join(DISK),
        size_mib: disk.size_mib,
        identity: input.digest(),
    })?;
    for path in [&overlay_tar, &root_tar] {
        fs::remove_file(path).at("remove", path)?;
    }
    Ok(())
}

/// A tar file of a tree and, if asked, of all the kernel's modules. Folders have no entries of
/// their own, so that those of the installed system keep their modes.
fn write_overlay(
    path: &Path,
    tree: &Tree,
    modules_from: Option<&PathBuf>,
    mtime: u32,
) -> Result<(), ImageError> {
    let mut builder = tar::Builder::new(File::create(path).at("create", path)?);
    for (name, entry) in tree.iter() {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(mtime.into());
        header.set_uid(0);
        header.set_gid(0);
        match entry {
            Entry::Folder => {}
            Entry::File { content, executable } => {
                header.set_mode(if *executable { 0o755 } else { 0o644 });
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, content.as_slice()).at("write", path)?;
            }
            Entry::Link { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                builder.append_link(&mut header, name, target).at("write", path)?;
            }
        }
    }
    if let Some(tar) = modules_from {
        let mut archive = tar::Archive::new(File::open(tar).at("open", tar)?);
        for entry in archive.entries_with_seek().at("read", tar)? {
            let mut entry = entry.at("read", tar)?;
            let name = plain(&entry.path().at("read", tar)?);
            if name.starts_with("lib/modules/") && entry.header().entry_type().is_file() {
                let mut header = entry.header().clone();
                // Where Debian keeps them since it moved everything to /usr.
                let name = format!("usr/{name}");
                builder.append_data(&mut header, name, &mut entry).at("write", path)?;
            }
        }
    }
    builder.into_inner().at("write", path)?;
    Ok(())
}

fn vm_toml(input: &Input) -> String {
    #[derive(Serialize)]
    struct VmToml<'a> {
        name: &'a str,
        kernel: &'a str,
        initrd: &'a str,
        append: &'a str,
        mem: u32,
        disk: Vec<&'a str>,
    }
    let recipe = &input.recipe;
    let vm = VmToml {
        name: &input.name,
        kernel: KERNEL,
        initrd: INITRD,
        append: &recipe.vm.append,
        mem: recipe.vm.mem,
        disk: recipe.disk.iter().map(|_| DISK).collect(),
    };
    let text = toml::to_string(&vm).expect("plain data");
    format!("# {}\n{text}", recipe.description)
}

fn image(out: &Path, recipe: &Recipe, stamp: &Stamp, reused: bool) -> Image {
    let disk = recipe.disk.as_ref();
    Image {
        vm: out.join(VM),
        kernel: out.join(KERNEL),
        kernel_version: stamp.kernel_version.clone(),
        initrd: out.join(INITRD),
        disk: disk.iter().map(|_| out.join(DISK)).collect(),
        ssh_key: disk.filter(|disk| disk.ssh_key).map(|_| out.join(SSH_KEY)),
        reused,
    }
}

/// Keeps a second build of the same folder waiting until this one is done.
fn lock(out: &Path) -> Result<File, ImageError> {
    let folder = out.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).at("create folder", folder)?;
    let path = beside(out, ".lock");
    let file = File::create(&path).at("create", &path)?;
    file.lock().at("lock", &path)?;
    Ok(file)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

fn write(path: &Path, content: &[u8]) -> Result<(), ImageError> {
    fs::write(path, content).at("write", path)
}

/// The time that files carry: `SOURCE_DATE_EPOCH` if set, as reproducible-builds.org has it.
fn epoch() -> u32 {
    let set = std::env::var("SOURCE_DATE_EPOCH").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(EPOCH_DEFAULT)
}

const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.img";
const DISK: &str = "disk.img";
const VM: &str = "vm.toml";
const SSH_KEY: &str = "ssh_key";

/// Goes up when the same recipe gives another image.
const BUILDER_VERSION: u64 = 2;

/// 1 January 2025.
const EPOCH_DEFAULT: u32 = 1_735_689_600;
