//! Everything that goes wrong, and plans of it.

use base::SeededRng;
use ft::EndReason;

use crate::net::{MS, Place, Quality};
use crate::world::{HOSTS, Sim};

/// Something that goes wrong. Times are in ns.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The process that runs the VM, or follows it, is killed.
    Kill(Side),
    /// Its host loses power for a while: not even a stream is closed.
    PowerLoss(Side, u64),
    /// It is stopped and continued (SIGSTOP, a suspended host).
    Stop(Side, u64),
    /// Its vCPU stands still, while its other threads run.
    Stall(Side, u64),
    /// The backup's host is busy: execution takes so many thousandths of the usual time.
    Slow(u64, u64),
    /// Two hosts lose sight of each other.
    CutHosts(u64),
    /// A host loses sight of arbiter and disk.
    CutStorage(Side, u64),
    /// A host loses sight of everything but its clients.
    Isolate(Side, u64),
    /// Streams from this side to the other make no progress, while datagrams do.
    StallStream(Side, u64),
    /// All streams break.
    BreakStreams,
    /// The arbiter does not answer.
    ArbiterDown(u64),
    /// The arbiter decides, but its answers are lost.
    AnswersLost(u64),
    /// The network is bad.
    BadNet(u64),
    /// The network is as usual again.
    GoodNet,
    /// A bit of the backup's machine flips.
    Corrupt,
    /// The operator switches protection off, or the VM.
    End(EndReason),
}

/// Which side a fault hits: who is it at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The owner by right.
    Primary,
    /// Its backup.
    Backup,
}

/// What a run is put through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Bad weather that a healthy pair survives: no side may go on alone.
    Calm,
    /// One fault, after which the VM has to go on.
    Single,
    /// Many at once.
    Storm,
}

impl Fault {
    /// A fault that a protected VM survives.
    pub fn single(rng: &mut SeededRng) -> Fault {
        let side = if rng.one_in(2) { Side::Primary } else { Side::Backup };
        let ms = MS * (1 + rng.below(6_000));
        match rng.below(13) {
            12 => Fault::StallStream(side, ms),
            0 | 1 => Fault::Kill(side),
            2 => Fault::PowerLoss(side, ms),
            3 | 4 => Fault::Stop(side, ms),
            5 => Fault::Stall(side, ms),
            6 | 7 => Fault::CutHosts(ms),
            8 => Fault::Isolate(side, ms),
            9 => Fault::BreakStreams,
            10 => Fault::ArbiterDown(ms),
            _ => Fault::Corrupt,
        }
    }

    fn any(rng: &mut SeededRng) -> Fault {
        let side = if rng.one_in(2) { Side::Primary } else { Side::Backup };
        let ms = MS * (1 + rng.below(4_000));
        match rng.below(10) {
            0 => Fault::CutStorage(side, ms),
            1 => Fault::AnswersLost(ms),
            2 => Fault::BadNet(ms),
            3 => Fault::Slow(1_000 + rng.below(4_000), ms),
            4 if rng.one_in(4) => Fault::End(EndReason::ProtectionOff),
            5 if rng.one_in(16) => Fault::End(EndReason::PowerOff),
            _ => Fault::single(rng),
        }
    }

    /// A storm: faults, each with the time until the next.
    pub fn storm(rng: &mut SeededRng) -> Vec<(u64, Fault)> {
        let count = 2 + rng.below(7);
        (0..count).map(|_| (MS * rng.below(1_500), Fault::any(rng))).collect()
    }
}

impl Sim {
    pub(crate) fn fault(&mut self, fault: Fault) {
        self.note(|| format!("fault: {fault:?}"));
        let now = self.now;
        match fault {
            Fault::Kill(side) => {
                if let Some(proc) = self.side(side) {
                    self.kill(proc, true);
                }
            }
            Fault::PowerLoss(side, ns) => {
                if let Some(proc) = self.side(side) {
                    self.host_down[self.procs[proc].host] = now + ns;
                    self.kill(proc, false);
                }
            }
            Fault::Stop(side, ns) => {
                if let Some(proc) = self.side(side) {
                    self.stop(proc, ns);
                }
            }
            Fault::Stall(side, ns) => {
                if let Some(proc) = self.side(side) {
                    self.procs[proc].stalled = now + ns;
                }
            }
            Fault::Slow(thousandths, ns) => {
                if let Some(proc) = self.side(Side::Backup) {
                    (self.procs[proc].slow, self.procs[proc].slow_until) = (thousandths, now + ns);
                }
            }
            Fault::CutHosts(ns) => {
                for a in 0..HOSTS {
                    for b in 0..a {
                        self.net.cut(Place::Host(a), Place::Host(b), now + ns);
                    }
                }
            }
            Fault::CutStorage(side, ns) => {
                if let Some(proc) = self.side(side) {
                    self.net.cut(Place::Host(self.procs[proc].host), Place::Storage, now + ns);
                }
            }
            Fault::Isolate(side, ns) => {
                if let Some(proc) = self.side(side) {
                    let host = Place::Host(self.procs[proc].host);
                    self.net.cut(host, Place::Storage, now + ns);
                    for other in (0..HOSTS).map(Place::Host).filter(|other| *other != host) {
                        self.net.cut(host, other, now + ns);
                    }
                }
            }
            Fault::StallStream(side, ns) => {
                let other = if side == Side::Primary { Side::Backup } else { Side::Primary };
                if let (Some(from), Some(to)) = (self.side(side), self.side(other)) {
                    let (from, to) = (self.procs[from].host, self.procs[to].host);
                    self.net.stall(Place::Host(from), Place::Host(to), now + ns);
                }
            }
            Fault::BreakStreams => self.break_streams(),
            Fault::ArbiterDown(ns) => self.arbiter_down = now + ns,
            Fault::AnswersLost(ns) => self.answers_lost = now + ns,
            Fault::BadNet(ns) => {
                self.net.quality =
                    Quality { lost: 150, resent: 100, jitter: 60 * MS, ..Quality::default() };
                self.inject(ns, Fault::GoodNet);
            }
            Fault::GoodNet => self.net.quality = self.net.usual,
            Fault::Corrupt => {
                let follower = self.follower();
                let machine = follower.and_then(|proc| self.procs[proc].machine.as_mut());
                if let Some(machine) = machine {
                    machine.corrupt();
                }
            }
            Fault::End(reason) => {
                if let Some(proc) = self.owner().filter(|proc| self.procs[*proc].stopped <= now) {
                    self.end(proc, reason);
                    self.repair = false;
                }
            }
        }
    }

    fn side(&self, side: Side) -> Option<usize> {
        match side {
            Side::Primary => self.owner(),
            Side::Backup => self.follower(),
        }
    }
}
