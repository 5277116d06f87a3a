//! The records of all VMs, each durable before its answer leaves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base::{Claimant, Saved, VmId};
use ft::arbiter::Record;
use serde::{Deserialize, Serialize};

use super::wire::{ADDRESS_LEN_MAX, Call, FRAME_LEN_MAX, Reply, VmStatus};
use crate::state::{StateDir, StateError, file_part};

/// VMs that one arbiter keeps; a stranger that makes up names ends here.
const VMS_MAX: usize = 512;
/// The longest name of a VM.
pub(crate) const VM_NAME_LEN_MAX: usize = 64;
/// Addresses that are remembered for one VM, beside those of whoever may run it.
const ADDRESSES_MAX: usize = 4;
const _: () = assert!(
    VMS_MAX * (VM_NAME_LEN_MAX + 128 + ADDRESSES_MAX * (ADDRESS_LEN_MAX + 32))
        < FRAME_LEN_MAX as usize,
    "a list of all VMs fits a frame"
);

/// What the state directory holds for one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    vm: VmId,
    record: Record,
    addresses: Vec<(Claimant, String)>,
}

impl Saved for Entry {
    const KIND: &'static str = "arbiter-record";
    const VERSION: u16 = 1;
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    /// Whether the file says the same.
    durable: bool,
}

/// All records.
#[derive(Debug)]
pub(crate) struct Store {
    state: Arc<StateDir>,
    slots: Mutex<BTreeMap<VmId, Slot>>,
}

const SUFFIX: &str = ".record";

impl Store {
    /// Reads every record there is; one that cannot be read is an error.
    pub(crate) fn open(state: Arc<StateDir>) -> Result<Store, StateError> {
        let mut slots = BTreeMap::new();
        for name in state.names(SUFFIX)? {
            if let Some(entry) = state.read::<Entry>(&name)? {
                slots.insert(entry.vm.clone(), Slot { entry, durable: true });
            }
        }
        Ok(Store { state, slots: Mutex::new(slots) })
    }

    /// Handles one call. Calls are handled one after the other.
    pub(crate) fn handle(&self, call: &Call) -> Reply {
        let mut slots = self.slots.lock().expect("no thread panics while it holds the records");
        let vm = match call {
            Call::List => return Reply::Vms(slots.values().map(Slot::status).collect()),
            Call::Look(vm) => {
                return Reply::Vms(slots.get(vm).map(Slot::status).into_iter().collect());
            }
            Call::Ask(request) => &request.vm,
            Call::Announce { vm, .. } => vm,
        };
        if let Err(why) = check_name(vm) {
            return Reply::Failed(why);
        }
        if !slots.contains_key(vm) && slots.len() >= VMS_MAX {
            return Reply::Failed(format!("the arbiter keeps {VMS_MAX} VMs and no more"));
        }
        let known = slots.contains_key(vm);
        let slot = slots.entry(vm.clone()).or_insert_with(|| Slot::new(vm));
        let before = slot.entry.clone();
        let reply = match call {
            Call::Ask(request) => Reply::Answer(slot.entry.record.handle(request)),
            Call::Announce { claimant, address, .. } => slot.announce(*claimant, address),
            Call::Look(_) | Call::List => unreachable!("answered above"),
        };
        if slot.entry == before && slot.durable {
            return reply;
        }
        if slot.entry == before && !known {
            // Nobody has to remember that somebody asked.
            slots.remove(vm);
            return reply;
        }
        // What was decided stays decided: if it cannot be made durable, nobody hears of it, and the
        // next call tries again before it says anything.
        slot.durable = false;
        let file = format!("vm-{}{SUFFIX}", file_part(&vm.0));
        match self.state.write(&file, &slot.entry) {
            Ok(()) => {
                slot.durable = true;
                reply
            }
            Err(error) => {
                log::error!("cannot make the record of VM {vm} durable: {error}");
                Reply::Failed(format!("the arbiter cannot make its record durable: {error}"))
            }
        }
    }
}

impl Slot {
    fn new(vm: &VmId) -> Slot {
        let record = Record::default();
        let entry = Entry { vm: vm.clone(), record, addresses: Vec::new() };
        Slot { entry, durable: false }
    }

    fn status(&self) -> VmStatus {
        let Entry { vm, record, addresses } = self.entry.clone();
        VmStatus { vm, record, addresses }
    }

    fn announce(&mut self, claimant: Claimant, address: &str) -> Reply {
        if address.len() > ADDRESS_LEN_MAX {
            return Reply::Failed(format!("an address has at most {ADDRESS_LEN_MAX} bytes"));
        }
        let addresses = &mut self.entry.addresses;
        if addresses.last() != Some(&(claimant, address.to_owned())) {
            addresses.retain(|(other, _)| *other != claimant);
            addresses.push((claimant, address.to_owned()));
        }
        let may_run = self.entry.record.may_run();
        while addresses.len() > ADDRESSES_MAX {
            let gone = addresses.iter().position(|(claimant, _)| !may_run.contains(claimant));
            addresses.remove(gone.unwrap_or(0));
        }
        Reply::Announced
    }
}

/// Names of VMs end up in file names, metrics and URLs.
pub(crate) fn check_name(vm: &VmId) -> Result<(), String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=VM_NAME_LEN_MAX).contains(&vm.0.len()) && vm.0.bytes().all(good) {
        return Ok(());
    }
    Err(format!(
        "{:?} is no name for a VM: 1 to {VM_NAME_LEN_MAX} letters, digits, '-', '_' and '.'",
        vm.0.chars().take(VM_NAME_LEN_MAX).collect::<String>()
    ))
}

#[cfg(test)]
mod tests {
    use base::Generation;
    use ft::arbiter::{Op, Outcome, Request};

    use super::*;

    const A: Claimant = Claimant(0xa);
    const B: Claimant = Claimant(0xb);

    fn open(dir: &std::path::Path) -> Store {
        Store::open(Arc::new(StateDir::open(dir).unwrap())).unwrap()
    }

    fn ask(store: &Store, op: Op) -> Result<Outcome, String> {
        match store.handle(&Call::Ask(Request { vm: VmId("vm".to_owned()), op })) {
            Reply::Answer(answer) => Ok(answer.outcome),
            Reply::Failed(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    fn power_on() -> Op {
        Op::PowerOn { claimant: A, seen: Generation(0), dead: vec![], copy: None, force: false }
    }

    fn arm() -> Op {
        Op::Arm { generation: Generation(2), primary: A, backup: B }
    }

    fn claim(claimant: Claimant) -> Op {
        Op::Claim { generation: Generation(2), claimant }
    }

    /// behaviours 54, 149
    #[test]
    fn what_was_decided_is_decided_after_a_restart_too() {
        let dir = tempfile::tempdir().unwrap();
        let outcomes: Vec<_> = [power_on(), arm(), claim(B), claim(A), claim(B)]
            .map(|op| ask(&open(dir.path()), op).unwrap())
            .into();
        let on = Outcome::PoweredOn { generation: Generation(1) };
        assert_eq!(outcomes, [on, Outcome::Armed, Outcome::Won, Outcome::Lost, Outcome::Won]);
    }

    #[test]
    fn a_decision_that_is_not_durable_is_not_told_and_not_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        ask(&store, power_on()).unwrap();
        ask(&store, arm()).unwrap();
        let blocker = dir.path().join("vm-vm.record.next");
        std::fs::create_dir(&blocker).unwrap();
        assert!(ask(&store, claim(A)).is_err());
        assert!(ask(&store, claim(B)).is_err(), "the loser does not hear of it either");
        assert!(ask(&store, Op::Query).is_err());
        std::fs::remove_dir(&blocker).unwrap();
        assert_eq!(ask(&store, claim(B)), Ok(Outcome::Lost));
        assert_eq!(ask(&store, claim(A)), Ok(Outcome::Won));
    }

    #[test]
    fn asking_about_a_vm_that_nobody_knows_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        assert_eq!(ask(&store, Op::Query), Ok(Outcome::Record));
        assert_eq!(ask(&store, claim(A)), Ok(Outcome::NotArmed));
        assert_eq!(store.handle(&Call::List), Reply::Vms(vec![]));
        assert!(store.state.names(SUFFIX).unwrap().is_empty());
    }

    #[test]
    fn names_that_are_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        for name in ["", "../x", "a b", &"x".repeat(65)] {
            let call = Call::Ask(Request { vm: VmId(name.to_owned()), op: power_on() });
            assert!(matches!(store.handle(&call), Reply::Failed(_)), "{name}");
        }
    }

    #[test]
    fn addresses_are_kept_for_whoever_may_run_the_vm() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let vm = VmId("vm".to_owned());
        ask(&store, power_on()).unwrap();
        let announce = |claimant, address: String| {
            store.handle(&Call::Announce { vm: vm.clone(), claimant, address })
        };
        assert_eq!(announce(A, "host-a:1".to_owned()), Reply::Announced);
        for other in 1..100 {
            announce(Claimant(0x100 + other), format!("host:{other}"));
        }
        drop(store);
        let Reply::Vms(vms) = open(dir.path()).handle(&Call::Look(vm)) else { panic!() };
        assert_eq!(vms[0].addresses.len(), ADDRESSES_MAX);
        assert_eq!(vms[0].addresses[0], (A, "host-a:1".to_owned()));
    }

    #[test]
    fn a_damaged_record_stops_the_server() {
        let dir = tempfile::tempdir().unwrap();
        ask(&open(dir.path()), power_on()).unwrap();
        std::fs::write(dir.path().join("vm-vm.record"), b"zz").unwrap();
        let opened = Store::open(Arc::new(StateDir::open(dir.path()).unwrap()));
        assert!(matches!(opened, Err(StateError::Damaged { .. })));
    }
}
