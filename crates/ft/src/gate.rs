//! Decides when the primary may let an output leave the machine.

use std::collections::VecDeque;

use base::{LogPos, Nanos};

/// With this many outputs held the guest has to wait.
pub const HELD_OUTPUTS_MAX: usize = 4096;

/// What an output is to the world, which decides what becomes of it when its side goes on alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Frames and console bytes: let out in order; possibly a second time after a failover.
    Message,
    /// A request to a disk: those without a completion are issued again as a whole.
    DiskRequest,
}

/// Holds outputs back until they may leave.
///
/// Output rule: an output produced at log position `p` leaves only after the backup has
/// acknowledged every log entry inside `p`, and only while the backup is known to follow: it
/// answered something that was sent less than `fresh_max` ago. The second half is for a primary that
/// was stopped or suspended with acknowledged outputs in hand: by the time it runs again the backup
/// may have gone live. What counts is when the *question* was sent, by the primary's own clock. When
/// the answer arrived says nothing, since it may have lain in a socket while the primary slept.
#[derive(Debug)]
pub struct OutputGate<T> {
    rule: Rule,
    /// Highest position the backup has acknowledged in this generation.
    acked: LogPos,
    /// When the newest question that the backup has answered was sent.
    answered: Option<Nanos>,
    /// Outputs waiting. Positions and numbers never decrease from front to back.
    held: VecDeque<Held<T>>,
    /// Number of the next output.
    next: u64,
    /// Outputs below this number have left, here or at the primary.
    released: u64,
}

#[derive(Debug)]
struct Held<T> {
    pos: LogPos,
    number: u64,
    kind: OutputKind,
    output: T,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Nobody else can own the VM: everything leaves at once.
    Open,
    /// The output rule.
    Acked { fresh_max: Nanos },
    /// Nothing leaves.
    Shut,
}

/// What the first held output waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// There is none.
    Nothing,
    /// It may leave.
    Ready,
    /// The backup has not acknowledged its position.
    Ack,
    /// The backup has, but may have gone live since: ask it again.
    RoundTrip,
    /// This side may not let anything out at present.
    Ownership,
}

impl<T> OutputGate<T> {
    /// A gate that lets everything out.
    #[must_use]
    pub fn open() -> OutputGate<T> {
        OutputGate::new(Rule::Open, 0)
    }

    /// A gate that lets nothing out, for a backup whose start state has produced `outputs` outputs.
    #[must_use]
    pub fn shut(outputs: u64) -> OutputGate<T> {
        OutputGate::new(Rule::Shut, outputs)
    }

    fn new(rule: Rule, outputs: u64) -> OutputGate<T> {
        OutputGate {
            rule,
            acked: LogPos(0),
            answered: None,
            held: VecDeque::new(),
            next: outputs,
            released: outputs,
        }
    }

    /// The output rule holds from now on, with a backup that has everything before `acked`.
    pub fn require_acks(&mut self, acked: LogPos, fresh_max: Nanos) {
        self.rule = Rule::Acked { fresh_max };
        self.acked = acked;
        self.answered = None;
    }

    /// Nothing leaves from now on: this side has claimed, or lost.
    pub fn close(&mut self) {
        self.rule = Rule::Shut;
    }

    /// This side owns the VM alone.
    pub fn release_all(&mut self) {
        self.rule = Rule::Open;
    }

    /// The machine produced an output at `pos`.
    ///
    /// # Panics
    /// If positions go backwards.
    pub fn handle_output(&mut self, pos: LogPos, kind: OutputKind, output: T) {
        assert!(self.held.back().is_none_or(|last| last.pos <= pos), "an output before its turn");
        let number = self.next;
        self.next += 1;
        // The primary let this one out before the backup's machine came to it.
        if number >= self.released {
            self.held.push_back(Held { pos, number, kind, output });
        }
    }

    /// Acks may arrive late or twice; an older one changes nothing.
    pub fn handle_ack(&mut self, received: LogPos) {
        self.acked = self.acked.max(received);
    }

    /// The backup answered a question that was sent at `sent`, and it had not claimed by then.
    pub fn handle_answered(&mut self, sent: Nanos) {
        self.answered = self.answered.max(Some(sent));
    }

    /// On a backup: outputs below `number` have left the primary.
    pub fn handle_released(&mut self, number: u64) {
        self.released = self.released.max(number);
        while self.held.pop_front_if(|held| held.number < number).is_some() {}
    }

    /// What the first held output waits for.
    #[must_use]
    pub fn wait(&self, now: Nanos) -> Wait {
        let Some(first) = self.held.front() else { return Wait::Nothing };
        match self.rule {
            Rule::Open => Wait::Ready,
            Rule::Shut => Wait::Ownership,
            Rule::Acked { .. } if first.pos > self.acked => Wait::Ack,
            Rule::Acked { fresh_max } => match self.answered {
                Some(sent) if now.0.saturating_sub(sent.0) < fresh_max.0 => Wait::Ready,
                _ => Wait::RoundTrip,
            },
        }
    }

    /// The next output that may leave now, with its number.
    pub fn poll_output(&mut self, now: Nanos) -> Option<(u64, T)> {
        if self.wait(now) != Wait::Ready {
            return None;
        }
        let held = self.held.pop_front()?;
        self.released = self.released.max(held.number + 1);
        Some((held.number, held.output))
    }

    /// Drops held disk requests: they are among those that are issued again.
    pub fn drop_disk_requests(&mut self) {
        self.held.retain(|held| held.kind != OutputKind::DiskRequest);
    }

    /// Drops everything held.
    pub fn discard(&mut self) {
        self.held.clear();
    }

    /// Position of the last held output.
    #[must_use]
    pub fn last_pos(&self) -> Option<LogPos> {
        self.held.back().map(|held| held.pos)
    }

    /// How many outputs are held.
    #[must_use]
    pub fn held_len(&self) -> usize {
        self.held.len()
    }

    /// How many outputs the machine has produced since power-on.
    #[must_use]
    pub fn produced(&self) -> u64 {
        self.next
    }

    /// Outputs below this number have left.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Nanos = Nanos(300);

    fn gate() -> OutputGate<&'static str> {
        let mut gate = OutputGate::open();
        gate.require_acks(LogPos(0), FRESH);
        gate
    }

    /// behaviours 30, 41
    #[test]
    fn output_leaves_only_after_the_ack_of_its_own_position() {
        let mut gate = gate();
        gate.handle_answered(Nanos(0));
        gate.handle_output(LogPos(3), OutputKind::Message, "reply");
        assert_eq!(gate.wait(Nanos(1)), Wait::Ack);
        gate.handle_ack(LogPos(2));
        assert_eq!(gate.poll_output(Nanos(1)), None);
        gate.handle_ack(LogPos(3));
        assert_eq!(gate.poll_output(Nanos(1)), Some((0, "reply")));
    }

    #[test]
    fn ack_for_older_position_releases_nothing() {
        let mut gate = gate();
        gate.handle_answered(Nanos(0));
        gate.handle_ack(LogPos(3));
        gate.handle_ack(LogPos(1));
        gate.handle_output(LogPos(3), OutputKind::Message, "one");
        gate.handle_output(LogPos(4), OutputKind::Message, "two");
        assert_eq!(gate.poll_output(Nanos(1)), Some((0, "one")));
        assert_eq!(gate.poll_output(Nanos(1)), None);
    }

    /// behaviour 158
    #[test]
    fn acknowledged_output_waits_for_a_round_trip_after_a_sleep() {
        let mut gate = gate();
        gate.handle_answered(Nanos(0));
        gate.handle_ack(LogPos(1));
        gate.handle_output(LogPos(1), OutputKind::Message, "reply");
        let woken = Nanos(5_000);
        assert_eq!(gate.wait(woken), Wait::RoundTrip);
        // An answer from before the sleep arrives after it.
        gate.handle_answered(Nanos(10));
        assert_eq!(gate.poll_output(woken), None);
        gate.handle_answered(woken);
        assert_eq!(gate.poll_output(woken), Some((0, "reply")));
    }

    #[test]
    fn new_generation_forgets_the_answers_of_the_last() {
        let mut gate = gate();
        gate.handle_answered(Nanos(100));
        gate.handle_ack(LogPos(9));
        gate.require_acks(LogPos(5), FRESH);
        gate.handle_output(LogPos(5), OutputKind::Message, "reply");
        assert_eq!(gate.wait(Nanos(101)), Wait::RoundTrip);
        gate.handle_output(LogPos(6), OutputKind::Message, "next");
        gate.handle_answered(Nanos(101));
        assert_eq!(gate.poll_output(Nanos(101)), Some((0, "reply")));
        assert_eq!(gate.wait(Nanos(101)), Wait::Ack);
    }

    #[test]
    fn backup_drops_what_the_primary_let_out_before_and_after_it_replays_it() {
        let mut gate = OutputGate::shut(10);
        gate.handle_output(LogPos(1), OutputKind::Message, "ten");
        gate.handle_released(12);
        gate.handle_output(LogPos(2), OutputKind::Message, "eleven");
        gate.handle_output(LogPos(3), OutputKind::Message, "twelve");
        assert_eq!(gate.poll_output(Nanos(0)), None);
        gate.release_all();
        assert_eq!(gate.poll_output(Nanos(0)), Some((12, "twelve")));
        assert_eq!(gate.poll_output(Nanos(0)), None);
    }

    #[test]
    fn held_disk_requests_are_left_to_the_reissue() {
        let mut gate = gate();
        gate.handle_output(LogPos(1), OutputKind::DiskRequest, "write");
        gate.handle_output(LogPos(2), OutputKind::Message, "reply");
        gate.close();
        gate.drop_disk_requests();
        gate.release_all();
        assert_eq!(gate.poll_output(Nanos(0)), Some((1, "reply")));
    }
}
