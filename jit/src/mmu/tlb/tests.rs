use super::*;
use crate::mmu::ram::RamRegion;

fn setup() -> (Ram, Tlb) {
    let ram =
        Ram::new(8192, vec![RamRegion { gpa: 0, size: 8192, offset: 0, rom: false }]).expect("two pages of memory");
    (ram, Tlb::new())
}

fn mapping(gpa: u64) -> Mapping {
    Mapping { gpa, read: true, write: true, global: false, page_mask: !0xfff }
}

#[test]
fn hits_within_a_page_only() {
    let (ram, mut tlb) = setup();
    tlb.fill(SUPERVISOR, 0x7000, &mapping(0), ram.host(0).unwrap().0, false);
    assert!(tlb.store(SUPERVISOR, 0x7ff8, Ty::I64, 0x1122_3344_5566_7788));
    assert_eq!(tlb.load(SUPERVISOR, 0x7ffc, Ty::I32), Some(0x1122_3344));
    assert_eq!(tlb.load(SUPERVISOR, 0x7ffd, Ty::I32), None);
    assert_eq!(tlb.load(USER, 0x7000, Ty::I8), None);
    assert_eq!(tlb.rmw(SUPERVISOR, 0x7ff8, 0, Ty::I8, RmwOp::Add, 1), Some(0x88));
    assert_eq!(tlb.cas(SUPERVISOR, 0x7fff, 0, Ty::I16, 0, 1), None);
    assert_eq!(tlb.cas(SUPERVISOR, 0x7ff9, 0, Ty::I16, 0x6677, 0x1234), Some(0x6677));
    assert_eq!(tlb.rmw(SUPERVISOR, 0x7ff9, 0, Ty::I32, RmwOp::Sub, 0x34), Some(0x4455_1234));
    assert_eq!(tlb.load(SUPERVISOR, 0x7ff9, Ty::I32), Some(0x4455_1200));
    tlb.protect_code_page(0);
    assert!(!tlb.store(SUPERVISOR, 0x7000, Ty::I8, 1));
    assert_eq!(tlb.load(SUPERVISOR, 0x7ff8, Ty::I8), Some(0x89));
    tlb.unprotect(SUPERVISOR, 0x7000);
    assert!(tlb.store(SUPERVISOR, 0x7000, Ty::I8, 1));
}

#[test]
fn device_pages_are_known_but_hit_by_nothing() {
    let (_ram, mut tlb) = setup();
    let (linear, gpa) = (0x7000, 0xfebc_0000);
    tlb.fill_device(USER, linear, &Mapping { write: false, ..mapping(gpa) });
    assert_eq!(tlb.device(USER, linear + 8, false), Some(gpa));
    assert_eq!((tlb.device(USER, linear, true), tlb.device(SUPERVISOR, linear, false)), (None, None));
    assert_eq!(tlb.device(USER, linear + entries(USER) as u64 * PAGE_SIZE, false), None);
    assert!(tlb.load(USER, linear, Ty::I32).is_none() && tlb.load128(USER, linear).is_none());
    tlb.fill_device(USER, linear, &mapping(gpa));
    assert_eq!(tlb.device(USER, linear, true), Some(gpa));
    assert!(!tlb.store(USER, linear, Ty::I32, 1) && !tlb.store_tagged(USER, linear, SLOW, Ty::I32, 1));
    assert!(!tlb.protect_code_page(gpa));
    tlb.flush_page(linear);
    assert_eq!(tlb.device(USER, linear, false), None);
    tlb.fill_device(USER, linear, &mapping(gpa));
    tlb.flush_all();
    assert_eq!(tlb.device(USER, linear, false), None);
}

#[test]
fn large_pages_flush_whole_and_alone() {
    let (ram, mut tlb) = setup();
    let host = ram.host(0).unwrap().0;
    for (index, shift) in [(SUPERVISOR, 21), (USER, 21), (SUPERVISOR_SMAP, 22), (USER, 30)] {
        let large = Mapping { page_mask: u64::MAX << shift, global: true, ..mapping(0) };
        let at = 0xffff_8880_4000_0000u64;
        let parts = [0, 1, 77, 511].map(|n| at + (n << 12));
        // Only stores are allowed, of one of them.
        parts.iter().for_each(|page| tlb.fill(index, *page, &large, host, false));
        tlb.fill(index, parts[1], &Mapping { read: false, ..large }, host, false);
        // Its neighbour, a small page in it (an old one, say), and one in the other half.
        let (next, small, low) = (at + (1 << shift) + 0x5000, at + 0x8000, 0x4000_9000);
        tlb.fill(index, next, &large, host, false);
        tlb.fill(index, small, &mapping(0), host, false);
        tlb.fill(index, low, &large, host, false);
        tlb.flush_non_global();
        tlb.fill(index, small, &mapping(0), host, false);
        let stores = |tlb: &Tlb, at: u64| tlb.store(index, at, Ty::I8, 1);
        assert!(parts.iter().chain([&next, &small, &low]).all(|page| stores(&tlb, *page)), "{shift}");
        tlb.flush_page(at + 0x6000);
        assert!(!parts.iter().any(|page| stores(&tlb, *page)), "{shift}");
        assert_eq!([next, small, low].map(|page| stores(&tlb, page)), [true; 3], "{shift}");
        tlb.flush_page(small);
        assert_eq!([next, small, low].map(|page| stores(&tlb, page)), [true, false, true], "{shift}");
        // A small page in the place of a part of a large one is none.
        tlb.fill(index, parts[2], &large, host, false);
        tlb.fill(index, parts[2], &mapping(0), host, false);
        tlb.flush_page(at);
        assert!(stores(&tlb, parts[2]));
        tlb.flush_all();
    }
}

#[test]
fn local_pages_go_alone_and_all_pages_together() {
    let (ram, mut tlb) = setup();
    let host = ram.host(0).unwrap().0;
    let (local, global) = (mapping(0), Mapping { global: true, ..mapping(0) });
    let entries = entries(USER) as u64;
    for n in 0..2 * entries {
        tlb.fill(USER, n << 12, if n % 3 == 0 { &global } else { &local }, host, false);
    }
    // Each entry was filled twice; the second filling counts.
    tlb.flush_non_global();
    let there = |tlb: &Tlb, n: u64| tlb.load(USER, n << 12, Ty::I8).is_some();
    for n in entries..2 * entries {
        assert_eq!(there(&tlb, n), n % 3 == 0);
    }
    tlb.fill(USER, 0x7000, &mapping(0), host, false);
    tlb.protect_code_page(0);
    assert!(!tlb.store(USER, 0x7000, Ty::I8, 1));
    tlb.flush_all();
    assert!((0..2 * entries).all(|n| !there(&tlb, n)));
}

#[test]
fn pages_with_code_are_found_among_those_that_stores_hit() {
    let (ram, mut tlb) = setup();
    let host = ram.host(0).unwrap().0;
    // More pages than the filter tells apart, at all indexes; then other entries in their places.
    for n in 0..40_000u64 {
        tlb.fill(n as usize % 3, n << 12, &mapping(n << 12), host, false);
    }
    let stored = |tlb: &Tlb, n: u64| tlb.store(n as usize % 3, n << 12, Ty::I8, 1);
    for n in (0..40_000).filter(|n| n % 97 == 0 || *n > 39_900) {
        let there = stored(&tlb, n);
        assert_eq!(tlb.protect_code_page(n << 12), there, "{n}");
        assert!(!stored(&tlb, n) && !tlb.protect_code_page(n << 12));
        tlb.unprotect(n as usize % 3, n << 12);
        assert_eq!(stored(&tlb, n), there);
        assert_eq!(tlb.protect_code_page(n << 12), there, "{n} again");
    }
    assert!(stored(&tlb, 39_899));
    tlb.fill(USER, 0x7000, &Mapping { write: false, ..mapping(0x7000) }, host, false);
    tlb.fill(USER, 0x8000, &mapping(0x8000), host, true);
    assert!(!tlb.protect_code_page(0x7000) && !tlb.protect_code_page(0x8000));
    tlb.flush_all();
    assert!(tlb.groups().next().is_none() && tlb.stored.iter().all(|word| *word == 0));
}

#[test]
fn forward_overlap_repeats_the_pattern() {
    let (ram, mut tlb) = setup();
    tlb.fill(SUPERVISOR, 0, &mapping(0), ram.host(0).unwrap().0, false);
    assert!(tlb.store(SUPERVISOR, 0, Ty::I16, 0x0201));
    assert!(tlb.copy(SUPERVISOR, 2, 0, 6, 2));
    assert_eq!(tlb.load(SUPERVISOR, 0, Ty::I64), Some(0x0201_0201_0201_0201));
    assert!(tlb.fill_bytes(SUPERVISOR, 8, 8, 0xabcd, 2));
    assert_eq!(tlb.load(SUPERVISOR, 8, Ty::I64), Some(0xabcd_abcd_abcd_abcd));
}
