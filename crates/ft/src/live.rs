//! Going on alone, from either side.

use base::{Generation, LogPos, Nanos};

use crate::Stamp;
use crate::arbiter::{Answer, Op, Outcome};
use crate::lag::Speed;
use crate::node::{Action, Halted, Node, Pace, Phase, Report};
use crate::timing::ANCHOR_STEP_MAX;

/// A side that has claimed.
#[derive(Debug)]
pub(crate) struct GoingLive {
    generation: Generation,
    since: Nanos,
    stage: Stage,
    /// A former backup has more to do.
    backup: Option<FormerBackup>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Claiming,
    Reconnecting,
    CatchingUp,
}

#[derive(Debug)]
struct FormerBackup {
    /// End of the log: the last entry that came before the claim.
    received: LogPos,
    last_entry: Nanos,
    /// Nothing leaves before, because the old primary may still be letting its last outputs out.
    quiet: Nanos,
    replayed: bool,
}

impl GoingLive {
    pub(crate) fn primary(now: Nanos, generation: Generation) -> GoingLive {
        GoingLive { generation, since: now, stage: Stage::Claiming, backup: None }
    }

    pub(crate) fn backup(
        now: Nanos,
        generation: Generation,
        received: LogPos,
        last_entry: Nanos,
        quiet: Nanos,
    ) -> GoingLive {
        let backup = FormerBackup { received, last_entry, quiet, replayed: false };
        GoingLive { backup: Some(backup), ..GoingLive::primary(now, generation) }
    }

    /// Its machine still replays.
    pub(crate) fn follows(&self) -> bool {
        self.backup.is_some()
    }

    /// A former backup's guest starts at the end. A former primary's runs on, outputs held, until the
    /// arbiter has been silent for too long.
    pub(crate) fn wanted_pace(&self, now: Nanos, run_max: Nanos, full: bool) -> Option<Pace> {
        if self.backup.is_some() {
            return None;
        }
        let silent = self.stage == Stage::Claiming && now.0 - self.since.0 >= run_max.0;
        Some(if full || silent { Pace::Stopped } else { Pace::Run(Speed::FULL) })
    }
}

impl<T> Node<T> {
    /// All disks are connected with this stamp, and refuse lower ones.
    pub fn handle_disks_ready(&mut self, now: Nanos, stamp: Stamp) {
        self.handle_tick(now);
        let Phase::GoingLive(live) = &mut self.phase else { return };
        if live.stage == Stage::Reconnecting && stamp == Stamp::won(live.generation) {
            live.stage = Stage::CatchingUp;
        }
        self.tick_going_live();
    }

    /// Claims. From here on nothing is sent or acknowledged in this generation.
    pub(crate) fn go_alone(&mut self, live: GoingLive) {
        let generation = live.generation;
        let claimant = self.config.claimant;
        self.phase = Phase::GoingLive(live);
        self.gate.close();
        let unsaid = |action: &Action<T>| {
            matches!(action, Action::Send(_) | Action::SendHeartbeat(_) | Action::Append(_))
        };
        self.actions.retain(|action| !unsaid(action));
        self.push(Action::CloseChannel);
        self.report(Report::Claiming(generation));
        self.ask(Op::Claim { generation, claimant });
    }

    pub(crate) fn handle_answer_going_live(&mut self, answer: &Answer) {
        let Phase::GoingLive(live) = &mut self.phase else { return };
        let generation = live.generation;
        match answer.outcome {
            Outcome::Won => {
                live.stage = Stage::Reconnecting;
                self.owned = generation;
                self.ask = None;
                self.report(Report::Won(generation));
                self.push(Action::ReconnectDisks(Stamp::won(generation)));
            }
            Outcome::Lost => self.halt(Halted::Lost(generation)),
            // No decision: go on asking.
            _ => self.report_once(Report::ArbiterForgot(generation)),
        }
    }

    pub(crate) fn tick_going_live(&mut self) {
        let now = self.now;
        let run_max = self.config.timing.arbitration_run_max;
        let own = self.own;
        let Phase::GoingLive(live) = &mut self.phase else { return };
        let silent = live.stage == Stage::Claiming && now.0 - live.since.0 >= run_max.0;
        let mut quiet = true;
        let mut replayed = None;
        if let Some(backup) = &mut live.backup {
            if own.pos >= backup.received && !backup.replayed {
                backup.replayed = true;
                replayed = Some(own);
            }
            quiet = backup.replayed && now >= backup.quiet;
        }
        let ready = live.stage == Stage::CatchingUp && quiet;
        if let Some(progress) = replayed {
            self.report(Report::Replayed(progress));
        }
        if silent {
            self.report_once(Report::ArbiterSilent);
        }
        if ready {
            self.finish_going_live();
        }
    }

    /// When the old primary has certainly stopped letting outputs out.
    pub(crate) fn quiet_until(&self) -> Option<Nanos> {
        let Phase::GoingLive(live) = &self.phase else { return None };
        live.backup.as_ref().map(|backup| backup.quiet).filter(|quiet| *quiet > self.now)
    }

    fn finish_going_live(&mut self) {
        let Phase::GoingLive(live) = &mut self.phase else { return };
        let generation = live.generation;
        let backup = live.backup.take();
        self.push(Action::ReissueDisk);
        self.gate.drop_disk_requests();
        self.gate.release_all();
        while let Some((number, output)) = self.gate.poll_output(self.now) {
            self.push(Action::Emit { number, output });
        }
        if let Some(backup) = backup {
            let away = self.now.0.saturating_sub(backup.last_entry.0);
            let advance = away.min(ANCHOR_STEP_MAX.0);
            let behind = Nanos(away - advance);
            self.push(Action::AnchorClock { advance: Nanos(advance), behind });
            self.push(Action::Announce);
        }
        self.report(Report::Live(generation));
        self.become_solo(None);
        if self.ending.is_none() && !matches!(self.phase, Phase::Halted) {
            self.want_backup();
        }
    }

    fn report_once(&mut self, report: Report) {
        let Some(ask) = &mut self.ask else { return };
        if !std::mem::replace(&mut ask.reported, true) {
            self.report(report);
        }
    }
}
