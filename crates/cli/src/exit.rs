//! The exit codes of every command, in one place.

use std::process::ExitCode;

use vmm::run::RunError;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what was asked: 0.
    Done,
    /// It did not, for a reason that has no code of its own: 1.
    Failed,
    /// The flags or the configuration make no sense: 2. (`clap` uses it too.)
    Usage,
    /// A replay or a backup went another way than what it followed: 3.
    Diverged,
    /// This side lost the VM: the other one runs it, or it was started elsewhere: 4.
    Lost,
    /// A recording is damaged or was cut short: 5.
    Damaged,
    /// A VM was not powered on because another copy of it may run: 6.
    MayRunElsewhere,
    /// Nobody answers who could: 7.
    NotFound,
    /// With `--debug-exit`, what the guest wrote to the port, as QEMU would give it: `2 n + 1`.
    Guest(u8),
}

impl Exit {
    /// The code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Diverged => 3,
            Exit::Lost => 4,
            Exit::Damaged => 5,
            Exit::MayRunElsewhere => 6,
            Exit::NotFound => 7,
            Exit::Guest(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// An error with an exit code of its own.
#[derive(Debug)]
pub(crate) struct Coded {
    pub(crate) exit: Exit,
    pub(crate) message: String,
}

impl std::fmt::Display for Coded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

/// An error in what the user asked for.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    Coded { exit: Exit::Usage, message: message.into() }.into()
}

/// The code that fits `error`.
pub(crate) fn of_error(error: &anyhow::Error) -> Exit {
    if let Some(coded) = error.downcast_ref::<Coded>() {
        return coded.exit;
    }
    match error.downcast_ref::<RunError>() {
        Some(RunError::Refused { .. }) => Exit::MayRunElsewhere,
        Some(RunError::Arbiter(_)) => Exit::NotFound,
        _ => Exit::Failed,
    }
}
