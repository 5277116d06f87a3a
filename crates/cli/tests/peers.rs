//! Peers that speak nonsense, too much, or nothing, to each port and at each address, through the real
//! binary. Whoever is called goes on; whoever calls says what is wrong with whom.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use base::{Claimant, Digest, Generation, Icount, LogPos, SeededRng, VmId};
use common::{Folder, Process, check_fails, echo_kernel, finish, free_addr, lockstep, sparse};
use ft::{Hello, Message, PROTOCOL_VERSION, StartPoint, Timing};

/// A frame of the logging channel.
fn frame(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    vmm::wire::encode(message, &mut bytes);
    bytes
}

fn hello(version: u16) -> Message {
    Message::Hello(Hello {
        version,
        vm: VmId("echo".to_owned()),
        generation: Generation(1),
        claimant: Claimant(7),
        host: Digest::of(b"elsewhere"),
        machine: vmm::run::machine_kind(),
        timing: Timing::default(),
    })
}

/// What peers say. They stay connected, and some say nothing more although more was announced.
fn speeches() -> Vec<Vec<u8>> {
    let mut rng = SeededRng::new(1);
    let mut noise = vec![0; 5000];
    rng.fill(&mut noise);
    let head = |len: u32| [len.to_le_bytes(), [0; 4]].concat();
    let garbled = [head(5000), noise.clone()].concat();
    let start = StartPoint {
        generation: Generation(1),
        pos: LogPos(0),
        icount: Icount(0),
        outputs: 0,
        digest: Digest::of(b""),
        state_len: 5,
    };
    let chunk = |offset| frame(&Message::Chunk { offset, bytes: b"state".to_vec() });
    let greeted = |rest: Vec<u8>| [frame(&hello(PROTOCOL_VERSION)), rest].concat();
    let started = |state_len, rest: Vec<u8>| {
        greeted([frame(&Message::Start(StartPoint { state_len, ..start })), rest].concat())
    };
    vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"{\"op\":\"explode\"}\n".to_vec(),
        vec![b'{'; 1 << 20],
        // Half of a TLS client's hello.
        [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise[..40]].concat(),
        head(u32::MAX),
        head(64 << 20),
        garbled,
        noise,
        frame(&Message::Leave { generation: Generation(7) }),
        frame(&hello(99)),
        // A primary that loses its senses later.
        greeted(Vec::new()),
        greeted(head(u32::MAX)),
        greeted(chunk(0)),
        started(u64::MAX, chunk(0)),
        started(u64::MAX, chunk(u64::MAX - 2)),
        started(5, chunk(0)),
        started(0, Vec::new()),
    ]
}

/// Says everything to `addr`; the connections stay.
fn say_all(addr: SocketAddr) -> Vec<TcpStream> {
    let connect = |speech: Vec<u8>| {
        let mut stream = TcpStream::connect(addr).unwrap();
        let _ = stream.write_all(&speech); // it may hang up on us
        // The next one comes when this one was heard.
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let _ = stream.read(&mut [0; 64]); // an answer, the end or none
        stream
    };
    speeches().into_iter().map(connect).collect()
}

fn check_unharmed(process: &mut Process) {
    assert!(process.is_running(), "{}", process.errors());
    assert!(!process.errors().contains("panicked"), "{}", process.errors());
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 300 << 10, "{kib} KiB of memory");
}

#[test]
fn whoever_is_called_by_nonsense_goes_on() {
    let folder = Folder::new("called");
    let kernel = folder.file("kernel", &echo_kernel());
    sparse(&folder.path("image"), 1 << 20);
    let [disk_addr, backup_addr, primary_addr] = [free_addr(), free_addr(), free_addr()];
    let (disk_at, backup_at, primary_at) =
        (disk_addr.to_string(), backup_addr.to_string(), primary_addr.to_string());
    let export = format!("d={},format=raw", folder.path("image"));
    let state = folder.path("state");
    let mut disk = Process::start(lockstep(&[
        "disk", "--listen", &disk_at, "--state", &state, "--export", &export,
    ]));
    disk.wait_for_errors("serving at");
    let (run_a, run_b) = (folder.path("a"), folder.path("b"));
    let backup = ["backup", "--listen", &backup_at, "--run-dir", &run_b, "--host-id", "b"];
    let mut backup = Process::start(lockstep(&[&backup[..], &["--insecure-plaintext"]].concat()));
    backup.wait_for_errors("waiting for a primary");

    let mut said = say_all(disk_addr);
    said.extend(say_all(backup_addr));
    check_unharmed(&mut disk);
    check_unharmed(&mut backup);

    // They take whoever means it, although the others are still there.
    let url = format!("nbd://{disk_at}/d");
    let run = ["run", "--name", "echo", "--kernel", &kernel, "--mem", "16", "--disk", &url];
    let pair = ["--backup", &backup_at, "--arbiter", &disk_at, "--listen", &primary_at];
    let site = ["--run-dir", &run_a, "--host-id", "a", "--insecure-plaintext"];
    let mut primary = Process::with_stdin(&[&run[..], &pair, &site].concat());
    primary.wait_for_errors("protected, generation");

    said.extend([disk_addr, backup_addr, primary_addr].into_iter().flat_map(say_all));
    primary.type_bytes(b"unharmed");
    primary.wait_for_output("hello\nunharmed");
    let status = ["status", "echo", "--json", "--host", &primary_at, "--insecure-plaintext"];
    let (code, output, errors) = finish(&[&status[..], &["--run-dir", &run_b]].concat());
    assert_eq!(code, 0, "{errors}");
    let status: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert!(status.as_array().unwrap().iter().any(|process| process["protected"] == true));
    [&mut disk, &mut backup, &mut primary].into_iter().for_each(check_unharmed);
    drop(said);
}

/// A server that says `speech` to everybody and then keeps still, or hangs up.
fn server(speech: &'static [u8], hangs_up: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(speech); // the client may have heard enough
            if !hangs_up {
                kept.push(stream);
            }
        }
    });
    addr
}

#[test]
fn whoever_calls_nonsense_says_so() {
    let folder = Folder::new("calls");
    let (kernel, key) = (folder.file("kernel", &echo_kernel()), folder.path("key"));
    let run_dir = folder.path("run");
    assert_eq!(finish(&["keys", &key]).0, 0);
    let nbd: &[u8] =
        b"NBDMAGICIHAVEOPT\0\x03\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\xff\xff\xff\xff";
    for (speech, hangs_up, disk_word, host_word) in [
        (&b""[..], false, "does not answer in time", "agree on keys"),
        (b"", true, "closed the connection", "agree on keys"),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", false, "does not speak NBD", "agree on keys"),
        (nbd, false, "does not speak NBD", "agree on keys"),
    ] {
        let addr = server(speech, hangs_up);
        let url = format!("nbd://{addr}/d");
        let run = ["run", "--kernel", &kernel, "--run-dir", &run_dir, "--disk", &url];
        check_fails(1, &["cannot open disk", &addr, disk_word], &run);
        let status = ["status", "--host", &addr, "--key", &key, "--run-dir", &run_dir];
        let (code, _, errors) = finish(&status);
        assert_eq!(code, 0, "{errors}");
        assert!(errors.contains(&addr) && errors.contains(host_word), "{errors}");
    }
    // Nobody can say whether another copy runs, so the VM is not powered on.
    let addr = server(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", false);
    let run = ["run", "--kernel", &kernel, "--run-dir", &run_dir, "--key", &key];
    check_fails(7, &["arbiter", &addr, "NBD"], &[&run[..], &["--arbiter", &addr]].concat());
}
