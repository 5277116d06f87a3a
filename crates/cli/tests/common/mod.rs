//! Runs the real binary, with a test kernel that fits into this file.
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod script;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Nothing in these tests takes longer; whatever does has hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A file of the guest images, such as `bare/vmlinuz`.
pub(crate) fn image(name: &str) -> PathBuf {
    let images = std::env::var_os("LOCKSTEP_IMAGES")
        .expect("LOCKSTEP_IMAGES names no folder of guest images: run `cargo xtask test`");
    Path::new(&images).join(name)
}

/// A folder that goes with the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        // In a namespace of its own, every process has the same number.
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let unique = format!("lockstep-{name}-{}-{now}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn file(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.0.join(name), content).unwrap();
        self.path(name)
    }

    pub(crate) fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.0.join(name)).unwrap()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A Multiboot kernel that says "hello" on the serial port and then echoes what it reads there. `Q`
/// leaves through the debug-exit port with 21, `P` powers off, `R` resets, `T` faults thrice.
pub(crate) fn echo_kernel() -> Vec<u8> {
    #[rustfmt::skip]
    const CODE: &[u8] = &[
        0x66, 0xba, 0xf8, 0x03,       // mov dx, 0x3f8
        0xbe, 0x5d, 0x00, 0x10, 0x00, // mov esi, message
        0xac, 0x84, 0xc0,             // lodsb; test al, al
        0x74, 0x03, 0xee, 0xeb, 0xf8, // jz wait; out dx, al; jmp to lodsb
        0x66, 0xba, 0xfd, 0x03,       // wait: mov dx, 0x3fd
        0xec, 0xa8, 0x01, 0x74, 0xf7, // in al, dx; test al, 1; jz wait
        0x66, 0xba, 0xf8, 0x03,       // mov dx, 0x3f8
        0xec, 0xee,                   // in al, dx; out dx, al
        0x3c, 0x51, 0x74, 0x0f,       // cmp al, 'Q'; je quit
        0x3c, 0x50, 0x74, 0x11,       // cmp al, 'P'; je off
        0x3c, 0x52, 0x75, 0x19,       // cmp al, 'R'; jne other
        0x66, 0xba, 0xf9, 0x0c,       // mov dx, 0xcf9
        0xb0, 0x06, 0xee,             // mov al, 6; out dx, al
        0xb0, 0x15, 0xe6, 0xf4,       // quit: mov al, 21; out 0xf4, al
        0xeb, 0xd8,                   // jmp wait
        0x66, 0xba, 0x04, 0x06,       // off: mov dx, 0x604
        0x66, 0xb8, 0x00, 0x20,       // mov ax, 0x2000 (SLP_EN, S5)
        0x66, 0xef, 0xeb, 0xcc,       // out dx, ax; jmp wait
        0x3c, 0x54, 0x75, 0xc8,       // other: cmp al, 'T'; jne wait
        0x0f, 0x01, 0x1d, 0x63, 0x00, 0x10, 0x00, // lidt [nothing]
        0xcc,                         // int3
        b'h', b'e', b'l', b'l', b'o', b'\n',
        0, 0, 0, 0, 0, 0,             // the message's end, and nothing: an empty IDT at 0
    ];
    multiboot_kernel(CODE)
}

/// A Multiboot kernel with nothing but `code`, which is entered at 0x10000c.
pub(crate) fn multiboot_kernel(code: &[u8]) -> Vec<u8> {
    const LOAD_AT: u32 = 0x10_0000;
    const HEADERS_LEN: u32 = 52 + 32;
    const MULTIBOOT: [u32; 3] = [0x1bad_b002, 0, 0u32.wrapping_sub(0x1bad_b002)];
    let mut image: Vec<u8> = MULTIBOOT.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend(code);
    let len = image.len() as u32;
    let entry = LOAD_AT + 12;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    // ELF header: an executable for i386 with one program header and no sections.
    let words = [0x0003_0002, 1, entry, 52, 0, 0, 0x0020_0034, 0x0000_0001, 0];
    file.extend(words.iter().flat_map(|word: &u32| word.to_le_bytes()));
    let segment = [1, HEADERS_LEN, LOAD_AT, LOAD_AT, len, len, 7, 4];
    file.extend(segment.iter().flat_map(|word: &u32| word.to_le_bytes()));
    file.extend(image);
    file
}

/// The same kernel, but it leaves through the debug-exit port as soon as it has said "hello".
pub(crate) fn hello_kernel() -> Vec<u8> {
    let mut file = echo_kernel();
    let to_wait = file.windows(2).position(|bytes| bytes == [0x74, 0x03]).unwrap();
    file[to_wait + 1] = 0x25;
    file
}

pub(crate) fn lockstep(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command.args(args).stdin(Stdio::null());
    command.env_remove("LOCKSTEP_KEY").env_remove("LOCKSTEP_RUN_DIR");
    command
}

/// Runs a command to its end: exit code, standard output, standard error.
pub(crate) fn finish(args: &[&str]) -> (i32, String, String) {
    let mut process = Process::start(lockstep(args));
    let status = process.wait();
    (status.code().unwrap_or(-1), process.output(), process.errors())
}

/// Checks that a command fails with `code` and one line that has all of `words`.
pub(crate) fn check_fails(code: i32, words: &[&str], args: &[&str]) {
    let (found, _, errors) = finish(args);
    let errors: Vec<&str> =
        errors.lines().filter(|line| !line.contains("will hold everything")).collect();
    assert_eq!(found, code, "{args:?}: {errors:?}");
    let line = errors.iter().find(|line| line.starts_with("lockstep: error: "));
    let line = line.unwrap_or_else(|| panic!("{args:?}: no error line in {errors:?}"));
    for word in words {
        assert!(line.contains(word), "{args:?}: {word:?} is not in {line:?}");
    }
    assert!(!errors.concat().contains("panicked"), "{args:?}: {errors:?}");
}

/// A process that is killed when the test is over.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Mutex<Vec<u8>>>,
    errors: Arc<Mutex<Vec<u8>>>,
    collectors: Vec<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn start(mut command: Command) -> Process {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Process::of(child)
    }

    pub(crate) fn of(mut child: Child) -> Process {
        let (output, errors) = (Arc::default(), Arc::default());
        let collectors = vec![
            collect(child.stdout.take().unwrap(), &output),
            collect(child.stderr.take().unwrap(), &errors),
        ];
        let stdin = child.stdin.take();
        Process { child, stdin, output, errors, collectors }
    }

    pub(crate) fn with_stdin(args: &[&str]) -> Process {
        let mut command = lockstep(args);
        command.stdin(Stdio::piped());
        Process::start(command)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn type_bytes(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes).unwrap();
        stdin.flush().unwrap();
    }

    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    pub(crate) fn errors(&self) -> String {
        String::from_utf8_lossy(&self.errors.lock().unwrap()).into_owned()
    }

    pub(crate) fn wait_for_output(&mut self, text: &str) {
        wait_until(&format!("{text:?} in the output"), || {
            assert!(self.is_running() || self.output().contains(text), "{}", self.report());
            self.output().contains(text)
        });
    }

    pub(crate) fn wait_for_errors(&mut self, text: &str) {
        wait_until(&format!("{text:?} among the errors"), || {
            assert!(self.is_running() || self.errors().contains(text), "{}", self.report());
            self.errors().contains(text)
        });
    }

    fn report(&self) -> String {
        format!("the process ended\n{}\n{}", self.output(), self.errors())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status =
            Command::new("kill").args(["-s", signal, &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // What it wrote last may still be on its way through the pipes.
                self.collectors.drain(..).for_each(|collector| collector.join().unwrap());
                return status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("the process does not end\n{}\n{}", self.output(), self.errors());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, to: &Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    let to = to.clone();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut bytes) {
            to.lock().unwrap().extend(&bytes[..len]);
        }
    })
}

pub(crate) fn wait_until(what: &str, done: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, done);
}

/// The same for what may take longer than [`PATIENCE`].
pub(crate) fn wait_within(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// An address of this host at which nobody listens at the moment.
pub(crate) fn free_addr() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Makes a sparse file.
pub(crate) fn sparse(path: &str, len: u64) {
    File::create(Path::new(path)).unwrap().set_len(len).unwrap();
}
