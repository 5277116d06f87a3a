//! A protected VM on three "hosts" of one machine, through the real binary: disk server, backup and
//! primary, with the echo kernel as guest.

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::{
    Folder, Process, check_fails, echo_kernel, finish, free_addr, image, lockstep, sparse,
    wait_until, wait_within,
};
use engines::EngineKind;
use serde_json::Value;

/// For a Linux kernel on two sides, on a host that may have other work.
const LINUX: Duration = Duration::from_secs(400);

struct Pair {
    folder: Folder,
    disk_addr: SocketAddr,
    backup_addr: SocketAddr,
    primary_addr: SocketAddr,
    disk: Process,
    backup: Process,
    primary: Process,
}

impl Pair {
    /// A pair that is armed, whose guest has said "hello".
    fn new(name: &str) -> Pair {
        let mut pair = Pair::of(name, &echo_kernel());
        pair.primary.wait_for_output("hello\n");
        pair
    }

    /// A pair that is armed, with any guest.
    fn of(name: &str, kernel: &[u8]) -> Pair {
        Pair::with(name, kernel, &[], &[])
    }

    /// A pair that is armed and runs Debian's kernel alone; each side with its engine.
    fn of_linux(name: &str, append: &str, cpu: &str, [primary, backup]: [EngineKind; 2]) -> Pair {
        let kernel = std::fs::read(image("bare/vmlinuz")).unwrap();
        let append = format!("console=ttyS0 mitigations=off cryptomgr.notests {append}");
        // A host that has other work may keep a side waiting for a second.
        let mut run_flags = vec!["--append", &append, "--cpu", cpu];
        run_flags.extend(["--timing", "relaxed", "--engine", primary.name()]);
        Pair::with(name, &kernel, &run_flags, &["--engine", backup.name()])
    }

    /// A pair that is armed, with any guest and more flags for the primary and for the backup.
    fn with(name: &str, kernel: &[u8], run_flags: &[&str], backup_flags: &[&str]) -> Pair {
        let folder = Folder::new(name);
        folder.file("kernel", kernel);
        sparse(&folder.path("image"), 1 << 20);
        assert_eq!(finish(&["keys", &folder.path("key")]).0, 0);
        let [disk_addr, backup_addr, primary_addr] = [free_addr(), free_addr(), free_addr()];
        let disk = start_disk(&folder, disk_addr);
        let backup = start_backup_with(&folder, backup_addr, backup_flags);
        let args = primary_args(&folder, [disk_addr, backup_addr, primary_addr]);
        let args: Vec<&str> =
            args.iter().map(String::as_str).chain(run_flags.iter().copied()).collect();
        let primary = Process::with_stdin(&args);
        let mut pair = Pair { folder, disk_addr, backup_addr, primary_addr, disk, backup, primary };
        pair.primary.wait_for_errors("protected, generation");
        pair
    }

    fn path(&self, name: &str) -> String {
        self.folder.path(name)
    }

    /// The status of the process at `addr`, as another host sees it.
    fn status(&self, addr: SocketAddr) -> Option<Value> {
        let (_, output, errors) = finish(&[
            "status",
            "echo",
            "--json",
            "--host",
            &addr.to_string(),
            "--key",
            &self.path("key"),
            "--run-dir",
            &self.path("elsewhere"),
        ]);
        let processes: Vec<Value> = serde_json::from_str(&output).expect(&errors);
        let place = addr.to_string();
        processes.into_iter().find(|process| process["place"] == *place)
    }

    fn wait_for_role(&self, addr: SocketAddr, role: &str) -> Value {
        let mut found = Value::Null;
        wait_until(&format!("{role} at {addr}"), || {
            found = self.status(addr).unwrap_or_default();
            found["role"] == role
        });
        found
    }

    fn events(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        let event = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
        text.lines().map(|line| event(line)["event"].as_str().unwrap().to_owned()).collect()
    }

    fn console(&self) -> Process {
        Process::with_stdin(&[
            "console",
            "echo",
            "--history",
            "--key",
            &self.path("key"),
            "--run-dir",
            &self.path("run-a"),
            "--host",
            &self.backup_addr.to_string(),
        ])
    }
}

fn start_disk(folder: &Folder, addr: SocketAddr) -> Process {
    start_disk_with(folder, addr, &[("d", &folder.path("image"))])
}

fn start_disk_with(folder: &Folder, addr: SocketAddr, exports: &[(&str, &str)]) -> Process {
    let mut command =
        lockstep(&["disk", "--listen", &addr.to_string(), "--state", &folder.path("state")]);
    for (name, image) in exports {
        command.args(["--export", &format!("{name}={image},format=raw")]);
    }
    let mut disk = Process::start(command);
    disk.wait_for_errors("serving at");
    disk
}

fn start_backup(folder: &Folder, addr: SocketAddr) -> Process {
    start_backup_with(folder, addr, &[])
}

fn start_backup_with(folder: &Folder, addr: SocketAddr, flags: &[&str]) -> Process {
    let mut command = lockstep(&[
        "backup",
        "--listen",
        &addr.to_string(),
        "--key",
        &folder.path("key"),
        "--run-dir",
        &folder.path("run-b"),
        "--host-id",
        "b",
        "--events",
        &folder.path("events-b"),
    ]);
    command.args(flags);
    let mut backup = Process::start(command);
    backup.wait_for_errors("waiting for a primary");
    backup
}

fn primary_args(folder: &Folder, [disk, backup, primary]: [SocketAddr; 3]) -> Vec<String> {
    let args = [
        "run",
        "--name",
        "echo",
        "--kernel",
        &folder.path("kernel"),
        "--mem",
        "128",
        "--disk",
        &format!("nbd://{disk}/d"),
        "--backup",
        &backup.to_string(),
        "--arbiter",
        &disk.to_string(),
        "--listen",
        &primary.to_string(),
        "--key",
        &folder.path("key"),
        "--run-dir",
        &folder.path("run-a"),
        "--host-id",
        "a",
        "--events",
        &folder.path("events-a"),
    ];
    args.map(str::to_owned).to_vec()
}

fn start_primary(
    folder: &Folder,
    disk: SocketAddr,
    backup: SocketAddr,
    primary: SocketAddr,
) -> Process {
    let args = primary_args(folder, [disk, backup, primary]);
    Process::with_stdin(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// behaviours 1, 4, 49, 50, 53, 157
#[test]
fn console_stays_whole_when_the_primary_is_killed() {
    let mut pair = Pair::new("failover");
    let mut console = pair.console();
    console.wait_for_output("hello\n");
    console.type_bytes(b"before ");
    console.wait_for_output("before ");
    pair.primary.kill();
    pair.wait_for_role(pair.backup_addr, "solo");
    console.wait_for_errors(&format!("on {}", pair.backup_addr));
    console.type_bytes(b"after");
    console.wait_for_output("after");
    assert_eq!(console.output(), "hello\nbefore after");
    let mut events = pair.events("events-b");
    // Whether the claim or the replay is done first is left open.
    let replayed = events.iter().position(|event| event == "replayed").unwrap();
    events.remove(replayed);
    assert_eq!(events, ["last_heard", "peer_failed", "claiming", "won", "live", "first_output"]);
    assert!(replayed < 5, "the log was executed before the machine went live");
}

/// behaviours 48, 82; 83: the machine's state is copied once for each backup
#[test]
fn primary_goes_on_when_its_backup_is_killed_and_takes_a_new_one() {
    let mut pair = Pair::new("alone");
    let copies = |pair: &Pair| {
        let events = pair.events("events-a");
        events.iter().filter(|event| *event == "snapshot").count()
    };
    pair.primary.type_bytes(b"R");
    pair.primary.wait_for_output("hello\nRhello\n");
    assert_eq!(copies(&pair), 1);
    pair.backup.kill();
    pair.primary.type_bytes(b"on");
    pair.primary.wait_for_output("hello\non");
    let status = pair.wait_for_role(pair.primary_addr, "solo");
    assert_eq!(status["state"], "needSecondary");
    assert_eq!(copies(&pair), 1);
    pair.backup = start_backup(&pair.folder, pair.backup_addr);
    pair.wait_for_role(pair.primary_addr, "primary");
    wait_until("protection", || {
        pair.status(pair.primary_addr).is_some_and(|status| status["protected"] == true)
    });
    // The new backup is as good as the first one was.
    pair.primary.type_bytes(b"+");
    pair.primary.wait_for_output("on+");
    assert_eq!(copies(&pair), 2);
    pair.primary.kill();
    pair.wait_for_role(pair.backup_addr, "solo");
    assert!(!pair.events("events-b").contains(&"snapshot".to_owned()));
    let mut console = pair.console();
    console.type_bytes(b"!");
    console.wait_for_output("!");
}

/// behaviours 159, 69: a reset and a triple fault, which is how a bug of a guest's kernel ends.
#[test]
fn a_guest_that_resets_or_faults_thrice_stays_protected() {
    let mut pair = Pair::new("reset");
    let generation = pair.status(pair.primary_addr).unwrap()["generation"].clone();
    pair.primary.type_bytes(b"R");
    pair.primary.wait_for_output("hello\nRhello\n");
    pair.primary.type_bytes(b"T");
    pair.primary.wait_for_output("hello\nRhello\nThello\n");
    let status = pair.status(pair.primary_addr).unwrap();
    assert_eq!((&status["protected"], &status["generation"]), (&true.into(), &generation));
    // The backup did the same, and goes on from there.
    let mut console = pair.console();
    console.wait_for_output("hello\nRhello\nThello\n");
    pair.primary.kill();
    pair.wait_for_role(pair.backup_addr, "solo");
    console.wait_for_errors(&format!("on {}", pair.backup_addr));
    console.type_bytes(b"after");
    console.wait_for_output("after");
    assert_eq!(console.output(), "hello\nRhello\nThello\nafter");
    assert!(!pair.events("events-b").contains(&"diverged".to_owned()));
}

/// behaviours 159, 69: a guest that faults thrice at its first instruction, for ever. Both sides
/// keep up with it, and it does not get in the way of a failover or of an orderly end.
#[test]
fn a_guest_that_faults_for_ever_fails_over_and_is_stopped_at_once() {
    let mut pair = Pair::of("loop", &common::multiboot_kernel(&[0x0f, 0x0b])); // ud2, without an IDT
    let resets = |addr| pair.status(addr).and_then(|status| status["icount"].as_u64());
    wait_until("resets on both sides", || {
        [pair.primary_addr, pair.backup_addr].iter().all(|addr| resets(*addr) > Some(100))
    });
    pair.primary.kill();
    pair.wait_for_role(pair.backup_addr, "solo");
    pair.backup.signal("TERM");
    assert_eq!(pair.backup.wait().code(), Some(0), "{}", pair.backup.errors());
    assert!(!pair.events("events-b").contains(&"diverged".to_owned()));
}

/// behaviours 159, 69: Debian's kernel finds no root, panics and reboots by itself, on both sides alike.
#[test]
fn a_linux_that_panics_reboots_on_both_sides_and_stays_protected() {
    let append = "panic=-1 root=/dev/none";
    // Two boots, so the fastest engine there is.
    let fast = EngineKind::Translator;
    let engine = if fast.make().is_ok() { fast } else { EngineKind::Interpreter };
    let mut pair = Pair::of_linux("panic", append, "v2", [engine; 2]);
    let boots = |process: &Process| process.output().matches("Linux version").count();
    wait_within(LINUX, "a second boot", || boots(&pair.primary) >= 2);
    assert!(pair.primary.output().contains("Kernel panic"));
    assert_eq!(pair.status(pair.primary_addr).unwrap()["protected"], true);
    pair.primary.kill();
    pair.wait_for_role(pair.backup_addr, "solo");
    // The other side has done all that, and boots on.
    let before = pair.primary.output();
    let console = pair.console();
    wait_within(LINUX, "more of the second boot", || console.output().len() > before.len() + 1000);
    assert!(console.output().starts_with(&before), "{before}\n-----\n{}", console.output());
    assert!(!pair.events("events-b").contains(&"diverged".to_owned()));
    pair.backup.signal("TERM");
    assert_eq!(pair.backup.wait().code(), Some(0), "{}", pair.backup.errors());
}

/// The engine is each side's own matter: with the interpreter on one side and the translator on the
/// other, a pair stays in step, and a failover leads from one to the other. The CPU is the VM's: the backup
/// has the one that the primary was told.
fn failover_between_engines(name: &str, cpu: &str, engines: [EngineKind; 2]) {
    if let Err(why) = EngineKind::Translator.make() {
        eprintln!("skipped: {why}");
        return;
    }
    let mut pair = Pair::of_linux(name, "earlyprintk=ttyS0", cpu, engines);
    wait_within(LINUX, "the kernel at work", || {
        assert!(pair.primary.is_running(), "{}", pair.primary.errors());
        pair.primary.output().contains("Calibrating delay loop")
    });
    // By now the backup has compared digests that are in the log.
    assert_eq!(pair.status(pair.primary_addr).unwrap()["protected"], true);
    let output = pair.primary.output();
    assert_eq!(output.contains("AVX registers"), cpu.starts_with("v3"), "{output}");
    pair.primary.kill();
    pair.wait_for_role(pair.backup_addr, "solo");
    let before = pair.primary.output();
    let console = pair.console();
    wait_within(LINUX, "the kernel's next words", || {
        assert!(pair.backup.is_running(), "{}", pair.backup.errors());
        console.output().len() > before.len() + 2000
    });
    // Every byte that was seen is there, once, and what follows has its place after it.
    assert!(console.output().starts_with(&before), "{before}\n-----\n{}", console.output());
    assert!(!pair.events("events-b").contains(&"diverged".to_owned()));
    pair.backup.signal("TERM");
    assert_eq!(pair.backup.wait().code(), Some(0), "{}", pair.backup.errors());
}

/// behaviours 2, 22, 33, 49, 157
#[test]
fn a_translators_vm_goes_on_at_an_interpreter() {
    failover_between_engines(
        "to-slow",
        "v3,+aes,+sha",
        [EngineKind::Translator, EngineKind::Interpreter],
    );
}

/// behaviours 2, 33, 49, 157
#[test]
fn an_interpreters_vm_goes_on_at_a_translator() {
    failover_between_engines("to-fast", "v2", [EngineKind::Interpreter, EngineKind::Translator]);
}

/// behaviour 97
#[test]
fn two_pairs_share_hosts_and_disk_server_and_fail_apart() {
    let mut first = Pair::new("shared-a");
    // The second VM's disk is behind the same server; its processes are on the same two hosts.
    first.disk.kill();
    let exports = ["image", "image-2"].map(|name| first.path(name));
    sparse(&exports[1], 1 << 20);
    first.disk =
        start_disk_with(&first.folder, first.disk_addr, &[("d", &exports[0]), ("e", &exports[1])]);
    let [backup_addr, primary_addr] = [free_addr(), free_addr()];
    let mut backup = start_backup(&first.folder, backup_addr);
    let mut args = primary_args(&first.folder, [first.disk_addr, backup_addr, primary_addr]);
    for arg in &mut args {
        *arg = match arg.as_str() {
            "echo" => "other".to_owned(),
            disk if disk.starts_with("nbd://") => format!("nbd://{}/e", first.disk_addr),
            events if events.ends_with("events-a") => first.path("events-other"),
            _ => continue,
        };
    }
    let mut other = Process::with_stdin(&args.iter().map(String::as_str).collect::<Vec<_>>());
    other.wait_for_errors("protected, generation");
    other.wait_for_output("hello\n");

    first.primary.kill();
    first.wait_for_role(first.backup_addr, "solo");
    let mut console = first.console();
    console.type_bytes(b"went on");
    console.wait_for_output("went on");
    other.type_bytes(b"never noticed");
    other.wait_for_output("hello\nnever noticed");
    assert!(!other.errors().contains("failed"), "{}", other.errors());
    assert!(backup.is_running() && !backup.errors().contains("live"), "{}", backup.errors());
}

/// behaviours 99, 101, 148
#[test]
fn power_off_ends_both_sides_and_nobody_takes_over() {
    let mut pair = Pair::new("off");
    pair.primary.type_bytes(b"P");
    assert_eq!(pair.primary.wait().code(), Some(0), "{}", pair.primary.errors());
    pair.backup.wait_for_errors("the pairing was ended on purpose");
    assert!(!pair.events("events-b").contains(&"claiming".to_owned()));
    // The VM is off, so it may be powered on again; the backup serves the next pairing.
    let addrs = (pair.disk_addr, pair.backup_addr, pair.primary_addr);
    pair.primary = start_primary(&pair.folder, addrs.0, addrs.1, addrs.2);
    pair.primary.wait_for_errors("protected, generation");
    pair.primary.wait_for_output("hello\n");
    pair.primary.signal("TERM");
    assert_eq!(pair.primary.wait().code(), Some(0), "{}", pair.primary.errors());
    assert!(!pair.events("events-b").contains(&"claiming".to_owned()));
}

/// behaviour 152
#[test]
fn power_on_is_refused_while_another_copy_may_live() {
    let mut pair = Pair::new("refused");
    pair.primary.kill();
    pair.wait_for_role(pair.backup_addr, "solo");
    let addrs = [pair.disk_addr, pair.backup_addr, pair.primary_addr];
    let args = primary_args(&pair.folder, addrs);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    check_fails(6, &["may still run", "--force"], &args);
    // Once the other host says that it has ended there, nothing stands in the way.
    pair.backup.kill();
    check_fails(6, &["may still run"], &args);
    pair.backup = start_backup(&pair.folder, pair.backup_addr);
    pair.primary = start_primary(&pair.folder, addrs[0], addrs[1], addrs[2]);
    pair.primary.wait_for_errors("protected, generation");
}

/// behaviours 61, 158
#[test]
fn a_side_that_was_stopped_and_continued_after_the_other_went_live_halts() {
    let mut pair = Pair::new("stopped");
    pair.primary.signal("STOP");
    pair.wait_for_role(pair.backup_addr, "solo");
    pair.primary.type_bytes(b"never seen");
    pair.primary.signal("CONT");
    assert_eq!(pair.primary.wait().code(), Some(4), "{}", pair.primary.errors());
    assert_eq!(pair.primary.output(), "hello\n");
}

/// behaviour 1
#[test]
fn placement_on_one_host_and_other_keys_are_refused() {
    let folder = Folder::new("placement");
    folder.file("kernel", &echo_kernel());
    sparse(&folder.path("image"), 1 << 20);
    assert_eq!(finish(&["keys", &folder.path("key")]).0, 0);
    let (disk_addr, backup_addr, primary_addr) = (free_addr(), free_addr(), free_addr());
    let _disk = start_disk(&folder, disk_addr);
    let mut backup = Process::start(lockstep(&[
        "backup",
        "--listen",
        &backup_addr.to_string(),
        "--key",
        &folder.path("key"),
        "--run-dir",
        &folder.path("run-b"),
        "--host-id",
        "a",
    ]));
    backup.wait_for_errors("waiting for a primary");
    let mut primary = start_primary(&folder, disk_addr, backup_addr, primary_addr);
    primary.wait_for_errors("same host");
    // It runs all the same, and says that it is not protected.
    primary.wait_for_output("hello\n");
    drop((primary, backup));

    assert_eq!(finish(&["keys", &folder.path("other")]).0, 0);
    let backup_addr = free_addr();
    let mut backup = Process::start(lockstep(&[
        "backup",
        "--listen",
        &backup_addr.to_string(),
        "--key",
        &folder.path("other"),
        "--run-dir",
        &folder.path("run-b"),
        "--host-id",
        "b",
    ]));
    backup.wait_for_errors("waiting for a primary");
    let mut primary = start_primary(&folder, disk_addr, backup_addr, primary_addr);
    backup.wait_for_errors("cannot agree on keys");
    primary.wait_for_errors("no backup");
}

#[test]
fn nonsense_on_every_port_harms_nobody() {
    let mut pair = Pair::new("nonsense");
    let mut rng = base::SeededRng::new(1);
    for addr in [pair.disk_addr, pair.backup_addr, pair.primary_addr] {
        for round in 0..12 {
            let mut stream = TcpStream::connect(addr).unwrap();
            let mut bytes = vec![0; 1 + rng.below(3000) as usize];
            rng.fill(&mut bytes);
            if round == 0 {
                bytes = b"GET / HTTP/1.1\r\n\r\n".to_vec();
            }
            let _ = stream.write_all(&bytes); // it may hang up on us, and should
        }
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            let mut bytes = vec![0; 1 + rng.below(200) as usize];
            rng.fill(&mut bytes);
            let _ = udp.send_to(&bytes, addr); // nobody may be there
        }
    }
    pair.primary.type_bytes(b"unharmed");
    pair.primary.wait_for_output("hello\nunharmed");
    let status = pair.status(pair.primary_addr).unwrap();
    assert_eq!(status["protected"], true);
    assert!(pair.disk.is_running() && pair.backup.is_running());
    assert!(!pair.backup.errors().contains("panicked"), "{}", pair.backup.errors());
}

#[test]
fn what_cannot_become_a_pair_gets_one_clear_line() {
    let folder = Folder::new("badpair");
    let kernel = folder.file("kernel", &echo_kernel());
    let (key, run_dir) = (folder.path("key"), folder.path("run"));
    assert_eq!(finish(&["keys", &key]).0, 0);
    check_fails(1, &["key", "File exists"], &["keys", &key]);
    let listen = free_addr().to_string();
    check_fails(2, &["--key"], &["backup", "--listen", &listen]);
    let not_a_key = folder.file("text", b"hello");
    std::process::Command::new("chmod").args(["600", &not_a_key]).status().unwrap();
    check_fails(1, &[&not_a_key, "Ed25519"], &["backup", "--listen", &listen, "--key", &not_a_key]);
    std::process::Command::new("chmod").args(["644", &key]).status().unwrap();
    check_fails(1, &[&key, "chmod 600"], &["backup", "--listen", &listen, "--key", &key]);
    std::process::Command::new("chmod").args(["600", &key]).status().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    check_fails(1, &[&taken, "in use"], &["backup", "--listen", &taken, "--key", &key]);
    let arbiter = free_addr().to_string();
    let run = ["run", "--kernel", &kernel, "--key", &key, "--run-dir", &run_dir];
    let nobody = [&run[..], &["--arbiter", &arbiter]].concat();
    check_fails(7, &["arbiter", &arbiter], &nobody);
    let export = format!("d={}", folder.path("gone"));
    let state = folder.path("state");
    let disk = ["disk", "--listen", &listen, "--state", &state, "--export", &export];
    check_fails(1, &["cannot export d", "No such file"], &disk);
}
