//! Debian's kernels and a full Debian, by the real binary, used as a person and a client would.

mod common;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::{Folder, image};
use testbed::pair::ImageSettings;
use testbed::{CLIENT_ADDR, GUEST_ADDR, Host, Lab, Terminal, test_in_lab};

/// For a boot, on a host that may have other work.
const BOOT: Duration = Duration::from_secs(400);
/// For anything that is not a boot.
const STEP: Duration = Duration::from_secs(120);

/// Powers the image on at host A of the lab, with its network, on a terminal.
fn power_on(lab: &Lab, folder: &Folder, name: &str, flags: &[&str]) -> Terminal {
    let image = image(name);
    let settings = ImageSettings::read(&image).unwrap();
    let mut command = lab.command(Host::A, env!("CARGO_BIN_EXE_lockstep"));
    command.arg("run").arg(image.join("vm.toml"));
    command.args(["--name", "guest", "--run-dir", &folder.path("run")]);
    if !flags.contains(&"--append") {
        command.args(["--append", &settings.append_with_network()]);
    }
    command.args(["--net", &format!("packet:{}", lab.guest_interface())]);
    command.args(["--json-to", &folder.path("json")]).args(flags);
    Terminal::start(name, &command, 24, 80).unwrap()
}

/// Runs a program on the guest's network to its end; its output, if it succeeds.
fn client(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {} {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Types `line` and waits for `answer`, which the echo of the line must not contain.
fn ask(terminal: &mut Terminal, line: &str, answer: &str) -> String {
    terminal.type_text(&format!("{line}\r")).unwrap();
    terminal.wait_for(answer, STEP).unwrap()
}

/// [`ask`] in the systemd image's shell, up to the next prompt. What is typed before the shell reads, the
/// terminal's own line discipline would edit.
fn ask_shell(terminal: &mut Terminal, line: &str, answer: &str) {
    ask(terminal, line, answer);
    terminal.wait_for(PROMPT, STEP).unwrap();
}

const PROMPT: &str = "root@lockstep:~# ";
const IS_RUNNING: &str = "echo state=$(systemctl is-system-running --wait) failed=$(systemctl --failed --plain -q | wc -l).";

/// behaviour 9
#[test]
fn debian_under_systemd_serves_logs_in_reboots_and_powers_off() {
    test_in_lab("debian_under_systemd_serves_logs_in_reboots_and_powers_off", |lab| {
        let folder = Folder::new("systemd");
        let mut console = power_on(lab, &folder, "systemd", &["--snapshot"]);
        console.wait_for(PROMPT, BOOT).unwrap();
        ask_shell(&mut console, IS_RUNNING, "state=running failed=0.");
        ask_shell(
            &mut console,
            "cat /proc/sys/kernel/random/boot_id > boot; sync; echo kept=$?",
            "kept=0",
        );

        serves_files(&mut console, &folder);
        logs_in(&folder);

        ask(&mut console, "systemctl reboot", "reboot: Restarting system");
        console.wait_for("Linux version", STEP).unwrap();
        console.wait_for(PROMPT, BOOT).unwrap();
        ask_shell(&mut console, IS_RUNNING, "state=running failed=0.");
        // It is a new boot, and the disk is the old one.
        let boots = "sort -u boot /proc/sys/kernel/random/boot_id | grep -c . | sed 's/^/boots=/'";
        ask_shell(&mut console, boots, "boots=2");

        let power = ["power", "off", "guest", "--run-dir", &folder.path("run")];
        client(env!("CARGO_BIN_EXE_lockstep"), &power);
        console.wait_for("reboot: Power down", STEP).unwrap();
        assert_eq!(console.wait(STEP).unwrap().code(), Some(0), "{}", console.output());
        assert_eq!(folder.json("json")["reason"], "the guest powered off");
    });
}

/// What `seq 1 LAST` prints.
fn numbers(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

/// A large file comes whole, and many requests are answered over one connection.
fn serves_files(console: &mut Terminal, folder: &Folder) {
    ask_shell(console, "seq 1 600000 > /var/www/html/numbers; echo made=$?", "made=0");
    let (url, got) = (format!("http://{GUEST_ADDR}/numbers"), folder.path("numbers"));
    client("curl", &["--silent", "--show-error", "--fail", "--output", &got, &url]);
    assert!(fs::read_to_string(&got).unwrap() == numbers(600_000), "the file came otherwise");

    let urls = format!("http://{GUEST_ADDR}/index.nginx-debian.html?[1-100]");
    let each = "%{http_code} %{num_connects}\n";
    let options = ["--silent", "--show-error", "--fail", "--output", "/dev/null", "--write-out"];
    let answers = client("curl", &[&options[..], &[each, &urls]].concat());
    let expected = format!("200 1\n{}", "200 0\n".repeat(99));
    assert_eq!(answers, expected);
}

/// A login by ssh has a terminal: its name and size, line editing, Ctrl-C, programs that fill the
/// screen and follow its size.
fn logs_in(folder: &Folder) {
    let key = folder.path("ssh_key");
    fs::copy(image("systemd").join("ssh_key"), &key).unwrap();
    let mut command = Command::new("ssh");
    command.env("TERM", "xterm").args(["-F", "none", "-i", &key]);
    command.args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
    command.args(["-o", "UserKnownHostsFile=/dev/null", &format!("root@{GUEST_ADDR}")]);
    let mut login = Terminal::start("ssh", &command, 30, 100).unwrap();
    login.wait_for(PROMPT, STEP).unwrap();
    ask_shell(&mut login, "stty size", "30 100");
    ask_shell(&mut login, "tty", "/dev/pts/0");
    // The cursor keys and backspace, in the middle of the line.
    ask_shell(&mut login, "echo edited=abXc\x1b[D\x7f", "\redited=abc\r\n");
    // Only once the program speaks is it sure to be the one that Ctrl-C reaches.
    ask(&mut login, "sh -c 'echo sleep\"\"ing; exec sleep 1000'", "sleeping\r\n");
    login.type_text("\x03").unwrap();
    login.wait_for(PROMPT, STEP).unwrap();
    ask_shell(&mut login, "echo interrupted=$?", "interrupted=130");

    ask(&mut login, "vi note", "\x1b[?25h");
    login.type_text("ifirst\rsecond\x1b:wq\r").unwrap();
    login.wait_for("written", STEP).unwrap();
    // A program that ends drops what was typed ahead.
    login.wait_for(PROMPT, STEP).unwrap();
    ask_shell(&mut login, "wc -l note", "2 note");

    ask(&mut login, "top", "load average");
    login.resize(40, 120).unwrap();
    login.wait_for("load average", STEP).unwrap();
    login.type_text("q").unwrap();
    login.wait_for(PROMPT, STEP).unwrap();
    ask_shell(&mut login, "stty size", "40 120");
    login.type_text("exit 7\r").unwrap();
    assert_eq!(login.wait(STEP).unwrap().code(), Some(7), "{}", login.output());
}

/// What one of Debian's two kernels does: boots to a shell, uses disk and network, reboots, powers off.
fn check_kernel(lab: &Lab, name: &str) {
    let folder = Folder::new(name);
    let (disk, files) = (folder.path("disk"), folder.path("files"));
    fs::create_dir(&files).unwrap();
    fs::write(Path::new(&files).join("from-host"), "greetings\n").unwrap();
    // Without a journal: nothing of this is about a crash.
    client("mke2fs", &["-q", "-t", "ext4", "-O", "^has_journal", "-d", &files, &disk, "16M"]);
    let mut console = power_on(lab, &folder, name, &["--disk", &disk]);
    let found = console.modes().unwrap();
    console.wait_for("\r\n# ", BOOT).unwrap();
    assert!(console.modes().unwrap() != found, "the terminal is not raw");
    let load = "for m in $(cat /lib/modules/crc32c_generic.load /lib/modules/ext4.load); do insmod /lib/modules/$m.ko; done";
    ask(
        &mut console,
        &format!("{load}; mount -t ext4 /dev/vda /mnt; echo mounted=$?"),
        "mounted=0",
    );
    ask(&mut console, "cat /mnt/from-host", "greetings\r\n");
    ask(&mut console, "seq 1 50000 > /mnt/from-guest; umount /mnt; echo written=$?", "written=0");
    ask(&mut console, &format!("ping -c 3 {CLIENT_ADDR}"), "3 packets received");
    let server = TcpListener::bind((CLIENT_ADDR, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let received = thread::spawn(move || {
        let mut text = String::new();
        server.accept().unwrap().0.read_to_string(&mut text).unwrap();
        text
    });
    ask(&mut console, &format!("seq 1 20000 | nc {CLIENT_ADDR} {port}; echo sent=$?"), "sent=0");
    assert!(received.join().unwrap() == numbers(20_000), "the stream came otherwise");

    ask(&mut console, "reboot -f", "Linux version");
    console.wait_for("\r\n# ", BOOT).unwrap();
    ask(&mut console, "poweroff -f", "reboot: Power down");
    assert_eq!(console.wait(STEP).unwrap().code(), Some(0), "{}", console.output());
    assert!(console.modes().unwrap() == found, "the terminal's modes are not put back");
    let summary = folder.json("json");
    assert_eq!(summary["reason"], "the guest powered off");
    assert_eq!(summary["exit_status"], 0);
    assert!(summary["instructions"].as_u64().unwrap() > 500_000_000);
    assert_eq!(client("debugfs", &["-R", "cat from-guest", &disk]), numbers(50_000));
}

/// behaviour 9
#[test]
fn debians_cloud_kernel_uses_disk_and_network_reboots_and_powers_off() {
    test_in_lab("debians_cloud_kernel_uses_disk_and_network_reboots_and_powers_off", |lab| {
        check_kernel(lab, "bare");
    });
}

/// behaviour 9
#[test]
fn debians_generic_kernel_uses_disk_and_network_reboots_and_powers_off() {
    test_in_lab("debians_generic_kernel_uses_disk_and_network_reboots_and_powers_off", |lab| {
        check_kernel(lab, "bare-generic");
    });
}

/// A kernel that panics and resets itself ends a run that does not reboot; left alone, it goes on for
/// ever, and can be stopped. behaviour 159, for a VM without a backup
#[test]
fn a_kernel_that_panics_reboots_for_ever_or_ends_the_run() {
    test_in_lab("a_kernel_that_panics_reboots_for_ever_or_ends_the_run", |lab| {
        let folder = Folder::new("panic");
        let append = "console=ttyS0 mitigations=off cryptomgr.notests panic=-1 rdinit=/nowhere root=/dev/none";
        let mut console = power_on(lab, &folder, "bare", &["--append", append]);
        for _ in 0..2 {
            console.wait_for("Kernel panic", BOOT).unwrap();
        }
        console.type_text("\x01x").unwrap();
        assert_eq!(console.wait(STEP).unwrap().code(), Some(0), "{}", console.output());
        assert_eq!(folder.json("json")["reason"], "the operator stopped the VM");

        let mut console = power_on(lab, &folder, "bare", &["--append", append, "--no-reboot"]);
        console.wait_for("Kernel panic", BOOT).unwrap();
        assert_eq!(console.wait(STEP).unwrap().code(), Some(0), "{}", console.output());
        assert_eq!(folder.json("json")["reason"], "the guest reset itself");
    });
}

/// A host file system without room: the guest gets an error from its disk and runs on; a recording
/// ends the run, and the terminal is as it was found.
#[test]
fn a_full_host_disk_is_the_guests_io_error_or_the_end_of_a_recording() {
    test_in_lab("a_full_host_disk_is_the_guests_io_error_or_the_end_of_a_recording", |lab| {
        let folder = Folder::new("full");
        let small = folder.path("small");
        fs::create_dir(&small).unwrap();
        client("mount", &["-t", "tmpfs", "-o", "size=2m", "small", &small]);
        let disk = format!("{small}/disk");
        common::sparse(&disk, 64 << 20);
        let mut console = power_on(lab, &folder, "bare", &["--disk", &disk]);
        let found = console.modes().unwrap();
        console.wait_for("\r\n# ", BOOT).unwrap();
        let fill = "dd if=/dev/zero of=/dev/vda bs=64k count=160 conv=fsync; echo filled=$?";
        assert!(ask(&mut console, fill, "filled=1").contains("I/O error"), "{}", console.output());
        ask(&mut console, "poweroff -f", "reboot: Power down");
        assert_eq!(console.wait(STEP).unwrap().code(), Some(0), "{}", console.output());

        fs::remove_file(&disk).unwrap();
        client("mount", &["-o", "remount,size=32m", &small]);
        let log = format!("{small}/log");
        let mut console = power_on(lab, &folder, "bare", &["--record", &log]);
        console.wait_for("\r\n# ", BOOT).unwrap();
        client("sh", &["-c", &format!("cat /dev/zero > {small}/rest 2> /dev/null || :")]);
        console.wait_for("No space left", STEP).unwrap();
        assert_eq!(console.wait(STEP).unwrap().code(), Some(1), "{}", console.output());
        assert!(console.modes().unwrap() == found, "the terminal's modes are not put back");
        client("umount", &[&small]);
    });
}
