//! Writes a cpio archive in the "newc" format, as the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst has it.
//!
//! Everything belongs to root and carries one modification time, so that equal content gives equal
//! bytes. Device nodes are left out: the kernel brings /dev/console and devtmpfs the rest.

use std::collections::BTreeMap;

use crate::tree::{Entry, Tree};

/// The archive of `tree`, with the folders above each entry.
pub(crate) fn archive(tree: &Tree, mtime: u32) -> Vec<u8> {
    let mut all: BTreeMap<String, Entry> = BTreeMap::new();
    for (path, entry) in tree.iter() {
        for (end, _) in path.match_indices('/') {
            all.entry(path[..end].to_owned()).or_insert(Entry::Folder);
        }
        all.insert(path.clone(), entry.clone());
    }
    let mut bytes = Vec::new();
    for (index, (path, entry)) in (1..).zip(&all) {
        let (mode, content): (u32, &[u8]) = match entry {
            Entry::Folder => (0o040_755, &[]),
            Entry::File { content, executable: true } => (0o100_755, content),
            Entry::File { content, executable: false } => (0o100_644, content),
            Entry::Link { target } => (0o120_777, target.as_bytes()),
        };
        member(&mut bytes, Member { index, mode, mtime, name: path, content });
    }
    member(&mut bytes, Member { index: 0, mode: 0, mtime: 0, name: TRAILER, content: &[] });
    bytes
}

struct Member<'a> {
    index: u32,
    mode: u32,
    mtime: u32,
    name: &'a str,
    content: &'a [u8],
}

fn member(bytes: &mut Vec<u8>, member: Member<'_>) {
    let size = u32::try_from(member.content.len()).expect("a file of an initrd is below 4 GiB");
    let name_size = u32::try_from(member.name.len() + 1).expect("a path is short");
    let links = 1;
    // inode, mode, uid, gid, links, mtime, size, device, device of a node, name's size, checksum
    let fields =
        [member.index, member.mode, 0, 0, links, member.mtime, size, 0, 0, 0, 0, name_size, 0];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(member.name.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(member.content);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

const TRAILER: &str = "TRAILER!!!";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_lists_folders_before_what_is_in_them() {
        let mut tree = Tree::default();
        tree.insert("a/b/c", Entry::File { content: b"hello".to_vec(), executable: true });
        tree.insert("a/link", Entry::Link { target: "b/c".to_owned() });
        let bytes = archive(&tree, 7);

        let names: Vec<String> = members(&bytes).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/link", TRAILER]);
        assert_eq!(members(&bytes)[2], ("a/b/c".to_owned(), 0o100_755, b"hello".to_vec()));
        assert_eq!(members(&bytes)[3], ("a/link".to_owned(), 0o120_777, b"b/c".to_vec()));
    }

    /// Reads an archive back: name, mode, content.
    fn members(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let whole = bytes.len();
        let mut members = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * index..14 + 8 * index]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name_end = (110 + name_size).next_multiple_of(4);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            members.push((name, mode, bytes[name_end..name_end + size].to_vec()));
            bytes = &bytes[(name_end + size).next_multiple_of(4)..];
            assert_eq!((whole - bytes.len()) % 4, 0);
        }
        members
    }
}
