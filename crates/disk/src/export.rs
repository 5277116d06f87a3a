//! One export: its storage, and the gate that keeps deposed sides away from it.
//!
//! The gate knows every connection to the export and counts the changes that each has on its way to
//! the storage. Showing a higher stamp closes the gate for everybody below it, waits until the
//! changes that had already passed are done, makes the new fence durable, and only then lets its
//! owner in.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use base::{Saved, VmId};
use ft::Stamp;
use serde::{Deserialize, Serialize};

use crate::stamp::{Access, Badge};
use crate::state::{StateDir, StateError, file_part};
use crate::storage::Storage;

/// The highest stamp an export has seen. Everything lower is refused, and so is everything
/// unstamped that writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fence {
    pub(crate) vm: VmId,
    pub(crate) stamp: Stamp,
}

impl Saved for Fence {
    const KIND: &'static str = "disk-fence";
    const VERSION: u16 = 1;
}

/// Why a connection, or a request on it, is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there is no export {0:?}")]
    Unknown(String),
    #[error("deposed: the export has seen {newest}, which is above {shown}")]
    Deposed { shown: Stamp, newest: Stamp },
    #[error("the export belongs to VM {owner}")]
    OtherVm { owner: VmId },
    #[error("another connection of the same VM has replaced this one")]
    Replaced,
    #[error("the export is read-only here")]
    ReadOnly,
    #[error("the server cannot make its state durable")]
    State(#[source] io::Error),
}

pub(crate) struct Export {
    pub(crate) name: String,
    pub(crate) storage: Box<dyn Storage>,
    state: Arc<StateDir>,
    gate: Mutex<Gate>,
    /// A change has reached the storage, or a connection has ended.
    quieter: Condvar,
}

#[derive(Default)]
struct Gate {
    fence: Option<Fence>,
    /// Whether the fence is in the state directory.
    durable: bool,
    connections: BTreeMap<u64, Connection>,
    next_id: u64,
}

struct Connection {
    badge: Option<Badge>,
    /// No request of this connection passes any more.
    closed: bool,
    /// Changes that have passed the gate and are not in the storage yet.
    changing: usize,
    /// Ends the connection from outside.
    cut: Box<dyn Fn() + Send + Sync>,
}

impl Export {
    /// An export with the fence that the state directory remembers.
    pub(crate) fn open(
        name: String,
        storage: Box<dyn Storage>,
        state: Arc<StateDir>,
    ) -> Result<Export, StateError> {
        let fence = state.read(&fence_file(&name))?;
        let gate = Gate { durable: fence.is_some(), fence, ..Gate::default() };
        Ok(Export { name, storage, state, gate: Mutex::new(gate), quieter: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().expect("no thread panics while it holds an export's gate")
    }

    /// Takes a stamp. When this returns `Ok` to a writer, no change by anybody whom the stamp
    /// deposes can still land, now or after a restart of the server.
    pub(crate) fn show(&self, badge: &Badge) -> Result<(), Refusal> {
        let mut gate = self.lock();
        gate.admit(badge)?;
        if badge.access == Access::Read {
            return Ok(());
        }
        gate.raise(badge);
        while gate.connections.values().any(|conn| conn.changing > 0 && conn.below(badge)) {
            gate = self.quieter.wait(gate).expect("no thread panics while it holds the gate");
        }
        // Somebody higher may have come while we waited.
        gate.admit(badge)?;
        if !gate.durable {
            let fence = gate.fence.as_ref().expect("a fence was just raised");
            self.state.write(&fence_file(&self.name), fence).map_err(Refusal::State)?;
            gate.durable = true;
        }
        gate.connections.values().filter(|conn| conn.closed).for_each(|conn| (conn.cut)());
        Ok(())
    }

    /// Opens the gate to a connection. A stamped one has been shown before.
    pub(crate) fn join(
        self: &Arc<Export>,
        badge: Option<Badge>,
        cut: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Session, Refusal> {
        let mut gate = self.lock();
        if let Some(badge) = &badge {
            gate.admit(badge)?;
        }
        let id = gate.next_id;
        gate.next_id += 1;
        gate.connections.insert(id, Connection { badge, closed: false, changing: 0, cut });
        Ok(Session { export: Arc::clone(self), id })
    }

    /// Whether a connection with this badge may write.
    pub(crate) fn writable_by(&self, badge: Option<&Badge>) -> bool {
        !self.storage.read_only() && self.lock().may_write(badge)
    }
}

impl Gate {
    fn admit(&self, badge: &Badge) -> Result<(), Refusal> {
        let Some(fence) = &self.fence else { return Ok(()) };
        if fence.vm != badge.vm {
            return Err(Refusal::OtherVm { owner: fence.vm.clone() });
        }
        if badge.stamp < fence.stamp {
            return Err(Refusal::Deposed { shown: badge.stamp, newest: fence.stamp });
        }
        Ok(())
    }

    /// From here on nobody below `badge` passes. Before anything else: what passes while we wait
    /// would have to be waited for again.
    fn raise(&mut self, badge: &Badge) {
        let fence = Fence { vm: badge.vm.clone(), stamp: badge.stamp };
        if self.fence.as_ref() != Some(&fence) {
            self.fence = Some(fence);
            self.durable = false;
        }
        for conn in self.connections.values_mut() {
            // A connection without a stamp may go on reading.
            conn.closed |= conn.badge.is_some() && conn.below(badge);
        }
    }

    fn may_write(&self, badge: Option<&Badge>) -> bool {
        match badge {
            Some(badge) => badge.access == Access::Write,
            None => self.fence.is_none(),
        }
    }
}

impl Connection {
    /// Whether a writer with `badge` takes this connection's place: it has no stamp, a lower one, or
    /// is an earlier writer with the same one.
    fn below(&self, badge: &Badge) -> bool {
        self.badge.as_ref().is_none_or(|own| {
            own.stamp < badge.stamp || own.stamp == badge.stamp && own.access == Access::Write
        })
    }
}

/// A connection that the gate knows. Dropped when its last request is done.
pub(crate) struct Session {
    pub(crate) export: Arc<Export>,
    id: u64,
}

impl Session {
    /// Lets one request pass, or refuses it. A change counts as on its way until the result is
    /// dropped.
    pub(crate) fn pass(&self, changes: bool) -> Result<Passed<'_>, Refusal> {
        let mut gate = self.export.lock();
        let conn = &gate.connections[&self.id];
        if conn.closed {
            let newest = gate.fence.as_ref().map(|fence| fence.stamp);
            let shown = conn.badge.as_ref().map(|badge| badge.stamp);
            return Err(match (shown, newest) {
                (Some(shown), Some(newest)) if shown < newest => Refusal::Deposed { shown, newest },
                _ => Refusal::Replaced,
            });
        }
        if changes {
            if self.export.storage.read_only() || !gate.may_write(conn.badge.as_ref()) {
                return Err(Refusal::ReadOnly);
            }
            self.connection(&mut gate).changing += 1;
        }
        Ok(Passed { session: self, changes })
    }

    fn connection<'a>(&self, gate: &'a mut Gate) -> &'a mut Connection {
        gate.connections
            .get_mut(&self.id)
            .expect("a session's connection stays until it is dropped")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.export.lock().connections.remove(&self.id);
        self.export.quieter.notify_all();
    }
}

/// A request on its way to the storage.
pub(crate) struct Passed<'a> {
    session: &'a Session,
    changes: bool,
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        if self.changes {
            let mut gate = self.session.export.lock();
            self.session.connection(&mut gate).changing -= 1;
            drop(gate);
            self.session.export.quieter.notify_all();
        }
    }
}

fn fence_file(export: &str) -> String {
    format!("export-{}.fence", file_part(export))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use base::Generation;

    use super::*;
    use crate::image::{ImageOptions, open_image};

    fn open(dir: &std::path::Path) -> Arc<Export> {
        let image = dir.join("disk.img");
        if !image.exists() {
            std::fs::write(&image, [0; 4096]).unwrap();
        }
        let storage = open_image(&image, ImageOptions::default()).unwrap();
        let state = Arc::new(StateDir::open(&dir.join("state")).unwrap());
        Arc::new(Export::open("disk".to_owned(), storage, state).unwrap())
    }

    fn badge(generation: u64, won: bool) -> Badge {
        let stamp = Stamp { generation: Generation(generation), won };
        Badge { vm: VmId("vm".to_owned()), stamp, access: Access::Write }
    }

    fn join(export: &Arc<Export>, badge: Option<Badge>) -> Session {
        if let Some(badge) = &badge {
            export.show(badge).unwrap();
        }
        export.join(badge, Box::new(|| ())).unwrap()
    }

    /// behaviour 158
    #[test]
    fn a_lower_stamp_is_refused_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let export = open(dir.path());
        let old = join(&export, Some(badge(1, true)));
        assert!(old.pass(true).is_ok());
        let new = join(&export, Some(badge(2, true)));
        assert!(matches!(old.pass(true), Err(Refusal::Deposed { .. })));
        assert!(matches!(old.pass(false), Err(Refusal::Deposed { .. })));
        assert!(matches!(export.show(&badge(2, false)), Err(Refusal::Deposed { .. })));
        assert!(new.pass(true).is_ok());
        drop((old, new, export));

        let export = open(dir.path());
        let shown = export.show(&badge(1, true));
        assert!(matches!(shown, Err(Refusal::Deposed { .. })), "also after a restart");
        export.show(&badge(2, true)).unwrap();
    }

    /// behaviour 150
    #[test]
    fn a_new_stamp_waits_for_changes_that_had_passed() {
        let dir = tempfile::tempdir().unwrap();
        let export = open(dir.path());
        let old = join(&export, Some(badge(1, true)));
        let in_flight = old.pass(true).unwrap();
        let (shown, wait) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                export.show(&badge(2, true)).unwrap();
                shown.send(()).unwrap();
            });
            // The gate closes at once, which we can see; the answer waits for the change.
            while export.lock().fence.as_ref().unwrap().stamp != badge(2, true).stamp {
                thread::yield_now();
            }
            assert!(matches!(old.pass(true), Err(Refusal::Deposed { .. })));
            assert!(wait.try_recv().is_err());
            drop(in_flight);
            wait.recv().unwrap();
        });
    }

    #[test]
    fn a_second_connection_with_the_same_stamp_replaces_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let export = open(dir.path());
        let first = join(&export, Some(badge(1, true)));
        let reader = Badge { access: Access::Read, ..badge(1, true) };
        let reader = join(&export, Some(reader));
        assert!(first.pass(true).is_ok(), "a reader replaces nobody");
        let second = join(&export, Some(badge(1, true)));
        assert!(matches!(first.pass(true), Err(Refusal::Replaced)));
        assert!(second.pass(true).is_ok());
        assert!(reader.pass(false).is_ok());
        assert!(matches!(reader.pass(true), Err(Refusal::ReadOnly)));
    }

    #[test]
    fn connections_without_a_stamp_may_write_until_the_first_stamp_and_read_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let export = open(dir.path());
        let plain = join(&export, None);
        assert!(plain.pass(true).is_ok() && export.writable_by(None));
        let _stamped = join(&export, Some(badge(1, true)));
        assert!(matches!(plain.pass(true), Err(Refusal::ReadOnly)));
        assert!(plain.pass(false).is_ok() && !export.writable_by(None));
    }

    #[test]
    fn an_export_belongs_to_one_vm() {
        let dir = tempfile::tempdir().unwrap();
        let export = open(dir.path());
        export.show(&badge(1, true)).unwrap();
        let other = Badge { vm: VmId("other".to_owned()), ..badge(9, true) };
        assert!(matches!(export.show(&other), Err(Refusal::OtherVm { .. })));
    }

    #[test]
    fn a_fence_that_cannot_be_made_durable_is_not_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let export = open(dir.path());
        let blocker = dir.path().join("state/export-disk.fence.next");
        std::fs::create_dir(&blocker).unwrap();
        assert!(matches!(export.show(&badge(2, true)), Err(Refusal::State(_))));
        assert!(matches!(export.show(&badge(1, true)), Err(Refusal::Deposed { .. })));
        std::fs::remove_dir(&blocker).unwrap();
        export.show(&badge(2, true)).unwrap();
        drop(export);
        assert_eq!(open(dir.path()).lock().fence.as_ref().unwrap().stamp, badge(2, true).stamp);
    }
}
