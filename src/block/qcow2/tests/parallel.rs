//! Requests from many threads: while a flush runs, and when the power goes among them.

use super::memory::{Memory, after_cut};
use super::{open, open_tight, small};
use crate::block::BlockBackend;
use crate::block::qcow2::{CreateOptions, Qcow2, Repair, create_in};
use crate::block::scratch::{Dice, seeds};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECTOR: u64 = 512;
/// Sectors that belong to one thread; its neighbours' clusters are shared with it.
const OWN: u64 = 7;
const ROUNDS: u64 = 40;
const THREADS: u64 = 4;
const SIZE: u64 = 1 << 20;

#[test]
fn requests_go_on_while_the_host_flushes() {
    let file = Arc::new(Memory::default());
    create_in(file.clone(), &small(SIZE, 4096)).unwrap();
    let image = open(file.clone()).unwrap();
    image.write(0, &[1; 100_000]).unwrap();
    image.flush().unwrap();
    // Frees clusters, so that the flush has all steps.
    image.discard(0, 65_536).unwrap();
    image.write(500_000, &[2; 1000]).unwrap();
    let slow = Duration::from_millis(300);
    file.delay_flushes(slow);
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| image.flush().unwrap());
        std::thread::sleep(slow / 10);
        let begin = Instant::now();
        image.write(200_000, &[3; 5000]).unwrap();
        image.write_zeroes(90_000, 10_000, true).unwrap();
        image.discard(80_000, 8192).unwrap();
        let mut buf = [0; 1000];
        image.read(500_000, &mut buf).unwrap();
        assert_eq!(buf, [2; 1000]);
        assert!(begin.elapsed() < slow / 2 && !flush.is_finished(), "{:?}", begin.elapsed());
    });
    file.delay_flushes(Duration::ZERO);
    image.flush().unwrap();
    let report = image.check(Repair::None).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
}

/// What one thread did to one of its sectors: the value, the step of the file when the request
/// began, and the step after which it is durable.
#[derive(Clone, Copy)]
struct Event {
    value: u8,
    begun: usize,
    durable: usize,
}

/// The sectors of a thread lie between those of the others.
fn place(thread: u64, number: u64) -> u64 {
    (number / OWN * THREADS + thread) * OWN + number % OWN
}

/// Random requests on own sectors; the events of each sector in their order.
fn work(seed: u64, thread: u64, file: &Memory, image: &Qcow2) -> Vec<Vec<Event>> {
    let count = SIZE / SECTOR / THREADS / OWN * OWN;
    let mut events: Vec<Vec<Event>> = vec![Vec::new(); count as usize];
    let mut dice = Dice::new(seed * 100 + thread);
    for _ in 0..ROUNDS {
        let run = dice.below(count / OWN) * OWN;
        let (first, len) = (run + dice.below(OWN - 2), 1 + dice.below(2));
        let at = place(thread, first) * SECTOR;
        let begun = file.steps();
        let value = if dice.below(4) == 0 { 0 } else { 1 + dice.below(255) as u8 };
        match value {
            0 => image.write_zeroes(at, len * SECTOR, dice.below(2) == 0).unwrap(),
            _ => image.write(at, &vec![value; (len * SECTOR) as usize]).unwrap(),
        }
        for number in first..first + len {
            events[number as usize].push(Event { value, begun, durable: usize::MAX });
        }
        if dice.below(5) == 0 {
            image.flush().unwrap();
            let durable = file.steps();
            for event in events.iter_mut().flatten().filter(|e| e.durable == usize::MAX) {
                event.durable = durable;
            }
        }
    }
    events
}

/// The values that a sector may have after a cut.
fn allowed(events: &[Event], cut: usize) -> Vec<u8> {
    let kept = events.iter().rposition(|e| e.durable <= cut);
    let since = events.iter().skip(kept.unwrap_or(0)).filter(|e| e.begun <= cut).map(|e| e.value);
    since.chain(kept.is_none().then_some(0)).collect()
}

#[test]
fn power_cuts_among_parallel_requests() {
    for seed in seeds(0..12) {
        let file = Arc::new(Memory::default());
        let lazy_refcounts = seed % 3 == 2;
        let extended_l2 = seed % 4 == 3;
        let cluster = if extended_l2 { 16384 } else { [512, 4096, 65536][seed as usize % 3] };
        let options = CreateOptions { lazy_refcounts, extended_l2, ..small(SIZE, cluster) };
        create_in(file.clone(), &options).unwrap();
        let created = file.steps();
        let image = if seed % 2 == 0 { open(file.clone()) } else { open_tight(file.clone()) }.unwrap();
        file.delay_flushes(Duration::from_micros(300));
        let threads: Vec<_> = std::thread::scope(|scope| {
            let (file, image) = (&file, &image);
            let start = |thread| scope.spawn(move || work(seed, thread, file, image));
            let handles: Vec<_> = (0..THREADS).map(start).collect();
            handles.into_iter().map(|h| h.join().unwrap()).collect()
        });
        let steps = file.recorded();
        let mut dice = Dice::new(seed);
        for _ in 0..40 {
            let cut = created + dice.below((steps.len() - created) as u64 + 1) as usize;
            let told = format!("seed {seed}: cut before step {cut} of {}", steps.len());
            let bytes = after_cut(&steps[..cut], &mut dice);
            let image = open(Arc::new(Memory::with(bytes))).unwrap_or_else(|e| panic!("{told}: {e}"));
            let report = image.check(Repair::None).unwrap();
            assert_eq!(report.corruptions, 0, "{told}: {:?}", report.messages);
            let mut content = vec![0; SIZE as usize];
            image.read(0, &mut content).unwrap();
            for (thread, events) in (0..).zip(&threads) {
                for (number, events) in (0..).zip(events) {
                    let at = (place(thread, number) * SECTOR) as usize;
                    let (found, allowed) = (&content[at..at + SECTOR as usize], allowed(events, cut));
                    assert!(found.iter().all(|b| *b == found[0]), "{told}: sector {} is mixed", at / 512);
                    assert!(allowed.contains(&found[0]), "{told}: {} holds {}, not {allowed:?}", at / 512, found[0]);
                }
            }
        }
    }
}
