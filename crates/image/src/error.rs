//! What can go wrong when an image is built.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or folder could not be used.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was to be done with it, such as `read`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The recipe is not valid.
    #[error("recipe {}: {reason}", .path.display())]
    Recipe {
        /// The recipe's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Programs are missing on this host.
    #[error("{} not found; as root, run: apt-get install --no-install-recommends {}",
        .programs.join(", "), .packages.join(" "))]
    HostPackages {
        /// The programs that were looked for.
        programs: Vec<&'static str>,
        /// The Debian packages that have them.
        packages: Vec<&'static str>,
    },
    /// A program that does part of the work could not be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A program that does part of the work failed; it has said why on standard error.
    #[error("{program} failed while {purpose}: {status}")]
    Program {
        /// The program.
        program: String,
        /// What it was doing.
        purpose: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// The packages do not contain what the recipe expects of them.
    #[error("the packages of {recipe} have {what}")]
    Packages {
        /// The recipe's name.
        recipe: String,
        /// What is missing or too many.
        what: String,
    },
    /// The folder to write to holds something that is not an image.
    #[error("{} is not an image folder, so it is not replaced", .path.display())]
    NotAnImage {
        /// The folder.
        path: PathBuf,
    },
    /// A file of the image was written to after it was built.
    #[error("{} was changed since it was built; --force builds the image anew", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// Names the operation and the path of an I/O error.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, ImageError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, ImageError> {
        self.map_err(|source| ImageError::Io { action, path: path.into(), source })
    }
}
