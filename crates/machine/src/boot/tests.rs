use super::*;

fn ram() -> GuestMem {
    GuestMem::new(64 << 20).unwrap()
}

fn payload(kernel: Vec<u8>) -> BootPayload {
    BootPayload { kernel, initrd: Some(vec![0xab; 5000]), cmdline: "console=ttyS0".to_owned() }
}

fn boot(kernel: Vec<u8>) -> Result<(GuestMem, EntryPoint), BootError> {
    let mut mem = ram();
    let tables = BoardTables { rsdp: Gpa(0xe_0000), pieces: vec![(Gpa(0xe_0000), vec![1, 2, 3])] };
    let entry = load(&mut mem, &payload(kernel), &tables, &[7; 32])?;
    Ok((mem, entry))
}

/// A bzImage with one setup sector and 64 bytes of kernel.
fn bzimage() -> Vec<u8> {
    let mut kernel = vec![0u8; 1024 + 64];
    let mut set = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x1f1, &[1]);
    set(0x1f4, &4u32.to_le_bytes());
    set(0x1fe, &[0x55, 0xaa]);
    set(0x201, &[0x6a]);
    set(0x202, b"HdrS");
    set(0x206, &0x20fu16.to_le_bytes());
    set(0x22c, &0x7fff_ffffu32.to_le_bytes());
    set(0x236, &1u16.to_le_bytes());
    set(0x238, &2047u32.to_le_bytes());
    set(0x258, &(16u64 << 20).to_le_bytes());
    set(0x260, &0x10_0000u32.to_le_bytes());
    set(1024, &[0x90; 64]);
    kernel
}

fn multiboot() -> Vec<u8> {
    let mut kernel = Vec::new();
    let flags = 1u32 << 16;
    let header_addr = 0x20_0000u32;
    for word in [
        0x1bad_b002,
        flags,
        0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags),
        header_addr,
        header_addr,
        header_addr + 64,
        header_addr + 128,
        header_addr + 32,
    ] {
        kernel.extend(u32::to_le_bytes(word));
    }
    kernel.resize(64, 0x90);
    kernel
}

/// A 64-bit ELF file with one segment at 2 MiB and, if asked, a PVH note.
fn elf(with_note: bool) -> Vec<u8> {
    let mut kernel = vec![0u8; 0x200];
    let mut set = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    set(16, &2u16.to_le_bytes());
    set(18, &62u16.to_le_bytes());
    set(20, &1u32.to_le_bytes());
    set(24, &0x20_0000u64.to_le_bytes());
    set(32, &64u64.to_le_bytes());
    set(52, &64u16.to_le_bytes());
    set(54, &56u16.to_le_bytes());
    set(56, &if with_note { 2u16 } else { 1 }.to_le_bytes());
    let mut header = |at: usize, kind: u32, offset: u64, paddr: u64, file: u64, mem: u64| {
        set(at, &kind.to_le_bytes());
        for (index, field) in [offset, paddr, paddr, file, mem, 4].into_iter().enumerate() {
            set(at + 8 + index * 8, &field.to_le_bytes());
        }
    };
    header(64, 1, 0x100, 0x20_0000, 16, 64);
    header(120, 4, 0x180, 0, 24, 24);
    set(0x100, &[0xcc; 16]);
    set(0x180, &4u32.to_le_bytes());
    set(0x184, &8u32.to_le_bytes());
    set(0x188, &18u32.to_le_bytes());
    set(0x18c, b"Xen\0");
    set(0x190, &0x20_0010u64.to_le_bytes());
    kernel
}

#[test]
fn bzimage_gets_its_zero_page_command_line_initrd_and_seed() {
    let (mem, entry) = boot(bzimage()).unwrap();
    let zero_page = layout::ZERO_PAGE;
    assert_eq!(entry, EntryPoint::Long { rip: (16 << 20) + 0x200, rsi: zero_page });
    let word = |at: u64| mem.read_obj::<u32>(Gpa(at)).unwrap();
    assert_eq!(word(16 << 20), 0x9090_9090);
    assert_eq!(word(zero_page + 0x70), 0xe_0000, "RSDP");
    assert_eq!(word(zero_page + 0x21c), 5000, "initrd size");
    assert_eq!(word(u64::from(word(zero_page + 0x218))), 0xabab_abab, "initrd");
    let mut cmdline = [0; 14];
    mem.read(Gpa(u64::from(word(zero_page + 0x228))), &mut cmdline).unwrap();
    assert_eq!(&cmdline, b"console=ttyS0\0");
    let seed = u64::from(word(zero_page + 0x250));
    assert_eq!((word(seed + 8), word(seed + 12), word(seed + 16)), (9, 32, 0x0707_0707));
}

#[test]
fn multiboot_image_is_entered_at_its_address_with_magic_and_information() {
    let (mem, entry) = boot(multiboot()).unwrap();
    let expected = EntryPoint::Protected { eip: 0x20_0020, eax: 0x2bad_b002, ebx: 0x2000 };
    assert_eq!(entry, expected);
    let word = |at: u64| mem.read_obj::<u32>(Gpa(at)).unwrap();
    assert_eq!(word(0x2000) & 0b100_1101, 0b100_1101, "memory, command line, modules, map");
    let mut cmdline = [0; 21];
    mem.read(Gpa(u64::from(word(0x2010))), &mut cmdline).unwrap();
    assert_eq!(&cmdline, b"kernel console=ttyS0\0");
    let module = u64::from(word(0x2018));
    assert_eq!(word(module + 4) - word(module), 5000);
}

#[test]
fn elf_with_a_pvh_note_is_entered_there() {
    let (mem, entry) = boot(elf(true)).unwrap();
    let expected =
        EntryPoint::Protected { eip: 0x20_0010, eax: 0, ebx: layout::PVH_START_INFO as u32 };
    assert_eq!(entry, expected);
    let magic = mem.read_obj::<u32>(Gpa(layout::PVH_START_INFO)).unwrap();
    assert_eq!(magic, 0x336e_c578);
}

#[test]
fn unknown_and_damaged_kernels_get_an_error_that_says_what_is_wrong() {
    assert_eq!(boot(elf(false)).unwrap_err(), BootError::UnknownKernel { len: 0x200 });
    assert_eq!(boot(b"#!/bin/sh".to_vec()).unwrap_err(), BootError::UnknownKernel { len: 9 });
    let cut = boot(bzimage()[..1040].to_vec()).unwrap_err();
    assert!(cut.to_string().contains("cut short"), "{cut}");
    let mut old = bzimage();
    old[0x206] = 0;
    assert!(boot(old).unwrap_err().to_string().contains("64-bit entry"));
}

#[test]
fn every_cut_of_every_kind_is_an_error_or_boots_but_never_panics() {
    for kernel in [bzimage(), multiboot(), elf(true)] {
        for len in 0..kernel.len() {
            let _ = boot(kernel[..len].to_vec()); // either answer will do; a panic would not
        }
    }
}

#[test]
fn random_damage_never_panics() {
    let mut rng = base::SeededRng::new(11);
    for kernel in [bzimage(), multiboot(), elf(true)] {
        for _ in 0..500 {
            let mut damaged = kernel.clone();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(damaged.len() as u64) as usize;
                damaged[at] = rng.u64() as u8;
            }
            let _ = boot(damaged); // either answer will do; a panic would not
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let mut mem = GuestMem::new(16 << 20).unwrap();
    let error = load(&mut mem, &payload(bzimage()), &BoardTables::default(), &[0; 32]);
    assert!(matches!(error, Err(BootError::DoesNotFit { what: "kernel", .. })), "{error:?}");
    let mut long = payload(bzimage());
    long.cmdline = "x".repeat(5000);
    let error = load(&mut ram(), &long, &BoardTables::default(), &[0; 32]);
    assert_eq!(error, Err(BootError::CommandLine { len: 5000, max: 2047 }));
    let mut big = payload(bzimage());
    big.initrd = Some(vec![0; 60 << 20]);
    let error = load(&mut ram(), &big, &BoardTables::default(), &[0; 32]);
    assert!(matches!(error, Err(BootError::DoesNotFit { what: "initrd", .. })), "{error:?}");
}
