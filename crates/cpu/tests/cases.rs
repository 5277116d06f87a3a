//! Instruction cases as data: `cases/integer.txt`.

mod common;

use base::Gpa;
use common::{CODE, DATA, HANDLERS, Vm};
use cpu::CpuState;
use x86::Rflags;

const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const FLAGS: [(&str, u64); 6] = [
    ("cf", Rflags::CF),
    ("pf", Rflags::PF),
    ("af", Rflags::AF),
    ("zf", Rflags::ZF),
    ("sf", Rflags::SF),
    ("of", Rflags::OF),
];

/// What the two sides of a case can name.
#[derive(Clone, Debug, PartialEq)]
struct Picture {
    gpr: [u64; 16],
    flags: u64,
    data: u64,
    fault: Option<u8>,
}

impl Picture {
    fn set(&mut self, item: &str) {
        let (name, value) = item.split_once('=').unwrap_or_else(|| panic!("no value in {item}"));
        let value =
            u64::from_str_radix(value, 16).unwrap_or_else(|_| panic!("bad value in {item}"));
        if let Some(r) = REGISTERS.iter().position(|known| *known == name) {
            self.gpr[r] = value;
        } else if let Some((_, flag)) = FLAGS.iter().find(|(known, _)| *known == name) {
            self.flags = self.flags & !flag | if value != 0 { *flag } else { 0 };
        } else if name == "[d]" {
            self.data = value;
        } else if name == "fault" {
            self.fault = Some(value as u8);
        } else {
            panic!("unknown item {item}");
        }
    }
}

/// Splits the text before the arrow into code and items; what is between them is for people.
fn parse(before: &str) -> (Vec<u8>, Vec<&str>) {
    let words: Vec<&str> = before.split_whitespace().collect();
    let is_hex =
        |word: &&&str| word.len().is_multiple_of(2) && word.bytes().all(|b| b.is_ascii_hexdigit());
    let digits: String = words.iter().take_while(is_hex).copied().collect();
    let code = (0..digits.len() / 2)
        .map(|n| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).unwrap())
        .collect();
    (code, words.into_iter().filter(|word| word.contains('=')).collect())
}

fn check(line: &str) {
    let (before, after) = line.split_once("=>").unwrap_or_else(|| panic!("no arrow: {line}"));
    let (code, items) = parse(before);
    let mut start = Picture { gpr: [0; 16], flags: 0, data: 0, fault: None };
    start.gpr[4] = common::USER_STACK;
    items.into_iter().for_each(|item| start.set(item));
    let mut expected = start.clone();
    after.split_whitespace().for_each(|item| expected.set(item));
    let mut vm = Vm::user(&[&code[..], &[0xcd, 0x80]].concat());
    vm.mem.write_obj(Gpa(DATA), start.data).unwrap();
    vm.change(|state| {
        state.gpr = start.gpr;
        state.rflags = state.rflags & !Rflags::STATUS | start.flags;
    });
    // INT 80H behind the code, or the exception's handler, ends the case.
    let mut last = vm.cpu.save();
    while vm.cpu.cpl() == 3 {
        last = vm.cpu.save();
        vm.run(1);
        assert!(vm.cpu.icount().0 < 100, "does not end: {line}");
    }
    let vector = ((vm.cpu.rip() - HANDLERS) / 32) as u8;
    let CpuState { gpr, rflags, .. } = last;
    let actual = Picture {
        gpr,
        flags: rflags & Rflags::STATUS,
        data: vm.read(DATA),
        fault: (vector != 0x80).then_some(vector),
    };
    assert_eq!(actual, expected, "{line}");
    if vector != 0x80 {
        assert!(vm.cpu.icount().0 == 1 && (CODE..CODE + 16).contains(&last.rip), "{line}");
    }
}

#[test]
fn instruction_cases_hold() {
    let text = include_str!("cases/integer.txt");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut count = 0;
    for line in lines {
        check(line);
        count += 1;
    }
    assert!(count > 50, "{count} cases");
}
