//! Clients that know what every answer has to be.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
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
    /// From now on a client that gets no answer ends without a fault.
    may_lose_the_server: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Report>>,
    written: Arc<Mutex<Written>>,
    addr: SocketAddrV4,
}

/// What was written, by key.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Every write that was acknowledged.
    acknowledged: BTreeMap<String, String>,
    /// Writes that were sent and not answered: they may have happened or not.
    open: BTreeMap<String, String>,
}

/// Why a client ends.
#[derive(Debug)]
enum Fault {
    /// An answer was wrong.
    Wrong(String),
    /// None came.
    NoAnswer(String),
}

impl From<redis::RedisError> for Fault {
    fn from(error: redis::RedisError) -> Fault {
        match error.is_io_error() || error.is_timeout() || error.is_connection_dropped() {
            true => Fault::NoAnswer(error.to_string()),
            false => Fault::Wrong(error.to_string()),
        }
    }
}

impl Clients {
    /// Opens `count` connections to the redis server of a guest and starts to use them. Each owns its
    /// keys, so it knows what every answer must be; its choices follow from `seed`.
    ///
    /// # Errors
    /// If a connection cannot be opened.
    pub fn redis(guest: Ipv4Addr, count: u64, seed: u64) -> Result<Clients, redis::RedisError> {
        Clients::redis_with_timeout(guest, count, seed, ANSWER_TIMEOUT)
    }

    /// As [`Clients::redis`], and a connection is dead that gives no answer for `timeout`.
    ///
    /// # Errors
    /// If a connection cannot be opened.
    pub fn redis_with_timeout(
        guest: Ipv4Addr,
        count: u64,
        seed: u64,
        timeout: Duration,
    ) -> Result<Clients, redis::RedisError> {
        let addr = SocketAddrV4::new(guest, 6379);
        let mut clients = Clients::new(addr);
        for index in 0..count {
            let connection = connect(addr, timeout)?;
            let mut client = RedisClient {
                connection,
                prefix: format!("{seed}:{index}"),
                rng: SeededRng::new(seed.wrapping_mul(1000).wrapping_add(index)),
                model: BTreeMap::new(),
                counter: 0,
                written: Arc::clone(&clients.written),
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
            may_lose_the_server: Arc::default(),
            threads: Vec::new(),
            written: Arc::default(),
            addr,
        }
    }

    /// A client that repeats `step` until it is stopped or sees a fault.
    fn spawn(&mut self, mut step: impl FnMut() -> Result<(), Fault> + Send + 'static) {
        let (stop, answers) = (Arc::clone(&self.stop), Arc::clone(&self.answers));
        let (recent, failed) = (Arc::clone(&self.recent_wait_ns), Arc::clone(&self.failed));
        let may_lose_the_server = Arc::clone(&self.may_lose_the_server);
        self.threads.push(thread::spawn(move || {
            let mut report = Report::default();
            let fault = drive(&stop, &answers, &recent, &mut step, &mut report);
            match fault {
                None => {}
                Some((_, Fault::NoAnswer(_))) if may_lose_the_server.load(Ordering::Relaxed) => {}
                Some((after, Fault::Wrong(why) | Fault::NoAnswer(why))) => {
                    report.faults.push(format!("after {after:?}: {why}"));
                }
            }
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
        let addr = self.addr;
        let (mut report, written) = self.join();
        if !written.acknowledged.is_empty()
            && let Err(fault) = written.read_back(addr)
        {
            report.faults.push(fault);
        }
        report
    }

    /// To be called before the server is lost for good: from now on a broken connection is no fault.
    pub fn expect_the_loss_of_the_server(&self) {
        self.may_lose_the_server.store(true, Ordering::Relaxed);
    }

    /// Waits for the end of clients whose server was lost. [`Written::read_back`] checks what they wrote,
    /// once the server is back.
    ///
    /// # Panics
    /// If a client's thread panicked.
    #[must_use]
    pub fn join(self) -> (Report, Written) {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        for thread in self.threads {
            report.merge(thread.join().expect("a client does not panic"));
        }
        let written = std::mem::take(&mut *self.written.lock().expect("nobody panics"));
        (report, written)
    }
}

impl Written {
    /// Reads every acknowledged write back from the server at `addr`. The last write to a key, if it was
    /// not answered, may be there in its place. Returns how many keys were read.
    ///
    /// # Errors
    /// With the first that is not there.
    pub fn read_back(&self, addr: SocketAddrV4) -> Result<usize, String> {
        let mut connection =
            connect(addr, ANSWER_TIMEOUT).map_err(|error| format!("reading back: {error}"))?;
        for (key, value) in &self.acknowledged {
            let found: Option<String> =
                connection.get(key).map_err(|error| format!("reading {key} back: {error}"))?;
            if found.as_ref() != Some(value)
                && (found.is_none() || found.as_ref() != self.open.get(key))
            {
                return Err(format!(
                    "acknowledged write lost: {key} reads {found:?}, not {value:?}"
                ));
            }
        }
        debug_assert!(connection.is_open());
        Ok(self.acknowledged.len())
    }
}

/// Repeats `step` until `stop` or a fault, which came after so long.
fn drive(
    stop: &AtomicBool,
    answers: &AtomicU64,
    recent_wait_ns: &AtomicU64,
    step: &mut dyn FnMut() -> Result<(), Fault>,
    report: &mut Report,
) -> Option<(Duration, Fault)> {
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        if let Err(fault) = step() {
            return Some((start.elapsed(), fault));
        }
        let waited = start.elapsed();
        recent_wait_ns.fetch_max(waited.as_nanos() as u64, Ordering::Relaxed);
        report.longest_wait = report.longest_wait.max(waited);
        report.answers += 1;
        answers.fetch_add(1, Ordering::Relaxed);
    }
    None
}

struct RedisClient {
    connection: redis::Connection,
    prefix: String,
    rng: SeededRng,
    /// What the server holds of this client's keys.
    model: BTreeMap<String, String>,
    counter: u64,
    written: Arc<Mutex<Written>>,
}

/// Keys that one client uses for SET and GET.
const KEYS_PER_CLIENT: u64 = 50;
/// Longest value, in bytes.
const VALUE_LEN_MAX: u64 = 2000;

impl RedisClient {
    fn step(&mut self) -> Result<(), Fault> {
        match self.rng.below(4) {
            0 => self.increment(),
            1 | 2 => self.set(),
            _ => self.get(),
        }
    }

    /// A counter tells a lost write from a repeated one: each answer is one more than the last.
    fn increment(&mut self) -> Result<(), Fault> {
        let key = format!("{}:counter", self.prefix);
        self.written().open.insert(key.clone(), (self.counter + 1).to_string());
        let value: u64 = self.connection.incr(&key, 1)?;
        self.counter += 1;
        if value != self.counter {
            let expected = self.counter;
            return Err(Fault::Wrong(format!("{key} became {value}, expected {expected}")));
        }
        self.written().acknowledge(&key);
        Ok(())
    }

    fn set(&mut self) -> Result<(), Fault> {
        let key = format!("{}:{}", self.prefix, self.rng.below(KEYS_PER_CLIENT));
        let len = self.rng.below(VALUE_LEN_MAX) as usize;
        let value: String = (0..len).map(|_| (b'a' + self.rng.below(26) as u8) as char).collect();
        self.written().open.insert(key.clone(), value.clone());
        let () = self.connection.set(&key, &value)?;
        self.written().acknowledge(&key);
        self.model.insert(key, value);
        Ok(())
    }

    fn get(&mut self) -> Result<(), Fault> {
        let key = format!("{}:{}", self.prefix, self.rng.below(KEYS_PER_CLIENT));
        let value: Option<String> = self.connection.get(&key)?;
        if value.as_ref() != self.model.get(&key) {
            let expected = self.model.get(&key);
            return Err(Fault::Wrong(format!("{key} reads {value:?}, expected {expected:?}")));
        }
        Ok(())
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().expect("nobody panics while holding it")
    }
}

impl Written {
    /// The open write of `key` was answered.
    fn acknowledge(&mut self, key: &str) {
        if let Some((key, value)) = self.open.remove_entry(key) {
            self.acknowledged.insert(key, value);
        }
    }
}

fn connect(addr: SocketAddrV4, timeout: Duration) -> Result<redis::Connection, redis::RedisError> {
    let client = redis::Client::open(format!("redis://{addr}/"))?;
    let connection = client.get_connection_with_timeout(timeout)?;
    connection.set_read_timeout(Some(timeout))?;
    connection.set_write_timeout(Some(timeout))?;
    Ok(connection)
}

/// Bytes that one exchange with the echo service carries at most.
const ECHO_LEN_MAX: u64 = 16 << 10;

fn echo_once(stream: &mut TcpStream, rng: &mut SeededRng) -> Result<(), Fault> {
    let mut sent = vec![0; 1 + rng.below(ECHO_LEN_MAX) as usize];
    rng.fill(&mut sent);
    let broken = |what: &str, error| Fault::NoAnswer(format!("{what} the stream: {error}"));
    stream.write_all(&sent).map_err(|error| broken("writing", error))?;
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).map_err(|error| broken("reading", error))?;
    match sent.iter().zip(&received).position(|(sent, received)| sent != received) {
        None => Ok(()),
        Some(at) => Err(Fault::Wrong(format!("the stream differs at byte {at} of {}", sent.len()))),
    }
}
