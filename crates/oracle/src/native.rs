//! The host CPU as a subject.
//!
//! A case starts with `rt_sigreturn` from a crafted signal frame, which loads every register at
//! once, and ends with the signal that the kernel makes of the exception; that frame holds every
//! register after. So a case costs one system call and one signal. The handler finds the way back
//! into Rust like `longjmp`: it restores the registers that `oracle_enter` kept.
//!
//! The caller's process must be a throw-away one: code under test can in principle write anywhere
//! below 47 bits. [`Native::new`] installs a system call filter, so that the code under test cannot
//! call the kernel: it ends with SIGSYS, reported as [`VECTOR_SYSCALL`].

use std::arch::global_asm;
use std::io;
use std::ptr;

use crate::state::{
    CODE, Case, DATA, DATA_READ_ONLY, Event, Fx, HIGH, HIGH_READ_ONLY, LDT, Mode, Outcome,
    READ_ONLY_BYTES, REGION_BYTES, REGIONS, Selectors, State, Subject, base_of,
};
use crate::template::Template;

/// Not a vector of the CPU: the code tried to call the kernel.
pub const VECTOR_SYSCALL: u8 = 0xff;

/// Flags that a program can set: CF, PF, AF, ZF, SF, TF, DF, OF, AC. (`rt_sigreturn` ignores ID.)
pub const FLAGS_MASK: u64 = 0x4_0dd5;

const SIGNALS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];
const ALT_STACK_BYTES: usize = 64 << 10;

/// Segment registers and bases that the signal frame does not carry.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segments {
    ds: u16,
    es: u16,
    fs: u16,
    gs: u16,
    fs_base: u64,
    gs_base: u64,
}

global_asm!(
    // uc *oracle_enter(uc *rdi, const Segments *rsi, Segments *rdx): runs the frame and returns the
    // frame of the signal that ended it.
    ".globl oracle_enter",
    "oracle_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + oracle_host_rsp], rsp",
    "mov [rip + oracle_segments_out], rdx",
    "rdfsbase rax",
    "mov [rip + oracle_host_fs_base], rax",
    "mov byte ptr [rip + oracle_in_case], 1",
    "mov ds, word ptr [rsi]",
    "mov es, word ptr [rsi + 2]",
    "mov fs, word ptr [rsi + 4]",
    "mov gs, word ptr [rsi + 6]",
    "mov rax, [rsi + 8]",
    "wrfsbase rax",
    "mov rax, [rsi + 16]",
    "wrgsbase rax",
    "mov rsp, rdi",
    "mov eax, 15", // rt_sigreturn
    "syscall",
    "ud2",
    // The handler of every signal: rdi signal, rsi siginfo, rdx ucontext. The kernel has reset DF,
    // TF and the FPU, but neither AC nor the segment registers.
    ".globl oracle_handler",
    "oracle_handler:",
    "push 2",
    "popfq",
    "cmp byte ptr [rip + oracle_in_case], 1",
    "jne 2f",
    "mov byte ptr [rip + oracle_in_case], 0",
    "mov rcx, [rip + oracle_segments_out]",
    "mov [rcx], ds",
    "mov [rcx + 2], es",
    "mov [rcx + 4], fs",
    "mov [rcx + 6], gs",
    "rdfsbase rax",
    "mov [rcx + 8], rax",
    "rdgsbase rax",
    "mov [rcx + 16], rax",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "wrgsbase rax",
    "mov rax, [rip + oracle_host_fs_base]",
    "wrfsbase rax",
    "mov rsp, [rip + oracle_host_rsp]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "mov rax, rdx",
    "ret",
    // A fault of our own: end with a status that the supervisor names.
    "2:",
    "mov edi, 101",
    "mov eax, 231", // exit_group
    "syscall",
    "ud2",
    ".pushsection .data.oracle, \"aw\"",
    ".balign 8",
    "oracle_host_rsp: .quad 0",
    "oracle_host_fs_base: .quad 0",
    "oracle_segments_out: .quad 0",
    "oracle_in_case: .byte 0",
    ".balign 8",
    ".popsection",
);

unsafe extern "C" {
    fn oracle_enter(
        frame: *mut libc::ucontext_t,
        before: *const Segments,
        after: *mut Segments,
    ) -> *mut libc::ucontext_t;
    fn oracle_handler();
}

/// What the host lacks.
#[derive(Debug)]
pub struct Unsupported(pub &'static str);

/// The host CPU.
pub struct Native {
    template: Template,
    /// The frame that the next case starts from: the kernel's own, from the case before.
    frame: *mut libc::ucontext_t,
}

/// Says what the host lacks for native execution, if anything.
///
/// # Errors
/// [`Unsupported`] names it.
pub fn check_host() -> Result<(), Unsupported> {
    const HWCAP2_FSGSBASE: libc::c_ulong = 1 << 1;
    // SAFETY: getauxval has no preconditions.
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE == 0 {
        return Err(Unsupported("the kernel does not allow RDFSBASE to programs"));
    }
    for (present, what) in [
        (std::is_x86_feature_detected!("sse4.2"), "SSE4.2"),
        (std::is_x86_feature_detected!("popcnt"), "POPCNT"),
        (std::is_x86_feature_detected!("cmpxchg16b"), "CMPXCHG16B"),
        (std::is_x86_feature_detected!("xsave"), "XSAVE"),
    ] {
        if !present {
            return Err(Unsupported(what));
        }
    }
    Ok(())
}

/// Linux has the number of the CPU as the limit of a segment, which LSL tells a program; ours is 0 ([`crate::state::GDT`]).
/// Where this process may not use that CPU, only such programs see another one.
fn stay_on_cpu_0() {
    // SAFETY: a set of CPUs is plain bits, and the call reads as many bytes of it as it is told.
    unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut cpus);
        libc::sched_setaffinity(0, size_of_val(&cpus), &cpus);
    }
}

impl Native {
    /// Maps the regions, takes over the signals and closes the kernel to the code under test. One
    /// per process, on its only thread.
    ///
    /// # Errors
    /// A system call was refused.
    pub fn new(template: Template) -> io::Result<Native> {
        stay_on_cpu_0();
        let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        map(CODE, REGION_BYTES, rwx)?;
        map(DATA, REGION_BYTES, rw)?;
        map(HIGH, REGION_BYTES, rw)?;
        for (at, content) in
            [(DATA_READ_ONLY, &template.read_only[0]), (HIGH_READ_ONLY, &template.read_only[1])]
        {
            map(at, READ_ONLY_BYTES, rw)?;
            // SAFETY: the page was mapped just now, writable, and holds nothing else.
            unsafe { ptr::copy_nonoverlapping(content.as_ptr(), at as *mut u8, READ_ONLY_BYTES) };
            // SAFETY: the page is ours, and no Rust reference points into it.
            check(unsafe {
                libc::mprotect(at as *mut libc::c_void, READ_ONLY_BYTES, libc::PROT_READ)
            })?;
        }
        fill_ldt()?;
        take_signals()?;
        let mut native = Native { template, frame: first_frame()? };
        native.reset_all();
        filter_system_calls()?;
        Ok(native)
    }

    fn reset_all(&mut self) {
        for (region, at) in REGIONS.into_iter().enumerate() {
            // SAFETY: the region is mapped writable at its fixed address and no reference into it
            // is alive: `memory` borrows `self`, which is borrowed mutably here.
            unsafe {
                ptr::copy_nonoverlapping(
                    self.template.memory[region].as_ptr(),
                    at as *mut u8,
                    REGION_BYTES,
                );
            }
        }
    }

    /// Puts the regions back to the template. Comparing first is cheaper than copying.
    fn reset(&mut self) {
        for (region, at) in REGIONS.into_iter().enumerate() {
            if self.memory(region) != &self.template.memory[region] {
                // SAFETY: as in `reset_all`.
                unsafe {
                    ptr::copy_nonoverlapping(
                        self.template.memory[region].as_ptr(),
                        at as *mut u8,
                        REGION_BYTES,
                    );
                }
            }
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        assert!(region_holds(at, bytes.len()), "{} bytes at {at:#x}", bytes.len());
        // SAFETY: the range lies in one region, which is mapped writable; as in `reset_all`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }
}

/// True if `len` bytes at `at` lie in one of [`REGIONS`].
#[must_use]
pub fn region_holds(at: u64, len: usize) -> bool {
    REGIONS.iter().any(|start| {
        at >= *start
            && at - start <= REGION_BYTES as u64
            && len as u64 <= REGION_BYTES as u64 - (at - start)
    })
}

impl Subject for Native {
    fn run(&mut self, case: &Case) -> Outcome {
        self.reset();
        self.put(case.code_address(), &case.code);
        for (at, bytes) in &case.patches {
            self.put(*at, bytes);
        }
        let before = Segments {
            ds: case.state.sel.ds,
            es: case.state.sel.es,
            fs: case.state.sel.fs,
            gs: case.state.sel.gs,
            fs_base: case.state.fs_base,
            gs_base: case.state.gs_base,
        };
        let mut after = Segments::default();
        // SAFETY: `frame` is the kernel's last signal frame, on the alternate stack, which nothing
        // uses outside of signals. `enter` comes back by the handler, whatever the code under test
        // does within the regions; that it leaves the rest of this process alone is the premise
        // of this module (see there).
        unsafe {
            write_frame(self.frame, &case.state);
            self.frame = oracle_enter(self.frame, &before, &mut after);
            read_frame(self.frame, &after, case.mode)
        }
    }

    fn memory(&self, region: usize) -> &[u8; REGION_BYTES] {
        // SAFETY: the region is mapped as long as the process lives, and it changes only under
        // `&mut self`.
        unsafe { &*(REGIONS[region] as *const [u8; REGION_BYTES]) }
    }
}

/// Signal frame registers in the order of [`State::gpr`].
const GREGS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The frame holds an XSAVE area: the legacy part, then the header with XSTATE_BV.
const XSTATE_BV_OFFSET: usize = 512;
const MXCSR_MASK_OFFSET: usize = 28;
/// Where CPUID leaf DH, subleaf 2, has it on every CPU.
const YMM_OFFSET: usize = 576;

/// Turns a signal frame into one that starts `state`.
///
/// # Safety
/// `frame` is a signal frame of the kernel with an XSAVE area.
unsafe fn write_frame(frame: *mut libc::ucontext_t, state: &State) {
    const UC_FP_XSTATE: libc::c_ulong = 1;
    const UC_SIGCONTEXT_SS: libc::c_ulong = 2;
    const UC_STRICT_RESTORE_SS: libc::c_ulong = 4;
    // SAFETY: the caller vouches for the frame.
    let uc = unsafe { &mut *frame };
    uc.uc_flags = UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
    let gregs = &mut uc.uc_mcontext.gregs;
    for (reg, value) in GREGS.iter().zip(state.gpr) {
        gregs[*reg as usize] = value as i64;
    }
    gregs[libc::REG_RIP as usize] = state.rip as i64;
    gregs[libc::REG_EFL as usize] = (state.rflags & FLAGS_MASK) as i64;
    gregs[libc::REG_CSGSFS as usize] =
        (u64::from(state.sel.cs) | u64::from(state.sel.ss) << 48) as i64;
    // SAFETY: `fpregs` of a signal frame points to its XSAVE area, 64-byte aligned.
    unsafe {
        let area = uc.uc_mcontext.fpregs.cast::<u8>();
        let mask = area.add(MXCSR_MASK_OFFSET).cast::<u32>().read();
        area.cast::<Fx>().write(Fx { mxcsr_mask: mask, ..state.fx });
        // x87, SSE and AVX from the area, everything else in its initial state.
        let is_used = state.ymm_high != [[0; 16]; 16];
        if is_used {
            area.add(YMM_OFFSET).cast::<[[u8; 16]; 16]>().write_unaligned(state.ymm_high);
        }
        area.add(XSTATE_BV_OFFSET).cast::<u64>().write(if is_used { 7 } else { 3 });
    }
}

/// Reads what a signal frame says about the program that was interrupted.
///
/// # Safety
/// `frame` is a signal frame of the kernel with an XSAVE area.
unsafe fn read_frame(frame: *mut libc::ucontext_t, segments: &Segments, mode: Mode) -> Outcome {
    // SAFETY: the caller vouches for the frame.
    let uc = unsafe { &*frame };
    let gregs = &uc.uc_mcontext.gregs;
    let reg = |reg: libc::c_int| gregs[reg as usize] as u64;
    // SAFETY: as in `write_frame`; the component bits say whether there are upper halves.
    let (fx, ymm_high) = unsafe {
        let area = uc.uc_mcontext.fpregs.cast::<u8>();
        let components = area.add(XSTATE_BV_OFFSET).cast::<u64>().read();
        let ymm_high = match components & 4 {
            0 => [[0; 16]; 16],
            _ => area.add(YMM_OFFSET).cast::<[[u8; 16]; 16]>().read_unaligned(),
        };
        (area.cast::<Fx>().read(), ymm_high)
    };
    let selectors = reg(libc::REG_CSGSFS);
    let vector = reg(libc::REG_TRAPNO) as u8;
    let state = State {
        gpr: GREGS.map(|greg| reg(greg) & mode.gpr_mask()),
        rip: reg(libc::REG_RIP),
        rflags: reg(libc::REG_EFL),
        sel: Selectors {
            cs: selectors as u16,
            ss: (selectors >> 48) as u16,
            ds: segments.ds,
            es: segments.es,
            fs: segments.fs,
            gs: segments.gs,
        },
        fs_base: segments.fs_base,
        gs_base: segments.gs_base,
        fx: Fx { mxcsr_mask: 0, ..fx },
        ymm_high,
    };
    // SAFETY: the kernel puts the siginfo of a signal right behind its ucontext; the first field is
    // the signal's number.
    let signal = unsafe { frame.cast::<u8>().add(KERNEL_UCONTEXT_BYTES).cast::<i32>().read() };
    if signal == libc::SIGSYS {
        return Outcome { state, event: Event { vector: VECTOR_SYSCALL, error: 0, cr2: 0 } };
    }
    let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
    let error = if has_error { reg(libc::REG_ERR) as u32 } else { 0 };
    let cr2 = if vector == 14 { reg(libc::REG_CR2) } else { 0 };
    Outcome { state, event: Event { vector, error, cr2 } }
}

/// `sizeof(struct ucontext)` of the kernel, which is smaller than libc's.
const KERNEL_UCONTEXT_BYTES: usize = 304;

/// Raises one signal, to have a frame to start from.
fn first_frame() -> io::Result<*mut libc::ucontext_t> {
    // A frame made by hand cannot be trusted to have the kernel's size and layout of the XSAVE
    // area, so we start a frame without one, at an INT3 (the code pages are still zero: ADD
    // [RAX], AL with RAX = 0 faults as well).
    // SAFETY: ucontext_t is plain data; all zero is a valid value.
    let mut frame: libc::ucontext_t = unsafe { std::mem::zeroed() };
    frame.uc_stack = alt_stack()?;
    frame.uc_mcontext.gregs[libc::REG_RIP as usize] = CODE as i64;
    frame.uc_mcontext.gregs[libc::REG_CSGSFS as usize] =
        (u64::from(crate::state::CS_64) | u64::from(crate::state::DS_FLAT) << 48) as i64;
    let before = Segments::default();
    let mut after = Segments::default();
    // SAFETY: the code faults at once and the handler comes back.
    Ok(unsafe { oracle_enter(&mut frame, &before, &mut after) })
}

fn alt_stack() -> io::Result<libc::stack_t> {
    // SAFETY: stack_t is plain data, and a null first argument only asks.
    unsafe {
        let mut stack: libc::stack_t = std::mem::zeroed();
        check(libc::sigaltstack(ptr::null(), &mut stack))?;
        Ok(stack)
    }
}

/// Enters [`LDT`] by `modify_ldt`.
fn fill_ldt() -> io::Result<()> {
    /// `struct user_desc` of the kernel.
    #[repr(C)]
    struct UserDesc {
        entry_number: u32,
        base_addr: u32,
        limit: u32,
        flags: u32,
    }
    const WRITE: libc::c_int = 0x11;
    for (index, descriptor) in LDT.into_iter().enumerate() {
        let bit = |bit: u32| (descriptor >> bit & 1) as u32;
        let contents = (descriptor >> 42 & 3) as u32;
        // seg_32bit, contents, read_exec_only, limit_in_pages, seg_not_present, useable.
        let flags = bit(54)
            | contents << 1
            | (1 - bit(41)) << 3
            | bit(55) << 4
            | (1 - bit(47)) << 5
            | bit(52) << 6;
        let entry = UserDesc {
            entry_number: index as u32,
            base_addr: base_of(index as u16 * 8 | 7) as u32,
            limit: (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32,
            flags,
        };
        // SAFETY: the kernel reads one `user_desc` of this size.
        let result = unsafe {
            libc::syscall(libc::SYS_modify_ldt, WRITE, &raw const entry, size_of::<UserDesc>())
        };
        check(result as libc::c_int)?;
    }
    Ok(())
}

fn take_signals() -> io::Result<()> {
    // SAFETY: an anonymous mapping touches no memory in use.
    let stack = unsafe {
        libc::mmap(
            ptr::null_mut(),
            ALT_STACK_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
            -1,
            0,
        )
    };
    if stack == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let alt = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: ALT_STACK_BYTES };
    // SAFETY: the stack was mapped just now and stays.
    check(unsafe { libc::sigaltstack(&alt, ptr::null_mut()) })?;
    for signal in SIGNALS {
        // SAFETY: sigaction is plain data, for which all zero is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = oracle_handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: the handler is written for exactly this use, with these flags.
        check(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) })?;
    }
    Ok(())
}

/// Makes every system call from below 4 GiB, where only code under test lives, a SIGSYS.
fn filter_system_calls() -> io::Result<()> {
    const INSTRUCTION_POINTER_HIGH: u32 = 12;
    const fn op(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt, jf, k }
    }
    let mut filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, INSTRUCTION_POINTER_HIGH),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_TRAP),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: plain system calls; the kernel copies the program.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program))
    }
}

fn map(at: u64, len: usize, protection: libc::c_int) -> io::Result<()> {
    // SAFETY: NOREPLACE refuses an address in use, so no memory of the process is touched.
    let got = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            len,
            protection,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_FIXED_NOREPLACE
                | libc::MAP_POPULATE,
            -1,
            0,
        )
    };
    if got as u64 == at { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
