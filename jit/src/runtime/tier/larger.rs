//! Regions of other processors: taken over as they are where this processor's memory holds the same code.

use super::form::Formed;
use crate::cpu::Cpu;
use crate::ir::Block;
use crate::runtime::compiled::{Asked, Shape, print_of};
use crate::runtime::slots::Key;
use crate::state::mode;

impl Cpu {
    /// Another processor, it seems, has a region that starts with the block in `slot`.
    pub(super) fn is_known(&self, slot: u32) -> bool {
        let Some(service) = self.tier.service.as_ref().filter(|_| self.tier.sampled) else { return false };
        self.blocks.key(slot).is_some_and(|key| service.heads().has(&key))
    }

    /// Where more processors run than the host has cores, what is hot takes each of them long to find. There, this one asks for
    /// the regions that others have got since the last look, at blocks that have baseline code here. Elsewhere that is dear: most
    /// of them would have run here too seldom (measured: a parallel compile by two on two cores took a tenth longer).
    pub(in crate::runtime) fn learn(&mut self) {
        if !self.tier.sampled || !self.shared.crowd.too_many() {
            return;
        }
        let Some(service) = self.tier.service.clone() else { return };
        for key in service.heads().since(&mut self.tier.learned) {
            if let Some(slot) = self.blocks.slot_of(&key).filter(|slot| self.blocks.baseline(*slot).is_some()) {
                self.tier.proposals.push((0, slot, self.blocks.serial(slot)));
            }
        }
        self.feed_compilers();
    }

    /// Asks for the region of this shape, which another processor has, at the block in `head`; if the code is another one
    /// here, for the region that this processor would form, unless it takes none but known ones.
    pub(super) fn submit_larger(&mut self, head: u32, shape: &Shape, if_known: bool) {
        let Some(key) = self.blocks.key(head) else { return };
        let mut formed = self.form_shape(head, key, shape);
        if formed.is_none() && !if_known {
            formed = self.form_region(head, key);
        }
        let Some(formed) = formed else { return };
        self.hand_over(head, formed, Some(Asked { head: key, or_larger: false, if_known }));
    }

    /// The region of a shape at the block in `head`. Blocks that have not been run here are lifted now. `None`: the code here
    /// is another one, or not to be looked at ahead of time.
    fn form_shape(&mut self, head: u32, key: Key, shape: &Shape) -> Option<Formed> {
        // Other code has a limit, which is the one of the moment.
        if key.mode & mode::CS64 == 0 || self.debugger.on() || self.blocks.serial(head) == 0 {
            return None;
        }
        let mut plan = self.plan(head, key);
        for (at, gpa) in shape.pages.iter().skip(1) {
            plan.add(*at, *gpa)?;
        }
        let (mut blocks, mut live, mut narrow) = (Vec::new(), Vec::new(), 0);
        for part in &shape.parts {
            let page = plan.page_of(part.rip)?;
            let at = plan.key(part.rip, page)?;
            let shift = plan.shift(page);
            let expected = |block: &Block| print_of(block, shift) == part.print;
            let slot = match self.blocks.slot_of(&at) {
                Some(slot) => slot,
                None => self.lift_ahead(at, plan.linear(part.rip), expected)?,
            };
            let fits = self.fits(&mut plan, slot, part.rip);
            let block =
                self.ir_of_region(&plan, slot, page).filter(|block| fits && print_of(block, 0) == part.print)?;
            if part.narrow {
                self.blocks.set_narrow(slot);
            }
            narrow |= u32::from(self.blocks.is_narrow(slot)) << blocks.len();
            blocks.push(block);
            live.push((slot, self.blocks.serial(slot)));
        }
        (live.first()?.0 == head).then(|| plan.region(self.place_of(head).0, (blocks, narrow), true, live))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::compiled::Content;
    use crate::runtime::tier::{First, Tier};
    use crate::state::reg;
    use crate::system::testing::{Guest, place::CODE};
    use iced_x86::code_asm::*;

    /// The block that is run if RAX is zero.
    const ZERO: u64 = CODE + 0x40;

    /// A guest whose code adds `n` to RBX or 1, and that has run the latter.
    fn guest(n: i32) -> Guest<1> {
        let mut g = Guest::<1>::long();
        g.code(|a| {
            a.test(rax, rax)?;
            a.jz(ZERO)?;
            a.inc(rbx)?;
            a.hlt()
        });
        g.code_at(ZERO, ZERO, |a| {
            a.add(rbx, n)?;
            a.hlt()
        });
        run(&mut g, 1, 1);
        g
    }

    fn run(g: &mut Guest<1>, value: u64, adds: u64) {
        g.cpu.set_gpr(reg::RAX, value);
        g.cpu.set_gpr(reg::RBX, 5);
        g.cpu.state.rip = CODE;
        g.run();
        assert_eq!(g.cpu.gpr(reg::RBX), 5 + adds);
    }

    fn head(g: &mut Guest<1>) -> (u32, Key) {
        g.cpu.state.rip = CODE;
        let slot = g.cpu.find_block(false).expect("code");
        (slot, g.cpu.blocks.key(slot).expect("a block"))
    }

    /// The region that a guest forms which has run all of it.
    fn whole(n: i32) -> (Content, Shape) {
        let mut g = guest(n);
        run(&mut g, 0, n as u64);
        let (slot, key) = head(&mut g);
        let formed = g.cpu.form_region(slot, key).expect("a region");
        Content::of(&formed.region, &formed.pages)
    }

    #[test]
    fn blocks_that_were_not_run_here_are_taken_if_they_are_the_same() {
        let (content, shape) = whole(7);
        assert_eq!(shape.parts.len(), 3);
        let mut g = guest(7);
        let (slot, key) = head(&mut g);
        let own = g.cpu.form_region(slot, key).expect("a region");
        assert!(shape.covers(&Content::of(&own.region, &own.pages).1) && own.region.blocks.len() == 2);
        let before = g.cpu.blocks.len();
        let formed = g.cpu.form_shape(slot, key, &shape).expect("the same code");
        assert!(Content::of(&formed.region, &formed.pages).0 == content);
        assert_eq!((formed.slots.len(), g.cpu.blocks.len()), (3, before + 1));
        // A store to what was looked at ahead of time is noticed.
        g.cpu.tier.set_first(First::Interpreter);
        g.cpu.submit_larger(slot, &shape, false);
        assert_eq!(g.cpu.tier.stats.compiled, 1);
        run(&mut g, 0, 7);
        run(&mut g, 1, 1);
        g.code_at(ZERO, ZERO, |a| {
            a.add(rbx, 8)?;
            a.hlt()
        });
        g.cpu.invalidate_code(ZERO, 1);
        assert_eq!(g.cpu.tier.stats.dropped, 1);
        run(&mut g, 0, 8);
    }

    #[test]
    fn other_code_is_not_taken() {
        let (_, shape) = whole(7);
        let mut g = guest(9);
        let (slot, key) = head(&mut g);
        let before = g.cpu.blocks.len();
        assert!(g.cpu.form_shape(slot, key, &shape).is_none());
        assert_eq!(g.cpu.blocks.len(), before, "nothing is kept of it");
        g.cpu.submit_larger(slot, &shape, true);
        assert_eq!(g.cpu.tier.stats.compiled, 0);
        // If it is wanted anyway, the region is this processor's own.
        g.cpu.tier.set_first(First::Interpreter);
        g.cpu.submit_larger(slot, &shape, false);
        let code = g.cpu.blocks.code(slot).expect("code");
        assert_eq!((g.cpu.tier.stats.compiled, g.cpu.tier.slots(code).len()), (1, 2));
        run(&mut g, 0, 9);
    }

    #[test]
    fn nothing_is_taken_under_breakpoints_or_at_another_head() {
        let (_, shape) = whole(7);
        let mut g = guest(7);
        let (slot, key) = head(&mut g);
        g.cpu.state.rip = CODE + 5;
        let other = g.cpu.find_block(false).expect("code");
        let at = g.cpu.blocks.key(other).expect("a block");
        assert!(g.cpu.form_shape(other, at, &shape).is_none());
        g.cpu.set_breakpoints(&[ZERO]);
        assert!(g.cpu.form_shape(slot, key, &shape).is_none());
        assert!(!g.cpu.is_known(slot) && !Tier::default().sampled);
    }
}
