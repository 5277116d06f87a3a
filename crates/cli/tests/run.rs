//! `lockstep run` and `lockstep replay`, through the real binary.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use common::script::{DATA, DESC, RNG, Script, USED, WRITE};
use common::{Folder, Process, echo_kernel, finish, image, lockstep, sparse};

fn kernel(folder: &Folder) -> String {
    folder.file("kernel", &echo_kernel())
}

#[test]
fn console_is_standard_input_and_output_and_debug_exit_gives_qemus_status() {
    let folder = Folder::new("echo");
    let (kernel, run_dir, json) = (kernel(&folder), folder.path("run"), folder.path("json"));
    let mut vm = Process::with_stdin(&[
        "run",
        "--kernel",
        &kernel,
        "--run-dir",
        &run_dir,
        "--debug-exit",
        "--json-to",
        &json,
    ]);
    vm.wait_for_output("hello\n");
    vm.type_bytes(b"abc\x01\x01Q");
    let status = vm.wait();
    assert_eq!(vm.output(), "hello\nabc\x01Q", "{}", vm.errors());
    assert_eq!(status.code(), Some(43));
    let summary = folder.json("json");
    assert_eq!(summary["exit_status"], 43);
    assert!(summary["instructions"].as_u64().unwrap() > 50);
    assert!(summary["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(summary["digest"].as_str().unwrap().len(), 32);
}

#[test]
fn ctrl_a_x_leaves() {
    let folder = Folder::new("leave");
    let (kernel, run_dir) = (kernel(&folder), folder.path("run"));
    let mut vm = Process::with_stdin(&["run", "--kernel", &kernel, "--run-dir", &run_dir]);
    vm.wait_for_output("hello\n");
    vm.type_bytes(b"\x01x");
    assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());
}

#[test]
fn guest_runs_on_without_standard_input() {
    let folder = Folder::new("stdin");
    let (kernel, run_dir) = (kernel(&folder), folder.path("run"));
    let args = ["run", "--kernel", &kernel, "--run-dir", &run_dir];
    let shell = format!("exec {} {} <&-", env!("CARGO_BIN_EXE_lockstep"), args.join(" "));
    let mut closed = Command::new("sh");
    closed.args(["-c", &shell]).stdin(Stdio::null());
    for command in [lockstep(&args), closed] {
        let mut vm = Process::start(command);
        vm.wait_for_output("hello\n");
        vm.signal("TERM");
        assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());
    }
    let mut ended = Process::with_stdin(&args);
    ended.type_bytes(b"ab");
    ended.close_stdin();
    ended.wait_for_output("ab");
    assert!(ended.is_running());
}

#[test]
fn power_off_ends_with_success_and_a_reset_reboots_unless_told_otherwise() {
    let folder = Folder::new("power");
    let (kernel, run_dir) = (kernel(&folder), folder.path("run"));
    let args = ["run", "--kernel", &kernel, "--run-dir", &run_dir];
    let mut vm = Process::with_stdin(&args);
    vm.wait_for_output("hello\n");
    vm.type_bytes(b"R");
    vm.wait_for_output("hello\nRhello\n");
    vm.type_bytes(b"P");
    assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());

    let mut vm = Process::with_stdin(&[&args[..], &["--no-reboot"]].concat());
    vm.wait_for_output("hello\n");
    vm.type_bytes(b"R");
    assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());
    assert_eq!(vm.output(), "hello\nR");
}

/// Replays a log with these flags besides; it has to end as the run did whose summary is "recorded". Gives
/// what the guest said, and both summaries.
fn replay_like_the_run(
    folder: &Folder,
    log: &str,
    flags: &[&str],
) -> (String, serde_json::Value, serde_json::Value) {
    let summary = folder.path("replayed");
    let args = ["replay", log, "--json-to", &summary];
    let (code, output, errors) = finish(&[&args[..], flags].concat());
    assert_eq!(code, 0, "{errors}");
    let (recorded, replayed) = (folder.json("recorded"), folder.json("replayed"));
    for equal in ["digest", "instructions"] {
        assert_eq!(recorded[equal], replayed[equal], "{flags:?}");
    }
    (output, recorded, replayed)
}

/// A triple fault at the first instruction, for ever, and a reset that takes a while each time.
#[test]
fn a_guest_that_faults_for_ever_is_recorded_and_stopped_at_once() {
    let folder = Folder::new("faults");
    let kernel = folder.file("kernel", &common::multiboot_kernel(&[0x0f, 0x0b])); // ud2, without an IDT
    let initrd = folder.file("initrd", &vec![1; 32 << 20]);
    let (run_dir, log) = (folder.path("run"), folder.path("log"));
    let recorded = folder.path("recorded");
    let mut vm = Process::start(lockstep(&[
        "run",
        "--name",
        "loop",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--run-dir",
        &run_dir,
        "--record",
        &log,
        "--json-to",
        &recorded,
    ]));
    let status = ["status", "--json", "--run-dir", &run_dir];
    common::wait_until("resets", || {
        let status: serde_json::Value = serde_json::from_str(&finish(&status).1).unwrap();
        status[0]["icount"].as_u64() > Some(20)
    });
    vm.signal("TERM");
    assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());
    replay_like_the_run(&folder, &log, &[]);
}

/// behaviours 13, 26
#[test]
fn a_recording_is_private_and_replays_to_the_same_digest() {
    let folder = Folder::new("record");
    let (kernel, run_dir, log) = (kernel(&folder), folder.path("run"), folder.path("log"));
    let recorded = folder.path("recorded");
    let mut vm = Process::with_stdin(&[
        "run",
        "--kernel",
        &kernel,
        "--run-dir",
        &run_dir,
        "--record",
        &log,
        "--json-to",
        &recorded,
    ]);
    vm.wait_for_output("hello\n");
    vm.type_bytes(b"secret P");
    assert_eq!(vm.wait().code(), Some(0));
    assert!(vm.errors().contains("passwords"), "{}", vm.errors());
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    // The recording is whole: nothing of the run is needed any more.
    fs::remove_file(&kernel).unwrap();
    let (output, _, replayed) = replay_like_the_run(&folder, &log, &["--console"]);
    assert_eq!(output, "hello\nsecret P");
    assert!(replayed["digests_compared"].as_u64().unwrap() >= 1);
}

#[test]
fn a_recording_whose_process_was_killed_is_named_and_replays_as_far_as_it_is_whole() {
    let folder = Folder::new("killed");
    let (kernel, run_dir, log) = (kernel(&folder), folder.path("run"), folder.path("log"));
    let args = ["run", "--kernel", &kernel, "--run-dir", &run_dir, "--record", &log];
    let mut vm = Process::with_stdin(&args);
    vm.wait_for_output("hello\n");
    vm.type_bytes(b"abc");
    vm.wait_for_output("abc");
    vm.kill();
    let (code, output, errors) = finish(&["replay", &log, "--console"]);
    assert_eq!(code, 5, "{errors}");
    assert!(errors.contains("cut short"), "{errors}");
    // What was let out was in the log before.
    assert_eq!(output, "hello\nabc");

    let mut damaged = fs::read(&log).unwrap();
    let last = damaged.len() - 3;
    damaged[last] ^= 1;
    fs::write(&log, &damaged).unwrap();
    let (code, output, errors) = finish(&["replay", &log, "--console"]);
    assert_eq!(code, 5, "{errors}");
    assert!(errors.contains("damaged"), "{errors}");
    assert!(output.starts_with("hello\n"));
}

#[test]
fn the_virtual_clock_repeats_a_run_bit_for_bit() {
    let folder = Folder::new("virtual");
    let kernel = folder.file("kernel", &common::hello_kernel());
    let (run_dir, log, json) = (folder.path("run"), folder.path("log"), folder.path("json"));
    let run = |seed: &str| {
        let (code, output, errors) = finish(&[
            "run",
            "--kernel",
            &kernel,
            "--run-dir",
            &run_dir,
            "--debug-exit",
            "--clock",
            "virtual",
            "--seed",
            seed,
            "--record",
            &log,
            "--json-to",
            &json,
        ]);
        assert_eq!((code, output.as_str()), (43, "hello\n"), "{errors}");
        (folder.json("json")["digest"].clone(), fs::read(&log).unwrap())
    };
    let first = run("7");
    assert!(first == run("7"));
    assert!(first != run("8"), "the seed counts");
}

/// behaviour 21
#[test]
fn a_guest_gets_other_random_bytes_each_time_it_asks() {
    let mut script = Script::default();
    for _ in 0..2 {
        script.start(RNG, 0);
        script.desc(DESC, 0, [DATA, 0], 16, WRITE);
        script.offer(RNG, 0, 0, 1);
        script.wait(USED);
        (0..4).for_each(|word| script.look(DATA + word * 4));
    }
    let folder = Folder::new("random");
    let (kernel, run_dir) = (folder.file("kernel", &script.kernel().0), folder.path("run"));
    let run = |flags: &[&str]| -> Vec<String> {
        let args = ["run", "--kernel", &kernel, "--run-dir", &run_dir, "--debug-exit"];
        let (code, output, errors) = finish(&[&args[..], flags].concat());
        assert_eq!(code, 43, "{errors}");
        let bytes: Vec<&str> = output.lines().skip(1).collect();
        let (first, second) = (&bytes[..4], &bytes[5..]);
        [first, second].map(|words| words.concat()).to_vec()
    };
    let found = [run(&[]), run(&[])].concat();
    for (index, bytes) in found.iter().enumerate() {
        assert_eq!(bytes.len(), 32);
        assert!(!found[..index].contains(bytes), "{found:?}");
    }
    // Only where runs have to repeat are they the same ones.
    let again = || run(&["--clock", "virtual", "--seed", "1"]);
    assert_eq!(again(), again());
}

/// However long the host takes for the disk's requests, they take no guest time.
#[test]
fn the_virtual_clock_repeats_a_debian_that_works_on_its_disk() {
    let folder = Folder::new("virtual-disk");
    let settings = image("redis/vm.toml");
    let work = "ls -lR /usr/share | md5sum; \
                dd if=/dev/urandom of=/x bs=1M count=2 conv=fsync; md5sum /x; sync";
    let append = format!("console=ttyS0 mitigations=off root=/dev/vda lockstep.run=\"{work}\"");
    let (run_dir, json) = (folder.path("run"), folder.path("json"));
    let run = || {
        let flags = ["--clock", "virtual", "--snapshot", "--run-dir", &run_dir, "--json-to", &json];
        let image = ["run", settings.to_str().unwrap(), "--append", &append];
        let (code, output, errors) = finish(&[&image[..], &flags].concat());
        assert_eq!(code, 0, "{errors}");
        assert!(output.contains("lockstep.run: exit status 0"), "{output}");
        folder.json("json")["digest"].clone()
    };
    assert_eq!(run(), run());
}

#[test]
fn a_full_disk_ends_the_recording_and_the_guest_with_a_clear_error() {
    let folder = Folder::new("full");
    let (kernel, run_dir) = (kernel(&folder), folder.path("run"));
    let args = ["run", "--kernel", &kernel, "--run-dir", &run_dir, "--record", "/dev/full"];
    common::check_fails(1, &["/dev/full", "No space left"], &args);
}

#[test]
fn two_vms_of_one_name_run_and_the_second_says_that_it_cannot_be_found() {
    let folder = Folder::new("twice");
    let (kernel, run_dir) = (kernel(&folder), folder.path("run"));
    let args = ["run", "--kernel", &kernel, "--run-dir", &run_dir, "--name", "one"];
    let mut first = Process::start(lockstep(&args));
    first.wait_for_output("hello\n");
    let mut second = Process::start(lockstep(&args));
    second.wait_for_output("hello\n");
    assert!(second.errors().contains("already runs"), "{}", second.errors());
    // VMs that nobody named are in nobody's way, and leave nothing behind.
    let unnamed = ["run", "--kernel", &kernel, "--run-dir", &run_dir];
    let mut unnamed = [Process::start(lockstep(&unnamed)), Process::start(lockstep(&unnamed))];
    for vm in &mut unnamed {
        vm.wait_for_output("hello\n");
        assert_eq!(vm.errors(), "");
        vm.signal("TERM");
        vm.wait();
    }
    drop((first, second));
    let left: Vec<_> =
        fs::read_dir(&run_dir).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_str().unwrap().starts_with("one.")), "{left:?}");
}

#[test]
fn status_console_and_power_find_a_vm_by_its_name() {
    let folder = Folder::new("control");
    let (kernel, run_dir) = (kernel(&folder), folder.path("run"));
    let mut vm = Process::start(lockstep(&[
        "run",
        "--kernel",
        &kernel,
        "--run-dir",
        &run_dir,
        "--name",
        "web",
    ]));
    vm.wait_for_output("hello\n");
    let (code, output, errors) = finish(&["status", "--json", "--run-dir", &run_dir]);
    assert_eq!(code, 0, "{errors}");
    let status: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!(status[0]["vm"], "web");
    assert_eq!(status[0]["state"], "notConfigured");
    assert_eq!(status[0]["owner"], true);

    let mut console = Process::with_stdin(&["console", "web", "--history", "--run-dir", &run_dir]);
    console.wait_for_output("hello\n");
    console.type_bytes(b"typed");
    console.wait_for_output("hello\ntyped");
    vm.wait_for_output("typed");
    let (code, _, errors) = finish(&["power", "force", "web", "--run-dir", &run_dir]);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(vm.wait().code(), Some(0));
    assert_eq!(console.wait().code(), Some(0), "{}", console.errors());
    common::check_fails(7, &["web"], &["power", "off", "web", "--run-dir", &run_dir]);
}

/// behaviour 12, among others
#[test]
fn what_cannot_be_booted_gets_one_clear_line() {
    let folder = Folder::new("bad");
    let (kernel, run_dir) = (kernel(&folder), folder.path("run"));
    let check = |code, words: &[&str], args: &[&str]| {
        common::check_fails(code, words, &[&["run", "--run-dir", &run_dir], args].concat());
    };
    let gone = folder.path("gone");
    check(1, &["kernel", &gone, "No such file"], &["--kernel", &gone]);
    check(1, &["kernel", "directory"], &["--kernel", "/tmp"]);
    let short = folder.file("short", &echo_kernel()[..60]);
    check(1, &["kernel"], &["--kernel", &short]);
    let text = folder.file("text", b"this is no kernel");
    check(1, &["no bzImage"], &["--kernel", &text]);
    check(1, &["initrd", &gone], &["--kernel", &kernel, "--initrd", &gone]);
    check(1, &["disk", &gone], &["--kernel", &kernel, "--disk", &gone]);
    let disk = folder.path("disk");
    sparse(&disk, 1000);
    check(1, &["disk", &disk], &["--kernel", &kernel, "--disk", &disk]);
    let empty = folder.file("empty", b"");
    check(1, &["disk", &empty, "is empty"], &["--kernel", &kernel, "--disk", &empty]);
    check(1, &["kernel", "0 bytes"], &["--kernel", &empty]);
    check(1, &["disk", "directory"], &["--kernel", &kernel, "--disk", "/tmp"]);
    check(1, &["disk", "neither a file"], &["--kernel", &kernel, "--disk", "/dev/null"]);
    check(1, &["kernel", "device"], &["--kernel", "/dev/zero"]);
    check(1, &["initrd", "device"], &["--kernel", &kernel, "--initrd", "/dev/zero"]);
    check(1, &["initrd", "directory"], &["--kernel", &kernel, "--initrd", "/tmp"]);
    // Before the run, not after it.
    let summary = folder.path("gone/summary");
    check(1, &["summary", &summary], &["--kernel", &kernel, "--json-to", &summary]);
    check(1, &["nosuch0"], &["--kernel", &kernel, "--net", "packet:nosuch0"]);
    check(2, &["--smp 2", "one virtual CPU"], &["--kernel", &kernel, "--smp", "2"]);
    let two = folder.file("two.toml", format!("kernel = '{kernel}'\ncpus = 2\n").as_bytes());
    check(2, &["one virtual CPU"], &[&two]);
    check(2, &["network"], &["--kernel", &kernel, "--net", "user"]);
    let long = "a".repeat(70_000);
    check(1, &["command line"], &["--kernel", &kernel, "--append", &long]);
    check(2, &["vm.toml", "kernal"], &[&folder.file("vm.toml", b"kernal = 'k'\n")]);
    check(1, &[&gone], &[&gone]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let listen = ["--kernel", &kernel, "--listen", &addr, "--insecure-plaintext"];
    check(1, &[&addr, "in use"], &listen);
}

#[test]
fn what_cannot_be_replayed_gets_one_clear_line() {
    let folder = Folder::new("badlog");
    let check = |code, words: &[&str], log: &str| {
        common::check_fails(code, words, &["replay", log]);
    };
    let gone = folder.path("gone");
    check(1, &[&gone, "No such file"], &gone);
    check(1, &["no event log"], &folder.file("text", b"#!/bin/sh\n"));
    check(1, &["cut short"], &folder.file("empty", b""));
}

/// Which engine runs a guest is in no recording.
#[test]
fn engines_replay_each_others_recordings_and_say_what_they_did() {
    if let Err(why) = engines::EngineKind::Translator.make() {
        eprintln!("skipped: {why}");
        return;
    }
    let folder = Folder::new("engines");
    let (kernel, run_dir) = (kernel(&folder), folder.path("run"));
    let engines = ["interpreter", "translator"];
    for [recorder, replayer] in [engines, [engines[1], engines[0]]] {
        let log = folder.path(&format!("log-{recorder}"));
        let recorded = folder.path("recorded");
        let mut vm = Process::with_stdin(&[
            "run",
            "--kernel",
            &kernel,
            "--run-dir",
            &run_dir,
            "--record",
            &log,
            "--json-to",
            &recorded,
            "--engine",
            recorder,
            "--stats",
        ]);
        vm.wait_for_output("hello\n");
        vm.type_bytes(b"P");
        assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());
        assert!(vm.errors().contains("tlb flushes"), "{}", vm.errors());
        let (_, recorded, replayed) = replay_like_the_run(&folder, &log, &["--engine", replayer]);
        assert_eq!(
            (&recorded["engine"], &replayed["engine"]),
            (&recorder.into(), &replayer.into())
        );
        // The kernel is 32-bit code, which no engine is asked to run.
        let translators = if recorder == "translator" { &recorded } else { &replayed };
        assert!(translators["counts"]["steps_unasked"].as_u64().unwrap() > 50, "{translators}");
        assert!(translators["counts"]["translations"].is_u64(), "{translators}");
    }
}

/// behaviours 13, 26: a boot of Debian's kernel as far as it comes in a second or two.
#[test]
fn a_boot_that_one_engine_recorded_the_other_replays_and_both_compare_equal() {
    if let Err(why) = engines::EngineKind::Translator.make() {
        eprintln!("skipped: {why}");
        return;
    }
    let kernel = image("bare/vmlinuz");
    let folder = Folder::new("engines-boot");
    let path = |name: &str| folder.path(name);
    let engines = ["interpreter", "translator"];
    for [recorder, replayer] in [engines, [engines[1], engines[0]]] {
        let log = path(&format!("log-{recorder}"));
        let mut args = vec!["run", "--kernel", kernel.to_str().unwrap(), "--mem", "128"];
        args.extend(["--append", "console=ttyS0 mitigations=off earlyprintk=ttyS0"]);
        let (run_dir, recorded) = (path("run"), path("recorded"));
        args.extend(["--run-dir", &run_dir, "--record", &log, "--json-to", &recorded]);
        args.extend(["--engine", recorder]);
        let mut vm = Process::with_stdin(&args);
        vm.wait_for_output("Calibrating delay loop");
        vm.signal("TERM");
        assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());

        let flags = ["--console", "--engine", replayer];
        let (console, recorded, replayed) = replay_like_the_run(&folder, &log, &flags);
        assert_eq!(console, vm.output());
        assert_eq!(
            (&recorded["engine"], &replayed["engine"]),
            (&recorder.into(), &replayer.into())
        );
    }
    let (code, _, errors) = finish(&["replay", &path("log-translator"), "--compare"]);
    assert_eq!(code, 0, "{errors}");
    assert!(errors.contains("always equal"), "{errors}");
}

/// The guest gets its keys on both sides, at any distance of comparisons and on either clock; and what it was
/// given is in the recording.
#[test]
fn a_live_guest_may_run_on_both_engines_which_are_compared() {
    if let Err(why) = engines::EngineKind::Translator.make() {
        eprintln!("skipped: {why}");
        return;
    }
    let folder = Folder::new("compare");
    let (kernel, run_dir) = (kernel(&folder), folder.path("run"));
    let (log, recorded) = (folder.path("log"), folder.path("recorded"));
    for flags in [&[][..], &["--compare-every", "100", "--clock", "virtual"]] {
        let args = ["run", "--kernel", &kernel, "--run-dir", &run_dir, "--compare"];
        let files = ["--record", &log, "--json-to", &recorded];
        let mut vm = Process::with_stdin(&[&args[..], &files, flags].concat());
        vm.wait_for_output("hello\n");
        for (word, answer) in [("abc", "abc"), ("R", "Rhello\n"), ("def", "def")] {
            vm.type_bytes(word.as_bytes());
            vm.wait_for_output(answer);
        }
        vm.type_bytes(b"P");
        assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());
        assert!(vm.errors().contains("always equal"), "{}", vm.errors());
        let (console, summary, _) = replay_like_the_run(&folder, &log, &["--console"]);
        assert_eq!(console, vm.output());
        let compared = summary["engines_compared"].as_u64().unwrap();
        assert!(compared > 10, "{compared} comparisons");
        if !flags.is_empty() {
            assert!(compared * 100 >= summary["instructions"].as_u64().unwrap(), "{summary}");
        }
    }
}

#[test]
fn a_live_boot_on_both_engines_is_equal_at_every_comparison() {
    if let Err(why) = engines::EngineKind::Translator.make() {
        eprintln!("skipped: {why}");
        return;
    }
    let settings = image("bare/vm.toml");
    let folder = Folder::new("compare-boot");
    let (run_dir, json) = (folder.path("run"), folder.path("json"));
    let args = ["run", settings.to_str().unwrap(), "--run-dir", &run_dir, "--json-to", &json];
    let append = "console=ttyS0 mitigations=off earlyprintk=ttyS0";
    let mut vm = Process::start(lockstep(
        &[&args[..], &["--compare", "--stats", "--append", append]].concat(),
    ));
    vm.wait_for_output("Calibrating delay loop");
    vm.signal("TERM");
    assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());
    let summary = folder.json("json");
    assert!(summary["engines_compared"].as_u64() > Some(100), "{summary}");
    assert!(summary["counts"]["engine_steps"].as_u64() > Some(1_000_000), "{summary}");
    // Where the time went is told besides, and what translated code was left for.
    let shares = summary["time"].as_object().unwrap().values();
    let all: f64 = shares.map(|share| share.as_f64().unwrap()).sum();
    assert!((all - 1.0).abs() < 1e-6, "{summary}");
    assert!(!summary["left"].as_object().unwrap().is_empty(), "{summary}");
    assert!(vm.errors().contains("% translated"), "{}", vm.errors());
}

#[test]
fn the_environment_may_choose_the_engine_and_an_unknown_one_is_refused() {
    let folder = Folder::new("engine-env");
    let (kernel, run_dir, json) = (kernel(&folder), folder.path("run"), folder.path("json"));
    let args = ["run", "--kernel", &kernel, "--run-dir", &run_dir, "--json-to", &json];
    let mut command = lockstep(&args);
    command.env("LOCKSTEP_ENGINE", "interpreter").stdin(Stdio::piped());
    let mut vm = Process::start(command);
    vm.wait_for_output("hello\n");
    vm.signal("TERM");
    assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());
    assert_eq!(folder.json("json")["engine"], "interpreter");
    let (code, _, errors) = finish(&[&args[..], &["--engine", "fast"]].concat());
    assert_eq!(code, 2);
    assert!(errors.contains("translator"), "{errors}");
}
