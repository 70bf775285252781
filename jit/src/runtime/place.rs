//! Placing a compiled region in the arena: calls fixed, TLB checks pointed at miss stubs, ways out given link stubs.

use super::arena::Arena;
use super::compiled::Shape;
use super::exec::{self, LEAVE_LINK, ThunkBody};
use super::frame::Frame;
use super::pages::{PAGE_CHECK, PageCheck};
use crate::baseline::{self, Target};
use crate::lower::{Compiled, NS_LINK, NS_PAGE, NS_THUNK, THUNKS, inline_code};
use crate::state::CpuState;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use std::collections::{HashMap, HashSet};
use std::mem::offset_of;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Distance between thunks.
const THUNK_SIZE: usize = 16;

/// Bytes of a link stub, and of the stub of a TLB check at most.
const LINK_STUB: usize = 36;
const MISS_STUB: usize = 52;
/// The host's instructions that take the frame down and return to the trampoline.
const LEAVE: u8 = 0xc9;
const RET: u8 = 0xc3;
/// The first byte of `jmp rel32`.
const JMP: u8 = 0xe9;
/// Most bytes of code memory: jumps reach 2 GiB.
const MOST: usize = (1 << 31) - (1 << 20);

/// Offset in a link stub where RAX and the state hold the target's RIP.
const STUB_RIP_SET: usize = 19;

/// A page that code lies on. Links lead to code on the same one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodePage {
    /// Linear address; [`CodePage::RELATIVE`] if it is code for any.
    pub linear: u64,
    /// Guest-physical address.
    pub gpa: u64,
}

impl CodePage {
    /// No address of a page.
    pub const RELATIVE: u64 = 1;
    /// For code that is alone.
    #[cfg(any(test, feature = "testing"))]
    pub const NOWHERE: Self = Self { linear: 0, gpa: 0 };
}

/// A way out of a placed region.
#[derive(Clone, Copy, Debug)]
pub struct PlacedLink {
    /// RIP it leads to, in relative code an offset.
    pub rip: u64,
    /// Region that it is joined with.
    pub joined: Option<u32>,
    /// May use the way in for forward links.
    pub forward: bool,
    /// Number of the page it leads to among those of the region.
    pub page: u8,
    /// Offset in the arena of its `jmp rel32`.
    site: u32,
    /// Offset of the stub that it leads to while it is not joined.
    stub: u32,
}

impl PlacedLink {
    fn new(rip: u64, page: u8, forward: bool, site: usize, stub: usize) -> Self {
        Self { rip, joined: None, forward, page, site: site as u32, stub: stub as u32 }
    }
}

/// A region that can be run.
pub struct Placed {
    /// Host address of its entry.
    pub entry: u64,
    /// Host address of the way in for forward links of baseline code, which baseline code has; else of the one for links.
    pub forward_entry: u64,
    /// Number of the first link; the others follow.
    pub first_link: u32,
    /// Its links.
    pub links: Box<[PlacedLink]>,
    /// Bytes of its code.
    pub len: usize,
    /// Number of the part of the code memory that it lies in.
    pub part: u64,
    /// Host addresses of what it knows of its pages but the first.
    pub looks: Box<[u64]>,
}

/// Why code was not placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unplaced {
    /// There was no room.
    Full,
    /// It could not be compiled, is not of the expected shape, or does not fit anywhere.
    Refused,
    /// No other processor has had it compiled.
    Unknown,
    /// Another one has a larger region with this head.
    Larger(Arc<Shape>),
}

/// A compiled region with what placing it anywhere takes.
pub struct Ready {
    compiled: Compiled,
    found: Found,
}

impl Ready {
    /// Looks for the TLB checks in the code, and for the ways in and out.
    pub fn new(mut compiled: Compiled) -> Result<Self, Unplaced> {
        let found = Found::in_code(&compiled).ok_or(Unplaced::Refused)?;
        // What was found has it all.
        (compiled.places, compiled.sites) = (Vec::new(), Vec::new());
        Ok(Self { compiled, found })
    }

    /// Machine code, before it is placed.
    pub fn code(&self) -> &[u8] {
        &self.compiled.code
    }

    /// Bytes that it takes, about.
    pub fn size(&self) -> usize {
        let Compiled { code, relocs, links, .. } = &self.compiled;
        code.len()
            + size_of_val(&relocs[..])
            + size_of_val(&links[..])
            + self.found.checks.iter().map(|s| size_of::<MissStub>() + s.compare.len()).sum::<usize>()
    }
}

/// Code memory of a processor, where its compile jobs place what they made. Lock order: nothing is locked while it is held.
#[derive(Clone)]
pub struct CodeMemory(Arc<Mutex<CodeSpace>>);

impl CodeMemory {
    /// Code memory of `len` bytes.
    pub fn new(len: usize) -> std::io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(CodeSpace::new(len)?))))
    }

    /// The memory, for this thread alone.
    pub fn lock(&self) -> MutexGuard<'_, CodeSpace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The arena with its thunks.
pub struct CodeSpace {
    arena: Arena,
    /// Where stubs are put together.
    stub: Vec<u8>,
    next_link: u32,
    miss: usize,
    abandon: usize,
    seek: usize,
    fill: usize,
    fill_vectors: usize,
}

impl CodeSpace {
    /// Code memory of `len` bytes with the thunks at its start.
    fn new(len: usize) -> std::io::Result<Self> {
        let mut arena = Arena::new(len.clamp(1 << 20, MOST), (THUNKS + exec::stub_targets().len()) * THUNK_SIZE)?;
        let thunks = 0;
        for (n, body) in exec::thunk_bodies().into_iter().enumerate() {
            let at = thunks + n * THUNK_SIZE;
            match body {
                ThunkBody::Jump(to) => write_jump(&mut arena, at, to),
                ThunkBody::Leave(code) => {
                    let c = code.to_le_bytes();
                    arena.write(at, &[0xb8, c[0], c[1], c[2], c[3], LEAVE, RET]);
                }
            }
        }
        let [miss, abandon, seek, fill, fill_vectors] = [0, 1, 2, 3, 4].map(|n| thunks + (THUNKS + n) * THUNK_SIZE);
        for (at, to) in [miss, abandon, seek, fill, fill_vectors].into_iter().zip(exec::stub_targets()) {
            write_jump(&mut arena, at, to);
        }
        Ok(Self { arena, stub: Vec::new(), next_link: 0, miss, abandon, seek, fill, fill_vectors })
    }

    /// Number of the part to empty, the one filled longest ago, if there may not be room for the next piece of code.
    pub fn to_empty(&self) -> Option<u64> {
        self.arena.to_empty()
    }

    /// Forgets all code in part number `part`, if that is the oldest: the bytes that it had. None of it may be running or be
    /// entered again, and nothing there may be patched.
    pub fn empty(&mut self, part: u64) -> usize {
        self.arena.empty(part)
    }

    /// Host addresses of all code.
    #[cfg(test)]
    pub fn addresses(&self) -> std::ops::Range<u64> {
        self.arena.address(0)..self.arena.address(self.arena.len())
    }

    /// Whether code placed in part number `part` is still there.
    pub fn holds(&self, part: u64) -> bool {
        self.arena.holds(part)
    }

    /// Places a region that lies on `pages`.
    pub fn place(&mut self, ready: &Ready, pages: &[CodePage]) -> Result<Placed, Unplaced> {
        let c = &ready.compiled;
        let stubs = c.links.len() * LINK_STUB + ready.found.checks.len() * MISS_STUB + c.pages.len() * PAGE_CHECK;
        let len = c.code.len() + 8 + stubs;
        if !self.arena.reserve(len) {
            return Err(if self.arena.can_hold(len) { Unplaced::Full } else { Unplaced::Refused });
        }
        let mark = self.arena.mark();
        let placed = self.try_place(ready, pages);
        if placed.is_none() {
            self.arena.rewind(mark);
        }
        placed.ok_or(Unplaced::Refused)
    }

    fn try_place(&mut self, ready: &Ready, pages: &[CodePage]) -> Option<Placed> {
        let Ready { compiled: c, found: Found { checks, ways } } = ready;
        // Room to read and write eight bytes at a link in the last instruction.
        let at = self.arena.alloc(c.code.len() + 8)?;
        let mut code = c.code.clone();
        let first_link = self.next_link;
        self.next_link = self.next_link.wrapping_add(c.links.len() as u32);
        let mut links = Vec::with_capacity(c.links.len());
        for (n, link) in c.links.iter().enumerate() {
            let stub = self.link_stub(first_link.wrapping_add(n as u32), link.rip, c.relative)?;
            let page = link.page as u8;
            let reloc = c.relocs.iter().find(|(_, name)| name.namespace == NS_LINK && name.index == n as u32);
            let Some((offset, _)) = reloc else {
                // A branch that is never taken: its way out is gone. The number stays, nobody leaves by it.
                links.push(PlacedLink::new(link.rip, page, false, at, stub));
                continue;
            };
            let site = ways.of_call(*offset)?;
            set_jump(&mut code, site, at, stub);
            links.push(PlacedLink::new(link.rip, page, false, at + site, stub));
        }
        let looks = self.place_page_checks(c, pages)?;
        for (offset, name) in &c.relocs {
            match name.namespace {
                NS_LINK => {}
                NS_PAGE => {
                    set_rel32(&mut code, *offset as usize, at, *looks.get((name.index as usize).checked_sub(1)?)?)
                }
                // Thunks lie at the arena's start. Some are called, others are ways out.
                NS_THUNK => match ways.of_call(*offset) {
                    Some(site) => set_jump(&mut code, site, at, name.index as usize * THUNK_SIZE),
                    None => set_rel32(&mut code, *offset as usize, at, name.index as usize * THUNK_SIZE),
                },
                _ => put_inline(&mut code, *offset as usize, inline_code(name))?,
            }
        }
        for (site, jump) in &ways.indirect {
            code.copy_within(jump.clone(), *site);
        }
        for s in checks {
            let stub = self.write_miss_stub(s, at)?;
            set_rel32(&mut code, s.displacement, at, stub);
        }
        self.arena.write(at, &code);
        let entry = self.arena.address(at + ways.start);
        let (len, part) = (code.len() - ways.start, self.arena.filling());
        let looks = looks.iter().map(|at| self.arena.address(*at)).collect();
        Some(Placed { entry, forward_entry: entry, first_link, links: links.into(), len, part, looks })
    }

    /// Makes room for what a region knows of its pages but the first: where that is.
    fn place_page_checks(&mut self, c: &Compiled, pages: &[CodePage]) -> Option<Vec<usize>> {
        let mut places = Vec::with_capacity(c.pages.len());
        for (at, page) in c.pages.iter().zip(pages).skip(1) {
            let place = self.arena.alloc_cold(PAGE_CHECK)?;
            self.arena.write(place, &PageCheck::new(*at, page.gpa, c.relative).bytes());
            places.push(place);
        }
        Some(places)
    }

    /// Bytes at a host address of code memory.
    pub(super) fn bytes_at<const N: usize>(&self, at: u64) -> [u8; N] {
        self.arena.read(self.arena.offset(at))
    }

    /// Writes bytes, which no code is among, at a host address of code memory.
    pub(super) fn put_bytes_at(&mut self, at: u64, bytes: &[u8]) {
        self.arena.write(self.arena.offset(at), bytes);
    }

    /// Places the baseline code of a block. `None`: there is no room for it.
    pub fn place_block(&mut self, c: &baseline::Code) -> Option<Placed> {
        if !self.arena.reserve(c.bytes.len() + 8 + c.links.len() * LINK_STUB) {
            return None;
        }
        let (hot, cold) = c.bytes.split_at(c.cold as usize);
        // Room to read and write eight bytes at a link at the end.
        let at = self.arena.alloc(hot.len() + 8)?;
        let cold_at = self.arena.alloc_cold(cold.len())?;
        self.arena.write(at, hot);
        self.arena.write(cold_at, cold);
        let place = |offset: usize| if offset < hot.len() { at + offset } else { cold_at + offset - hot.len() };
        for (from, to) in &c.across {
            self.aim(place(*from as usize), place(*to as usize));
        }
        for (offset, target) in &c.fixups {
            let to = match target {
                Target::Thunk(t) => *t as usize * THUNK_SIZE,
                Target::Miss => self.fill,
                Target::MissVectors => self.fill_vectors,
            };
            self.aim(place(*offset as usize), to);
        }
        let first_link = self.next_link;
        self.next_link = self.next_link.wrapping_add(c.links.len() as u32);
        let mut links = Vec::with_capacity(c.links.len());
        for (n, link) in c.links.iter().enumerate() {
            let stub = self.link_stub(first_link.wrapping_add(n as u32), link.rip, c.relative)?;
            let site = place(link.site as usize);
            self.aim(site + 1, stub);
            links.push(PlacedLink::new(link.rip, 0, link.forward, site, stub));
        }
        let entry = self.arena.address(at);
        let forward_entry = entry + u64::from(c.forward_entry);
        let part = self.arena.filling();
        let (links, looks) = (links.into(), Box::default());
        Some(Placed { entry, forward_entry, first_link, links, len: hot.len(), part, looks })
    }

    /// Sets the 32-bit displacement at `at` to lead to `target`.
    fn aim(&mut self, at: usize, target: usize) {
        let rel = (target as i64 - (at + 4) as i64) as i32;
        self.arena.write(at, &rel.to_le_bytes());
    }

    /// Makes the baseline code with entry `from` lead to the region with entry `to`. The bytes that were there.
    pub fn redirect(&mut self, from: u64, to: u64) -> [u8; 8] {
        let at = self.arena.offset(from);
        let old = self.arena.read(at);
        self.patch_jump(at, self.arena.offset(to));
        old
    }

    /// Undoes [`CodeSpace::redirect`].
    pub fn restore(&mut self, from: u64, bytes: [u8; 8]) {
        let at = self.arena.offset(from);
        self.arena.patch8(at, bytes);
    }

    /// Points the `jmp rel32` at `at` to `to`, or puts one there; code may be about to execute it.
    fn patch_jump(&mut self, at: usize, to: usize) {
        let mut bytes: [u8; 8] = self.arena.read(at);
        set_jump(&mut bytes, 0, at, to);
        self.arena.patch8(at, bytes);
    }

    /// Points a link at a region.
    pub fn join(&mut self, link: &PlacedLink, (entry, forward_entry): (u64, u64)) {
        let target = self.arena.offset(if link.forward { forward_entry } else { entry });
        self.patch_jump(link.site as usize, target);
    }

    /// Makes a link that is not joined look for its target in the jump cache before it leaves.
    pub fn route_through_cache(&mut self, link: &PlacedLink) {
        let set = link.stub as usize + STUB_RIP_SET;
        let mut jump = Vec::with_capacity(8);
        call_or_jump(&mut jump, JMP, set, self.seek);
        let mut bytes: [u8; 8] = self.arena.read(set);
        bytes[..jump.len()].copy_from_slice(&jump);
        self.arena.patch8(set, bytes);
    }

    /// Undoes [`CodeSpace::join`].
    pub fn unjoin(&mut self, link: &PlacedLink) {
        self.patch_jump(link.site as usize, link.stub as usize);
    }

    /// Code behind a way out that is not joined: leaves with the link's number and RIP. RDI is the CPU.
    fn link_stub(&mut self, number: u32, rip: u64, relative: bool) -> Option<usize> {
        let mut s = std::mem::take(&mut self.stub);
        s.clear();
        if relative {
            // mov eax, offset; add rax, [rdi + code_base]
            s.push(0xb8);
            s.extend((rip as u32).to_le_bytes());
            s.extend([0x48, 0x03, 0x87]);
            s.extend((offset_of!(CpuState, code_base) as u32).to_le_bytes());
        } else {
            s.extend([0x48, 0xb8]);
            s.extend(rip.to_le_bytes());
            s.extend([0x66, 0x90]);
        }
        s.extend([0x48, 0x89, 0x87]);
        s.extend((offset_of!(CpuState, rip) as u32).to_le_bytes());
        debug_assert_eq!(s.len(), STUB_RIP_SET);
        s.extend([0xc7, 0x87]);
        s.extend((offset_of!(CpuState, exit_link) as u32).to_le_bytes());
        s.extend(number.to_le_bytes());
        s.push(0xb8);
        s.extend(LEAVE_LINK.to_le_bytes());
        s.extend([LEAVE, RET]);
        debug_assert_eq!(s.len(), LINK_STUB);
        let at = self.arena.alloc_cold(s.len());
        if let Some(at) = at {
            self.arena.write(at, &s);
        }
        self.stub = s;
        at
    }

    /// Writes the stub of one check: fill the TLB, compare again, go on or abandon the frame.
    fn write_miss_stub(&mut self, s: &MissStub, code_at: usize) -> Option<usize> {
        let len = 5 + 5 + 5 + s.compare.len() + 2 + 5 + 10 + 5;
        debug_assert!(len <= MISS_STUB);
        let at = self.arena.alloc_cold(len)?;
        let mut b = Vec::with_capacity(len);
        match s.page {
            Page::Register(n) => {
                if n >= 8 {
                    b.push(0x41);
                }
                b.push(0x50 + (n & 7));
            }
            Page::Constant(page) => {
                b.push(0x68);
                b.extend(page.to_le_bytes());
            }
        }
        b.push(0x68);
        b.extend(s.kind.to_le_bytes());
        call_or_jump(&mut b, 0xe8, at, self.miss);
        b.extend(&s.compare);
        b.extend([0x75, 5]);
        call_or_jump(&mut b, JMP, at, code_at + s.back);
        b.extend([0x48, 0xb8]);
        b.extend(s.rip.to_le_bytes());
        call_or_jump(&mut b, JMP, at, self.abandon);
        self.arena.write(at, &b);
        Some(at)
    }
}

/// What is looked for in the code of a region.
struct Found {
    checks: Vec<MissStub>,
    ways: Ways,
}

impl Found {
    /// Finds the branch of each TLB check and the comparison before it, and the ways in and out. `None`: something is not
    /// of the expected shape.
    fn in_code(c: &Compiled) -> Option<Self> {
        let Some(frame) = Frame::of(&c.code) else {
            tracing::warn!("generated code starts without the expected prologue");
            return None;
        };
        let mut ways = Ways { start: frame.start(), direct: HashMap::new(), indirect: Vec::new() };
        let kinds: HashMap<u64, u32> = c.sites.iter().map(|s| (s.ud2 as u64, s.kind)).collect();
        let mut checks = Vec::with_capacity(c.sites.len());
        let mut previous = Instruction::default();
        let tail_calls: HashSet<u64> = c.relocs.iter().map(|(offset, _)| u64::from(*offset) - 1).collect();
        // Constants may follow. Each jump through a register has code beside it that leaves by a thunk, further behind.
        let calls = c.relocs.iter().map(|(offset, _)| *offset + 4);
        let end = calls.chain(c.sites.iter().map(|s| s.ud2 + 2)).max().unwrap_or(0);
        for i in Decoder::with_ip(64, c.code.get(..end as usize)?, 0, DecoderOptions::NONE).iter() {
            if i.is_jcc_near()
                && let Some(kind) = kinds.get(&i.near_branch_target())
            {
                checks.push(MissStub::new(c, &previous, &i, *kind)?);
            }
            if i.is_jmp_near_indirect() || i.is_jmp_near() && tail_calls.contains(&i.ip()) {
                ways.add(c, &frame, &i)?;
            }
            // The register allocator may put spills between comparison and branch; they change no flags.
            if i.mnemonic() != Mnemonic::Mov {
                previous = i;
            }
        }
        if checks.len() != kinds.len() {
            tracing::warn!("{} TLB checks, {} branches found", kinds.len(), checks.len());
            return None;
        }
        Some(Self { checks, ways })
    }
}

/// The ways in and out of a region.
struct Ways {
    /// Offset of the way in.
    start: usize,
    /// Where the way out begins, by the offset of its displacement.
    direct: HashMap<u32, usize>,
    /// Where a way out through a register begins, and its jump.
    indirect: Vec<(usize, Range<usize>)>,
}

impl Ways {
    fn add(&mut self, c: &Compiled, frame: &Frame, jump: &Instruction) -> Option<()> {
        let at = jump.ip() as usize;
        let site = frame.way_out(&c.code, at);
        let through_register = jump.is_jmp_near_indirect() && jump.op0_kind() == OpKind::Register;
        match site {
            Some(site) if through_register => self.indirect.push((site, at..at + jump.len())),
            Some(site) if jump.len() == 5 => drop(self.direct.insert(at as u32 + 1, site)),
            _ => {
                tracing::warn!("a tail call is not of the expected shape: {jump}");
                return None;
            }
        }
        Some(())
    }

    /// Where the way out begins whose jump has its displacement at `offset`.
    fn of_call(&self, offset: u32) -> Option<usize> {
        self.direct.get(&offset).copied()
    }
}

/// Where a TLB check has the page it looks for.
#[derive(Clone, Copy)]
enum Page {
    /// In a register.
    Register(u8),
    /// A constant address: the page, as the comparison sign-extends it.
    Constant(i32),
}

/// A TLB check found in the code.
struct MissStub {
    page: Page,
    kind: u32,
    /// Bytes of the comparison.
    compare: Vec<u8>,
    /// Offset of the branch's displacement.
    displacement: usize,
    /// Offset of the instruction after the branch.
    back: usize,
    /// RIP of the guest instruction.
    rip: u64,
}

impl MissStub {
    fn new(c: &Compiled, cmp: &Instruction, jcc: &Instruction, kind: u32) -> Option<Self> {
        let register = |r: Register| r.is_gpr64().then(|| Page::Register(r.number() as u8));
        let page = match (cmp.mnemonic(), cmp.op0_kind(), cmp.op1_kind()) {
            (Mnemonic::Cmp, OpKind::Register, OpKind::Memory | OpKind::Register) => register(cmp.op0_register()),
            (Mnemonic::Cmp, OpKind::Memory, OpKind::Register) => register(cmp.op1_register()),
            // The tag is in memory or in a register; from a register it stays stale after the fill: the access is
            // interpreted this once.
            (Mnemonic::Cmp, OpKind::Memory | OpKind::Register, OpKind::Immediate32to64 | OpKind::Immediate8to64) => {
                Some(Page::Constant(cmp.immediate(1) as i32))
            }
            // Page 0.
            (Mnemonic::Test, OpKind::Register, OpKind::Register) => Some(Page::Constant(0)),
            _ => None,
        };
        let page = page.filter(|_| jcc.len() == 6 && !cmp.is_ip_rel_memory_operand());
        let Some(page) = page else {
            tracing::warn!("a TLB check is not of the expected shape: {cmp}; {jcc}");
            return None;
        };
        let at = jcc.ip() as u32;
        let known = c.places.partition_point(|(start, _)| *start <= at);
        let instruction = c.places.get(known.checked_sub(1)?)?.1;
        Some(Self {
            page,
            kind: instruction.note.with_kind(kind),
            compare: c.code[cmp.ip() as usize..cmp.next_ip() as usize].to_vec(),
            displacement: at as usize + 2,
            back: jcc.next_ip() as usize,
            rip: instruction.rip,
        })
    }
}

/// `jmp [rip]; .quad to`.
fn write_jump(arena: &mut Arena, at: usize, to: u64) {
    let mut b = vec![0xff, 0x25, 0, 0, 0, 0];
    b.extend(to.to_le_bytes());
    arena.write(at, &b);
}

/// Puts a jump to `target` at `offset` of code placed at `at`.
fn set_jump(code: &mut [u8], offset: usize, at: usize, target: usize) {
    code[offset] = JMP;
    set_rel32(code, offset + 1, at, target);
}

/// Sets the 32-bit displacement at `offset` of code placed at `at` to lead to `target`.
fn set_rel32(code: &mut [u8], offset: usize, at: usize, target: usize) {
    let rel = (target as i64 - (at + offset + 4) as i64) as i32;
    code[offset..offset + 4].copy_from_slice(&rel.to_le_bytes());
}

/// Puts code in place of the call with its displacement at `offset`.
fn put_inline(code: &mut [u8], offset: usize, inline: [u8; 5]) -> Option<()> {
    let call = code.get_mut(offset.checked_sub(1)?..offset + 4)?;
    if call[0] != 0xe8 {
        tracing::warn!("a call of inline code is not of the expected shape");
        return None;
    }
    call.copy_from_slice(&inline);
    Some(())
}

/// Appends a call or jump from a stub at `at` to `target`.
fn call_or_jump(b: &mut Vec<u8>, opcode: u8, at: usize, target: usize) {
    b.push(opcode);
    let rel = (target as i64 - (at + b.len() + 4) as i64) as i32;
    b.extend(rel.to_le_bytes());
}
