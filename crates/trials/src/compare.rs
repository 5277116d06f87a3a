//! Both engines run one busy server and are compared all the time.
//!
//! The load is what servers have, from a client's side: on the `redis` image Redis with every write on its
//! disk before the answer, and a byte stream; on the `workbench` image beside that nginx under wrk, files
//! fetched and checked, and logins by ssh that compile, compute, query databases and compress. Every answer
//! is checked. The guest's network is a tap of host A.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base::SeededRng;
use serde_json::Value;
use testbed::clients::Clients;
use testbed::pair::{ImageSettings, PairConfig, wait_for_redis};
use testbed::{GUEST_ADDR, Host, Lab, Process};

/// Two engines on a busy host take their time.
const BOOT_TIMEOUT: Duration = Duration::from_secs(3600);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// On a busy host the guest is slow by its own clock, on which systemd's patience would run out.
const PATIENT: &str = "systemd.default_timeout_start_sec=3600 systemd.service_watchdogs=0";
const CONNECTIONS: u64 = 3;
const ECHO_PORT: u16 = 7;
const POLL: Duration = Duration::from_millis(200);
/// One run of wrk, in seconds.
const WRK_S: u64 = 10;
/// Numbers in the file that is fetched.
const FILE_NUMBERS: u64 = 50_000;

/// What serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Server {
    /// Redis and a byte stream.
    Redis,
    /// Debian under systemd: ssh, nginx, Redis, a compiler, interpreters, databases.
    Workbench,
}

impl Server {
    pub(crate) fn image(self) -> &'static str {
        match self {
            Server::Redis => "redis",
            Server::Workbench => "workbench",
        }
    }
}

pub(crate) fn run(
    lab: &Lab,
    config: &PairConfig,
    server: Server,
    (seconds, seed): (u64, u64),
) -> Result<()> {
    let summary = config.work.join("summary");
    let mut vm = power_on(lab, config, &summary)?;
    let began = Instant::now();
    let answers = match server {
        Server::Redis => serve_redis(&mut vm, seconds, seed)?,
        Server::Workbench => serve_all(&mut vm, config, seconds, seed)?,
    };
    eprintln!("{answers} answers, all right, {:.0} s", began.elapsed().as_secs_f64());
    vm.signal(nix::sys::signal::Signal::SIGTERM)?;
    let status = vm.wait(ANSWER_TIMEOUT).map_err(anyhow::Error::msg)?;
    ensure!(status.success(), "the VM ended with {status}:\n{}", vm.output());
    let bytes = fs::read(&summary).context("no summary")?;
    let summary: Value = serde_json::from_slice(&bytes)?;
    let compared = summary["engines_compared"].as_u64().unwrap_or(0);
    ensure!(compared > 0, "nothing was compared: {summary}");
    println!(
        "both engines equal at {compared} comparisons over {} instructions in {:.0} s, {seconds} s of them under \
         load, {answers} answers",
        summary["instructions"],
        summary["seconds"].as_f64().unwrap_or(f64::NAN),
    );
    Ok(())
}

fn power_on(lab: &Lab, config: &PairConfig, summary: &Path) -> Result<Process> {
    let settings = ImageSettings::read(&config.image).map_err(anyhow::Error::msg)?;
    let mut command = lab.command(Host::A, config.lockstep.to_str().context("a path of text")?);
    command.arg("run").arg(config.image.join("vm.toml")).args(["--snapshot", "--compare"]);
    command.args(["--append", &format!("{} {PATIENT}", settings.append_with_network())]);
    command.args(["--net", &format!("tap:{}", lab.tap(Host::A)?)]);
    command.arg("--json-to").arg(summary);
    command.env("LOCKSTEP_RUN_DIR", config.work.join("run")).stdin(Stdio::piped());
    Ok(Process::start("compared VM", command)?)
}

fn serve_redis(vm: &mut Process, seconds: u64, seed: u64) -> Result<u64> {
    let msg = anyhow::Error::msg;
    wait_for_redis(BOOT_TIMEOUT).map_err(msg)?;
    let redis = Clients::redis_with_timeout(GUEST_ADDR, CONNECTIONS, seed, ANSWER_TIMEOUT)?;
    let echo = Clients::echo(GUEST_ADDR, ECHO_PORT, seed)?;
    watch(vm, seconds)?;
    let mut report = redis.stop();
    report.merge(echo.stop());
    ensure!(report.faults.is_empty(), "clients saw {:#?}", report.faults);
    Ok(report.answers)
}

/// Lets the load go on; ends early if the VM does.
fn watch(vm: &mut Process, seconds: u64) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        if let Some(status) = vm.poll_end() {
            bail!("the VM ended with {status}:\n{}", vm.output());
        }
        thread::sleep(POLL);
    }
    Ok(())
}

fn serve_all(vm: &mut Process, config: &PairConfig, seconds: u64, seed: u64) -> Result<u64> {
    let msg = anyhow::Error::msg;
    let login = Login::new(config)?;
    login.wait_for_server(vm)?;
    login.expect("systemctl is-system-running --wait", "running\n")?;
    login.expect(
        &format!("seq 1 {FILE_NUMBERS} > /var/www/html/numbers; sync; echo made"),
        "made\n",
    )?;
    let redis = "redis-server --bind 0.0.0.0 --protected-mode no --appendonly yes --daemonize yes";
    login.expect(&format!("cd /tmp && {redis} >/dev/null && echo started"), "started\n")?;
    wait_for_redis(ANSWER_TIMEOUT).map_err(msg)?;

    let redis = Clients::redis_with_timeout(GUEST_ADDR, CONNECTIONS, seed, ANSWER_TIMEOUT)?;
    let stop = AtomicBool::new(false);
    let mut answers = thread::scope(|scope| {
        let loads = [
            scope.spawn(|| repeat(&stop, run_wrk)),
            scope.spawn(|| repeat(&stop, fetch_file)),
            scope.spawn(|| {
                let mut rng = SeededRng::new(seed);
                repeat(&stop, || login.do_a_job(&mut rng).map(|()| 1))
            }),
        ];
        let watched = watch(vm, seconds);
        stop.store(true, Ordering::Relaxed);
        let answers = loads.map(|load| load.join().expect("a load does not panic"));
        // What ended the VM ended the loads too, and says more.
        watched?;
        answers.into_iter().sum::<Result<u64>>()
    })?;
    let report = redis.stop();
    ensure!(report.faults.is_empty(), "clients saw {:#?}", report.faults);
    answers += report.answers;
    Ok(answers)
}

fn repeat(stop: &AtomicBool, mut load: impl FnMut() -> Result<u64>) -> Result<u64> {
    let mut answers = 0;
    while !stop.load(Ordering::Relaxed) {
        answers += load()?;
    }
    Ok(answers)
}

/// Many small requests on a few connections; how many were answered.
fn run_wrk() -> Result<u64> {
    let mut command = Command::new("wrk");
    command.args(["-t", "1", "-c", "8", "-d", &WRK_S.to_string(), "--timeout"]);
    command.args([&ANSWER_TIMEOUT.as_secs().to_string(), &format!("http://{GUEST_ADDR}/")]);
    let output = command.output().context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_good = output.status.success() && !text.contains("Non-2xx") && !text.contains("errors");
    ensure!(is_good, "wrk: {}: {text}", output.status);
    let line = text.lines().find(|line| line.contains("requests in")).unwrap_or_default();
    line.split_whitespace().next().and_then(|count| count.parse().ok()).context("wrk says nothing")
}

/// Fetches the file and checks it.
fn fetch_file() -> Result<u64> {
    let mut stream = TcpStream::connect(SocketAddr::from((GUEST_ADDR, 80)))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(b"GET /numbers HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the file does not come")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let is_right = body.lines().eq((1..=FILE_NUMBERS).map(|number| number.to_string()));
    ensure!(is_right, "the file came otherwise, {} bytes", body.len());
    thread::sleep(POLL);
    Ok(1)
}

/// Logins by ssh, each with a command.
struct Login {
    key: PathBuf,
}

impl Login {
    fn new(config: &PairConfig) -> Result<Login> {
        let key = config.work.join("ssh_key");
        fs::copy(config.image.join("ssh_key"), &key).context("the image has no ssh key")?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        Ok(Login { key })
    }

    fn wait_for_server(&self, vm: &mut Process) -> Result<()> {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        while self.run("true").is_err() {
            if let Some(status) = vm.poll_end() {
                bail!("the VM ended with {status}:\n{}", vm.output());
            }
            ensure!(Instant::now() < deadline, "no login:\n{}", vm.output());
            thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }

    fn run(&self, command: &str) -> Result<String> {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-i"]).arg(&self.key);
        ssh.args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        ssh.args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "ConnectTimeout=60",
        ]);
        ssh.args([&format!("root@{GUEST_ADDR}"), command]).stdin(Stdio::null());
        let output = ssh.output().context("cannot run ssh")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command}: {}: {errors}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn expect(&self, command: &str, answer: &str) -> Result<()> {
        let found = self.run(command)?;
        ensure!(found == answer, "{command}: {found:?} instead of {answer:?}");
        Ok(())
    }

    /// A random job whose result is known.
    fn do_a_job(&self, rng: &mut SeededRng) -> Result<()> {
        let count = 1000 + rng.below(20_000);
        let squares: u64 = (1..=count).map(|number| number * number).sum();
        match rng.below(6) {
            0 => {
                let numbers = format!(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{count})"
                );
                let table = "DROP TABLE IF EXISTS t; CREATE TABLE t(i INTEGER PRIMARY KEY, s)";
                let insert = format!("{numbers} INSERT INTO t SELECT i, i*i FROM n");
                let sql = format!("{table}; {insert}; SELECT sum(s) FROM t WHERE i > 0");
                self.expect(&format!("sqlite3 /root/t.db '{sql}'"), &format!("{squares}\n"))
            }
            1 => {
                let code = format!(
                    "#include <stdio.h>\nint main(void) {{ unsigned long s = 0; \
                     for (unsigned long i = 1; i <= {count}; i++) s += i * i; \
                     printf(\"%lu\\n\", s); return 0; }}\n"
                );
                let build = "cat > /tmp/s.c <<'END' && gcc -O2 -o /tmp/s /tmp/s.c && /tmp/s";
                self.expect(&format!("{build}\n{code}END\n"), &format!("{squares}\n"))
            }
            2 => {
                let sum = (1..=count).fold(0.0, |sum: f64, number| sum + 1.0 / number as f64);
                let code =
                    format!("s = 0.0\nfor i in range(1, {count} + 1): s += 1.0 / i\nprint(s)");
                self.expect(&format!("python3 -c '{code}'"), &format!("{sum}\n"))
            }
            3 => {
                let code = format!("my $s = 0; $s += $_ * $_ for 1..{count}; print \"$s\\n\"");
                self.expect(&format!("perl -e '{code}'"), &format!("{squares}\n"))
            }
            4 => {
                let pack = format!("head -c {} /dev/urandom > r; xz -1 -k -f r", 10 * count);
                self.expect(
                    &format!("cd /tmp; {pack}; xz -d -c r.xz | cmp - r && echo same"),
                    "same\n",
                )
            }
            _ => {
                let pass = "-pbkdf2 -pass pass:x";
                let there =
                    format!("openssl enc -aes-256-ctr {pass} | openssl enc -d -aes-256-ctr {pass}");
                self.expect(&format!("seq 1 {count} | {there} | tail -1"), &format!("{count}\n"))
            }
        }
    }
}
