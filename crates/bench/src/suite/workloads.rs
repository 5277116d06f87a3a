//! What is run, and what kind of work it is.

/// Kinds of work, each with a bound of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Integer,
    Memory,
    Float,
    System,
}

impl Class {
    pub(crate) const ALL: [Class; 4] = [Class::Integer, Class::Memory, Class::Float, Class::System];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Integer => "integer",
            Class::Memory => "memory",
            Class::Float => "FP and SIMD",
            Class::System => "system",
        }
    }

    /// How many times as much CPU time as natively the class may take on average, recording on.
    pub(crate) fn bound(self) -> f64 {
        match self {
            Class::Integer => 3.0,
            Class::Memory => 2.5,
            Class::Float => 1.6,
            Class::System => 5.0,
        }
    }
}

/// The same for all workloads together.
pub(crate) const BOUND: f64 = 3.0;

/// The boot's name among the workloads. It has no class, because nothing boots natively.
pub(crate) const BOOT: &str = "boot";

/// A workload, as `suite` in the image knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) class: Class,
}

const fn workload(class: Class, name: &'static str) -> Workload {
    Workload { name, class }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    workload(Class::Integer, "gcc"),
    workload(Class::Integer, "gzip"),
    workload(Class::Integer, "gunzip"),
    workload(Class::Integer, "bzip2"),
    workload(Class::Integer, "xz"),
    workload(Class::Integer, "unxz"),
    workload(Class::Integer, "sha256sum"),
    workload(Class::Integer, "md5sum"),
    workload(Class::Integer, "sort"),
    workload(Class::Integer, "grep"),
    workload(Class::Integer, "python"),
    workload(Class::Integer, "perl"),
    workload(Class::Integer, "qsort"),
    workload(Class::Integer, "queens"),
    workload(Class::Integer, "bytecode"),
    workload(Class::Memory, "chase-cache"),
    workload(Class::Memory, "chase-ram"),
    workload(Class::Memory, "hash"),
    workload(Class::Memory, "tree"),
    workload(Class::Memory, "copy"),
    workload(Class::Float, "nbody"),
    workload(Class::Float, "mandelbrot"),
    workload(Class::Float, "matmul"),
    workload(Class::Float, "stencil"),
    workload(Class::Float, "pixels"),
    workload(Class::Float, "libm"),
    workload(Class::Float, "x87"),
    workload(Class::System, "syscall"),
    workload(Class::System, "fork"),
    workload(Class::System, "exec"),
    workload(Class::System, "pipe"),
    workload(Class::System, "threads"),
    workload(Class::System, "faults"),
    workload(Class::System, "files"),
    workload(Class::System, "disk"),
    workload(Class::System, "sqlite"),
    workload(Class::System, "redis"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_is_in_the_images_script_and_in_the_document() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).unwrap();
        let script = read("images/suite/usr/local/bin/suite");
        let kernels = read("images/suite/usr/local/src/suite/kernels.c");
        let document = read("docs/performance.md");
        for Workload { name, .. } in WORKLOADS {
            let is_known = script.contains(&format!("\n{name}_() {{"))
                || kernels.contains(&format!("\t{{\"{name}\", "));
            assert!(is_known, "the image does not know {name}");
            assert!(document.contains(&format!("\n| `{name}` |")), "performance.md: {name}");
        }
    }
}
