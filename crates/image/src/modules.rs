//! Kernel modules: which there are, and what each needs to be loaded before it.
//!
//! Dependencies are read from the modules themselves (the `depends=` line of the ELF section
//! `.modinfo`), because packages that were only unpacked have no `modules.dep`.

use std::collections::{BTreeMap, BTreeSet};

/// The modules of one kernel, by name with `_` for `-`.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    files: BTreeMap<String, Vec<u8>>,
    builtin: BTreeSet<String>,
}

impl Modules {
    /// Adds a module file. `path` ends in its file name.
    pub(crate) fn add(&mut self, path: &str, content: Vec<u8>) {
        self.files.insert(name_of(path), content);
    }

    /// Adds what `modules.builtin` lists: modules that are part of the kernel itself.
    pub(crate) fn add_builtin(&mut self, list: &str) {
        self.builtin.extend(list.lines().map(name_of));
    }

    pub(crate) fn content(&self, name: &str) -> &[u8] {
        &self.files[name]
    }

    /// The modules to load for `name`, in order, ending in itself; nothing if it is built in.
    pub(crate) fn load_order(&self, name: &str) -> Result<Vec<String>, String> {
        let mut order = Vec::new();
        self.visit(&name.replace('-', "_"), &mut order, 0)?;
        Ok(order)
    }

    fn visit(&self, name: &str, order: &mut Vec<String>, depth: usize) -> Result<(), String> {
        if self.builtin.contains(name) || order.iter().any(|known| known == name) {
            return Ok(());
        }
        if depth > DEPTH_MAX {
            return Err(format!("module {name}, which depends on itself"));
        }
        let content = self.files.get(name).ok_or_else(|| format!("no module {name}"))?;
        let depends = depends(content).ok_or_else(|| format!("a damaged module {name}"))?;
        for dependency in depends.split(',').filter(|dependency| !dependency.is_empty()) {
            self.visit(&dependency.replace('-', "_"), order, depth + 1)?;
        }
        order.push(name.to_owned());
        Ok(())
    }
}

/// `kernel/drivers/virtio/virtio-rng.ko` is `virtio_rng`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".ko").unwrap_or(file).replace('-', "_")
}

/// The `depends=` line of a module; empty if it has none.
fn depends(elf: &[u8]) -> Option<&str> {
    let info = section(elf, b".modinfo")?;
    let lines = info.split(|byte| *byte == 0);
    let value = lines.filter_map(|line| line.strip_prefix(b"depends=")).next().unwrap_or(b"");
    std::str::from_utf8(value).ok()
}

/// A section of a little-endian 64-bit ELF file, by name.
fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64_at(elf, 0x28)?;
    let entry_size = usize::from(u16_at(elf, 0x3a)?);
    let count = usize::from(u16_at(elf, 0x3c)?);
    let names_index = usize::from(u16_at(elf, 0x3e)?);
    let header = |index: usize| elf.get(table.checked_add(index * entry_size)?..);
    let content = |header: &[u8]| {
        let (offset, size) = (u64_at(header, 0x18)?, u64_at(header, 0x20)?);
        elf.get(offset..offset.checked_add(size)?)
    };
    let names = content(header(names_index)?)?;
    (0..count).filter_map(header).find_map(|header| {
        let start = u32_at(header, 0)?;
        let own_name = names.get(start..)?.split(|byte| *byte == 0).next()?;
        if own_name == name { content(header) } else { None }
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

/// Longer chains do not exist in any kernel.
const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with the sections `.shstrtab` and `.modinfo`.
    fn module(info: &[u8]) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(0x40, 0);
        let names_at = elf.len();
        elf.extend_from_slice(names);
        let info_at = elf.len();
        elf.extend_from_slice(info);
        let table_at = elf.len() as u64;
        for (name, at, size) in [(1u32, names_at, names.len()), (11, info_at, info.len())] {
            let mut header = [0; 0x40];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf[0x28..0x30].copy_from_slice(&table_at.to_le_bytes());
        elf[0x3a..0x40].copy_from_slice(&[0x40, 0, 2, 0, 0, 0]);
        elf
    }

    fn modules() -> Modules {
        let mut modules = Modules::default();
        modules.add("lib/virtio.ko", module(b"license=GPL\0depends=virtio_ring\0"));
        modules.add("lib/virtio_ring.ko", module(b"depends=\0"));
        modules.add("lib/virtio-rng.ko", module(b"depends=virtio,virtio_ring,rng-core\0"));
        modules.add_builtin("kernel/drivers/char/hw_random/rng-core.ko\n");
        modules
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let order = modules().load_order("virtio-rng").unwrap();
        assert_eq!(order, ["virtio_ring", "virtio", "virtio_rng"]);
    }

    #[test]
    fn nothing_is_loaded_for_what_is_built_in() {
        assert!(modules().load_order("rng_core").unwrap().is_empty());
    }

    #[test]
    fn a_missing_or_damaged_module_is_named() {
        assert!(modules().load_order("e1000").unwrap_err().contains("e1000"));
        let mut modules = modules();
        let whole = module(b"depends=\0");
        // The last section header ends in fields that nobody reads.
        for len in 0..whole.len() - 0x18 {
            modules.add("cut.ko", whole[..len].to_vec());
            assert!(modules.load_order("cut").unwrap_err().contains("cut"), "{len} bytes");
        }
    }

    #[test]
    fn a_module_that_depends_on_itself_is_refused() {
        let mut modules = modules();
        modules.add("a.ko", module(b"depends=b\0"));
        modules.add("b.ko", module(b"depends=a\0"));
        assert!(modules.load_order("a").unwrap_err().contains("itself"));
    }
}
