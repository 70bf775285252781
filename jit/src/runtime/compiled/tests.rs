//! What is shared and what is not.

use super::*;
use crate::ir::{Block, Inst, Op, Ty, Val};
use crate::lower::Compiler;
use crate::state::mode;

/// A region of one block, which adds to a register and leaves.
pub fn region(rip: u64, add: i64) -> Region {
    let inst = |op, d: u16, off, imm| Inst {
        op,
        ty: Ty::I64,
        d,
        a: if op == Op::Add { d } else { Val::NONE.0 },
        b: if op == Op::Add { Val::IMM.0 } else { Val::NONE.0 },
        c: Val::NONE.0,
        off,
        len: 4,
        imm,
    };
    let insts = vec![inst(Op::Add, 3, 0, add), inst(Op::Jmp, Val::NONE.0, 4, rip as i64 + 8)];
    let block = Block { rip, mode: mode::CS64 | mode::FLAT, len: 8, count: 2, insts };
    Region::on_a_page(vec![Arc::new(block)], true, 0)
}

/// Somewhere.
pub fn head(n: u64) -> Key {
    Key { gpa: n, rip: n, cs_base: 0, mode: mode::CS64 | mode::FLAT }
}

fn asked(n: u64) -> Asked {
    Asked { head: head(n), or_larger: true, if_known: false }
}

fn ask(store: &Store<u32>, region: &Region, asked: &Asked, who: u32) -> Answer<u32> {
    store.ask(Content::of(region, &[CodePage::NOWHERE]), asked, who)
}

fn compile(compiler: &mut Compiler, region: &Region) -> Outcome {
    let compiled = compiler.compile(region).expect("simple code");
    Ready::new(compiled).map(Arc::new)
}

/// Asks, and compiles if need be: whether that was so.
fn get(store: &Store<u32>, compiler: &mut Compiler, region: &Region, asked: &Asked) -> bool {
    match ask(store, region, asked, 1) {
        Answer::Known(1, outcome) => {
            let again = compile(compiler, region);
            assert!(outcome.expect("code").code() == again.expect("code").code(), "the code of this region");
            false
        }
        Answer::Compile(1, content) => {
            let outcome = compile(compiler, region);
            assert!(store.finish(&content, &outcome, Duration::from_nanos(7)).is_empty());
            true
        }
        _ => panic!("neither known nor to be compiled"),
    }
}

#[test]
fn equal_regions_are_compiled_once_and_others_never_shared() {
    let (store, mut compiler) = (Store::new(1 << 20), Compiler::new().expect("a compiler"));
    let one = || region(0x1000, 5);
    let with_mode = |bits| {
        let mut r = one();
        Arc::make_mut(&mut r.blocks[0]).mode |= bits;
        r
    };
    let different = [
        one(),
        region(0x1000, 6),
        region(0x2000, 5),
        with_mode(1 << mode::CPL_SHIFT),
        Region { narrow: 1, ..one() },
        Region { inner_jumps: false, ..one() },
    ];
    for r in &different {
        assert!(get(&store, &mut compiler, r, &asked(1)));
        assert!(!get(&store, &mut compiler, r, &asked(1)));
        assert!(!get(&store, &mut compiler, r, &asked(2)), "the same elsewhere");
    }
    let stats = store.statistics();
    assert_eq!((stats.compiled, stats.reused, stats.held, stats.evicted), (6, 12, 6, 0));
    assert_eq!(stats.compile_ns, 42);
}

#[test]
fn who_asks_meanwhile_waits_for_the_one_compilation() {
    let store = Store::new(1 << 20);
    let r = region(0x1000, 5);
    let Answer::Compile(1, content) = ask(&store, &r, &asked(1), 1) else { panic!("the first") };
    for who in 2..5 {
        assert!(matches!(ask(&store, &r, &Asked { if_known: who == 4, ..asked(1) }, who), Answer::Waits));
    }
    assert_eq!(store.finish(&content, &Err(Unplaced::Refused), Duration::ZERO), [2, 3, 4]);
    assert!(matches!(ask(&store, &r, &asked(1), 5), Answer::Known(5, Err(Unplaced::Refused))), "tried once");
    assert_eq!(store.statistics().compiled, 1);
}

#[test]
fn the_oldest_make_room_and_are_forgotten() {
    const MOST: usize = 20_000;
    let (store, mut compiler) = (Store::new(MOST), Compiler::new().expect("a compiler"));
    for n in 0..200 {
        assert!(get(&store, &mut compiler, &region(0x1000 * n, 1), &asked(n)));
        let stats = store.statistics();
        assert!(stats.bytes <= MOST as u64 && stats.held + stats.evicted == n + 1, "{stats:?}");
    }
    let stats = store.statistics();
    assert!(stats.held >= 10 && stats.bytes > MOST as u64 / 2, "never emptied: {stats:?}");
    for n in 200 - stats.held..200 {
        assert!(store.heads.has(&head(n)) && !get(&store, &mut compiler, &region(0x1000 * n, 1), &asked(n)));
    }
    assert!((0..stats.evicted).all(|n| !store.heads.has(&head(n))));
    let known = Asked { if_known: true, ..asked(0) };
    assert!(matches!(ask(&store, &region(0, 1), &known, 1), Answer::Unknown(1)));
    let held = store.lock();
    assert_eq!((held.entries.len(), held.by_head.len()), (held.order.len(), held.order.len()));
}

#[test]
fn what_was_compiled_is_told_once_to_each() {
    let (store, mut compiler) = (Store::new(1 << 24), Compiler::new().expect("a compiler"));
    let (mut one, mut other) = (0, 0);
    assert!(store.heads.since(&mut one).is_empty());
    let Answer::Compile(1, refused) = ask(&store, &region(0x500, 1), &asked(500), 1) else { panic!("the first") };
    store.finish(&refused, &Err(Unplaced::Refused), Duration::ZERO);
    for n in 0..3 {
        assert!(get(&store, &mut compiler, &region(0x1000 * n, 1), &asked(n)));
    }
    assert_eq!(store.heads.since(&mut one), [head(0), head(1), head(2)], "what has code");
    assert!(get(&store, &mut compiler, &region(0x4000, 1), &asked(3)));
    assert_eq!((store.heads.since(&mut one), store.heads.since(&mut one)), (vec![head(3)], vec![]));
    for n in 0..NEWS as u64 {
        store.heads.tell(head(10 + n));
    }
    let last = store.heads.since(&mut other);
    assert_eq!((last.len(), last.first(), other), (NEWS, Some(&head(10)), NEWS as u64 + 4));
}

#[test]
fn a_larger_region_with_the_same_head_is_proposed() {
    let store = Store::new(1 << 20);
    let (first, second) = (region(0x1000, 5), region(0x1008, 6));
    let both = Region::on_a_page([first.blocks.clone(), second.blocks.clone()].concat(), true, 0);
    assert!(matches!(ask(&store, &both, &asked(1), 1), Answer::Compile(..)));
    for if_known in [true, false] {
        match ask(&store, &first, &Asked { if_known, ..asked(1) }, 2) {
            Answer::Larger(2, shape) => assert_eq!(*shape, Content::of(&both, &[CodePage::NOWHERE]).1),
            _ => panic!("it has all of the other"),
        }
    }
    assert!(
        matches!(ask(&store, &first, &Asked { head: head(2), ..asked(1) }, 2), Answer::Compile(..)),
        "another head"
    );
    assert!(matches!(ask(&store, &second, &asked(1), 2), Answer::Compile(..)), "does not start there");
    let own = Asked { or_larger: false, ..asked(1) };
    assert!(matches!(ask(&store, &first, &own, 2), Answer::Waits), "as it is");
    assert_eq!(store.statistics().proposed, 2);
}
