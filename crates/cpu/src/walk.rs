//! Address translation: 32-bit, PAE and 4-level paging (Intel SDM vol. 3, chapter 4).
//!
//! A walk that gives a translation sets Accessed in every entry it used, and Dirty in the last one if
//! the access is a store; a walk that ends in a page fault sets nothing. 5-level paging and PCID do
//! not exist; protection keys neither.

use base::Gpa;
use mem::{GuestMem, RamOffset};
use x86::{Cr0, Cr4, Efer, Exception, PageFaultBits, Vector, cpuid};

use crate::access::is_canonical;
use crate::engine::SettledPage;
use crate::op::Fault;
use crate::tlb::{View, WalkStep};
use crate::{Cpu, Env};

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Fetch,
}

/// Bits of a page-table entry.
struct Pte;

impl Pte {
    const P: u64 = 1 << 0;
    const RW: u64 = 1 << 1;
    const US: u64 = 1 << 2;
    const A: u64 = 1 << 5;
    const D: u64 = 1 << 6;
    const PS: u64 = 1 << 7;
    const NX: u64 = 1 << 63;
}

/// Physical address bits of an 8-byte entry.
const ADDRESS: u64 = (1 << cpuid::PHYSICAL_ADDRESS_BITS) - 0x1000;
/// Bits between the physical address and bit 52: reserved.
const RESERVED_HIGH: u64 = (1 << 52) - (1 << cpuid::PHYSICAL_ADDRESS_BITS);

/// An entry on the way down.
#[derive(Clone, Copy)]
struct Visited {
    at: RamOffset,
    value: u64,
    table_linear: Option<u64>,
}

/// The way down the tables, with the rights that all entries together give.
struct Walk {
    visited: [Visited; 4],
    depth: usize,
    rights: u64,
    wide: bool,
}

/// The last entry, understood.
struct Leaf {
    gpa: u64,
}

/// Why a walk failed: the bits of the error code that the tables decide.
struct Denied(u32);

const NOT_PRESENT: Denied = Denied(0);
const RESERVED: Denied = Denied(PageFaultBits::PRESENT | PageFaultBits::RESERVED);

impl Walk {
    fn new(wide: bool) -> Walk {
        let nothing = Visited { at: RamOffset(0), value: 0, table_linear: None };
        Walk { visited: [nothing; 4], depth: 0, rights: Pte::RW | Pte::US, wide }
    }

    /// Reads the entry at `gpa`. A table outside RAM reads as not present.
    fn step(
        &mut self,
        mem: &GuestMem,
        gpa: u64,
        reserved: u64,
        table_linear: Option<u64>,
    ) -> Result<u64, Denied> {
        let at = mem.offset_of(Gpa(gpa)).ok_or(NOT_PRESENT)?;
        let value = if self.wide { mem.load::<u64>(at) } else { u64::from(mem.load::<u32>(at)) };
        if value & Pte::P == 0 {
            return Err(NOT_PRESENT);
        }
        if value & reserved != 0 {
            return Err(RESERVED);
        }
        // RW and US hold if every entry has them, NX if any has it.
        self.rights = self.rights & value & (Pte::RW | Pte::US) | (self.rights | value) & Pte::NX;
        self.visited[self.depth] = Visited { at, value, table_linear };
        self.depth += 1;
        Ok(value)
    }

    fn last(&self) -> Visited {
        self.visited[self.depth - 1]
    }
}

impl Cpu {
    /// Translates for data and fills the TLB.
    pub(crate) fn translate(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        kind: Kind,
        view: View,
    ) -> Result<Gpa, Fault> {
        if let Some(ram) = self.tlb.refill(view, linear, kind == Kind::Write) {
            return Ok(Gpa(env.mem.gpa_of(RamOffset(ram)).0 | linear & 0xfff));
        }
        let (gpa, may_store) = if self.sys.cr0 & Cr0::PG == 0 {
            (Gpa(linear & 0xffff_ffff), true)
        } else {
            self.walk(env.mem, linear, kind, view)?
        };
        let Some(offset) = env.mem.offset_of(gpa) else { return Ok(gpa) };
        if kind == Kind::Write {
            // The store follows at once, or a fault that comes at the same place every time.
            env.mem.mark_written(offset.page());
        }
        let may_store = may_store && env.mem.is_plain_store_page(offset.page());
        self.tlb.fill(view, linear, offset.0 & !0xfff, may_store);
        Ok(gpa)
    }

    /// Translates for an instruction fetch: the guest-physical address. Straight-line code, too, may run out
    /// of the canonical addresses.
    pub(crate) fn translate_fetch(
        &mut self,
        mem: &mut GuestMem,
        linear: u64,
    ) -> Result<Gpa, Fault> {
        if self.sys.cr0 & Cr0::PG == 0 {
            return Ok(Gpa(linear & 0xffff_ffff));
        }
        if self.is_long_mode() && !is_canonical(linear) {
            return Err(self.gp());
        }
        let user = self.cpl == 3;
        if let Some(ram) = self.tlb.exec(user, linear) {
            return Ok(Gpa(mem.gpa_of(RamOffset(ram)).0 | linear & 0xfff));
        }
        let view = if user { View::User } else { View::Supervisor };
        let (gpa, _) = self.walk(mem, linear, Kind::Fetch, view)?;
        if let Some(offset) = mem.offset_of(gpa) {
            self.tlb.fill_exec(user, linear, offset.0 & !0xfff);
        }
        Ok(gpa)
    }

    /// The page with a linear address on which fetches in a view need set no bit in the tables. Counts as a walk.
    pub(crate) fn settled_page(
        &mut self,
        mem: &mut GuestMem,
        linear: u64,
        view: View,
    ) -> Option<SettledPage> {
        if self.sys.cr0 & Cr0::PG == 0 || !self.is_long_mode() || !is_canonical(linear) {
            return None;
        }
        let (walk, leaf) = self.walk_4_level(mem, linear).ok()?;
        let is_settled = walk.visited[..walk.depth].iter().all(|it| it.value & Pte::A != 0);
        if !is_settled || !self.is_allowed(walk.rights, Kind::Fetch, view) {
            return None;
        }
        self.mark_accessed(mem, linear, &walk, Kind::Fetch);
        self.stats.walks += 1;
        let bytes = 1 << (48 - 9 * walk.depth);
        let inside = linear & (bytes - 1);
        Some(SettledPage { linear: linear - inside, bytes, gpa: Gpa(leaf.gpa - inside) })
    }

    /// The guest-physical address behind a linear one, whatever the rights: for people, and without any
    /// effect.
    #[must_use]
    pub fn look_up(&self, mem: &GuestMem, linear: u64) -> Option<Gpa> {
        if self.sys.cr0 & Cr0::PG == 0 {
            return Some(Gpa(linear & 0xffff_ffff));
        }
        let found = if self.sys.cr4 & Cr4::PAE == 0 {
            self.walk_32(mem, linear)
        } else if self.is_long_mode() {
            self.walk_4_level(mem, linear)
        } else {
            self.walk_pae(mem, linear)
        };
        found.ok().map(|(_, leaf)| Gpa(leaf.gpa))
    }

    /// Walks the tables. Returns the address, and whether a store would be allowed and find Dirty set.
    #[cold]
    fn walk(
        &mut self,
        mem: &mut GuestMem,
        linear: u64,
        kind: Kind,
        view: View,
    ) -> Result<(Gpa, bool), Fault> {
        let result = if self.sys.cr4 & Cr4::PAE == 0 {
            self.walk_32(mem, linear)
        } else if self.is_long_mode() {
            self.walk_4_level(mem, linear)
        } else {
            self.walk_pae(mem, linear)
        };
        let allowed = result.and_then(|(walk, leaf)| {
            if self.is_allowed(walk.rights, kind, view) {
                Ok((walk, leaf))
            } else {
                Err(Denied(PageFaultBits::PRESENT))
            }
        });
        match allowed {
            Ok((walk, leaf)) => {
                self.mark_accessed(mem, linear, &walk, kind);
                self.stats.walks += 1;
                let is_dirty = kind == Kind::Write || walk.last().value & Pte::D != 0;
                let may_store = is_dirty && self.is_allowed(walk.rights, Kind::Write, view);
                Ok((Gpa(leaf.gpa), may_store))
            }
            Err(Denied(bits)) => Err(self.page_fault(linear, bits, kind, view)),
        }
    }

    fn walk_4_level(&self, mem: &GuestMem, linear: u64) -> Result<(Walk, Leaf), Denied> {
        let mut walk = Walk::new(true);
        let reserved = self.reserved_bits();
        let index = |shift: u32| (linear >> shift & 511) * 8;
        let pml4e = walk.step(mem, self.sys.cr3 & ADDRESS | index(39), reserved | Pte::PS, None)?;
        let pdpte = walk.step(mem, pml4e & ADDRESS | index(30), reserved, None)?;
        if pdpte & Pte::PS != 0 {
            return large_page(walk, linear, 30);
        }
        let pde = walk.step(mem, pdpte & ADDRESS | index(21), reserved, None)?;
        walk_last_levels(walk, mem, linear, pde, reserved)
    }

    fn walk_pae(&self, mem: &GuestMem, linear: u64) -> Result<(Walk, Leaf), Denied> {
        let mut walk = Walk::new(true);
        let linear = linear & 0xffff_ffff;
        let reserved = self.reserved_bits() | (0x7ff << 52);
        let pdpte = self.sys.pdpte[(linear >> 30) as usize];
        if pdpte & Pte::P == 0 {
            return Err(NOT_PRESENT);
        }
        let pde = walk.step(mem, pdpte & ADDRESS | ((linear >> 21 & 511) * 8), reserved, None)?;
        walk_last_levels(walk, mem, linear, pde, reserved)
    }

    fn walk_32(&self, mem: &GuestMem, linear: u64) -> Result<(Walk, Leaf), Denied> {
        let mut walk = Walk::new(false);
        let linear = linear & 0xffff_ffff;
        let pde = walk.step(mem, self.sys.cr3 & 0xffff_f000 | ((linear >> 22) * 4), 0, None)?;
        if pde & Pte::PS != 0 && self.sys.cr4 & Cr4::PSE != 0 {
            if pde & 1 << 21 != 0 {
                return Err(RESERVED);
            }
            // PSE-36: bits 13 to 20 are bits 32 to 39 of the address.
            let page = pde & 0xffc0_0000 | (pde >> 13 & 0xff) << 32;
            return Ok((walk, Leaf { gpa: page | linear & 0x3f_ffff }));
        }
        let pte = walk.step(mem, pde & 0xffff_f000 | ((linear >> 12 & 1023) * 4), 0, None)?;
        Ok((walk, Leaf { gpa: pte & 0xffff_f000 | linear & 0xfff }))
    }

    /// Bits that must be 0 in every 8-byte entry.
    fn reserved_bits(&self) -> u64 {
        RESERVED_HIGH | if self.sys.efer & Efer::NXE == 0 { Pte::NX } else { 0 }
    }

    fn is_allowed(&self, rights: u64, kind: Kind, view: View) -> bool {
        let user_page = rights & Pte::US != 0;
        let writable = rights & Pte::RW != 0;
        match (view, kind) {
            (View::User, Kind::Read) => user_page,
            (View::User, Kind::Write) => user_page && writable,
            (View::User, Kind::Fetch) => user_page && rights & Pte::NX == 0,
            (_, Kind::Fetch) => {
                rights & Pte::NX == 0 && !(user_page && self.sys.cr4 & Cr4::SMEP != 0)
            }
            (view, kind) => {
                let smap = self.sys.cr4 & Cr4::SMAP != 0 && view == View::Supervisor;
                let may_write = writable || self.sys.cr0 & Cr0::WP == 0;
                !(user_page && smap) && (kind == Kind::Read || may_write)
            }
        }
    }

    /// Sets Accessed and Dirty and has the tables watched.
    fn mark_accessed(&mut self, mem: &mut GuestMem, linear: u64, walk: &Walk, kind: Kind) {
        for (level, visited) in walk.visited[..walk.depth].iter().enumerate() {
            let is_last = level + 1 == walk.depth;
            let wanted = Pte::A | if is_last && kind == Kind::Write { Pte::D } else { 0 };
            if visited.value & wanted != wanted {
                self.set_entry_bits(mem, walk.wide, visited, wanted);
            }
            let step = WalkStep {
                entry: visited.at,
                table_linear: visited.table_linear,
                linear,
                fetch: kind == Kind::Fetch,
            };
            self.tlb.note_walk(mem, step);
        }
    }

    /// The walker's own stores drop no translation: what was filled from the entry before does not
    /// depend on these bits. But there may be code in the page.
    fn set_entry_bits(&mut self, mem: &mut GuestMem, wide: bool, visited: &Visited, bits: u64) {
        let len = if wide {
            mem.store::<u64>(visited.at, visited.value | bits);
            8
        } else {
            mem.store::<u32>(visited.at, (visited.value | bits) as u32);
            4
        };
        mem.mark_written(visited.at.page());
        if self.tlb.is_code(visited.at, len) {
            self.tlb.code_writes.push(mem::WatchedWrite { offset: visited.at, len });
            self.attention = true;
        }
    }

    fn page_fault(&mut self, linear: u64, mut bits: u32, kind: Kind, view: View) -> Fault {
        match kind {
            Kind::Read => {}
            Kind::Write => bits |= PageFaultBits::WRITE,
            Kind::Fetch => {
                if self.sys.efer & Efer::NXE != 0 && self.sys.cr4 & Cr4::PAE != 0
                    || self.sys.cr4 & Cr4::SMEP != 0
                {
                    bits |= PageFaultBits::FETCH;
                }
            }
        }
        if view == View::User {
            bits |= PageFaultBits::USER;
        }
        self.exception = Exception { vector: Vector::PF, error_code: bits, address: linear };
        Fault::EXCEPTION
    }
}

/// The page directory's entry is read; goes on to a large page or to the page table.
fn walk_last_levels(
    mut walk: Walk,
    mem: &GuestMem,
    linear: u64,
    pde: u64,
    reserved: u64,
) -> Result<(Walk, Leaf), Denied> {
    if pde & Pte::PS != 0 {
        return large_page(walk, linear, 21);
    }
    let table_linear = Some(linear & !0x1f_ffff);
    let at = pde & ADDRESS | ((linear >> 12 & 511) * 8);
    let pte = walk.step(mem, at, reserved, table_linear)?;
    Ok((walk, Leaf { gpa: pte & ADDRESS | linear & 0xfff }))
}

/// A page of `1 << shift` bytes. The bits between PAT (bit 12) and the address are reserved.
fn large_page(walk: Walk, linear: u64, shift: u32) -> Result<(Walk, Leaf), Denied> {
    let entry = walk.last().value;
    let mask = (1u64 << shift) - 1;
    if entry & mask & !0x1fff != 0 {
        return Err(RESERVED);
    }
    Ok((walk, Leaf { gpa: entry & ADDRESS & !mask | linear & mask }))
}
