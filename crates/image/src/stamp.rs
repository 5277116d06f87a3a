//! The stamp of a finished image folder: what went in, and what came out.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use base::Digest;
use serde::{Deserialize, Serialize};

use crate::ImageError;
use crate::error::At;

/// Written last, so a folder that has one is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// Digest of the recipe, the files beside it and the version of this builder.
    pub(crate) input: String,
    /// The version of the kernel in it.
    pub(crate) kernel_version: String,
    /// The files of the image.
    pub(crate) files: Vec<Made>,
}

/// A file as it was when the image was finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    name: String,
    size: u64,
    modified_ns: u64,
}

/// What stands where an image is to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// An image as it was built.
    Image(Stamp),
}

impl Stamp {
    pub(crate) fn new(input: Digest, kernel_version: &str) -> Stamp {
        let (input, kernel_version) = (input.to_string(), kernel_version.to_owned());
        Stamp { input, kernel_version, files: Vec::new() }
    }

    /// Notes a file of `folder`.
    pub(crate) fn add(&mut self, folder: &Path, name: &str) -> Result<(), ImageError> {
        self.files.push(Made::look(folder, name)?);
        Ok(())
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), ImageError> {
        let path = folder.join(FILE);
        let text = toml::to_string(self).expect("a stamp is plain data");
        fs::write(&path, text).at("write", path)
    }
}

impl Made {
    fn look(folder: &Path, name: &str) -> Result<Made, ImageError> {
        let path = folder.join(name);
        let metadata = fs::metadata(&path).at("look at", &path)?;
        let modified = metadata.modified().at("look at", &path)?;
        let age = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        Ok(Made { name: name.to_owned(), size: metadata.len(), modified_ns })
    }
}

/// Looks at what stands at `folder`, and refuses what must not be replaced without being asked.
pub(crate) fn find(folder: &Path, force: bool) -> Result<Found, ImageError> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error).at("read folder", folder),
        Ok(mut items) => {
            if items.next().is_none() {
                return Ok(Found::Nothing);
            }
        }
    }
    let stamp = fs::read_to_string(folder.join(FILE)).ok();
    let stamp: Option<Stamp> = stamp.and_then(|text| toml::from_str(&text).ok());
    let Some(stamp) = stamp else {
        return Err(ImageError::NotAnImage { path: folder.to_owned() });
    };
    if !force {
        for made in &stamp.files {
            if Made::look(folder, &made.name).ok().as_ref() != Some(made) {
                return Err(ImageError::Changed { path: folder.join(&made.name) });
            }
        }
    }
    Ok(Found::Image(stamp))
}

const FILE: &str = "stamp.toml";

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let name = format!("image-stamp-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            fs::create_dir_all(&folder).unwrap();
            Folder(folder)
        }

        fn with_image(name: &str) -> (Folder, Stamp) {
            let folder = Folder::new(name);
            fs::write(folder.0.join("disk.img"), "content").unwrap();
            let mut stamp = Stamp::new(Digest::of(b"input"), "6.1.0");
            stamp.add(&folder.0, "disk.img").unwrap();
            stamp.write(&folder.0).unwrap();
            (folder, stamp)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0); // a leftover in the temporary folder harms nobody
        }
    }

    #[test]
    fn an_image_as_built_is_found_with_its_stamp() {
        let (folder, stamp) = Folder::with_image("whole");
        assert_eq!(find(&folder.0, false).unwrap(), Found::Image(stamp));
    }

    #[test]
    fn a_disk_that_a_guest_has_written_is_replaced_only_by_force() {
        let (folder, stamp) = Folder::with_image("changed");
        fs::write(folder.0.join("disk.img"), "something else").unwrap();
        let refused = find(&folder.0, false).unwrap_err();
        assert!(matches!(refused, ImageError::Changed { path } if path.ends_with("disk.img")));
        assert_eq!(find(&folder.0, true).unwrap(), Found::Image(stamp));
    }

    #[test]
    fn a_folder_of_something_else_is_never_replaced() {
        let folder = Folder::new("foreign");
        assert_eq!(find(&folder.0, false).unwrap(), Found::Nothing);
        fs::write(folder.0.join("thesis.txt"), "years of work").unwrap();
        let refused = find(&folder.0, true).unwrap_err();
        assert!(matches!(refused, ImageError::NotAnImage { .. }));
    }
}
