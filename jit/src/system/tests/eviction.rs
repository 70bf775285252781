//! More code than there is room for: what was placed longest ago makes room, and comes back if it still runs.

use super::{Guest, TIER};
use crate::lower::Compiler;
use crate::runtime::compile::CompileService;
use crate::runtime::place::CodeMemory;
use crate::runtime::tier::First;
use crate::system::testing::walk;
use crate::vcpu::EngineConfig;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Code of so many units fills the code memory of a [`Guest`] more than once.
const UNITS: usize = 3000;
/// Cranelift takes its time.
const STEPS: u64 = if TIER == 2 { 2500 } else { 40_000 };

/// Runs a walk and compares: how often code made room.
fn runs_right(g: &mut Guest, steps: u64) -> u64 {
    walk::put(g, UNITS, steps);
    g.run();
    assert_eq!(walk::result(g), walk::expected(UNITS, steps));
    g.cpu.tier.stats.evictions
}

#[test]
fn code_that_does_not_fit_runs_right() {
    for relative in [false, true] {
        let mut g = Guest::long();
        g.cpu.blocks.relative_everywhere = relative;
        let evictions = runs_right(&mut g, STEPS);
        let stats = g.cpu.tier.stats;
        assert_eq!(evictions >= 3, TIER != 0, "{stats:?}");
        assert!(stats.evicted >= evictions && stats.evicted_bytes >= evictions * 100_000, "{stats:?}");
        assert!(stats.evicted < stats.baseline + stats.compiled || TIER == 0, "some code is there: {stats:?}");
    }
}

#[test]
fn regions_over_baseline_code_make_room_as_well() {
    if TIER == 0 {
        return;
    }
    let mut g = Guest::long();
    g.cpu.tier.set_first(First::EachInTurn);
    assert!(runs_right(&mut g, 12_000) >= 3, "{:?}", g.cpu.tier.stats);
    assert!(g.cpu.tier.stats.compiled > 100, "{:?}", g.cpu.tier.stats);
}

#[test]
fn code_that_compile_threads_finish_late_is_not_entered_where_other_code_is() {
    if TIER != 2 {
        return;
    }
    let mut g = Guest::long();
    let service = CompileService::start(&EngineConfig::default()).expect("compile threads");
    let memory = CodeMemory::new(1 << 20).expect("memory for generated code");
    g.cpu.tier.configure(Arc::new(service), memory, None::<Compiler>);
    g.cpu.tier.set_first(First::EachInTurn);
    walk::put(&mut g, UNITS, 40_000);
    let (expected, start) = (walk::expected(UNITS, 40_000), Instant::now());
    while g.cpu.tier.stats.compiled < 50 || g.cpu.tier.stats.evictions < 6 {
        assert!(start.elapsed() < Duration::from_secs(120), "{:?}", g.cpu.tier.stats);
        walk::begin(&mut g, 40_000);
        g.run();
        assert_eq!(walk::result(&g), expected);
    }
}

#[test]
fn more_blocks_than_are_held() {
    let mut g = Guest::long();
    g.cpu.blocks.hold(2000);
    runs_right(&mut g, STEPS);
    let held = g.cpu.blocks.len();
    assert!((1400..=2000).contains(&held), "{held} blocks");
    assert!(g.cpu.tier.stats.aged >= 1000, "{:?}", g.cpu.tier.stats);
}
