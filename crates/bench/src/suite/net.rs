//! Servers in the guest and clients on the host: Redis and iperf3 over a TAP device.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use engines::EngineKind;
use serde_json::{Value, json};
use testbed::pair::{Pair, PairConfig, wait_for_redis};
use testbed::{GUEST_ADDR, Host, Lab};

use super::marks::Mark;
use super::session::{Session, cpu_s_of};
use super::subjects::{NativeDisk, Net, Stage, Subject};
use super::{SuiteArgs, table};
use crate::ft::beside_replays;
use crate::site::{Site, text};
use crate::stats::median;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Server {
    /// A subject, on a TAP device.
    Alone(Subject),
    /// A guest on a host of the lab: what a protected one is to be compared with.
    Unprotected,
    /// The same while a recording is replayed on another host, as a backup executes there.
    Beside,
    /// A guest on that host with a backup on another.
    Protected,
}

impl Server {
    fn is_qemu(self) -> bool {
        matches!(self, Server::Alone(subject) if subject.is_qemu())
    }

    fn name(self) -> &'static str {
        match self {
            Server::Alone(subject) => subject.name(),
            Server::Unprotected => "on a host of the lab",
            Server::Beside => "the same beside a replay",
            Server::Protected => "protected",
        }
    }
}

/// What one server did in one round.
#[derive(Clone, Copy, Debug)]
struct Rates {
    /// Redis: as many GET as SET.
    requests_per_s: f64,
    /// The same by CPU time of the process that runs the guest; none natively.
    requests_per_cpu_s: Option<f64>,
    /// iperf3, in Gbit/s.
    into_gbit: f64,
    out_gbit: f64,
}

/// The guest's end of the network on this host.
const TAP: &str = "suite-tap";
const CONNECTIONS: u32 = 20;
/// Requests of each kind by which the speed is guessed, so that the measurement takes about as long as it should.
const TRIAL_REQUESTS: u32 = 2000;
const MEASURE_S: f64 = 5.0;
const BOOT_MAX: Duration = Duration::from_secs(120);
/// In the order in which they take turns.
const SERVERS: [Server; 8] = [
    Server::Alone(Subject::Native),
    Server::Alone(Subject::Unrecorded),
    Server::Alone(Subject::Recording),
    Server::Unprotected,
    Server::Beside,
    Server::Protected,
    Server::Alone(Subject::Qemu),
    Server::Alone(Subject::QemuRecording),
];
const SERVE: &str = "suite-serve";

/// In rounds; `machine` describes this host.
pub(crate) fn measure(
    lab: &Lab,
    site: &Site,
    args: &SuiteArgs,
    engine: EngineKind,
    machine: &str,
) -> Result<Value> {
    let qemu = args.qemu();
    let stage = args.stage(site, "net", engine)?;
    let bench = NetBench { lab, site, stage, engine, run_flags: args.run_flags.clone() };
    bench.make_tap()?;
    let servers: Vec<Server> =
        SERVERS.into_iter().filter(|server| qemu.is_some() || !server.is_qemu()).collect();
    let mut rates: BTreeMap<Server, Vec<Rates>> = BTreeMap::new();
    for round in 1..=args.rounds {
        let is_turn = |server: &&Server| args.is_turn(server.is_qemu(), round);
        for server in servers.iter().filter(is_turn) {
            eprintln!("net: round {round} of {}, {}", args.rounds, server.name());
            let found = match server {
                Server::Alone(Subject::Native) => bench.native(),
                Server::Alone(subject) => bench.guest(*subject),
                Server::Unprotected => bench.unprotected(),
                Server::Beside => bench.beside_a_replay(),
                Server::Protected => bench.protected(round),
            };
            let found = found.with_context(|| format!("cannot measure {}", server.name()))?;
            rates.entry(*server).or_default().push(found);
        }
    }
    let medians: Vec<(Server, Rates)> =
        servers.iter().map(|server| (*server, medians(&rates[server]))).collect();
    let text = net_table(&medians);
    println!(
        "\nServers in the guest, clients on the host, median of {} rounds\n\n{text}",
        args.rounds
    );
    let with = qemu.as_ref().map_or("without QEMU".to_owned(), |version| format!("QEMU {version}"));
    let head = format!("{machine}; {with}; median of {}.", args.rounds_text());
    args.write_report("net", &format!("{head}\n\n{text}"))?;
    let each = medians.iter().map(|(server, rates)| (server.name(), rates.to_json()));
    Ok(json!({ "qemu": qemu, "servers": each.collect::<Value>() }))
}

struct NetBench<'a> {
    lab: &'a Lab,
    site: &'a Site,
    stage: Stage,
    engine: EngineKind,
    run_flags: Vec<String>,
}

impl NetBench<'_> {
    fn make_tap(&self) -> Result<()> {
        run_ip(&format!("tuntap add dev {TAP} mode tap"))?;
        run_ip(&format!("link set {TAP} addrgenmode none"))?;
        run_ip(&format!("link set {TAP} master lan up"))
    }

    /// The image's servers on a host of the lab, without a guest.
    fn native(&self) -> Result<Rates> {
        let (host, interface) = (Host::B, self.lab.guest_interface());
        let ip = |what: &str| {
            let mut command = self.lab.command(host, "ip");
            let what = format!("addr {what} {GUEST_ADDR}/24 dev {interface}");
            succeed(command.args(what.split(' ')))
        };
        ip("add")?;
        let command = self.stage.native(self.lab.command(host, "env"), SERVE, NativeDisk::Shared);
        let mut session = Session::start("native", command)?;
        session.wait_for(&Mark::Serving)?;
        let rates = self.clients(None);
        drop(session);
        ip("del")?;
        rates
    }

    fn guest(&self, subject: Subject) -> Result<Rates> {
        let start = self.stage.start_with_network(SERVE, Net::Tap(TAP));
        self.served(subject.name(), self.stage.guest(subject, &start)?)
    }

    fn unprotected(&self) -> Result<Rates> {
        let net = Net::Packet(self.lab.guest_interface());
        let start = self.stage.start_with_network(SERVE, net);
        let guest = self.stage.guest(Subject::Unrecorded, &start)?;
        let mut command = self.lab.command(Host::A, "env");
        command.arg(guest.get_program()).args(guest.get_args());
        self.served(Server::Unprotected.name(), command)
    }

    /// The same while what was recorded in this round is replayed.
    fn beside_a_replay(&self) -> Result<Rates> {
        let recording = self.stage.recording();
        beside_replays(self.lab, self.site, &recording, || self.unprotected())
    }

    fn served(&self, name: &str, command: Command) -> Result<Rates> {
        let mut session = Session::start(name, command)?;
        session.wait_for(&Mark::Serving)?;
        self.clients(Some(session.pid()))
    }

    /// A pair, on hosts of the lab. Only its primary's CPU time counts.
    fn protected(&self, round: u32) -> Result<Rates> {
        let start = self.stage.start(SERVE);
        let mut pair = Pair::start(
            self.lab,
            PairConfig {
                lockstep: self.site.lockstep.clone(),
                image: self.stage.image().to_owned(),
                work: self.site.folder(&format!("net-{round}"))?,
                detection_ms: self.site.detection_ms,
                append: Some(start.append),
                run_flags: self.run_flags.clone(),
                detours: Default::default(),
                engines: Some([self.engine; 2]),
            },
        )
        .map_err(text)?;
        wait_for_redis(BOOT_MAX).map_err(text)?;
        let rates = self.clients(Some(pair.side(Host::A).pid()))?;
        pair.side(Host::A).kill();
        Ok(rates)
    }

    /// What clients get out of the servers, and what it costs the process `server`.
    fn clients(&self, server: Option<u32>) -> Result<Rates> {
        let trial = self.redis(TRIAL_REQUESTS)?;
        let count = (trial * MEASURE_S / 2.0).clamp(f64::from(TRIAL_REQUESTS), 1e7) as u32;
        let before = server.map(cpu_s_of).transpose()?;
        let requests_per_s = self.redis(count)?;
        let after = server.map(cpu_s_of).transpose()?;
        let requests = 2.0 * f64::from(count);
        Ok(Rates {
            requests_per_s,
            requests_per_cpu_s: before
                .zip(after)
                .map(|(before, after)| requests / (after - before)),
            into_gbit: self.iperf("")?,
            out_gbit: self.iperf("--reverse")?,
        })
    }

    /// Requests per second, over so many GET and as many SET.
    fn redis(&self, count: u32) -> Result<f64> {
        let order =
            format!("redis-benchmark -h {GUEST_ADDR} -c {CONNECTIONS} -n {count} -t get,set --csv");
        let output = self.client(&order)?;
        requests_per_s(&output).with_context(|| format!("{order} wrote:\n{output}"))
    }

    fn iperf(&self, flag: &str) -> Result<f64> {
        let order = format!("iperf3 -c {GUEST_ADDR} -t {MEASURE_S} --json {flag}");
        let output = self.client(&order)?;
        let bits =
            received_bits_per_s(&output).with_context(|| format!("{order} wrote:\n{output}"))?;
        Ok(bits / 1e9)
    }

    /// What a program of the image writes, run on this host.
    fn client(&self, order: &str) -> Result<String> {
        let mut command = self.stage.native(Command::new("env"), order, NativeDisk::Shared);
        let output = command.output().with_context(|| format!("cannot run {order}"))?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("{order}: {}:\n{}", output.status, String::from_utf8_lossy(&said));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn run_ip(args: &str) -> Result<()> {
    succeed(Command::new("ip").args(args.split(' ')))
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// From `redis-benchmark --csv`: equally many requests of each kind, so the rate is that of the mean time.
fn requests_per_s(csv: &str) -> Option<f64> {
    let mut lines = csv.lines().map(|line| line.split(',').map(|field| field.trim_matches('"')));
    let column = lines.next()?.position(|field| field == "rps")?;
    let rates = lines.map(|mut fields| fields.nth(column)?.parse::<f64>().ok());
    let rates = rates.collect::<Option<Vec<f64>>>()?;
    let time: f64 = rates.iter().map(|rate| 1.0 / rate).sum();
    (!rates.is_empty()).then(|| rates.len() as f64 / time)
}

/// From `iperf3 --json`.
fn received_bits_per_s(text: &str) -> Option<f64> {
    let found: Value = serde_json::from_str(text).ok()?;
    found["end"]["sum_received"]["bits_per_second"].as_f64()
}

fn medians(rounds: &[Rates]) -> Rates {
    let of = |what: fn(&Rates) -> f64| median(&rounds.iter().map(what).collect::<Vec<f64>>());
    let by_cpu: Vec<f64> = rounds.iter().filter_map(|rates| rates.requests_per_cpu_s).collect();
    Rates {
        requests_per_s: of(|rates| rates.requests_per_s),
        requests_per_cpu_s: (!by_cpu.is_empty()).then(|| median(&by_cpu)),
        into_gbit: of(|rates| rates.into_gbit),
        out_gbit: of(|rates| rates.out_gbit),
    }
}

impl Rates {
    fn to_json(self) -> Value {
        json!({
            "requests_per_second": self.requests_per_s,
            "requests_per_cpu_second": self.requests_per_cpu_s,
            "gbit_into_guest": self.into_gbit,
            "gbit_out_of_guest": self.out_gbit,
        })
    }
}

fn net_table(rates: &[(Server, Rates)]) -> String {
    let mut text = String::from(
        "| server | Redis requests/s | by CPU second | iperf3 into it, Gbit/s | out of it |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for (server, rates) in rates {
        let by_cpu = table::cell(rates.requests_per_cpu_s, 0);
        let _ = writeln!(
            text,
            "| {} | {:.0} | {by_cpu} | {:.2} | {:.2} |",
            server.name(),
            rates.requests_per_s,
            rates.into_gbit,
            rates.out_gbit,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_two_kinds_is_that_of_their_mean_time() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"10000.00\",\"0.1\"\n\
             \"GET\",\"30000.00\",\"0.1\"\n";
        assert!((requests_per_s(csv).unwrap() - 15000.0).abs() < 1e-6);
    }

    #[test]
    fn output_without_rates_has_none() {
        let head = "\"test\",\"rps\"\n";
        for csv in ["", "Error: Connection refused\n", head, &format!("{head}\"SET\",\"x\"\n")] {
            assert_eq!(requests_per_s(csv), None, "{csv}");
        }
        assert_eq!(received_bits_per_s("{\"error\":\"unable to connect\"}"), None);
    }

    #[test]
    fn iperf_is_read_where_bytes_arrived() {
        let json = "{\"end\":{\"sum_sent\":{\"bits_per_second\":2e9},\
             \"sum_received\":{\"bits_per_second\":1.5e9}}}";
        assert_eq!(received_bits_per_s(json), Some(1.5e9));
    }

    #[test]
    fn a_table_shows_medians_by_server() {
        let round = |requests_per_s, requests_per_cpu_s| Rates {
            requests_per_s,
            requests_per_cpu_s,
            into_gbit: 2.0,
            out_gbit: 1.0,
        };
        let rounds = [round(10.0, Some(5.0)), round(30.0, Some(9.0)), round(20.0, Some(7.0))];
        let native = medians(&[round(99.0, None)]);
        let table = net_table(&[
            (Server::Alone(Subject::Native), native),
            (Server::Protected, medians(&rounds)),
        ]);
        assert!(table.contains("\n| native | 99 | - | 2.00 | 1.00 |\n"), "{table}");
        assert!(table.ends_with("| protected | 20 | 7 | 2.00 | 1.00 |\n"), "{table}");
    }
}
