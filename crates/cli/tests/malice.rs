//! A guest that means harm, through the real binary: rings that no driver may set up, at every virtio
//! device. It gets what hardware would give, and the VM goes on.

mod common;

use common::script::{
    ALIVE, CONSOLE, DATA, DESC, DISK, INDIRECT, INTERRUPT_STATUS, NEEDS_RESET, NET, NEXT, NOT_RAM,
    RNG, STATUS, Script, TABLE, USED, WRITE,
};
use common::{Folder, finish, sparse};

/// One wrong at a time; the device asks for a reset, which helps.
fn break_rings(script: &mut Script, window: u32, queue: u32) {
    let whole_ram = 16 << 20;
    type Wrong = fn(&mut Script, u32, u32);
    let wrongs: [Wrong; 10] = [
        // A buffer outside RAM, one that leaves it, and one that wraps around.
        |script, window, queue| {
            script.desc(DESC, 0, NOT_RAM, 512, WRITE);
            script.offer(window, queue, 0, 1);
        },
        |script, window, queue| {
            script.desc(DESC, 0, [DATA, 0], u32::MAX, 0);
            script.offer(window, queue, 0, 1);
        },
        |script, window, queue| {
            script.desc(DESC, 0, [u32::MAX - 15, u32::MAX], 512, WRITE);
            script.offer(window, queue, 0, 1);
        },
        // A chain that never ends, of parts that are as large as RAM.
        |script, window, queue| {
            script.desc(DESC, 0, [0, 0], 16 << 20, NEXT | 1 << 16);
            script.desc(DESC, 1, [0, 0], 16 << 20, NEXT);
            script.offer(window, queue, 0, 1);
        },
        // Numbers that no descriptor has: the first, and the next.
        |script, window, queue| script.offer(window, queue, 0xffff, 1),
        |script, window, queue| {
            script.desc(DESC, 0, [DATA, 0], 16, NEXT | 16 << 16);
            script.offer(window, queue, 0, 1);
        },
        // More chains than there is room for.
        |script, window, queue| script.offer(window, queue, 0, 0xffff),
        // What the device writes comes before what it reads.
        |script, window, queue| {
            script.desc(DESC, 0, [DATA, 0], 16, NEXT | WRITE | 1 << 16);
            script.desc(DESC, 1, [DATA, 0], 16, 0);
            script.offer(window, queue, 0, 1);
        },
        // An indirect table of a length and a half, and one within another.
        |script, window, queue| {
            script.desc(DESC, 0, [TABLE, 0], 24, INDIRECT);
            script.offer(window, queue, 0, 1);
        },
        |script, window, queue| {
            script.desc(TABLE, 0, [TABLE, 0], 16, INDIRECT);
            script.desc(DESC, 0, [TABLE, 0], 16, INDIRECT);
            script.offer(window, queue, 0, 1);
        },
    ];
    for wrong in wrongs {
        script.start(window, queue);
        wrong(script, window, queue);
        // A network device looks at its ring only a while after the kick.
        script.wait(window + INTERRUPT_STATUS);
        script.show(window + STATUS, NEEDS_RESET);
        // It stays so, whatever the driver does but resetting it.
        script.desc(DESC, 0, [DATA, 0], whole_ram, WRITE);
        script.offer(window, queue, 0, 1);
        script.show(window + STATUS, NEEDS_RESET);
    }
    for ring in [0x80, 0x90, 0xa0] {
        // Rings outside RAM.
        script.start(window, queue);
        script.write(window + 0x30, queue);
        script.write(window + 0x44, 0);
        script.writes(window + ring, &NOT_RAM);
        script.write(window + 0x44, 1);
        script.desc(DESC, 0, [DATA, 0], 16, if window == RNG { WRITE } else { 0 });
        script.offer(window, queue, 0, 1);
        if window == NET {
            script.wait(window + INTERRUPT_STATUS);
        }
    }
    // Queues and registers that there are not.
    script.start(window, queue);
    script.write(window + 0x50, 0xffff_ffff);
    for size in [0, 3, 0x8000, u32::MAX] {
        script.write(window + 0x30, queue);
        script.write(window + 0x44, 0);
        script.write(window + 0x38, size);
        script.write(window + 0x44, 1);
        script.offer(window, queue, 0, 1);
    }
    script.write(window + 0x30, 0xffff_ffff);
    script.write(window + 0x38, 16);
    script.write(window + 0x44, 1);
    script.write(window + 0xffc, 0xffff_ffff);
    script.write(window + STATUS, 0xffff_ffff);
    script.write(window + STATUS, 0);
    script.show(window + STATUS, 0);
}

/// behaviour 70
#[test]
fn malicious_rings_stop_their_device_and_nothing_else() {
    let mut script = Script::default();
    for (window, queue) in [(RNG, 0), (CONSOLE, 1), (DISK, 0), (NET, 1)] {
        break_rings(&mut script, window, queue);
    }
    // The devices have taken no harm.
    script.start(CONSOLE, 1);
    script.desc(DESC, 0, [DATA, 0], 16, 0);
    script.offer(CONSOLE, 1, 0, 1);
    script.show(CONSOLE + STATUS, ALIVE);
    script.show(USED, 1 << 16);
    let (kernel, shows) = script.kernel();

    let folder = Folder::new("malice");
    let (kernel, disk) = (folder.file("kernel", &kernel), folder.path("disk"));
    sparse(&disk, 1 << 20);
    let (run_dir, log) = (folder.path("run"), folder.path("log"));
    let (recorded, replayed) = (folder.path("recorded"), folder.path("replayed"));
    let run = ["run", "--kernel", &kernel, "--mem", "16", "--run-dir", &run_dir, "--debug-exit"];
    let devices = ["--disk", &disk, "--net", "socket,listen=127.0.0.1:0"];
    let files = ["--record", &log, "--json-to", &recorded];
    let (code, output, errors) = finish(&[&run[..], &devices, &files].concat());
    assert_eq!((code, output), (43, shows.clone()), "{errors}");
    assert!(!errors.contains("error") && !errors.contains("panicked"), "{errors}");
    assert!(std::fs::read(&disk).unwrap().iter().all(|byte| *byte == 0), "the disk is untouched");

    let (code, output, errors) = finish(&["replay", &log, "--console", "--json-to", &replayed]);
    assert_eq!((code, output), (0, shows), "{errors}");
    assert_eq!(folder.json("recorded")["digest"], folder.json("replayed")["digest"]);
}
