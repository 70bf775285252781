//! The softmmu TLB: direct-mapped, one table per MMU index, read by generated code.
//!
//! A tag is a linear page address; a tag with any of the low 12 bits set matches no access. A write tag with [`SLOW`]
//! set belongs to a page whose stores need a look first (translated code on it); the page itself is mapped writable.

use super::ram::{PAGE_SIZE, Ram};
use super::walk::PAGE_SHIFTS;
use crate::ir::Ty;
use crate::ir::op::RmwOp;
use crate::state::CpuState;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// MMU indexes: supervisor without SMAP checks, user, supervisor with SMAP checks.
pub const MMU_INDEXES: usize = 3;
/// Supervisor; user pages are accessible (SMAP off or AC set).
pub const SUPERVISOR: usize = 0;
/// User.
pub const USER: usize = 1;
/// Supervisor; user pages fault (SMAP on and AC clear).
pub const SUPERVISOR_SMAP: usize = 2;

/// Entries by MMU index. Programs go about in more memory than their kernel does for them, and each pair of pages that both are
/// in use and have one place costs a miss at every turn: the fewer, the larger the table.
const ENTRIES: [usize; MMU_INDEXES] = [4096, 16_384, 4096];
/// Where the tables begin, in entries.
const STARTS: [usize; MMU_INDEXES] = [0, ENTRIES[0], ENTRIES[0] + ENTRIES[1]];
const ALL: usize = STARTS[MMU_INDEXES - 1] + ENTRIES[MMU_INDEXES - 1];
/// Entries are marked as used in groups of 64, and groups with such entries again.
const GROUPS: usize = ALL / 64;
/// Words of the filter of pages that stores hit.
const FILTER: usize = 512;
/// Bytes that string comparisons look at at a time: a multiple of all element sizes.
const SCAN_CHUNK: usize = 256;
/// Tag that matches nothing.
pub const INVALID: u64 = 0xfff;
/// Flag in a write tag: stores take the slow path, the translation is valid.
pub const SLOW: u64 = 1;

/// Flag in both tags of a page that is no memory: no access hits it, but the translation is valid.
pub const DEVICE: u64 = 2;

/// Flag in [`TlbEntry::meta`]: global page.
const META_GLOBAL: u64 = 1;

/// One translation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TlbEntry {
    /// Linear page address if loads hit.
    pub read: u64,
    /// Linear page address if stores hit.
    pub write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// Guest-physical page address, with flags in the low bits.
    pub meta: u64,
}

impl TlbEntry {
    /// Linear page address, if any access is allowed.
    fn page(&self) -> u64 {
        (if self.read == INVALID { self.write } else { self.read }) & !(PAGE_SIZE - 1)
    }
}

const EMPTY: TlbEntry = TlbEntry { read: INVALID, write: INVALID, addend: 0, meta: 0 };
const _: () = assert!(size_of::<TlbEntry>() == 32);

/// What a walk found, as the TLB keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// Guest-physical page address.
    pub gpa: u64,
    /// Loads allowed at this MMU index.
    pub read: bool,
    /// Stores allowed, and the dirty bit is set already.
    pub write: bool,
    /// Global page.
    pub global: bool,
    /// Mapped by a page larger than 4 KiB: address mask of that page.
    pub page_mask: u64,
}

/// Tables of one vCPU. They lie in `CpuState`, at offsets that generated code knows.
#[repr(C)]
pub struct Tlb {
    entries: [TlbEntry; ALL],
    /// Which entries may be filled, so that a flush touches no others.
    used: [u64; GROUPS],
    /// Those among them that do not hold a global page.
    local: [u64; GROUPS],
    /// Those among them that hold a part of a page larger than 4 KiB.
    large: [u64; GROUPS],
    /// Groups with used entries.
    groups: [u64; GROUPS / 64],
    /// Guest-physical pages that stores may hit, by a hash: most code comes to pages that none does.
    stored: [u64; FILTER],
    /// Sizes (indexes of [`PAGE_SHIFTS`]) of pages entered since the last flush, in the lower half of the address space and in
    /// the upper.
    sizes: [u8; 2],
}

/// Number of entries of an MMU index, a power of two.
pub const fn entries(index: usize) -> usize {
    ENTRIES[index % MMU_INDEXES]
}

/// Offset in its table of the entry that `linear` maps to.
pub fn entry_offset(index: usize, linear: u64) -> u64 {
    (place(index, linear) * size_of::<TlbEntry>()) as u64
}

/// Numbers of the bits that are set, ascending.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let n = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (n < 64).then_some(n as usize)
    })
}

fn set_bit(word: &mut u64, n: usize, value: bool) {
    *word = *word & !(1 << n) | u64::from(value) << n;
}

/// Half of the address space.
fn half(linear: u64) -> usize {
    (linear >> 63) as usize
}

/// Number of the entry for `linear` in its table.
fn place(index: usize, linear: u64) -> usize {
    (linear >> 12) as usize & (entries(index) - 1)
}

/// Number of the entry for `linear` among all.
#[inline]
fn slot(index: usize, linear: u64) -> usize {
    STARTS[index % MMU_INDEXES] + place(index, linear)
}

/// Word and bit of the filter for a guest-physical page.
fn filter_bit(gpa: u64) -> (usize, u64) {
    let mixed = (gpa >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (mixed as usize >> 6 & (FILTER - 1), 1 << (mixed & 63))
}

impl Default for Tlb {
    fn default() -> Self {
        Self::new()
    }
}

impl Tlb {
    /// Empty tables.
    pub fn new() -> Self {
        Self {
            entries: [EMPTY; ALL],
            used: [0; _],
            local: [0; _],
            large: [0; _],
            groups: [0; _],
            stored: [0; _],
            sizes: [0; 2],
        }
    }

    /// Byte offset in this structure of the table of an MMU index.
    pub const fn table_offset(index: usize) -> usize {
        std::mem::offset_of!(Tlb, entries) + STARTS[index % MMU_INDEXES] * size_of::<TlbEntry>()
    }

    /// The entry that `linear` maps to.
    pub fn entry(&self, index: usize, linear: u64) -> &TlbEntry {
        &self.entries[slot(index, linear)]
    }

    /// Enters a mapping of `linear`'s page to host memory at `host`; `slow` marks stores for the slow path.
    pub fn fill(&mut self, index: usize, linear: u64, m: &Mapping, host: *mut u8, slow: bool) {
        let page = linear & !(PAGE_SIZE - 1);
        let write = page | if slow { SLOW } else { 0 };
        self.enter(
            index,
            m,
            page,
            TlbEntry { read: page, write, addend: (host as u64).wrapping_sub(page), meta: m.gpa },
        );
    }

    /// Enters a mapping of `linear`'s page to devices: accesses take the slow path, which finds it by [`Tlb::device`].
    pub fn fill_device(&mut self, index: usize, linear: u64, m: &Mapping) {
        let page = linear & !(PAGE_SIZE - 1);
        self.enter(index, m, page, TlbEntry { read: page | DEVICE, write: page | DEVICE, addend: 0, meta: m.gpa });
    }

    /// The guest-physical page of a page of devices that was entered, if it may be read or written.
    #[inline]
    pub fn device(&self, index: usize, linear: u64, write: bool) -> Option<u64> {
        let e = self.entry(index, linear);
        let tag = if write { e.write } else { e.read };
        (tag == linear & !(PAGE_SIZE - 1) | DEVICE).then_some(e.meta & !(PAGE_SIZE - 1))
    }

    /// Puts `entry`, with the tags for all that could be allowed, in the place of `page`.
    fn enter(&mut self, index: usize, m: &Mapping, page: u64, entry: TlbEntry) {
        let n = slot(index, page);
        self.used[n / 64] |= 1 << (n % 64);
        self.groups[n / 4096] |= 1 << (n / 64 % 64);
        if m.write && entry.write & 0xfff == 0 {
            self.note_stored(m.gpa);
        }
        let large = m.page_mask != !(PAGE_SIZE - 1);
        set_bit(&mut self.local[n / 64], n % 64, !m.global);
        set_bit(&mut self.large[n / 64], n % 64, large);
        self.entries[n] = TlbEntry {
            read: if m.read { entry.read } else { INVALID },
            write: if m.write { entry.write } else { INVALID },
            addend: entry.addend,
            meta: entry.meta | (m.global as u64 * META_GLOBAL),
        };
        if large {
            // A size that no page has counts as all there are.
            let size = PAGE_SHIFTS.iter().position(|shift| *shift == m.page_mask.trailing_zeros());
            self.sizes[half(page)] |= size.map_or(u8::MAX, |n| 1 << n);
        }
    }

    /// Drops everything.
    pub fn flush_all(&mut self) {
        for group in self.groups() {
            self.drop_group(group, self.used[group]);
        }
        self.stored.fill(0);
        self.sizes = [0; 2];
    }

    /// Drops everything but global pages.
    pub fn flush_non_global(&mut self) {
        for group in self.groups() {
            self.drop_group(group, self.local[group]);
        }
    }

    /// Groups with used entries.
    fn groups(&self) -> impl Iterator<Item = usize> + use<> {
        let words = self.groups;
        words.into_iter().enumerate().flat_map(|(n, word)| bits(word).map(move |bit| n * 64 + bit))
    }

    /// Drops the entries of a group of 64 that have their bit in `which`.
    #[inline]
    fn drop_group(&mut self, group: usize, which: u64) {
        for n in bits(which) {
            self.entries[group * 64 + n] = EMPTY;
        }
        self.used[group] &= !which;
        self.local[group] &= !which;
        if self.used[group] == 0 {
            self.groups[group / 64] &= !(1 << (group % 64));
        }
    }

    /// Drops the translations of the page of `linear`, of whatever size: of a large one all parts (SDM 3A 4.10.4.1).
    pub fn flush_page(&mut self, linear: u64) {
        let sizes = self.sizes[half(linear)];
        for index in 0..MMU_INDEXES {
            self.drop_entry(index, linear);
            let shifts = PAGE_SHIFTS.iter().enumerate().skip(1).filter(|(n, _)| sizes >> n & 1 != 0);
            shifts.for_each(|(_, shift)| self.drop_large(index, linear, *shift));
        }
    }

    /// Drops the parts of the page of `1 << shift` bytes with `linear`, which lie side by side.
    fn drop_large(&mut self, index: usize, linear: u64, shift: u32) {
        let parts = (1usize << (shift - PAGE_SHIFTS[0])).min(entries(index));
        let first = slot(index, linear >> shift << shift) / 64;
        for group in first..first + parts / 64 {
            let of_page = |n: &usize| (self.entries[group * 64 + n].page() ^ linear) >> shift == 0;
            let gone = bits(self.used[group] & self.large[group]).filter(of_page).fold(0, |gone, n| gone | 1 << n);
            self.drop_group(group, gone);
        }
    }

    /// Sends stores to guest-physical page `gpa` to the slow path from now on. Whether some did not go there.
    pub fn protect_code_page(&mut self, gpa: u64) -> bool {
        let (word, bit) = filter_bit(gpa);
        if self.stored[word] & bit == 0 {
            return false;
        }
        // The filter holds what was long ago, too: all are looked at, so it can be made anew.
        self.stored.fill(0);
        let mut found = false;
        for group in self.groups() {
            for n in bits(self.used[group]) {
                let e = &mut self.entries[group * 64 + n];
                if e.write & 0xfff != 0 {
                    continue;
                }
                let page = e.meta & !(PAGE_SIZE - 1);
                if page == gpa {
                    e.write |= SLOW;
                    found = true;
                } else {
                    self.note_stored(page);
                }
            }
        }
        found
    }

    fn note_stored(&mut self, gpa: u64) {
        let (word, bit) = filter_bit(gpa);
        self.stored[word] |= bit;
    }

    /// Undoes [`Tlb::protect_code_page`] for the entry of `linear`.
    pub fn unprotect(&mut self, index: usize, linear: u64) {
        let e = &mut self.entries[slot(index, linear)];
        if e.write == linear & !(PAGE_SIZE - 1) | SLOW {
            e.write &= !SLOW;
            let gpa = e.meta & !(PAGE_SIZE - 1);
            self.note_stored(gpa);
        }
    }

    /// Sends stores to the page of `linear` to the slow path from now on; undone by [`Tlb::unprotect`].
    pub fn protect(&mut self, index: usize, linear: u64) {
        let e = &mut self.entries[slot(index, linear)];
        if e.write == linear & !(PAGE_SIZE - 1) {
            e.write |= SLOW;
        }
    }

    /// Drops the entry of `linear` at one MMU index.
    pub fn drop_entry(&mut self, index: usize, linear: u64) {
        self.entries[slot(index, linear)] = EMPTY;
    }

    /// Loads through the TLB; `None` on a miss.
    #[inline]
    pub fn load(&self, index: usize, linear: u64, ty: Ty) -> Option<u64> {
        let e = self.entry(index, linear);
        if linear.wrapping_add(ty.bytes() as u64 - 1) & !(PAGE_SIZE - 1) != e.read {
            return None;
        }
        // SAFETY: a matching tag means that `addend` maps this page to guest RAM, which lives as long as the engine;
        // the access does not cross the page.
        Some(unsafe { load_raw(linear.wrapping_add(e.addend) as *const u8, ty) })
    }

    /// Stores through the TLB; `false` on a miss.
    #[inline]
    pub fn store(&self, index: usize, linear: u64, ty: Ty, value: u64) -> bool {
        self.store_tagged(index, linear, 0, ty, value)
    }

    /// The same; `tag`: 0, or [`SLOW`] for a page whose stores need a look, which the caller takes.
    #[inline]
    pub fn store_tagged(&self, index: usize, linear: u64, tag: u64, ty: Ty, value: u64) -> bool {
        let e = self.entry(index, linear);
        if linear.wrapping_add(ty.bytes() as u64 - 1) & !(PAGE_SIZE - 1) | tag != e.write {
            return false;
        }
        // SAFETY: as in `load`; the write tag matches only for writable RAM.
        unsafe { store_raw(linear.wrapping_add(e.addend) as *mut u8, ty, value) };
        true
    }

    /// Loads 16 bytes through the TLB.
    #[inline]
    pub fn load128(&self, index: usize, linear: u64) -> Option<u128> {
        let e = self.entry(index, linear);
        if linear.wrapping_add(15) & !(PAGE_SIZE - 1) != e.read {
            return None;
        }
        // SAFETY: as in `load`.
        Some(unsafe { (linear.wrapping_add(e.addend) as *const u128).read_unaligned() })
    }

    /// Stores 16 bytes through the TLB.
    #[inline]
    pub fn store128(&self, index: usize, linear: u64, value: u128) -> bool {
        let e = self.entry(index, linear);
        if linear.wrapping_add(15) & !(PAGE_SIZE - 1) != e.write {
            return false;
        }
        // SAFETY: as in `store`.
        unsafe { (linear.wrapping_add(e.addend) as *mut u128).write_unaligned(value) };
        true
    }

    /// Atomic read-modify-write of an operand within a page through the TLB: the old value. `None` on a miss.
    /// `tag`: 0, or [`SLOW`] for a page whose stores need a look, which the caller takes.
    pub fn rmw(&self, index: usize, linear: u64, tag: u64, ty: Ty, op: RmwOp, value: u64) -> Option<u64> {
        let p = self.operand_pointer(index, linear, tag, ty.bytes() as u64)?;
        if p.align_offset(ty.bytes() as usize) != 0 {
            // SAFETY: `operand_pointer` checked the tag.
            return unsafe { rmw_misaligned(p, ty, op, value) };
        }
        // SAFETY: `operand_pointer` checked the tag, it is aligned; guest RAM is accessed atomically here and racily
        // elsewhere, as on hardware.
        Some(unsafe { rmw_raw(p, ty, op, value) })
    }

    /// Atomic compare-and-swap of an operand within a page through the TLB: the old value. `tag` as for [`Tlb::rmw`].
    pub fn cas(&self, index: usize, linear: u64, tag: u64, ty: Ty, expected: u64, new: u64) -> Option<u64> {
        let p = self.operand_pointer(index, linear, tag, ty.bytes() as u64)?;
        if p.align_offset(ty.bytes() as usize) != 0 {
            // SAFETY: as in `rmw`.
            return unsafe { cas_misaligned(p, ty, expected, new) };
        }
        // SAFETY: as in `rmw`.
        Some(unsafe { cas_raw(p, ty, expected, new) })
    }

    /// Atomic compare-and-swap of 16 aligned bytes through the TLB: the old value. `None` also if the host cannot. `tag` as
    /// for [`Tlb::rmw`].
    pub fn cas128(&self, index: usize, linear: u64, tag: u64, expected: u128, new: u128) -> Option<u128> {
        let p = self.operand_pointer(index, linear, tag, 16).filter(|p| p.align_offset(16) == 0)?;
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("cmpxchg16b") {
            // SAFETY: `operand_pointer` checked the tag, it is aligned; the feature is there.
            return Some(unsafe { cmpxchg16b(p.cast(), expected, new) });
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (p, expected, new);
        None
    }

    /// Where an operand within a page lies, if stores hit.
    fn operand_pointer(&self, index: usize, linear: u64, tag: u64, bytes: u64) -> Option<*mut u8> {
        let e = self.entry(index, linear);
        let within = linear & (PAGE_SIZE - 1) <= PAGE_SIZE - bytes;
        (within && linear & !(PAGE_SIZE - 1) | tag == e.write).then(|| linear.wrapping_add(e.addend) as *mut u8)
    }

    /// Host memory of `len` bytes from `linear` within one page, if loads hit.
    pub fn read_bytes(&self, index: usize, linear: u64, buf: &mut [u8]) -> bool {
        let e = self.entry(index, linear);
        if buf.is_empty() || linear.wrapping_add(buf.len() as u64 - 1) & !(PAGE_SIZE - 1) != e.read {
            return buf.is_empty();
        }
        // SAFETY: as in `load`; the range stays within the page.
        unsafe {
            std::ptr::copy_nonoverlapping(linear.wrapping_add(e.addend) as *const u8, buf.as_mut_ptr(), buf.len());
        }
        true
    }

    /// Copies `len` bytes forward between two ranges, each within one page; `false` on a miss. Overlap behaves as a
    /// byte-wise forward copy in units of `unit` bytes does.
    pub fn copy(&self, index: usize, dst: u64, src: u64, len: usize, unit: usize) -> bool {
        let (d, s) = (self.entry(index, dst), self.entry(index, src));
        let last = (len as u64).wrapping_sub(1);
        let page = !(PAGE_SIZE - 1);
        if len == 0 || dst.wrapping_add(last) & page != d.write || src.wrapping_add(last) & page != s.read {
            return false;
        }
        let (dp, sp) = (dst.wrapping_add(d.addend) as *mut u8, src.wrapping_add(s.addend) as *const u8);
        let distance = (dp as usize).wrapping_sub(sp as usize);
        if distance >= len || distance == 0 {
            // No forward overlap: every source byte is read before it is overwritten.
            // SAFETY: both ranges lie within their pages of guest RAM (tags match).
            unsafe { std::ptr::copy(sp, dp, len) };
            return true;
        }
        let mut at = 0;
        while at < len {
            let n = unit.min(len - at);
            // SAFETY: as above, `at + n <= len`.
            unsafe { std::ptr::copy(sp.add(at), dp.add(at), n) };
            at += n;
        }
        true
    }

    /// How many elements of `unit` bytes from `linear` on, within `len` bytes of one page, hold for `goes_on`; 0 on a miss.
    /// Elements are given zero-extended.
    pub fn scan(&self, index: usize, linear: u64, len: usize, unit: usize, goes_on: impl Fn(u64) -> bool) -> usize {
        let mut buf = [0u8; SCAN_CHUNK];
        let mut done = 0;
        while done < len {
            let n = SCAN_CHUNK.min(len - done);
            if !self.read_bytes(index, linear.wrapping_add(done as u64), &mut buf[..n]) {
                break;
            }
            if let Some(stop) = buf[..n].chunks_exact(unit).position(|e| !goes_on(element(e))) {
                return done / unit + stop;
            }
            done += n;
        }
        done / unit
    }

    /// How many pairs of elements from `a` and `b` on, each range within one page, are equal (or all unequal, as `equal`
    /// says); 0 on a miss.
    pub fn scan_pairs(&self, index: usize, (a, b): (u64, u64), len: usize, unit: usize, equal: bool) -> usize {
        let (mut x, mut y) = ([0u8; SCAN_CHUNK], [0u8; SCAN_CHUNK]);
        let mut done = 0;
        while done < len {
            let n = SCAN_CHUNK.min(len - done);
            let at = done as u64;
            if !self.read_bytes(index, a.wrapping_add(at), &mut x[..n])
                || !self.read_bytes(index, b.wrapping_add(at), &mut y[..n])
            {
                break;
            }
            if !(equal && x[..n] == y[..n]) {
                let mut pairs = x[..n].chunks_exact(unit).zip(y[..n].chunks_exact(unit));
                if let Some(stop) = pairs.position(|(p, q)| (p == q) != equal) {
                    return done / unit + stop;
                }
            }
            done += n;
        }
        done / unit
    }

    /// Fills `len` bytes within one page with the low `unit` bytes of `value` repeated; `false` on a miss.
    pub fn fill_bytes(&self, index: usize, dst: u64, len: usize, value: u64, unit: usize) -> bool {
        let d = self.entry(index, dst);
        if len == 0 || dst.wrapping_add(len as u64 - 1) & !(PAGE_SIZE - 1) != d.write {
            return false;
        }
        let p = dst.wrapping_add(d.addend) as *mut u8;
        let bytes = value.to_le_bytes();
        if unit == 1 || bytes[..unit].iter().all(|b| *b == bytes[0]) {
            // SAFETY: the range lies within a writable page of guest RAM.
            unsafe { std::ptr::write_bytes(p, bytes[0], len) };
            return true;
        }
        for at in (0..len).step_by(unit) {
            // SAFETY: as above, `len` is a multiple of `unit`, `unit` at most 8.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), p.add(at), unit.min(len - at)) };
        }
        true
    }
}

impl CpuState {
    /// Reads the field of `bytes` (at most 16) bytes at byte offset `offset`, as `offset_of!` gave it to the lifter.
    #[inline]
    pub fn read_field(&self, offset: usize, bytes: usize) -> u128 {
        assert!(bytes <= 16 && offset + bytes <= size_of::<Self>());
        let mut out = [0u8; 16];
        // SAFETY: the range lies in this structure, and the lifter asks for whole integer fields only.
        unsafe {
            let p = std::ptr::from_ref(self).cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), bytes);
        }
        u128::from_le_bytes(out)
    }

    /// Writes a field, see [`CpuState::read_field`].
    #[inline]
    pub fn write_field(&mut self, offset: usize, bytes: usize, v: u128) {
        assert!(bytes <= 16 && offset + bytes <= size_of::<Self>());
        // SAFETY: the range lies in this structure; the lifter names integer fields only, for which every bit pattern
        // is valid.
        unsafe {
            let p = std::ptr::from_mut(self).cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(v.to_le_bytes().as_ptr(), p, bytes);
        }
    }
}

/// Little-endian value of up to eight bytes.
fn element(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |v, b| v << 8 | *b as u64)
}

/// # Safety
/// `p` points to `ty` bytes of readable guest RAM.
unsafe fn load_raw(p: *const u8, ty: Ty) -> u64 {
    // SAFETY: promised by the caller.
    unsafe {
        match ty {
            Ty::I8 => p.read() as u64,
            Ty::I16 => (p as *const u16).read_unaligned() as u64,
            Ty::I32 => (p as *const u32).read_unaligned() as u64,
            Ty::I64 => (p as *const u64).read_unaligned(),
        }
    }
}

/// # Safety
/// `p` points to `ty` bytes of writable guest RAM.
unsafe fn store_raw(p: *mut u8, ty: Ty, v: u64) {
    // SAFETY: promised by the caller.
    unsafe {
        match ty {
            Ty::I8 => p.write(v as u8),
            Ty::I16 => (p as *mut u16).write_unaligned(v as u16),
            Ty::I32 => (p as *mut u32).write_unaligned(v as u32),
            Ty::I64 => (p as *mut u64).write_unaligned(v),
        }
    }
}

macro_rules! atomic_rmw {
    ($atomic:ident, $int:ident, $p:expr, $op:expr, $v:expr) => {{
        // SAFETY: the caller promises a valid, aligned pointer.
        let a = unsafe { $atomic::from_ptr($p as *mut $int) };
        let v = $v as $int;
        (match $op {
            RmwOp::Add => a.fetch_add(v, Ordering::SeqCst),
            RmwOp::Sub => a.fetch_sub(v, Ordering::SeqCst),
            RmwOp::And => a.fetch_and(v, Ordering::SeqCst),
            RmwOp::Or => a.fetch_or(v, Ordering::SeqCst),
            RmwOp::Xor => a.fetch_xor(v, Ordering::SeqCst),
            RmwOp::Xchg => a.swap(v, Ordering::SeqCst),
        }) as u64
    }};
}

/// # Safety
/// `p` points to `ty` bytes of writable guest RAM and is aligned to them.
unsafe fn rmw_raw(p: *mut u8, ty: Ty, op: RmwOp, v: u64) -> u64 {
    match ty {
        Ty::I8 => atomic_rmw!(AtomicU8, u8, p, op, v),
        Ty::I16 => atomic_rmw!(AtomicU16, u16, p, op, v),
        Ty::I32 => atomic_rmw!(AtomicU32, u32, p, op, v),
        Ty::I64 => atomic_rmw!(AtomicU64, u64, p, op, v),
    }
}

macro_rules! atomic_cas {
    ($atomic:ident, $int:ident, $p:expr, $expected:expr, $new:expr) => {{
        // SAFETY: the caller promises a valid, aligned pointer.
        let a = unsafe { $atomic::from_ptr($p as *mut $int) };
        match a.compare_exchange($expected as $int, $new as $int, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(v) | Err(v) => v as u64,
        }
    }};
}

/// # Safety
/// As [`rmw_raw`].
unsafe fn cas_raw(p: *mut u8, ty: Ty, expected: u64, new: u64) -> u64 {
    match ty {
        Ty::I8 => atomic_cas!(AtomicU8, u8, p, expected, new),
        Ty::I16 => atomic_cas!(AtomicU16, u16, p, expected, new),
        Ty::I32 => atomic_cas!(AtomicU32, u32, p, expected, new),
        Ty::I64 => atomic_cas!(AtomicU64, u64, p, expected, new),
    }
}

/// A locked operation on an operand that is not aligned: the old value. `None` if the host has none.
///
/// # Safety
/// `p` points to `ty` bytes of writable guest RAM.
unsafe fn rmw_misaligned(p: *mut u8, ty: Ty, op: RmwOp, v: u64) -> Option<u64> {
    loop {
        // SAFETY: promised by the caller.
        let old = unsafe { load_raw(p, ty) };
        let new = op.apply(old, v) & ty.mask();
        // SAFETY: promised by the caller.
        if unsafe { cas_misaligned(p, ty, old, new)? } == old {
            return Some(old);
        }
    }
}

/// Locked compare-and-swap of an operand that is not aligned, which x86 hosts have (SDM 3A 9.1.2.2).
///
/// # Safety
/// As [`rmw_misaligned`].
unsafe fn cas_misaligned(p: *mut u8, ty: Ty, expected: u64, new: u64) -> Option<u64> {
    macro_rules! cmpxchg {
        ($size:literal, $modifier:literal) => {{
            let old: u64;
            // SAFETY: promised by the caller.
            unsafe {
                std::arch::asm!(
                    concat!("lock cmpxchg ", $size, " ptr [{p}], {new:", $modifier, "}"),
                    p = in(reg) p,
                    new = in(reg) new,
                    inout("rax") expected => old,
                    options(nostack),
                );
            }
            old & ty.mask()
        }};
    }
    #[cfg(target_arch = "x86_64")]
    return Some(match ty {
        // A byte is always aligned.
        Ty::I8 => return None,
        Ty::I16 => cmpxchg!("word", "x"),
        Ty::I32 => cmpxchg!("dword", "e"),
        Ty::I64 => cmpxchg!("qword", "r"),
    });
    #[cfg(not(target_arch = "x86_64"))]
    None
}

impl Ram {
    /// Compare-and-swap of an aligned page-table entry of `bytes` (4 or 8) bytes at `gpa`: whether it was `old` and
    /// became `new`. Entries outside RAM are never changed.
    pub fn cas_entry(&self, gpa: u64, bytes: u64, old: u64, new: u64) -> bool {
        let Some((p, left, false)) = self.host(gpa) else { return true };
        if left < bytes || !gpa.is_multiple_of(bytes) {
            return true;
        }
        let ty = if bytes == 4 { Ty::I32 } else { Ty::I64 };
        // SAFETY: `host` gave `left >= bytes` bytes of RAM; alignment was checked (regions are page aligned).
        unsafe { cas_raw(p, ty, old, new) == old & ty.mask() }
    }

    /// Reads an aligned page-table entry; all ones outside RAM.
    pub fn load_entry(&self, gpa: u64, bytes: u64) -> u64 {
        match self.host(gpa) {
            Some((p, left, _)) if left >= bytes => {
                let ty = if bytes == 4 { Ty::I32 } else { Ty::I64 };
                // SAFETY: as in `cas_entry`.
                unsafe { load_raw(p, ty) }
            }
            _ => u64::MAX >> (64 - 8 * bytes),
        }
    }
}

/// LOCK CMPXCHG16B of the host: the old value. The standard library's function of that name becomes a call
/// into libatomic, which is not linked, where the compiler does not inline it.
///
/// # Safety
/// The host has the instruction; `p` is aligned to 16 bytes and may be read and written.
#[cfg(target_arch = "x86_64")]
unsafe fn cmpxchg16b(p: *mut u128, expected: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: as the caller promises; RBX, which the compiler keeps for itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            in("rdi") p,
            inout("rax") expected as u64 => low,
            inout("rdx") (expected >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

#[cfg(test)]
mod tests;
