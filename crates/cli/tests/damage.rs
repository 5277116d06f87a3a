//! Kernels and initial RAM disks that were damaged on their way, through the real binary: an error that
//! names the file's fault, or a guest that goes wrong by itself and can be stopped.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use base::SeededRng;
use common::{Folder, Process, check_fails, echo_kernel, lockstep};

fn debian(file: &str) -> Vec<u8> {
    let images = std::env::var_os("LOCKSTEP_IMAGES")
        .expect("LOCKSTEP_IMAGES names no folder of guest images: run `cargo xtask test`");
    std::fs::read(Path::new(&images).join("bare").join(file)).unwrap()
}

/// Boots what may be anything: it is refused in one line, or runs and is stopped.
fn boot_and_stop(folder: &Folder, kernel: &[u8], what: &str) {
    let kernel = folder.file("kernel", kernel);
    let run_dir = folder.path("run");
    let args = ["run", "--kernel", &kernel, "--mem", "128", "--run-dir", &run_dir];
    let mut vm = Process::start(lockstep(&args));
    // The signal may come at any moment of its life.
    thread::sleep(Duration::from_millis(200));
    if vm.is_running() {
        vm.signal("TERM");
    }
    let (status, errors) = (vm.wait(), vm.errors());
    match status.code() {
        // It had not begun to listen to signals.
        None => assert_eq!((status.signal(), errors.as_str()), (Some(15), ""), "{what}"),
        Some(0) => assert_eq!(errors, "", "{what}"),
        Some(1) => assert!(errors.starts_with("lockstep: error: the machine"), "{what}: {errors}"),
        _ => panic!("{what}: {status} {errors}"),
    }
    assert!(errors.lines().count() <= 1, "{what}: {errors}");
}

#[test]
fn damaged_kernels_are_refused_or_run_until_they_are_stopped() {
    let folder = Folder::new("damage");
    let mut rng = SeededRng::new(1);
    // Where each has what a loader reads.
    for (name, kernel, head) in [("bzImage", debian("vmlinuz"), 0x270), ("ELF", echo_kernel(), 96)]
    {
        for round in 0..8 {
            let mut damaged = kernel.clone();
            let start = if name == "bzImage" { 0x1f1 } else { 0 };
            for _ in 0..1 + rng.below(3) {
                let at = start + rng.below(head - start) as usize as u64;
                damaged[at as usize] ^= 1 << rng.below(8);
            }
            boot_and_stop(&folder, &damaged, &format!("{name}, round {round}"));
        }
    }
}

#[test]
fn short_kernels_and_initrds_that_are_too_large_are_named() {
    let folder = Folder::new("short");
    let run_dir = folder.path("run");
    let kernel = debian("vmlinuz");
    for len in [513, 0x250, 0x5000, 1 << 20, kernel.len() - 4096] {
        let short = folder.file("short", &kernel[..len]);
        let args = ["run", "--run-dir", &run_dir, "--kernel", &short];
        let words: &[&str] = if len > 0x206 { &["kernel", "cut short"] } else { &["no bzImage"] };
        check_fails(1, words, &args);
    }
    let (kernel, initrd) = (folder.file("kernel", &kernel), folder.path("initrd"));
    common::sparse(&initrd, 200 << 20);
    let args = ["run", "--run-dir", &run_dir, "--kernel", &kernel, "--initrd", &initrd];
    check_fails(1, &["initrd", "does not fit"], &[&args[..], &["--mem", "128"]].concat());
    check_fails(1, &["kernel", "does not fit"], &[&args[..], &["--mem", "16"]].concat());
}

/// The kernel's own decompressor looks, and says what a PC's screen would show.
#[test]
fn a_damaged_payload_is_found_by_the_kernel_itself() {
    let folder = Folder::new("payload");
    let mut kernel = debian("vmlinuz");
    let middle = kernel.len() / 2;
    kernel[middle..middle + 64].fill(0xa5);
    let (kernel, run_dir) = (folder.file("kernel", &kernel), folder.path("run"));
    let append = "earlyprintk=ttyS0 console=ttyS0";
    let args = ["run", "--kernel", &kernel, "--run-dir", &run_dir, "--append", append];
    let mut vm = Process::start(lockstep(&args));
    vm.wait_for_output("System halted");
    vm.signal("TERM");
    assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());
}
