//! The user's terminal, through the real binary: raw while a guest has it, and as it was found after
//! every end that a process can notice.

mod common;

use std::time::Duration;

use common::{Folder, PATIENCE, Process, echo_kernel, lockstep};
use nix::sys::signal::Signal;
use testbed::Terminal;

const SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// What makes a process end.
#[derive(Debug)]
enum By {
    Typing(&'static str),
    Signal(Signal),
    Itself,
}

fn check(by: &By, code: i32, args: &[&str]) {
    let mut terminal = Terminal::start("lockstep", &lockstep(args), 24, 80).unwrap();
    let found = terminal.modes().unwrap();
    match by {
        By::Itself => {}
        by => {
            terminal.wait_for("hello", PATIENCE).unwrap();
            assert!(terminal.modes().unwrap() != found, "{by:?}: the terminal is not raw");
            match by {
                By::Typing(text) => terminal.type_text(text).unwrap(),
                By::Signal(signal) => terminal.signal(*signal).unwrap(),
                By::Itself => unreachable!("handled above"),
            }
        }
    }
    let status = terminal.wait(Duration::from_secs(30)).unwrap();
    assert_eq!(status.code(), Some(code), "{by:?}: {}", terminal.output());
    assert!(terminal.modes().unwrap() == found, "{by:?}: the terminal's modes are not put back");
}

#[test]
fn a_run_puts_the_terminals_modes_back_however_it_ends() {
    let folder = Folder::new("modes");
    let (kernel, run_dir) = (folder.file("kernel", &echo_kernel()), folder.path("run"));
    let run = ["run", "--kernel", &kernel, "--run-dir", &run_dir];
    for signal in SIGNALS {
        check(&By::Signal(signal), 0, &run);
    }
    check(&By::Typing("\x01x"), 0, &run);
    check(&By::Typing("P"), 0, &run);
    // A reset ends the run only if that was asked for.
    check(&By::Typing("R"), 0, &[&run[..], &["--no-reboot"]].concat());
    check(&By::Typing("T"), 0, &[&run[..], &["--no-reboot"]].concat());
    check(&By::Typing("Q"), 43, &[&run[..], &["--debug-exit"]].concat());
    // Errors: before the terminal is touched, and in the middle of a run.
    check(&By::Itself, 1, &["run", "--kernel", "/nowhere", "--run-dir", &run_dir]);
    check(&By::Itself, 1, &[&run[..], &["--record", "/dev/full"]].concat());
}

#[test]
fn a_console_puts_the_terminals_modes_back_however_it_ends() {
    let folder = Folder::new("console-modes");
    let (kernel, run_dir) = (folder.file("kernel", &echo_kernel()), folder.path("run"));
    let vm = ["run", "--name", "web", "--kernel", &kernel, "--run-dir", &run_dir];
    let mut vm = Process::start(lockstep(&vm));
    vm.wait_for_output("hello");
    let console = ["console", "web", "--history", "--run-dir", &run_dir];
    for signal in SIGNALS {
        check(&By::Signal(signal), 0, &console);
    }
    check(&By::Typing("\x01x"), 0, &console);
    check(&By::Itself, 7, &["console", "nobody", "--run-dir", &run_dir]);
    assert!(vm.is_running(), "{}", vm.errors());
    check(&By::Typing("P"), 0, &console);
    assert_eq!(vm.wait().code(), Some(0), "{}", vm.errors());
}
