//! A guest that carries out a script: it sets up virtio rings, good ones and bad ones, without a driver.

use std::fmt::Write as _;

use super::multiboot_kernel;

pub(crate) const RNG: u32 = 0xd000_0000;
pub(crate) const CONSOLE: u32 = 0xd000_1000;
pub(crate) const DISK: u32 = 0xd000_2000;
pub(crate) const NET: u32 = 0xd000_3000;

/// Where the guest has its rings, in its RAM of 16 MiB.
pub(crate) const DESC: u32 = 0x20_0000;
pub(crate) const AVAIL: u32 = 0x20_2000;
pub(crate) const USED: u32 = 0x20_4000;
pub(crate) const TABLE: u32 = 0x20_6000;
pub(crate) const DATA: u32 = 0x20_8000;
pub(crate) const NOT_RAM: [u32; 2] = [0, 0x100];

pub(crate) const NEXT: u32 = 1;
pub(crate) const WRITE: u32 = 2;
pub(crate) const INDIRECT: u32 = 4;

pub(crate) const INTERRUPT_STATUS: u32 = 0x60;
pub(crate) const STATUS: u32 = 0x70;
pub(crate) const ALIVE: u32 = 0x0f;
pub(crate) const NEEDS_RESET: u32 = 0x4f;

/// What the guest does, as words for a kernel that carries them out one by one.
#[derive(Default)]
pub(crate) struct Script {
    words: Vec<u32>,
    /// What it shows on its serial console.
    shows: String,
}

impl Script {
    pub(crate) fn write(&mut self, address: u32, value: u32) {
        self.words.extend([1, address, value]);
    }

    pub(crate) fn writes(&mut self, address: u32, values: &[u32]) {
        for (index, value) in (0..).zip(values) {
            self.write(address + index * 4, *value);
        }
    }

    /// Reads, and shows what it found.
    pub(crate) fn look(&mut self, address: u32) {
        self.words.extend([2, address, 0]);
    }

    /// Waits until something is there.
    pub(crate) fn wait(&mut self, address: u32) {
        self.words.extend([3, address, 0]);
    }

    /// Reads, and is expected to find `value`.
    pub(crate) fn show(&mut self, address: u32, value: u32) {
        self.look(address);
        writeln!(self.shows, "{value:08X}").unwrap();
    }

    pub(crate) fn desc(
        &mut self,
        table: u32,
        index: u32,
        [low, high]: [u32; 2],
        len: u32,
        flags: u32,
    ) {
        self.writes(table + index * 16, &[low, high, len, flags]);
    }

    /// Offers the chain that begins at `head`, `count` times, and kicks.
    pub(crate) fn offer(&mut self, window: u32, queue: u32, head: u32, count: u32) {
        self.writes(AVAIL, &[count << 16, head]);
        self.write(window + 0x50, queue);
    }

    /// Takes the device into service, with a queue of 16 at the usual place.
    pub(crate) fn start(&mut self, window: u32, queue: u32) {
        self.write(window + STATUS, 0);
        self.write(window + STATUS, 3);
        // VIRTIO_F_VERSION_1 and VIRTIO_F_INDIRECT_DESC
        for (half, features) in [(1, 1), (0, 1 << 28)] {
            self.write(window + 0x24, half);
            self.write(window + 0x20, features);
        }
        self.write(window + STATUS, 11);
        self.write(window + 0x30, queue);
        self.write(window + 0x38, 16);
        for (register, address) in [(0x80, DESC), (0x90, AVAIL), (0xa0, USED)] {
            self.writes(window + register, &[address, 0]);
            self.writes(address, &[0; 8]);
        }
        self.write(window + 0x44, 1);
        self.write(window + STATUS, 15);
        self.show(window + STATUS, ALIVE);
    }

    /// A kernel that does all this and leaves through the debug-exit port.
    pub(crate) fn kernel(mut self) -> (Vec<u8>, String) {
        #[rustfmt::skip]
        const CODE: &[u8] = &[
            0xbe, 0x56, 0x00, 0x10, 0x00,       // mov esi, words
            0xad, 0x89, 0xc1,                   // next: lodsd; mov ecx, eax
            0xad, 0x89, 0xc3, 0xad,             // lodsd; mov ebx, eax; lodsd
            0x83, 0xf9, 0x01, 0x74, 0x0f,       // cmp ecx, 1; je write
            0x83, 0xf9, 0x02, 0x74, 0x15,       // cmp ecx, 2; je show
            0x83, 0xf9, 0x03, 0x74, 0x09,       // cmp ecx, 3; je wait
            0x66, 0xba, 0xf4, 0x00, 0xee,       // mov dx, 0xf4; out dx, al
            0x89, 0x03, 0xeb, 0xe1,             // write: mov [ebx], eax; jmp next
            0x83, 0x3b, 0x00, 0x74, 0xfb,       // wait: cmp dword [ebx], 0; je wait
            0xeb, 0xda,                         // jmp next
            0x8b, 0x3b,                         // show: mov edi, [ebx]
            0xb9, 0x08, 0x00, 0x00, 0x00,       // mov ecx, 8
            0xc1, 0xc7, 0x04, 0x89, 0xf8,       // digit: rol edi, 4; mov eax, edi
            0x24, 0x0f, 0x3c, 0x0a, 0x1c, 0x69, // and al, 15; cmp al, 10; sbb al, 0x69
            0x2f, 0x66, 0xba, 0xf8, 0x03, 0xee, // das; mov dx, 0x3f8; out dx, al
            0xe2, 0xed, 0xb0, 0x0a, 0xee,       // loop digit; mov al, '\n'; out dx, al
            0xeb, 0xbb,                         // jmp next
        ];
        self.words.extend([0, 0, 21]);
        let words = self.words.iter().flat_map(|word| word.to_le_bytes());
        (multiboot_kernel(&CODE.iter().copied().chain(words).collect::<Vec<u8>>()), self.shows)
    }
}
