//! Messages for people, on standard error: one line each, also while the terminal is raw.

use std::io::{self, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Diagnostics;

impl Log for Diagnostics {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug | Level::Trace => "debug: ",
        };
        print_line(&format!("lockstep: {level}{}", record.args()));
    }

    fn flush(&self) {}
}

/// Sends diagnostics to standard error from now on.
pub(crate) fn start(verbose: u8) {
    log::set_max_level(match verbose {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
    let _ = log::set_logger(&Diagnostics); // fails only the second time
}

/// Prints an error with its causes.
pub(crate) fn print_error(error: &anyhow::Error) {
    host::terminal::restore();
    print_line(&format!("lockstep: error: {error:#}"));
}

fn print_line(text: &str) {
    // A raw terminal does not add the carriage return.
    let end = if host::terminal::is_raw() { "\r\n" } else { "\n" };
    let _ = io::stderr().lock().write_all(format!("{text}{end}").as_bytes()); // no one to tell
}
