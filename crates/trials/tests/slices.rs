//! Short slices of the trials, for every run of the tests; `cargo xtask soak` runs them at length.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A trial wants the machine for itself.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The `lockstep` binary that was built together with the trials.
fn lockstep() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_trials")).with_file_name("lockstep");
    assert!(path.exists(), "{} is missing: run `cargo xtask test`", path.display());
    path
}

fn trial(args: &[&str]) -> String {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let images = std::env::var_os("LOCKSTEP_IMAGES")
        .expect("LOCKSTEP_IMAGES names no folder of guest images: run `cargo xtask test`");
    let output = Command::new(env!("CARGO_BIN_EXE_trials"))
        .arg("--lockstep")
        .arg(lockstep())
        .arg("--images")
        .arg(images)
        .arg("--work")
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join(args[0]))
        .args(args)
        .output()
        .expect("the trials start");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "trial {args:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// behaviours 10, 38, 49, 50, 51, 66: the demo, whose last line is its result for machines.
#[test]
fn demo_passes_and_says_so_as_json() {
    let stdout = trial(&["demo", "--json"]);
    let last = stdout.lines().last().unwrap_or_default();
    let result: serde_json::Value = serde_json::from_str(last).expect("JSON on the last line");
    assert_eq!(result["verdict"], "pass", "{last}");
    assert!(result["timeline"]["live_ms"].is_number(), "{last}");
}

/// behaviour 13: both engines, compared all the time, under the load of a server.
#[test]
fn both_engines_run_a_busy_server_and_are_equal_all_the_time() {
    let stdout = trial(&["compare", "--server", "redis", "--seconds", "10"]);
    assert!(stdout.contains("both engines equal"), "{stdout}");
}

/// behaviours 4, 34, 36, 37, 38, 48, 49, 60, 66.
#[test]
fn clients_see_one_machine_when_either_side_is_killed() {
    let stdout = trial(&["kill", "--failovers", "3", "--seed", "4"]);
    assert!(stdout.contains("3 failovers"), "{stdout}");
}

/// behaviours 4, 10, 34, 38, 48, 49, 60, 61, 62, 66, 72, 76, 77, 80, 81, 158.
#[test]
fn one_set_of_connections_outlives_host_after_host() {
    let stdout = trial(&["kill", "--rolling", "--failovers", "4", "--seed", "3"]);
    assert!(stdout.contains("4 failovers of one pair"), "{stdout}");
}

/// behaviours 55, 56, 57, 58, 59, 60, 61, 63, 158.
#[test]
fn split_pairs_have_one_owner() {
    let stdout = trial(&["split", "--case", "0,1,2,3"]);
    assert!(stdout.contains("4 split-brain cases"), "{stdout}");
}

/// behaviours 52, 61, 114, 150, 157: a deposed primary's writes arrive when the new owner has gone on.
#[test]
fn writes_of_a_deposed_primary_that_were_on_their_way_are_refused() {
    let stdout = trial(&["split", "--case", "4"]);
    assert!(stdout.contains("1 split-brain cases"), "{stdout}");
}

/// behaviours 53, 55, 149.
#[test]
fn a_claim_whose_answer_is_lost_is_repeated_and_won() {
    let stdout = trial(&["split", "--case", "5"]);
    assert!(stdout.contains("1 split-brain cases"), "{stdout}");
}

/// behaviour 152.
#[test]
fn power_on_is_refused_beside_a_copy_that_runs_is_stopped_or_is_cut_off() {
    let stdout = trial(&["split", "--case", "6"]);
    assert!(stdout.contains("1 split-brain cases"), "{stdout}");
}

/// behaviours 13, 14, 15, 17, 18, 19, 20, 26, 68.
#[test]
fn a_minute_of_a_busy_server_replays_and_a_cut_recording_is_named() {
    let stdout = trial(&["replay", "--recordings", "1", "--seconds", "60"]);
    assert!(stdout.contains("1 recordings of 60 s"), "{stdout}");
}
