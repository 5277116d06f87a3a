//! Faults one by one, each with what has to come of it, and a slice of random runs.

use base::{Generation, SeededRng};
use ft::arbiter::Record;
use ft::{EndReason, Role, Timing};
use sim::{Fault, MS, Plan, Side, Sim, soak};

const SECOND: u64 = 1_000 * MS;

/// A protected VM under load, for one seed.
fn protected(seed: u64) -> Sim {
    protected_with(seed, Timing::default())
}

fn protected_with(seed: u64, timing: Timing) -> Sim {
    let mut sim = Sim::new(seed, timing);
    assert!(sim.run_until(10 * SECOND, Sim::protected), "seed {seed}: no pairing");
    sim.run(SECOND + SeededRng::new(seed).below(500 * MS));
    sim
}

/// Runs `scenario` from several seeds and demands that nothing impossible was seen.
fn check(scenario: impl Fn(&mut Sim)) {
    check_from(protected, scenario);
}

fn check_from(start: impl Fn(u64) -> Sim, scenario: impl Fn(&mut Sim)) {
    for seed in 1..=4 {
        let mut sim = start(seed);
        scenario(&mut sim);
        assert!(sim.violations().is_empty(), "seed {seed}: {:#?}", sim.violations());
    }
}

/// The VM serves, and what it acknowledged is there.
fn check_serves(sim: &mut Sim) {
    let before = sim.acknowledged();
    sim.run(2 * SECOND);
    assert!(sim.acknowledged() > before + 20, "{} after {before}", sim.acknowledged());
    sim.calm_down();
    sim.run(10 * SECOND);
    sim.check_end(true);
}

fn live_in_generation(sim: &Sim) -> Generation {
    assert!(sim.owner().is_some(), "nobody runs the VM");
    sim.record.generation()
}

/// behaviours 34, 36, 37, 48, 49, 50, 66
#[test]
fn failover_looks_like_one_machine_to_clients() {
    for side in [Side::Primary, Side::Backup] {
        check(|sim| {
            sim.inject(0, Fault::Kill(side));
            sim.run(3 * SECOND);
            assert_eq!(sim.takeovers(), 1);
            check_serves(sim);
        });
    }
}

/// behaviours 77, 81
#[test]
fn pair_survives_one_loss_after_another_as_long_as_hosts_come_back() {
    check(|sim| {
        for round in 0..4 {
            let side = if round % 2 == 0 { Side::Primary } else { Side::Backup };
            sim.inject(0, Fault::PowerLoss(side, 5 * SECOND));
            sim.run(2 * SECOND);
            assert!(sim.run_until(20 * SECOND, Sim::protected), "round {round}: not protected");
        }
        assert_eq!(sim.takeovers(), 4);
        check_serves(sim);
    });
}

/// behaviour 82
#[test]
fn primary_without_an_eligible_host_runs_on_and_keeps_trying() {
    check(|sim| {
        // The second backup is lost while the host of the first is still down.
        sim.inject(0, Fault::PowerLoss(Side::Backup, 40 * SECOND));
        sim.run(5 * SECOND);
        sim.inject(0, Fault::PowerLoss(Side::Backup, 20 * SECOND));
        sim.run(5 * SECOND);
        assert!(!sim.protected());
        let before = sim.acknowledged();
        sim.run(5 * SECOND);
        assert!(sim.acknowledged() > before + 50);
        assert!(sim.run_until(20 * SECOND, Sim::protected));
        check_serves(sim);
    });
}

/// behaviours 57, 60
#[test]
fn cut_between_the_hosts_lets_exactly_one_go_live() {
    check(|sim| {
        sim.inject(0, Fault::CutHosts(8 * SECOND));
        sim.run(4 * SECOND);
        assert_eq!(sim.takeovers(), 1);
        assert!(matches!(sim.record, Record::Owned { .. }));
        check_serves(sim);
    });
}

/// behaviour 58
#[test]
fn of_two_that_lost_each_other_the_one_that_reaches_the_arbiter_goes_live() {
    for cut_off in [Side::Primary, Side::Backup] {
        check(|sim| {
            let loser = if cut_off == Side::Primary { sim.owner() } else { sim.follower() };
            sim.inject(0, Fault::Isolate(cut_off, 8 * SECOND));
            sim.run(4 * SECOND);
            assert_eq!(sim.takeovers(), 1);
            assert!(sim.owner().is_some() && sim.owner() != loser);
            check_serves(sim);
        });
    }
}

/// behaviours 56, 59
#[test]
fn without_the_arbiter_nobody_goes_live_until_it_is_back() {
    check(|sim| {
        sim.inject(0, Fault::ArbiterDown(20 * SECOND));
        sim.inject(1, Fault::CutHosts(30 * SECOND));
        sim.run(3 * SECOND);
        let before = sim.acknowledged();
        sim.run(15 * SECOND);
        assert_eq!(sim.takeovers(), 0);
        assert_eq!(sim.acknowledged(), before, "something was let out without an owner");
        sim.run(5 * SECOND);
        assert_eq!(sim.takeovers(), 1);
        check_serves(sim);
    });
}

/// behaviour 63
#[test]
fn outage_of_the_arbiter_alone_changes_nothing() {
    check(|sim| {
        let generation = live_in_generation(sim);
        sim.inject(0, Fault::ArbiterDown(60 * SECOND));
        sim.run(30 * SECOND);
        assert_eq!((sim.takeovers(), live_in_generation(sim)), (0, generation));
        assert!(sim.protected());
        check_serves(sim);
    });
}

/// behaviour 149
#[test]
fn winner_whose_answer_is_lost_asks_again_and_goes_live() {
    check(|sim| {
        sim.inject(0, Fault::AnswersLost(4 * SECOND));
        sim.inject(1, Fault::Kill(Side::Primary));
        sim.run(3 * SECOND);
        assert_eq!(sim.takeovers(), 0);
        assert!(matches!(sim.record, Record::Owned { .. }), "the claim was decided");
        sim.run(3 * SECOND);
        assert_eq!(sim.takeovers(), 1);
        check_serves(sim);
    });
}

/// behaviours 60, 61, 158
#[test]
fn primary_that_was_stopped_until_the_other_was_live_lets_nothing_out() {
    check(|sim| {
        let old = sim.owner();
        // Its acknowledgement will lie in the socket when the primary wakes.
        sim.run_to_held_output();
        sim.inject(0, Fault::Stop(Side::Primary, 5 * SECOND));
        sim.run(4 * SECOND);
        assert_eq!(sim.takeovers(), 1);
        assert_ne!(sim.owner(), old);
        sim.run(3 * SECOND);
        assert_eq!(sim.takeovers(), 1);
        check_serves(sim);
    });
}

/// behaviours 61, 158
#[test]
fn primary_whose_machine_hangs_is_replaced_and_lets_nothing_out_afterwards() {
    for timing in [Timing::aggressive(), Timing::default()] {
        check_from(
            |seed| protected_with(seed, timing),
            |sim| {
                sim.inject(0, Fault::Stall(Side::Primary, 10 * SECOND));
                sim.run(5 * SECOND);
                assert_eq!(sim.takeovers(), 1);
                check_serves(sim);
            },
        );
    }
}

/// behaviours 60, 61
#[test]
fn new_primary_is_quiet_until_the_last_outputs_of_the_old_one_are_on_the_wire() {
    check(|sim| {
        // The backup hears nothing on the stream and claims, while heartbeats still flow; the
        // acknowledgement of an output comes through at the last moment, and the primary's shell is slow.
        let timing = Timing::default();
        sim.set_emit_delay_max(timing.fresh_max().0 * 9 / 10);
        for _ in 0..4 {
            sim.run_to_held_output();
            let late = timing.detection.0 * 85 / 100;
            sim.inject(0, Fault::StallStream(Side::Backup, late));
            sim.inject(0, Fault::StallStream(Side::Primary, 3 * SECOND));
            sim.inject(0, Fault::CutStorage(Side::Primary, 2 * SECOND));
            sim.run(6 * SECOND);
            assert!(sim.run_until(10 * SECOND, Sim::protected));
        }
        assert_eq!(sim.takeovers(), 4);
        sim.set_emit_delay_max(MS);
        check_serves(sim);
    });
}

/// behaviour 155
#[test]
fn backup_that_hangs_with_entries_in_hand_is_left_behind() {
    check(|sim| {
        sim.inject(0, Fault::Stall(Side::Backup, 10 * SECOND));
        sim.run(5 * SECOND);
        assert_eq!(sim.takeovers(), 1);
        check_serves(sim);
    });
}

/// behaviour 154
#[test]
fn idle_guest_causes_no_failover() {
    check(|sim| {
        sim.stop_clients();
        sim.run(60 * SECOND);
        assert_eq!(sim.takeovers(), 0);
        assert!(sim.protected());
    });
}

/// behaviours 92, 95, 155
#[test]
fn overloaded_backup_slows_the_primary_and_causes_no_failover() {
    check(|sim| {
        let owner = sim.owner();
        // It executes at half of the primary's full speed.
        sim.inject(0, Fault::Slow(4_000, 60 * SECOND));
        sim.run(55 * SECOND);
        assert_eq!((sim.takeovers(), sim.owner()), (0, owner));
        let lag = sim.lag_ns();
        assert!(lag > 500 * MS && lag < 8 * SECOND, "a lag of {} ms", lag / MS);
        sim.run(30 * SECOND);
        assert!(sim.lag_ns() < 500 * MS, "a lag of {} ms afterwards", sim.lag_ns() / MS);
        check_serves(sim);
    });
}

#[test]
fn broken_streams_are_taken_up_again_without_a_failover() {
    check(|sim| {
        for _ in 0..10 {
            sim.inject(0, Fault::BreakStreams);
            sim.run(2 * SECOND);
        }
        assert_eq!(sim.takeovers(), 0);
        assert!(sim.protected());
        check_serves(sim);
    });
}

/// behaviour 156
#[test]
fn diverged_backup_is_replaced_and_never_goes_live() {
    check(|sim| {
        let diverged = sim.follower();
        sim.inject(0, Fault::Corrupt);
        sim.run(100 * MS);
        // The primary dies before or after the backup has noticed.
        sim.run(3 * SECOND);
        assert_ne!(sim.owner(), diverged);
        assert!(sim.run_until(10 * SECOND, Sim::protected));
        check_serves(sim);
    });
}

/// behaviour 156
#[test]
fn backup_that_finds_its_divergence_while_going_live_stays_down() {
    check(|sim| {
        let diverged = sim.follower();
        sim.inject(0, Fault::Slow(2_500, 30 * SECOND));
        sim.run(3 * SECOND);
        sim.inject(0, Fault::Corrupt);
        sim.inject(1, Fault::Kill(Side::Primary));
        sim.run(20 * SECOND);
        assert_ne!(sim.owner(), diverged);
        assert_eq!(sim.takeovers(), 0);
    });
}

/// behaviour 148
#[test]
fn pairing_that_was_ended_cannot_be_claimed_later() {
    check(|sim| {
        sim.inject(0, Fault::End(EndReason::ProtectionOff));
        sim.run(SECOND);
        assert!(!sim.protected());
        sim.inject(0, Fault::Kill(Side::Primary));
        sim.run(10 * SECOND);
        assert_eq!(sim.takeovers(), 0);
        assert_eq!(sim.owner(), None);
    });
}

/// behaviours 99, 148
#[test]
fn power_off_stops_the_backup_and_nobody_takes_over() {
    check(|sim| {
        sim.inject(0, Fault::End(EndReason::PowerOff));
        sim.run(10 * SECOND);
        assert_eq!(sim.takeovers(), 0);
        assert!(matches!(sim.record, Record::Off { .. }), "{:?}", sim.record);
        assert!(sim.roles().all(|role| role == Role::Halted));
    });
}

/// behaviours 99, 148
#[test]
fn power_off_with_an_unreachable_backup_is_first_claimed() {
    check(|sim| {
        sim.inject(0, Fault::CutHosts(30 * SECOND));
        sim.inject(1, Fault::End(EndReason::PowerOff));
        sim.run(10 * SECOND);
        assert!(matches!(sim.record, Record::Off { .. }), "{:?}", sim.record);
        assert!(sim.roles().all(|role| role == Role::Halted));
    });
}

/// behaviour 65
#[test]
fn takeover_takes_the_detection_time_and_the_lag() {
    for timing in [Timing::aggressive(), Timing::default(), Timing::relaxed()] {
        check_from(
            |seed| protected_with(seed, timing),
            |sim| {
                let from = sim.now;
                sim.inject(0, Fault::Kill(Side::Primary));
                assert!(sim.run_until(20 * SECOND, |sim| sim.takeovers() == 1));
                let took = sim.now - from;
                let detection = timing.detection.0;
                assert!(took >= detection - 2 * timing.beat().0, "after {} ms", took / MS);
                // A beat, the claim, the disks, and what was left to execute.
                assert!(took < detection + timing.beat().0 + 200 * MS, "after {} ms", took / MS);
            },
        );
    }
}

fn slice(plan: Plan, runs: u64) -> sim::Summary {
    match soak(plan, 1..1 + runs) {
        Ok(summary) => summary,
        Err(failure) => panic!("{:#?}\nto repeat: {}", failure.violations, failure.repeat()),
    }
}

/// behaviours 47, 63, 154, 155
#[test]
fn random_bad_weather_causes_no_failover() {
    assert_eq!(slice(Plan::Calm, 6).takeovers, 0);
}

/// behaviours 30, 34, 54, 55, 60, 62, 66, 77
#[test]
fn random_single_faults_are_survived() {
    let summary = slice(Plan::Single, 25);
    assert!(summary.takeovers > 12 && summary.without_vm == 0, "{summary:?}");
}

/// behaviours 30, 34, 54, 55, 60, 61, 62, 150, 158
#[test]
fn random_storms_break_no_promise() {
    let summary = slice(Plan::Storm, 40);
    assert!(summary.takeovers > 20, "{summary:?}");
}
