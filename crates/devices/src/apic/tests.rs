use super::*;

const MSR_ICR: u32 = 0x830;
const TIMER_PERIODIC: u64 = 1 << 17;
const TIMER_DEADLINE: u64 = 2 << 17;

fn enabled() -> Apic {
    let mut apic = Apic::new(40);
    apic.mmio_write(0, u64::from(REG_SVR), 4, 0x1ff);
    apic
}

fn write(apic: &mut Apic, now_ns: u64, register: u32, value: u64) {
    apic.mmio_write(now_ns, u64::from(register), 4, value);
}

fn read(apic: &mut Apic, now_ns: u64, register: u32) -> u64 {
    apic.mmio_read(now_ns, u64::from(register), 4)
}

fn fixed(vector: u8, is_level: bool) -> Message {
    let mode = DeliveryMode::Fixed;
    Message { destination: 0, is_logical: false, mode, vector, is_level }
}

#[test]
fn the_version_is_one_that_test_kernels_and_linux_accept() {
    assert_eq!(read(&mut enabled(), 0, REG_VERSION), 0x0005_0014);
}

#[test]
fn the_highest_vector_goes_first_and_blocks_its_class_until_eoi() {
    let mut apic = enabled();
    for vector in [0x31, 0x45, 0x42] {
        assert!(apic.handle_message(fixed(vector, false)));
    }
    assert_eq!(apic.acknowledge(), 0x45);
    assert!(!apic.interrupt_pending());
    assert_eq!(read(&mut apic, 0, REG_PPR), 0x40);
    write(&mut apic, 0, REG_EOI, 0);
    assert_eq!(apic.acknowledge(), 0x42);
    write(&mut apic, 0, REG_EOI, 0);
    assert_eq!(apic.acknowledge(), 0x31);
    write(&mut apic, 0, REG_EOI, 0);
    assert!(!apic.interrupt_pending());
    assert_eq!(apic.acknowledge(), 0xff, "spurious");
    assert_eq!(read(&mut apic, 0, REG_ISR + 0x70), 0, "a spurious vector is not in service");
}

#[test]
fn the_task_priority_holds_back_its_class_and_below() {
    let mut apic = enabled();
    apic.handle_message(fixed(0x55, false));
    apic.set_task_priority(5);
    assert!(!apic.interrupt_pending());
    write(&mut apic, 0, REG_TPR, 0x4f);
    assert_eq!(apic.task_priority(), 4);
    assert!(apic.interrupt_pending());
}

#[test]
fn only_the_eoi_of_a_level_interrupt_is_broadcast() {
    let mut apic = enabled();
    for is_level in [true, false] {
        apic.handle_message(fixed(0x40, is_level));
        assert_eq!(read(&mut apic, 0, REG_TMR + 0x20), u64::from(is_level));
        apic.acknowledge();
        write(&mut apic, 0, REG_EOI, 0);
        assert_eq!(apic.take_eoi(), is_level.then_some(0x40));
    }
}

#[test]
fn one_shot_counts_to_zero_once_and_keeps_its_deadline() {
    let mut apic = enabled();
    write(&mut apic, 0, REG_LVT, 0xee);
    write(&mut apic, 0, REG_DIVIDE, 0b1011);
    write(&mut apic, 1000, REG_INITIAL_COUNT, 0x10000);
    assert_eq!(apic.next_deadline_ns(), Some(1000 + 0x10000));
    assert_eq!(read(&mut apic, 1100, REG_CURRENT_COUNT), 0x10000 - 100);
    apic.handle_time(1000 + 0xffff);
    assert!(!apic.interrupt_pending());
    apic.handle_time(1000 + 0x10000);
    assert_eq!(apic.acknowledge(), 0xee);
    assert_eq!(apic.next_deadline_ns(), None);
    assert_eq!(read(&mut apic, 999_999, REG_CURRENT_COUNT), 0);
    // Turning to periodic does not start a counter that stands still.
    write(&mut apic, 999_999, REG_LVT, 0xee | TIMER_PERIODIC);
    assert_eq!(read(&mut apic, 2_000_000, REG_CURRENT_COUNT), 0);
}

#[test]
fn every_divider_divides() {
    for (value, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)]
    {
        let mut apic = enabled();
        write(&mut apic, 0, REG_LVT, 0x30);
        write(&mut apic, 0, REG_DIVIDE, value);
        write(&mut apic, 0, REG_INITIAL_COUNT, 100);
        assert_eq!(apic.next_deadline_ns(), Some(100 * divisor), "divide {value}");
    }
}

#[test]
fn periods_that_pass_unseen_coalesce_and_keep_the_phase() {
    let mut apic = enabled();
    write(&mut apic, 0, REG_DIVIDE, 0b1011);
    write(&mut apic, 0, REG_LVT, 0x30 | TIMER_PERIODIC);
    write(&mut apic, 0, REG_INITIAL_COUNT, 1000);
    apic.handle_time(5_500);
    assert_eq!(apic.acknowledge(), 0x30);
    assert!(!apic.interrupt_pending());
    assert_eq!(apic.next_deadline_ns(), Some(6_000));
    assert_eq!(read(&mut apic, 5_600, REG_CURRENT_COUNT), 400);
    // The end of time is no reason to panic.
    apic.handle_time(u64::MAX);
    apic.handle_time(u64::MAX);
}

#[test]
fn a_mode_change_between_counting_modes_keeps_the_count() {
    let mut apic = enabled();
    write(&mut apic, 0, REG_DIVIDE, 0b1011);
    write(&mut apic, 0, REG_LVT, 0x30);
    write(&mut apic, 0, REG_INITIAL_COUNT, 1000);
    write(&mut apic, 600, REG_LVT, 0x30 | TIMER_PERIODIC);
    assert_eq!(read(&mut apic, 700, REG_CURRENT_COUNT), 300);
    assert_eq!(read(&mut apic, 1_100, REG_CURRENT_COUNT), 900);
}

#[test]
fn tsc_deadline_fires_once_also_when_it_is_in_the_past_and_reads_zero_then() {
    let mut apic = enabled();
    write(&mut apic, 0, REG_LVT, 0xef | TIMER_DEADLINE);
    apic.set_tsc_offset(100, 1_000_000);
    apic.msr_write(100, MSR_TSC_DEADLINE, 1_000_500).unwrap();
    assert_eq!(apic.next_deadline_ns(), Some(500));
    assert_eq!(apic.msr_read(499, MSR_TSC_DEADLINE), Some(1_000_500));
    apic.handle_time(500);
    assert_eq!(apic.acknowledge(), 0xef);
    assert_eq!(apic.msr_read(500, MSR_TSC_DEADLINE), Some(0));
    write(&mut apic, 500, REG_EOI, 0);
    apic.msr_write(600, MSR_TSC_DEADLINE, 7).unwrap();
    assert_eq!(apic.acknowledge(), 0xef);
    // A new offset moves the deadline.
    apic.msr_write(600, MSR_TSC_DEADLINE, 2_000_000).unwrap();
    apic.set_tsc_offset(600, 0);
    assert_eq!(apic.next_deadline_ns(), Some(2_000_000));
    // Outside its mode the register is dead.
    write(&mut apic, 600, REG_LVT, 0xef);
    apic.msr_write(600, MSR_TSC_DEADLINE, 9).unwrap();
    assert_eq!(apic.msr_read(600, MSR_TSC_DEADLINE), Some(0));
}

#[test]
fn base_register_allows_only_the_manuals_transitions() {
    let base = DEFAULT_BASE | BASE_BSP;
    let (off, xapic, invalid) = (base, base | BASE_ENABLE, base | BASE_X2APIC);
    let x2apic = base | BASE_ENABLE | BASE_X2APIC;
    let mut apic = enabled();
    let mut step = |value| apic.msr_write(0, MSR_APIC_BASE, value).is_some();
    assert!(!step(invalid) && step(x2apic));
    assert!(!step(invalid) && !step(xapic) && step(x2apic) && step(off));
    assert!(!step(invalid) && !step(x2apic) && step(xapic));
    assert!(!step(xapic | 1) && !step(xapic | 1 << 40));
}

#[test]
fn a_disabled_apic_keeps_cr8_and_comes_back_as_after_power_on() {
    let mut apic = enabled();
    apic.handle_message(fixed(0x40, false));
    apic.set_task_priority(3);
    apic.msr_write(0, MSR_APIC_BASE, DEFAULT_BASE | BASE_BSP).unwrap();
    assert_eq!(apic.mmio_base(), None);
    assert!(!apic.interrupt_pending() && apic.accepts_ext_int());
    apic.set_task_priority(7);
    apic.msr_write(0, MSR_APIC_BASE, 0xfed4_0000 | BASE_BSP | BASE_ENABLE).unwrap();
    assert_eq!(apic.mmio_base(), Some(0xfed4_0000));
    assert_eq!(read(&mut apic, 0, REG_TPR), 0x70);
    assert_eq!(read(&mut apic, 0, REG_SVR), 0xff);
    assert_eq!(read(&mut apic, 0, REG_IRR + 0x20), 0);
}

#[test]
fn x2apic_registers_are_msrs_with_general_protection_for_reserved_bits() {
    let mut apic = enabled();
    assert_eq!(apic.msr_read(0, 0x803), None, "not yet enabled");
    let base = apic.state().base_msr;
    apic.msr_write(0, MSR_APIC_BASE, base | BASE_X2APIC).unwrap();
    assert_eq!(apic.mmio_base(), None);
    let readable: Vec<u32> = (MSR_X2APIC_FIRST..=MSR_X2APIC_LAST)
        .filter(|msr| apic.msr_read(0, *msr).is_some())
        .collect();
    let expected: Vec<u32> = [0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f]
        .into_iter()
        .chain(0x810..=0x828)
        .chain([0x830])
        .chain(0x832..=0x839)
        .chain([0x83e])
        .collect();
    assert_eq!(readable, expected);
    let writable: Vec<u32> = (MSR_X2APIC_FIRST..=MSR_X2APIC_LAST)
        .filter(|msr| apic.msr_write(0, *msr, 0).is_some())
        .collect();
    let expected: Vec<u32> = [0x808, 0x80b, 0x80f, 0x828, 0x830]
        .into_iter()
        .chain(0x832..=0x838)
        .chain([0x83e, 0x83f])
        .collect();
    assert_eq!(writable, expected);
    for (msr, value) in [(0x808, 0x100), (0x80b, 1), (0x828, 1), (0x83f, 0x100), (0x80f, 1 << 32)] {
        assert_eq!(apic.msr_write(0, msr, value), None, "{msr:#x}");
    }
}

#[test]
fn ipis_reach_the_one_cpu_by_every_address_that_names_it() {
    for (icr, arrives) in [
        (0x4_00f1, true),               // self
        (0x8_00f1, true),               // all
        (0xc_00f1, false),              // all but self
        (0x00f1, true),                 // physical 0
        (0x0100_0000_0000_00f1, false), // physical 1
        (0xff00_0000_0000_00f1, true),  // broadcast
        (0x0500_0000_0000_08f1, true),  // logical flat, ldr 1
        (0x0600_0000_0000_08f1, false),
    ] {
        let mut apic = enabled();
        write(&mut apic, 0, REG_LDR, 0x0100_0000);
        write(&mut apic, 0, REG_ICR_HIGH, icr >> 32);
        write(&mut apic, 0, REG_ICR, icr & 0xffff_ffff);
        assert_eq!(apic.interrupt_pending(), arrives, "{icr:#x}");
    }
    let x2apic = |icr: u64| {
        let mut apic = enabled();
        let base = apic.state().base_msr;
        apic.msr_write(0, MSR_APIC_BASE, base | BASE_X2APIC).unwrap();
        apic.msr_write(0, MSR_ICR, icr).unwrap();
        apic.interrupt_pending()
    };
    assert!(x2apic(0xf1) && x2apic(0xffff_ffff_0000_00f1) && x2apic(0x3_0000_08f1));
    assert!(!x2apic(0xff_0000_00f1) && !x2apic(0x1_0000_00f1) && !x2apic(0x1_0001_0000_08f1));
}

#[test]
fn a_self_nmi_is_taken_once() {
    let mut apic = enabled();
    write(&mut apic, 0, REG_ICR, 0x4400);
    write(&mut apic, 0, REG_ICR, 0x4400);
    assert!(apic.take_nmi());
    assert!(!apic.take_nmi());
}

#[test]
fn errors_collect_until_written_and_interrupt_once() {
    let mut apic = enabled();
    write(&mut apic, 0, REG_LVT + 0x50, 0xfe);
    write(&mut apic, 0, REG_ICR, 0x4_0003);
    write(&mut apic, 0, REG_ICR, 0x4_0003);
    assert_eq!(read(&mut apic, 0, REG_ESR), 0);
    write(&mut apic, 0, REG_ESR, 0);
    assert_eq!(read(&mut apic, 0, REG_ESR), 0x20);
    assert_eq!(apic.acknowledge(), 0xfe);
    // An illegal vector in the error entry itself ends.
    write(&mut apic, 0, REG_LVT + 0x50, 0x03);
    read(&mut apic, 0, 0xc0);
    write(&mut apic, 0, REG_ESR, 0);
    assert_eq!(read(&mut apic, 0, REG_ESR), 0xc0);
}

#[test]
fn a_software_disabled_apic_masks_its_table_and_takes_only_nmis() {
    let mut apic = Apic::new(40);
    assert!(apic.accepts_ext_int(), "as firmware leaves it");
    write(&mut apic, 0, REG_SVR, 0xff);
    assert!(!apic.accepts_ext_int());
    write(&mut apic, 0, REG_LVT, 0x30);
    assert_eq!(read(&mut apic, 0, REG_LVT), 0x1_0030);
    assert!(!apic.handle_message(fixed(0x40, false)));
    assert!(apic.handle_message(Message { mode: DeliveryMode::Nmi, ..fixed(0, false) }));
    assert!(apic.take_nmi());
}

#[test]
fn lint0_can_be_a_fixed_level_interrupt() {
    let mut apic = enabled();
    write(&mut apic, 0, REG_LVT + 0x30, 0x8041);
    apic.set_lint(0, true);
    assert_eq!(apic.acknowledge(), 0x41);
    write(&mut apic, 0, REG_LVT + 0x30, 0x8041);
    assert_eq!(read(&mut apic, 0, REG_LVT + 0x30), 0xc041, "remote IRR is read-only");
    assert_eq!(read(&mut apic, 0, REG_IRR + 0x20), 0, "and keeps the pin from asking twice");
    write(&mut apic, 0, REG_EOI, 0);
    assert_eq!(apic.acknowledge(), 0x41, "the pin is still high");
    apic.set_lint(0, false);
    write(&mut apic, 0, REG_EOI, 0);
    assert!(!apic.interrupt_pending());
    write(&mut apic, 0, REG_LVT + 0x40, 0x400);
    apic.set_lint(1, true);
    assert!(apic.take_nmi());
}

#[test]
fn a_saved_apic_goes_on_where_it_was_and_impossible_states_are_refused() {
    let mut apic = enabled();
    write(&mut apic, 0, REG_LVT, 0x30 | TIMER_PERIODIC);
    write(&mut apic, 5, REG_INITIAL_COUNT, 1000);
    apic.handle_message(fixed(0x40, true));
    apic.msr_write(5, MSR_X2APIC_FIRST, 0);
    let state = apic.state();
    assert_eq!(Apic::restore(state.clone()).unwrap().state(), state);
    let refused = |change: fn(&mut ApicState)| {
        let mut state = state.clone();
        change(&mut state);
        Apic::restore(state).is_err()
    };
    assert!(refused(|s| s.base_msr |= 1));
    assert!(refused(|s| s.base_msr = BASE_X2APIC));
    assert!(refused(|s| s.phys_addr_bits = 64));
    assert!(refused(|s| s.lvt[0] = u32::MAX));
    assert!(refused(|s| s.timer.deadline_tsc = 5));
    assert!(refused(|s| s.irr[0] = 1));
}

#[test]
fn no_sequence_of_register_writes_panics() {
    let mut rng = base::SeededRng::new(11);
    let mut apic = Apic::new(40);
    let mut now_ns = 0u64;
    for _ in 0..200_000 {
        now_ns = now_ns.saturating_add(rng.below(5_000));
        let value = rng.u64() >> rng.below(64);
        let msr = MSR_X2APIC_FIRST + rng.below(0x40) as u32;
        match rng.below(10) {
            0 => {
                let mode = rng.below(4) << 10;
                apic.msr_write(now_ns, MSR_APIC_BASE, DEFAULT_BASE | mode);
            }
            1 => drop(apic.msr_write(now_ns, MSR_TSC_DEADLINE, value)),
            2 => drop(apic.msr_write(now_ns, msr, value)),
            3 => drop(apic.msr_read(now_ns, msr)),
            4 => drop(apic.mmio_read(now_ns, rng.below(4096), 1 << rng.below(4))),
            5 => apic.set_tsc_offset(now_ns, value),
            6 => apic.set_lint(rng.below(2) as usize, value & 1 != 0),
            7 => apic.handle_time(now_ns),
            8 if apic.interrupt_pending() => drop(apic.acknowledge()),
            _ => apic.mmio_write(now_ns, rng.below(256) << 4, 4, value),
        }
        apic.take_eoi();
    }
    let state = apic.state();
    assert_eq!(Apic::restore(state.clone()).unwrap().state(), state);
}
