//! Guest time by executed instructions (`-icount`).

use super::*;

/// Run the program with these options and return what it printed.
#[track_caller]
fn printed(accelerator: &str, icount: &str) -> String {
    let (_, output) = run_with(&assemble("counted"), accelerator, &["-icount", icount]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FINISHED), "-accel {accelerator} -icount {icount}: {said}\n{text}");
    text
}

#[test]
fn times_and_interrupts_are_the_same_in_every_run_and_tier() {
    let first = printed("interp", "shift=1,sleep=off");
    assert!(first.starts_with(&expected("counted")), "{first}");
    assert!(first.lines().count() > 100, "notes of many interrupts: {first}");
    for accelerator in ["interp", "jit", "jit", "jit,sync=on"] {
        // A halt that takes its time ends at the same guest time as one that is skipped.
        for icount in ["shift=1,sleep=off", "1"] {
            let again = printed(accelerator, icount);
            assert!(again == first, "-accel {accelerator} -icount {icount}:\n{}", compare(&first, &again));
        }
    }
    assert_ne!(printed("jit", "shift=0,sleep=off"), first, "an instruction takes half the time");
}

#[test]
fn time_that_is_to_follow_the_hosts_goes_on() {
    for icount in ["auto", "shift=3,align=on"] {
        assert!(printed("jit", icount).lines().count() > 100);
    }
}
