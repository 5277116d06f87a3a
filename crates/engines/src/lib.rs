//! Which engine runs guest code on this host. The shell chooses one and gives it to its machine; the
//! guest cannot tell, so every host of a VM chooses for itself.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::Once;

use cpu::Engine;
use x86::CpuModel;

/// An engine beside the interpreter.
pub type BoxedEngine = Box<dyn Engine + Send>;

/// What [`EngineKind::Auto`] means where the host has a choice.
const AUTO: EngineKind = EngineKind::Translator;

/// The environment variable that the `lockstep` command, the benchmarks and tests take the kind from.
pub const VARIABLE: &str = "LOCKSTEP_ENGINE";

/// Which engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// The fastest that the host allows.
    #[default]
    Auto,
    /// The interpreter alone.
    Interpreter,
    /// The translator, and the interpreter for what it leaves.
    Translator,
}

impl EngineKind {
    /// All kinds.
    pub const ALL: [EngineKind; 3] =
        [EngineKind::Auto, EngineKind::Interpreter, EngineKind::Translator];

    /// Its name in flags and files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            EngineKind::Auto => "auto",
            EngineKind::Interpreter => "interpreter",
            EngineKind::Translator => "translator",
        }
    }

    /// The kind that the environment asks for; [`EngineKind::Auto`] if it says nothing.
    ///
    /// # Errors
    /// [`UnknownKind`] for a value that is none.
    pub fn from_environment() -> Result<EngineKind, UnknownKind> {
        match std::env::var(VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse(),
            _ => Ok(EngineKind::Auto),
        }
    }

    /// Makes the engine; `None` stands for the interpreter alone. A host that cannot have what `auto` would
    /// like is told about once.
    ///
    /// # Errors
    /// [`Unavailable`] if the translator was asked for by name and cannot be had.
    pub fn make(self) -> Result<Option<BoxedEngine>, Unavailable> {
        match (self, AUTO) {
            (EngineKind::Interpreter, _) | (EngineKind::Auto, EngineKind::Interpreter) => Ok(None),
            (EngineKind::Translator, _) => translator(usize::MAX).map(Some),
            (EngineKind::Auto, _) => Ok(translator(usize::MAX).inspect_err(warn_once).ok()),
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EngineKind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<EngineKind, UnknownKind> {
        let found = EngineKind::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// A name that is no engine's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no engine {0:?}: it is auto, interpreter or translator")]
pub struct UnknownKind(String);

/// Why there is no translator.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// It is for another processor or system.
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    #[error("the translator needs an x86-64 host with Linux")]
    Host,
    /// This host does not let it run.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[error("this host cannot have the translator")]
    NotPossible(#[from] jit::NotPossible),
}

/// Says once if the translator is the engine and this host's CPU lacks what a guest of a model sees.
pub fn warn_of_lacks(kind: EngineKind, guest: CpuModel) {
    static WARNED: Once = Once::new();
    if let Some(lacking) =
        host_model().filter(|_| kind != EngineKind::Interpreter).and_then(|host| guest.beyond(host))
    {
        WARNED.call_once(|| {
            log::warn!(
                "this host's CPU lacks what the guest's has ({lacking}): such instructions are interpreted; \
                 where all hosts are like that, a VM with --cpu v2 is faster"
            );
        });
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn host_model() -> Option<CpuModel> {
    Some(jit::Translator::host_model())
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn host_model() -> Option<CpuModel> {
    None
}

/// A translator whose translations hold at most `most` instructions: one that is given few steps at a time,
/// because its state is looked at after each few, would never run a longer one.
///
/// # Errors
/// [`Unavailable`] if it cannot be had.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub fn translator(most: usize) -> Result<BoxedEngine, Unavailable> {
    let mut translator = jit::Translator::new()?;
    translator.limit_traces(most);
    Ok(Box::new(translator))
}

/// A translator that uses nothing of the host's CPU that this model lacks, as on a host that has no more.
///
/// # Errors
/// [`Unavailable`] if it cannot be had.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub fn translator_on(host: CpuModel) -> Result<BoxedEngine, Unavailable> {
    let mut translator = jit::Translator::new()?;
    translator.limit_host(host);
    Ok(Box::new(translator))
}

/// A translator that takes every loop for one of many rounds.
///
/// # Errors
/// [`Unavailable`] if it cannot be had.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub fn translator_of_long_loops() -> Result<BoxedEngine, Unavailable> {
    let mut translator = jit::Translator::new()?;
    translator.expect_long_loops();
    Ok(Box::new(translator))
}

/// A translator.
///
/// # Errors
/// Always: it is for another host.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub fn translator_of_long_loops() -> Result<BoxedEngine, Unavailable> {
    Err(Unavailable::Host)
}

/// A translator.
///
/// # Errors
/// Always: it is for another host.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub fn translator(_: usize) -> Result<BoxedEngine, Unavailable> {
    Err(Unavailable::Host)
}

/// A translator.
///
/// # Errors
/// Always: it is for another host.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub fn translator_on(_: CpuModel) -> Result<BoxedEngine, Unavailable> {
    Err(Unavailable::Host)
}

fn warn_once(why: &Unavailable) {
    static WARNED: Once = Once::new();
    let cause = why.source().map_or(String::new(), |cause| format!(": {cause}"));
    WARNED.call_once(|| {
        log::warn!("{why}{cause}; the interpreter runs the guest, several times slower")
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_that_reads_back() {
        for kind in EngineKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        let unknown = "fast".parse::<EngineKind>().unwrap_err().to_string();
        assert!(unknown.contains("fast") && unknown.contains("translator"), "{unknown}");
    }

    #[test]
    fn auto_always_gives_something_to_run_with() {
        assert!(EngineKind::Auto.make().is_ok());
        assert!(EngineKind::Interpreter.make().unwrap().is_none());
    }
}
