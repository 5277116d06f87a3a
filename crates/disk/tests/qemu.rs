//! Our server with QEMU's client, our client with QEMU's server, and QEMU's opinion of our qcow2.

mod common;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use base::SeededRng;
use common::{Client, LONG, OneDisk, Running, qemu, qemu_ok};
use disk::{Backend, Extent, Op, RequestId};

#[test]
fn qemu_io_reads_what_qemu_io_wrote() {
    let disk = OneDisk::start();
    let url = disk.url();
    let run = |commands: &[&str]| {
        let mut args = vec!["-f", "raw", &url];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        qemu_ok("qemu-io", &args)
    };
    run(&["write -P 0xa5 0 1M", "write -f -P 0x5a 513 700", "flush", "write -z -u 64k 128k"]);
    run(&["read -P 0xa5 0 512", "read -P 0x5a 513 700", "read -P 0 64k 128k"]);
    run(&[
        "write -z 4k 4k",
        "discard 1M 1M",
        "read -P 0 4k 4k",
        "aio_write -P 7 2M 2M",
        "aio_flush",
    ]);
    run(&["read -P 7 2M 2M", "read -P 7 3M 512"]);
    let image = std::fs::read(&disk.image).unwrap();
    assert!(image[2 << 20..].iter().all(|byte| *byte == 7));
}

#[test]
fn qemu_img_lists_sizes_and_copies() {
    let disk = OneDisk::start();
    let url = disk.url();
    let info = qemu_ok("qemu-img", &["info", "--output=json", &url]);
    assert!(info.contains(&format!("\"virtual-size\": {}", common::DISK_SIZE)), "{info}");
    let mut content = vec![0; common::DISK_SIZE as usize];
    SeededRng::new(3).fill(&mut content[1 << 20..2 << 20]);
    let source = disk.dir.path().join("source.img");
    std::fs::write(&source, &content).unwrap();
    let source = source.to_str().unwrap();
    qemu_ok("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source, &url]);
    qemu_ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &url]);
    let list = qemu_ok("qemu-nbd", &["--list", "-p", &disk.server.address.port().to_string()]);
    assert!(list.contains("exports available: 1") && list.contains("'disk'"), "{list}");
}

#[test]
fn an_export_that_is_not_there_is_named() {
    let disk = OneDisk::start();
    let output = qemu("qemu-img", &["info", &disk.server.url("nowhere")]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("there is no export"), "{said}");
}

#[test]
fn a_read_only_export_is_read_only_to_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    std::fs::write(&image, [1; 4096]).unwrap();
    let exports = [format!("a={},ro", image.display()), format!("b={},ro", image.display())];
    let server = Running::start(&dir.path().join("state"), &exports);
    let output = qemu("qemu-io", &["-f", "raw", &server.url("a"), "-c", "write 0 512"]);
    assert!(!output.status.success());
    for export in ["a", "b"] {
        let url = server.url(export);
        qemu_ok("qemu-io", &["-r", "-f", "raw", &url, "-c", "read -P 1 0 4k"]);
    }
}

/// Once a VM has shown a stamp, clients without one may look but not touch.
#[test]
fn a_plain_client_reads_a_stamped_export_and_cannot_write() {
    let disk = OneDisk::start();
    let url = disk.url();
    qemu_ok("qemu-io", &["-f", "raw", &url, "-c", "write -P 1 0 4k"]);
    let vm = Client::connect(&url, Some(common::badge(1))).unwrap();
    vm.write(0, &[2; 4096]).unwrap();
    let refused = qemu("qemu-io", &["-f", "raw", &url, "-c", "write -P 3 0 4k"]);
    assert!(!refused.status.success());
    qemu_ok("qemu-io", &["-r", "-f", "raw", &url, "-c", "read -P 2 0 4k"]);
    assert_eq!(vm.read(0, 4096), [2; 4096]);
}

#[test]
fn qemu_finds_no_fault_in_a_qcow2_image_that_we_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.img");
    let mut model = vec![0; 8 << 20];
    let mut rng = SeededRng::new(11);
    rng.fill(&mut model[..1 << 20]);
    std::fs::write(&base, &model).unwrap();
    let image = dir.path().join("disk.qcow2");
    let path = image.to_str().unwrap();
    // A backing file whose name is relative to the image.
    qemu_ok("qemu-img", &["create", "-f", "qcow2", "-b", "base.img", "-F", "raw", path]);

    let server = Running::start(&dir.path().join("state"), &[format!("disk={path}")]);
    let client = Client::connect(&server.url("disk"), None).unwrap();
    for _ in 0..200 {
        let offset = rng.below(model.len() as u64 / 512) * 512;
        let len = (1 + rng.below(200)) * 512;
        let len = len.min(model.len() as u64 - offset);
        let part = &mut model[offset as usize..(offset + len) as usize];
        let extent = Extent { offset, len };
        match rng.below(4) {
            0 => {
                part.fill(0);
                client.perform(Op::WriteZeroes { extent, may_free: rng.one_in(2) }).unwrap();
            }
            1 => assert!(client.read(offset, len) == part, "{extent:?}"),
            _ => {
                rng.fill(part);
                client.write(offset, part).unwrap();
            }
        }
    }
    client.perform(Op::Flush).unwrap();
    // As after a power failure: what was flushed is in the file while the server still runs.
    qemu_ok("qemu-img", &["check", "-U", path]);
    drop(client);
    drop(server);
    qemu_ok("qemu-img", &["check", path]);
    let raw = dir.path().join("out.img");
    qemu_ok("qemu-img", &["convert", "-O", "raw", path, raw.to_str().unwrap()]);
    assert!(std::fs::read(raw).unwrap() == model);
}

/// QEMU's server on a port of its own choice is not to be had, so one is looked for.
struct QemuNbd(Child, String);

impl QemuNbd {
    fn start(args: &[&str]) -> QemuNbd {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port_arg = port.to_string();
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--shared=4", "-b", "127.0.0.1", "-x", "disk", "-p", &port_arg])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("qemu-nbd (Debian package qemu-utils)");
        let url = format!("nbd://127.0.0.1:{port}/disk");
        let started = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < LONG, "qemu-nbd does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        QemuNbd(child, url)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait(); // as above
    }
}

fn qcow2(dir: &std::path::Path) -> String {
    let path = dir.join("disk.qcow2").to_str().unwrap().to_owned();
    qemu_ok("qemu-img", &["create", "-f", "qcow2", &path, "4M"]);
    path
}

#[test]
fn our_client_works_against_qemu_nbd() {
    let dir = tempfile::tempdir().unwrap();
    let server = QemuNbd::start(&["-f", "qcow2", &qcow2(dir.path())]);
    let client = Client::connect(&server.1, None).unwrap();
    let info = client.disk.info();
    assert!(info.size == 4 << 20 && info.zeroes_and_trim && info.flush && !info.read_only);
    // Many at once, and large ones.
    for id in 0..256 {
        let data = vec![id as u8 ^ 0x55; 8192];
        client.disk.submit(RequestId(id), Op::Write { offset: id * 8192, data, durable: id == 7 });
    }
    let done = (0..256).filter(|_| client.next_done().is_ok()).count();
    assert_eq!(done, 256);
    client.perform(Op::Flush).unwrap();
    let all = client.read(0, 2 << 20);
    assert!(all.chunks(8192).enumerate().all(|(id, data)| data == [id as u8 ^ 0x55; 8192]));
    let extent = Extent { offset: 4096, len: 8192 };
    client.perform(Op::WriteZeroes { extent, may_free: false }).unwrap();
    client.perform(Op::Trim(Extent { offset: 1 << 20, len: 1 << 20 })).unwrap();
    assert_eq!(client.read(4096, 8192), [0; 8192]);
    assert!(client.perform(Op::Read(Extent { offset: 4 << 20, len: 512 })).is_err());
}

#[test]
fn a_server_without_fencing_is_refused_to_a_stamped_client_and_fenced_by_our_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let behind = QemuNbd::start(&["-f", "qcow2", &qcow2(dir.path())]);
    let error = Client::connect(&behind.1, Some(common::badge(1))).err().unwrap();
    assert!(matches!(error, disk::client::DialError::NoFencing { .. }), "{error}");

    let proxy = Running::start(&dir.path().join("state"), &[format!("disk={}", behind.1)]);
    let url = proxy.url("disk");
    let old = Client::connect(&url, Some(common::badge(1))).unwrap();
    old.write(0, &[1; 4096]).unwrap();
    let new = Client::connect(&url, Some(common::badge(2))).unwrap();
    assert!(old.write(0, &[3; 4096]).is_err());
    new.write(4096, &[2; 4096]).unwrap();
    new.perform(Op::WriteZeroes { extent: Extent { offset: 8192, len: 4096 }, may_free: true })
        .unwrap();
    new.perform(Op::Flush).unwrap();
    assert_eq!(new.read(0, 4096), [1; 4096]);
    qemu_ok("qemu-io", &["-r", "-f", "raw", &url, "-c", "read -P 2 4k 4k"]);
}
