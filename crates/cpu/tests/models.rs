//! CPU models: what each has and has not, and the AVX state.

mod common;

use common::{CODE, DATA, HANDLERS, Vm};
use cpu::{Cpu, CpuState};
use x86::{CpuModel, Cr0, Cr4, Efer, Rflags, Vector};

const HLT: u8 = 0xf4;
const RDI: usize = 7;
const VADDPS_XMM: &[u8] = &[0xc5, 0xf0, 0x58, 0xc2]; // vaddps xmm0, xmm1, xmm2
const VADDPS_YMM: &[u8] = &[0xc5, 0xf4, 0x58, 0xc2]; // vaddps ymm0, ymm1, ymm2
const VZEROUPPER: &[u8] = &[0xc5, 0xf8, 0x77];

/// A machine of a model in 64-bit mode at CPL 0, with RDI at the data and everything enabled that the model has.
fn machine(model: CpuModel, code: &[u8]) -> Vm {
    let mut vm = Vm::long(&[code, &[HLT]].concat()).with_model(model);
    vm.change(|state| {
        state.sys.cr4 |= Cr4::OSXSAVE;
        state.sys.xcr0 = x86::cpuid::xcr0_all(model);
        state.gpr[RDI] = DATA;
    });
    vm
}

/// Runs to the code's end, or to an exception's handler: its vector.
fn outcome(vm: &mut Vm) -> Result<CpuState, u8> {
    vm.run_to_halt(100);
    if (HANDLERS..HANDLERS + 32 * 256).contains(&vm.cpu.rip()) {
        return Err(vm.halted_in());
    }
    Ok(vm.cpu.save())
}

/// behaviours 19, 22
#[test]
fn a_guest_cannot_run_what_its_model_does_not_announce() {
    let only = |aes, pclmulqdq, sha| CpuModel { aes, pclmulqdq, sha, ..CpuModel::V2 };
    let cases: [(&[u8], CpuModel); 12] = [
        (VADDPS_YMM, CpuModel::V3),
        (VADDPS_XMM, CpuModel::V3),
        (VZEROUPPER, CpuModel::V3),
        (&[0xc4, 0xe2, 0x70, 0xf2, 0xc2], CpuModel::V3), // andn eax, ecx, edx
        (&[0x0f, 0x38, 0xf0, 0x07], CpuModel::V3),       // movbe eax, [rdi]
        (&[0x0f, 0xc7, 0x27], CpuModel::V3),             // xsavec [rdi]
        (&[0xc4, 0xe2, 0x71, 0xa8, 0xc2], CpuModel::V3), // vfmadd213ps xmm0, xmm1, xmm2
        (&[0xc4, 0xe2, 0x79, 0x13, 0xc1], CpuModel::V3), // vcvtph2ps xmm0, xmm1
        (&[0x66, 0x0f, 0x38, 0xdc, 0xc1], only(true, false, false)), // aesenc xmm0, xmm1
        (&[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0], only(false, true, false)), // pclmulqdq xmm0, xmm1, 0
        (&[0x0f, 0x38, 0xc9, 0xc1], only(false, false, true)), // sha1msg1 xmm0, xmm1
        (&[0xc4, 0xe2, 0x71, 0xdc, 0xc2], CpuModel { aes: true, ..CpuModel::V3 }), // vaesenc
    ];
    for (code, model) in cases {
        assert!(outcome(&mut machine(model, code)).is_ok(), "{code:x?} with {model}");
        let lesser = CpuModel { level: CpuModel::V2.level, ..CpuModel::ALL };
        let without = if model.level > lesser.level {
            lesser
        } else {
            CpuModel {
                aes: !model.aes,
                pclmulqdq: !model.pclmulqdq,
                sha: !model.sha,
                ..CpuModel::V3
            }
        };
        assert_eq!(outcome(&mut machine(without, code)), Err(Vector::UD), "{code:x?}, {without}");
    }
}

#[test]
fn the_count_of_zeros_is_a_bit_scan_in_a_model_without_it() {
    // tzcnt eax, ecx; lzcnt edx, ecx
    let code = [0xf3, 0x0f, 0xbc, 0xc1, 0xf3, 0x0f, 0xbd, 0xd1];
    let counts = |model, source| {
        let mut vm = machine(model, &code);
        vm.change(|state| {
            state.gpr[1] = source;
            (state.gpr[0], state.gpr[2]) = (77, 77);
        });
        let state = outcome(&mut vm).unwrap();
        (state.gpr[0], state.gpr[2])
    };
    assert_eq!(counts(CpuModel::V2, 8), (3, 3));
    assert_eq!(counts(CpuModel::V3, 8), (3, 28));
    assert_eq!(counts(CpuModel::V2, 0), (77, 77));
    assert_eq!(counts(CpuModel::V3, 0), (32, 32));
}

#[test]
fn avx_needs_its_state_enabled_and_protected_mode() {
    let with = |change: &dyn Fn(&mut CpuState)| {
        let mut vm = machine(CpuModel::V3, VADDPS_XMM);
        vm.change(change);
        outcome(&mut vm).map(|_| ())
    };
    assert_eq!(with(&|_| {}), Ok(()));
    assert_eq!(with(&|state| state.sys.cr4 &= !Cr4::OSXSAVE), Err(Vector::UD));
    assert_eq!(with(&|state| state.sys.xcr0 = 3), Err(Vector::UD));
    assert_eq!(with(&|state| state.sys.cr0 |= Cr0::TS), Err(Vector::NM));
    // Neither of these has to do with AVX.
    assert_eq!(with(&|state| state.sys.cr4 &= !Cr4::OSFXSR), Ok(()));
    assert_eq!(with(&|state| state.sys.cr0 |= Cr0::EM), Ok(()));
    // ANDN has no state.
    let mut vm = machine(CpuModel::V3, &[0xc4, 0xe2, 0x70, 0xf2, 0xc2]);
    vm.change(|state| state.sys.cr4 &= !Cr4::OSXSAVE);
    assert!(outcome(&mut vm).is_ok());
    // In real mode these bytes are LES with a register, in virtual 8086 mode too.
    let mut vm = Vm::real(&[VADDPS_XMM, &[HLT]].concat()).with_model(CpuModel::V3);
    vm.write(4 * u64::from(Vector::UD), &[0, 0x60, 0, 0]);
    vm.write(0x6000, &[HLT]);
    vm.change(|state| {
        state.sys.cr4 |= Cr4::OSXSAVE;
        state.sys.xcr0 = 7;
    });
    vm.run_to_halt(10);
    assert_eq!(vm.cpu.rip(), 0x6001);
}

#[test]
fn sse_keeps_the_upper_half_and_avx_clears_it() {
    let high = |code: &[u8]| {
        let mut vm = machine(CpuModel::V3, code);
        vm.change(|state| state.sse.ymm_high = [5; 16]);
        outcome(&mut vm).unwrap().sse.ymm_high
    };
    assert_eq!(high(&[0x0f, 0x58, 0xc1]), [5; 16]); // addps xmm0, xmm1
    assert_eq!(high(VADDPS_XMM)[..2], [0, 5]);
    assert_eq!(high(VZEROUPPER), [0; 16]);
}

#[test]
fn outside_64_bit_mode_vzeroupper_reaches_eight_registers() {
    let mut vm = Vm::protected(&[VZEROUPPER, &[HLT]].concat()).with_model(CpuModel::V3);
    vm.change(|state| {
        state.sys.cr4 |= Cr4::OSXSAVE;
        state.sys.xcr0 = 7;
        state.sse.ymm_high = [5; 16];
    });
    assert_eq!(vm.cpu.sys().efer & Efer::LMA, 0);
    vm.run_to_halt(10);
    assert_eq!(vm.cpu.rip(), CODE + 4);
    let high = vm.cpu.save().sse.ymm_high;
    assert_eq!((high[7], high[8]), (0, 5));
}

#[test]
fn xcr0_takes_what_the_model_has() {
    let set = |model, value| {
        let mut vm = machine(model, &[0x0f, 0x01, 0xd1]); // xsetbv
        vm.change(|state| {
            state.sys.xcr0 = 1;
            state.gpr[0] = value;
        });
        outcome(&mut vm).map(|state| state.sys.xcr0)
    };
    assert_eq!(set(CpuModel::V3, 7), Ok(7));
    assert_eq!(set(CpuModel::V3, 3), Ok(3));
    assert_eq!(set(CpuModel::V2, 3), Ok(3));
    for (model, value) in [
        (CpuModel::V2, 7),
        (CpuModel::V3, 5),
        (CpuModel::V3, 6),
        (CpuModel::V3, 0xf),
        (CpuModel::V3, 0),
    ] {
        assert_eq!(set(model, value), Err(Vector::GP), "{model} {value}");
    }
    // XSETBV that allows AVX counts for the very next instruction.
    let mut vm = machine(CpuModel::V3, &[&[0x0f, 0x01, 0xd1][..], VADDPS_YMM].concat());
    vm.change(|state| {
        state.sys.xcr0 = 3;
        state.gpr[0] = 7;
    });
    assert!(outcome(&mut vm).is_ok());
}

#[test]
fn xgetbv_tells_what_is_in_use() {
    let ask = |model, high| {
        let mut vm = machine(model, &[0x0f, 0x01, 0xd0]); // xgetbv
        vm.change(|state| {
            state.gpr[1] = 1;
            state.sse.ymm_high[3] = high;
            state.sse.xmm[0] = 1;
            state.x87.control = 0x37f;
            state.x87.full = 0;
        });
        outcome(&mut vm).map(|state| state.gpr[0])
    };
    assert_eq!(ask(CpuModel::V3, 9), Ok(6));
    assert_eq!(ask(CpuModel::V3, 0), Ok(2));
    assert_eq!(ask(CpuModel::V2, 0), Err(Vector::GP));
}

#[test]
fn what_xsavec_saves_xrstor_brings_back() {
    // xsavec [rdi]; vzeroall; xrstor [rdi]
    let mut vm = machine(CpuModel::V3, &[0x0f, 0xc7, 0x27, 0xc5, 0xfc, 0x77, 0x0f, 0xae, 0x2f]);
    vm.change(|state| {
        state.gpr[0] = 7;
        state.sse.xmm = std::array::from_fn(|i| i as u128 + 1);
        state.sse.ymm_high = std::array::from_fn(|i| i as u128 + 100);
    });
    let before = vm.cpu.save();
    let after = outcome(&mut vm).unwrap();
    assert_eq!(after.sse, before.sse);
    assert_eq!(vm.read(DATA + 520), 7 | 1 << 63, "the header says that the area is compacted");
    assert_eq!(vm.read(DATA + 576), 100);
}

/// vpgatherdd xmm0, [rdi + xmm1 * 4], xmm2
const GATHER: &[u8] = &[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x8f];

#[test]
fn a_gather_that_faults_goes_on_with_the_element_that_did() {
    let mut vm = machine(CpuModel::V3, GATHER);
    vm.write(DATA, &[0x11, 0, 0, 0]);
    vm.write(DATA + 0x1000, &[0x22, 0, 0, 0]);
    vm.change(|state| {
        // Element 2 lies on the next page, element 1 is not chosen and far away.
        state.sse.xmm[1] = 0x400 << 64 | 0x7fff_ffff << 32;
        state.sse.xmm[2] = 0x8000_0000_8000_0000_0000_0000_8000_0000;
        state.sse.xmm[0] = 0x77 << 32;
        state.sse.ymm_high = [1; 16];
    });
    let (page, start) = (DATA + 0x1000, vm.cpu.save());
    vm.set_pte(page, 0);
    assert_eq!(outcome(&mut vm), Err(Vector::PF));
    let at_fault = vm.cpu.save();
    assert_eq!(at_fault.sys.cr2, page);
    assert_eq!(at_fault.sse.xmm[0], 0x77 << 32 | 0x11);
    assert_eq!(at_fault.sse.xmm[2], 0xffff_ffff_ffff_ffff_0000_0000_0000_0000);
    // The handler maps the page and returns.
    vm.set_pte(page, page | 7);
    vm.change(|state| {
        let sse = state.sse.clone();
        let icount = state.icount;
        *state = CpuState { sse, icount, ..start };
    });
    let done = outcome(&mut vm).unwrap();
    assert_eq!(done.sse.xmm[0], 0x11 << 96 | 0x22 << 64 | 0x77 << 32 | 0x11);
    assert_eq!((done.sse.xmm[2], done.sse.ymm_high[0], done.sse.ymm_high[2]), (0, 0, 0));
}

#[test]
fn a_masked_store_touches_what_is_chosen_and_all_or_nothing() {
    // vpmaskmovd [rdi], xmm1, xmm2
    let mut vm = machine(CpuModel::V3, &[0xc4, 0xe2, 0x71, 0x8e, 0x17]);
    vm.change(|state| {
        state.gpr[RDI] = DATA + 0x1000 - 8;
        state.sse.xmm[1] = 1 << 31;
        state.sse.xmm[2] = 0x4444_4444_3333_3333_2222_2222_1111_1111;
    });
    vm.set_pte(DATA + 0x1000, 0);
    let start = vm.cpu.save();
    assert!(outcome(&mut vm).is_ok(), "what is not chosen lies on no page");
    assert_eq!(vm.read(DATA + 0x1000 - 8), 0x1111_1111);
    vm.change(|state| {
        *state = CpuState { icount: state.icount, ..start };
        state.sse.xmm[1] = 1 << 63 | 1 << 95;
    });
    assert_eq!(outcome(&mut vm), Err(Vector::PF));
    assert_eq!(vm.read(DATA + 0x1000 - 8), 0x1111_1111, "nothing is stored before a fault");
}

#[test]
fn an_unmasked_exception_of_a_fused_multiply_add_changes_nothing() {
    // vfmadd213sd xmm0, xmm1, xmm2: 0 * infinity + 1
    let code = [0xc4, 0xe2, 0xf1, 0xa9, 0xc2];
    let run = |cr4: u64| {
        let mut vm = machine(CpuModel::V3, &code);
        vm.change(|state| {
            state.sys.cr4 = state.sys.cr4 & !Cr4::OSXMMEXCPT | cr4;
            state.sse.mxcsr = 0x1f00;
            state.sse.xmm[1] = u128::from(f64::INFINITY.to_bits());
            state.sse.xmm[2] = u128::from(1f64.to_bits());
        });
        let vector = outcome(&mut vm).unwrap_err();
        let sse = vm.cpu.save().sse;
        (vector, sse.mxcsr & 0x3f, sse.xmm[0])
    };
    assert_eq!(run(Cr4::OSXMMEXCPT), (Vector::XM, 1, 0));
    assert_eq!(run(0), (Vector::UD, 1, 0));
}

#[test]
fn a_state_that_the_model_cannot_have_is_refused() {
    let mut state = CpuState::reset();
    state.sse.ymm_high[1] = 1;
    assert!(Cpu::of_model(CpuModel::V3).restore(&state).is_ok());
    assert!(Cpu::of_model(CpuModel::V2).restore(&state).is_err());
    let mut state = CpuState::reset();
    state.sys.xcr0 = 7;
    assert!(Cpu::of_model(CpuModel::V3).restore(&state).is_ok());
    assert!(Cpu::of_model(CpuModel::V2).restore(&state).is_err());
    assert_eq!(Cpu::new().model(), CpuModel::V2);
    assert_eq!(state.rflags, Rflags::FIXED);
}
