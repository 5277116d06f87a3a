//! A small tree of files, as it goes into an initrd or over an installed system.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::ImageError;
use crate::error::At;

/// A file, a symbolic link or an empty folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Folder,
    File { content: Vec<u8>, executable: bool },
    Link { target: String },
}

/// Entries by their path, without a slash in front. Folders above an entry go without saying.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<String, Entry>);

impl Tree {
    /// Reads a folder.
    pub(crate) fn read(folder: &Path) -> Result<Tree, ImageError> {
        let mut tree = Tree::default();
        tree.read_folder(folder, "")?;
        Ok(tree)
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str) -> Result<(), ImageError> {
        for item in fs::read_dir(folder).at("read folder", folder)? {
            let item = item.at("read folder", folder)?;
            let path = item.path();
            let name = format!("{prefix}{}", utf8(item.file_name().as_ref())?);
            let metadata = fs::symlink_metadata(&path).at("look at", &path)?;
            if metadata.is_dir() {
                self.read_folder(&path, &format!("{name}/"))?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).at("read link", &path)?;
                self.insert(&name, Entry::Link { target: utf8(&target)? });
            } else {
                let content = fs::read(&path).at("read", &path)?;
                let executable = metadata.permissions().mode() & 0o100 != 0;
                self.insert(&name, Entry::File { content, executable });
            }
        }
        Ok(())
    }

    pub(crate) fn insert(&mut self, path: &str, entry: Entry) {
        self.0.insert(path.to_owned(), entry);
    }

    pub(crate) fn insert_file(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.insert(path, Entry::File { content: content.into(), executable: false });
    }

    pub(crate) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.0.iter()
    }

    pub(crate) fn extend(&mut self, other: Tree) {
        self.0.extend(other.0);
    }
}

fn utf8(path: &Path) -> Result<String, ImageError> {
    let text = path.to_str().map(str::to_owned);
    let error = || std::io::Error::new(std::io::ErrorKind::InvalidData, "the name is not UTF-8");
    text.ok_or_else(error).at("use", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_with_modes_and_links() {
        let folder = std::env::temp_dir().join(format!("image-tree-{}", std::process::id()));
        fs::create_dir_all(folder.join("etc")).unwrap();
        fs::write(folder.join("init"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(folder.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.join("etc/motd"), "hello").unwrap();
        std::os::unix::fs::symlink("init", folder.join("link")).unwrap();
        let tree = Tree::read(&folder);
        fs::remove_dir_all(&folder).unwrap();

        let mut expected = Tree::default();
        let content = b"#!/bin/sh\n".to_vec();
        expected.insert("init", Entry::File { content, executable: true });
        expected.insert("link", Entry::Link { target: "init".to_owned() });
        expected.insert_file("etc/motd", "hello");
        assert_eq!(tree.unwrap(), expected);
    }
}
