//! Clients that know what every answer has to be.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base::SeededRng;
use redis::{Commands, ConnectionLike};

/// How long a client waits for an answer before it calls the connection dead. A failover takes a
/// second or two; TCP needs a few retransmissions on top.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What a client saw.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Answers that were right.
    pub answers: u64,
    /// The longest wait for one.
    pub longest_wait: Duration,
    /// Everything that was wrong: wrong answers, resets, time-outs.
    pub faults: Vec<String>,
}

impl Report {
    /// Adds what another client saw.
    pub fn merge(&mut self, other: Report) {
        self.answers += other.answers;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.faults.extend(other.faults);
    }
}

/// Clients that run until they are stopped.
#[derive(Debug)]
pub struct Clients {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    /// The longest wait since it was last asked for, in nanoseconds.
    recent_wait_ns: Arc<AtomicU64>,
    /// A client has seen a fault and ended.
    failed: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Report>>,
    /// Every write that was acknowledged, by key.
    acknowledged: Arc<Mutex<BTreeMap<String, String>>>,
    addr: SocketAddrV4,
}

impl Clients {
    /// Opens `count` connections to the redis server of a guest and starts to use them. Each owns its
    /// keys, so it knows what every answer must be; its choices follow from `seed`.
    ///
    /// # Errors
    /// If a connection cannot be opened.
    pub fn redis(guest: Ipv4Addr, count: u64, seed: u64) -> Result<Clients, redis::RedisError> {
        let addr = SocketAddrV4::new(guest, 6379);
        let mut clients = Clients::new(addr);
        for index in 0..count {
            let connection = connect(addr)?;
            let mut client = RedisClient {
                connection,
                prefix: format!("{seed}:{index}"),
                rng: SeededRng::new(seed.wrapping_mul(1000).wrapping_add(index)),
                model: BTreeMap::new(),
                counter: 0,
                acknowledged: Arc::clone(&clients.acknowledged),
            };
            clients.spawn(move || client.step());
        }
        Ok(clients)
    }

    fn new(addr: SocketAddrV4) -> Clients {
        Clients {
            stop: Arc::default(),
            answers: Arc::default(),
            recent_wait_ns: Arc::default(),
            failed: Arc::default(),
            threads: Vec::new(),
            acknowledged: Arc::default(),
            addr,
        }
    }

    /// A client that repeats `step` until it is stopped or sees a fault.
    fn spawn(&mut self, mut step: impl FnMut() -> Result<(), String> + Send + 'static) {
        let (stop, answers) = (Arc::clone(&self.stop), Arc::clone(&self.answers));
        let (recent, failed) = (Arc::clone(&self.recent_wait_ns), Arc::clone(&self.failed));
        self.threads.push(thread::spawn(move || {
            let report = drive(&stop, &answers, &recent, &mut step);
            failed.fetch_or(!report.faults.is_empty(), Ordering::Relaxed);
            report
        }));
    }

    /// Opens one TCP connection to an echo service and sends bytes that follow from `seed`,
    /// comparing each byte that comes back.
    ///
    /// # Errors
    /// If the connection cannot be opened.
    pub fn echo(guest: Ipv4Addr, port: u16, seed: u64) -> std::io::Result<Clients> {
        let addr = SocketAddrV4::new(guest, port);
        let mut stream = TcpStream::connect_timeout(&addr.into(), ANSWER_TIMEOUT)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let mut rng = SeededRng::new(seed);
        let mut clients = Clients::new(addr);
        clients.spawn(move || echo_once(&mut stream, &mut rng));
        Ok(clients)
    }

    /// How many right answers came so far, on all connections.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Waits until `count` more right answers came.
    ///
    /// # Errors
    /// If they do not come in time.
    pub fn wait_for_answers(&self, count: u64, timeout: Duration) -> Result<(), String> {
        let (target, deadline) = (self.answers() + count, Instant::now() + timeout);
        while self.answers() < target {
            if self.failed.load(Ordering::Relaxed) {
                return Err("a client saw a fault".to_owned());
            }
            if Instant::now() > deadline {
                let missing = target - self.answers();
                return Err(format!("{missing} of {count} answers did not come in {timeout:?}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The longest wait for an answer that came since this was last asked.
    #[must_use]
    pub fn take_longest_wait(&self) -> Duration {
        Duration::from_nanos(self.recent_wait_ns.swap(0, Ordering::Relaxed))
    }

    /// Stops, and reads every acknowledged write back over a fresh connection.
    ///
    /// # Panics
    /// If a client's thread panicked.
    #[must_use]
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        for thread in self.threads {
            report.merge(thread.join().expect("a client does not panic"));
        }
        let acknowledged = std::mem::take(&mut *self.acknowledged.lock().expect("nobody panics"));
        if !acknowledged.is_empty()
            && let Err(fault) = read_back(self.addr, &acknowledged)
        {
            report.faults.push(fault);
        }
        report
    }
}

/// Repeats `step` until `stop` or a fault.
fn drive(
    stop: &AtomicBool,
    answers: &AtomicU64,
    recent_wait_ns: &AtomicU64,
    step: &mut dyn FnMut() -> Result<(), String>,
) -> Report {
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        if let Err(fault) = step() {
            report.faults.push(format!("after {:?}: {fault}", start.elapsed()));
            return report;
        }
        let waited = start.elapsed();
        recent_wait_ns.fetch_max(waited.as_nanos() as u64, Ordering::Relaxed);
        report.longest_wait = report.longest_wait.max(waited);
        report.answers += 1;
        answers.fetch_add(1, Ordering::Relaxed);
    }
    report
}

struct RedisClient {
    connection: redis::Connection,
    prefix: String,
    rng: SeededRng,
    /// What the server holds of this client's keys.
    model: BTreeMap<String, String>,
    counter: u64,
    acknowledged: Arc<Mutex<BTreeMap<String, String>>>,
}

/// Keys that one client uses for SET and GET.
const KEYS_PER_CLIENT: u64 = 50;
/// Longest value, in bytes.
const VALUE_LEN_MAX: u64 = 2000;

impl RedisClient {
    fn step(&mut self) -> Result<(), String> {
        match self.rng.below(4) {
            0 => self.increment(),
            1 | 2 => self.set(),
            _ => self.get(),
        }
    }

    /// A counter tells a lost write from a repeated one: each answer is one more than the last.
    fn increment(&mut self) -> Result<(), String> {
        let key = format!("{}:counter", self.prefix);
        let value: u64 = self.connection.incr(&key, 1).map_err(|error| error.to_string())?;
        self.counter += 1;
        if value != self.counter {
            return Err(format!("{key} became {value}, expected {}", self.counter));
        }
        self.acknowledge(key, value.to_string());
        Ok(())
    }

    fn set(&mut self) -> Result<(), String> {
        let key = format!("{}:{}", self.prefix, self.rng.below(KEYS_PER_CLIENT));
        let len = self.rng.below(VALUE_LEN_MAX) as usize;
        let value: String = (0..len).map(|_| (b'a' + self.rng.below(26) as u8) as char).collect();
        let () = self.connection.set(&key, &value).map_err(|error| error.to_string())?;
        self.model.insert(key.clone(), value.clone());
        self.acknowledge(key, value);
        Ok(())
    }

    fn get(&mut self) -> Result<(), String> {
        let key = format!("{}:{}", self.prefix, self.rng.below(KEYS_PER_CLIENT));
        let value: Option<String> = self.connection.get(&key).map_err(|error| error.to_string())?;
        if value.as_ref() != self.model.get(&key) {
            return Err(format!("{key} reads {value:?}, expected {:?}", self.model.get(&key)));
        }
        Ok(())
    }

    fn acknowledge(&self, key: String, value: String) {
        self.acknowledged.lock().expect("nobody panics while holding it").insert(key, value);
    }
}

fn connect(addr: SocketAddrV4) -> Result<redis::Connection, redis::RedisError> {
    let client = redis::Client::open(format!("redis://{addr}/"))?;
    let connection = client.get_connection_with_timeout(ANSWER_TIMEOUT)?;
    connection.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    connection.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(connection)
}

fn read_back(addr: SocketAddrV4, expected: &BTreeMap<String, String>) -> Result<(), String> {
    let mut connection = connect(addr).map_err(|error| format!("reading back: {error}"))?;
    for (key, value) in expected {
        let found: Option<String> =
            connection.get(key).map_err(|error| format!("reading {key} back: {error}"))?;
        if found.as_ref() != Some(value) {
            return Err(format!("acknowledged write lost: {key} reads {found:?}, not {value:?}"));
        }
    }
    debug_assert!(connection.is_open());
    Ok(())
}

/// Bytes that one exchange with the echo service carries at most.
const ECHO_LEN_MAX: u64 = 16 << 10;

fn echo_once(stream: &mut TcpStream, rng: &mut SeededRng) -> Result<(), String> {
    let mut sent = vec![0; 1 + rng.below(ECHO_LEN_MAX) as usize];
    rng.fill(&mut sent);
    stream.write_all(&sent).map_err(|error| format!("writing the stream: {error}"))?;
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).map_err(|error| format!("reading the stream: {error}"))?;
    match sent.iter().zip(&received).position(|(sent, received)| sent != received) {
        None => Ok(()),
        Some(at) => Err(format!("the stream differs at byte {at} of {}", sent.len())),
    }
}
