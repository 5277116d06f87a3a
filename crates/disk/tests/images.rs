//! Disk images that are damaged: an error when they are opened or used, never a panic, a hang or
//! memory without bound.

mod common;

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use base::SeededRng;
use common::{LONG, qemu_ok};
use disk::file::{FileDisk, FileDiskError, FileOptions};
use disk::image::ImageError;
use disk::{Backend, DiskEvent, Extent, Op, RequestId};

const SIZE: u64 = 4 << 20;

/// Opens the image and uses all of it.
fn open_and_use(path: &Path) -> Result<(), String> {
    let (done, completions) = mpsc::channel();
    let sink = Box::new(move |event| {
        if let DiskEvent::Done(completion) = event {
            let _ = done.send(completion); // nobody listens any more
        }
    });
    let disk = FileDisk::open(path, FileOptions::default(), sink).map_err(|error| match error {
        FileDiskError::Image(ImageError::Open { source, .. }) => source.to_string(),
        error => error.to_string(),
    })?;
    let size = disk.info().size.min(SIZE);
    let ops = [
        Op::Read(Extent { offset: 0, len: size }),
        Op::Write { offset: size / 2, data: vec![7; 512], durable: true },
        Op::WriteZeroes { extent: Extent { offset: 0, len: 512 }, may_free: true },
        Op::Flush,
    ];
    for (id, op) in ops.into_iter().enumerate() {
        disk.submit(RequestId(id as u64), op);
        let completion = completions.recv_timeout(LONG).expect("the request ends");
        completion.result.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A qcow2 image in which something was written: its name and its bytes.
fn image(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = dir.join("disk.qcow2");
    let name = path.to_str().unwrap();
    qemu_ok("qemu-img", &["create", "-q", "-f", "qcow2", name, &SIZE.to_string()]);
    qemu_ok("qemu-io", &["-f", "qcow2", "-c", "write -P 5 0 1M", "-c", "write 3M 64k", name]);
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

#[test]
fn qcow2_images_of_all_kinds_are_taken_for_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let name = path.to_str().unwrap();
    for options in [
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M,preallocation=metadata",
        "refcount_bits=1",
        "refcount_bits=64,preallocation=falloc",
    ] {
        let size = SIZE.to_string();
        qemu_ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, &size]);
        qemu_ok("qemu-io", &["-f", "qcow2", "-c", "write -P 5 0 1M", "-c", "write 3M 64k", name]);
        open_and_use(&path).unwrap_or_else(|error| panic!("{options}: {error}"));
    }
    qemu_ok("qemu-img", &["snapshot", "-c", "one", name]);
    qemu_ok("qemu-io", &["-f", "qcow2", "-c", "write -P 6 512k 1M", name]);
    open_and_use(&path).unwrap();
    let compressed = dir.path().join("compressed.qcow2");
    let to = compressed.to_str().unwrap();
    qemu_ok("qemu-img", &["convert", "-c", "-f", "qcow2", "-O", "qcow2", name, to]);
    open_and_use(&compressed).unwrap();
    qemu_ok("qemu-img", &["check", "-q", "-f", "qcow2", name]);
    qemu_ok("qemu-img", &["check", "-q", "-f", "qcow2", to]);
}

/// The library would end the process, or write over what is there.
#[test]
fn a_qcow2_image_whose_tables_contradict_each_other_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let (path, image) = image(dir.path());
    let offset = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) & !(1 << 63);
    let (l1, refcounts) = (offset(40) as usize, offset(48) as usize);
    let (l2, block) = (offset(l1) as usize, offset(refcounts) as usize);
    let first_data = offset(l2);
    for (what, at, value) in [
        ("closed", 72, 1),
        ("corrupt", 72, 2),
        ("refcount table", 48, 1 << 40),
        ("refcount table", 48, 0x200),
        ("L1 table", 40, u64::MAX),
        ("too small", 24, 1 << 50),
        ("cannot have", 56, 0xffff_ffff << 32),
        ("room", refcounts, 0),
        ("refcount block", refcounts, 1 << 50),
        ("room", block, 0),
        ("something else", l1, refcounts as u64),
        ("behind", l2, 1 << 45),
        ("something else", l2 + 8, first_data),
        ("something else", l2, 0x1_0000),
        ("cluster does", l2, first_data + 512),
    ] {
        let mut damaged = image.clone();
        damaged[at..at + 8].copy_from_slice(&value.to_be_bytes());
        std::fs::write(&path, &damaged).unwrap();
        let error = open_and_use(&path).expect_err(what);
        assert!(error.contains("damaged") && error.contains(what), "{what}: {error}");
        assert!(std::fs::read(&path).unwrap() == damaged, "{what}: it was changed");
    }
}

#[test]
fn random_damage_to_a_qcow2_image_is_an_error_at_worst() {
    let dir = tempfile::tempdir().unwrap();
    let (path, image) = image(dir.path());
    let mut rng = SeededRng::new(1);
    for round in 0..40 {
        let mut damaged = image.clone();
        // The tables begin at clusters of 64 KiB.
        let at = (rng.below(6) << 16) as usize + rng.below(104) as usize;
        match round % 4 {
            0 => damaged.truncate(rng.below(image.len() as u64) as usize),
            1 => damaged[at % 104] ^= 1 << rng.below(8),
            _ => damaged[at] ^= 1 << rng.below(8),
        }
        std::fs::write(&path, &damaged).unwrap();
        let _ = open_and_use(&path); // either answer will do; the end of the process would not
    }
}
