//! The native side alone, against outcomes worked out by hand.

use oracle::native::{Native, VECTOR_SYSCALL, check_host};
use oracle::run::in_child;
use oracle::state::{
    CODE, Case, DATA, DATA_READ_ONLY, DS_FLAT, Event, HIGH, Mode, Outcome, Selectors, State,
    Subject,
};
use oracle::template::Template;

const TF: u64 = 1 << 8;
const AC: u64 = 1 << 18;

fn case(mode: Mode, code: &[u8]) -> Case {
    let mut state = State { rip: CODE + 0x100, rflags: 0x202, ..State::default() };
    state.gpr[4] = DATA + 0x1000;
    let flat = if mode == Mode::Compat32 { DS_FLAT } else { 0 };
    state.sel =
        Selectors { cs: mode.cs(), ss: DS_FLAT, ds: DS_FLAT, es: DS_FLAT, fs: flat, gs: flat };
    Case { mode, code: code.to_vec(), state, patches: vec![] }
}

fn long(code: &[u8]) -> Case {
    case(Mode::Long64, code)
}

fn event(vector: u8) -> Event {
    Event { vector, error: 0, cr2: 0 }
}

/// What a row expects of its outcome.
type Expect<'a> = &'a dyn Fn(&Outcome, &Native);

/// Runs each row in one child process and checks it there.
fn check(rows: &[(&str, Case, Expect<'_>)]) {
    if let Err(missing) = check_host() {
        eprintln!("skipped: the host lacks {}", missing.0);
        return;
    }
    let status = in_child(|| {
        let mut native = Native::new(Template::new(1)).expect("the host can be prepared");
        for (name, case, expect) in rows {
            eprintln!("{name}");
            let outcome = native.run(case);
            expect(&outcome, &native);
        }
    });
    assert_eq!(status, 0, "the child failed at the last row above");
}

#[test]
fn registers_flags_and_memory_come_back() {
    let mut add = long(&[0x48, 0x01, 0xc8]);
    (add.state.gpr[0], add.state.gpr[1]) = (u64::MAX, 1);
    let mut store = long(&[0x48, 0x89, 0x03]);
    (store.state.gpr[0], store.state.gpr[3]) = (0x1122_3344_5566_7788, HIGH + 8);
    let mut fs = long(&[0x64, 0x8a, 0x00]);
    fs.state.fs_base = DATA;
    fs.patches = vec![(DATA, vec![0x5a])];
    let mut step = long(&[0xf3, 0xaa]);
    step.state.rflags |= TF;
    (step.state.gpr[1], step.state.gpr[7]) = (3, DATA);
    check(&[
        ("add rax, rcx", add, &|out, _| {
            assert_eq!((out.state.gpr[0], out.event), (0, event(3)));
            assert_eq!(out.state.rip, CODE + 0x104);
            assert_eq!(out.state.rflags, 0x202 | 0x55);
        }),
        ("mov [rbx], rax", store, &|_, native| {
            assert_eq!(native.memory(2)[8..16], 0x1122_3344_5566_7788u64.to_le_bytes());
        }),
        ("mov al, fs:[rax]", fs, &|out, _| assert_eq!(out.state.gpr[0], 0x5a)),
        ("rep stosb, one step", step, &|out, _| {
            assert_eq!(out.event, event(1));
            let state = &out.state;
            assert_eq!((state.gpr[1], state.gpr[7], state.rip), (2, DATA + 1, CODE + 0x100));
        }),
    ]);
}

#[test]
fn faults_come_with_vector_error_code_and_address() {
    let at = |code: &[u8], rax: u64| {
        let mut case = long(code);
        case.state.gpr[0] = rax;
        case
    };
    let mut unaligned = at(&[0x8b, 0x08], DATA + 1);
    unaligned.state.rflags |= AC;
    let mut divide = long(&[0x0f, 0x5e, 0xc1]);
    divide.state.fx.mxcsr = 0x1d80;
    divide.state.fx.xmm[0] = [0x3f; 16];
    let mut pending = long(&[0xd9, 0xe8]);
    pending.state.fx.fcw = 0x37e;
    pending.state.fx.fsw = 0x8081;
    let fault = |vector, error, cr2| {
        move |out: &Outcome, _: &Native| {
            assert_eq!(out.event, Event { vector, error, cr2 });
            assert_eq!(out.state.rip, CODE + 0x100);
        }
    };
    check(&[
        ("div rax by 0", at(&[0x48, 0xf7, 0xf0], 0), &fault(0, 0, 0)),
        ("ud2", long(&[0x0f, 0x0b]), &fault(6, 0, 0)),
        ("hlt", long(&[0xf4]), &fault(13, 0, 0)),
        ("load from nowhere", at(&[0x8b, 0x00], DATA - 4), &fault(14, 4, DATA - 4)),
        (
            "store to a read-only page",
            at(&[0x89, 0x00], DATA_READ_ONLY),
            &fault(14, 7, DATA_READ_ONLY),
        ),
        ("non-canonical load", at(&[0x8b, 0x00], 1 << 47), &fault(13, 0, 0)),
        (
            "non-canonical push",
            {
                let mut case = long(&[0x50]);
                case.state.gpr[4] = 1 << 47 | 8;
                case
            },
            &fault(12, 0, 0),
        ),
        ("unaligned with AC", unaligned, &fault(17, 0, 0)),
        ("divps by 0, unmasked", divide, &fault(19, 0, 0)),
        ("fld1 with an exception pending", pending, &fault(16, 0, 0)),
        ("jump into data", at(&[0xff, 0xe0], DATA), &|out, _| {
            assert_eq!(out.event, Event { vector: 14, error: 0x15, cr2: DATA });
            assert_eq!(out.state.rip, DATA);
        }),
    ]);
}

#[test]
fn code_under_test_cannot_call_the_kernel() {
    let call = |code: &[u8]| {
        let mut case = long(code);
        case.state.gpr[0] = 39; // getpid
        case
    };
    let refused = |out: &Outcome, _: &Native| assert_eq!(out.event.vector, VECTOR_SYSCALL);
    check(&[
        ("syscall", call(&[0x0f, 0x05]), &refused),
        ("int 80h", call(&[0xcd, 0x80]), &refused),
    ]);
}

#[test]
fn compatibility_mode_runs_32_bit_code() {
    let mut inc = case(Mode::Compat32, &[0x40]);
    inc.state.gpr[0] = 0xffff_ffff;
    let mut far = case(Mode::Compat32, &[0xea, 0, 0, 0, 0, 0x33, 0]);
    far.code[1..5].copy_from_slice(&(CODE as u32).to_le_bytes());
    check(&[
        ("inc eax", inc, &|out, _| {
            assert_eq!((out.state.gpr[0], out.event), (0, event(3)));
            assert_eq!(out.state.sel.cs, 0x23);
        }),
        ("jmp 33h:code", far, &|out, _| {
            assert_eq!((out.state.sel.cs, out.state.rip), (0x33, CODE + 1));
        }),
    ]);
}
