//! Hardware task switches (Intel SDM vol. 3, chapter 7).

use x86::Selector;

use crate::Cpu;
use crate::event::Event;
use crate::op::{Env, Fault};
use crate::segment::Found;

impl Cpu {
    pub(crate) fn switch_by_jump(
        &mut self,
        _: &mut Env<'_>,
        selector: Selector,
        _: &Found,
        _: u64,
    ) -> Result<(), Fault> {
        Err(self.fault_with(x86::Vector::GP, selector.error_code()))
    }

    pub(crate) fn switch_by_call(
        &mut self,
        _: &mut Env<'_>,
        selector: Selector,
        _: &Found,
        _: u64,
    ) -> Result<(), Fault> {
        Err(self.fault_with(x86::Vector::GP, selector.error_code()))
    }

    pub(crate) fn switch_by_event(
        &mut self,
        _: &mut Env<'_>,
        event: &Event,
        _: Selector,
    ) -> Result<(), Fault> {
        Err(self.fault_with(x86::Vector::GP, event.idt_error()))
    }

    pub(crate) fn switch_by_iret(&mut self, _: &mut Env<'_>) -> Result<(), Fault> {
        Err(self.gp())
    }
}
