//! Guest time against the host's, and what an idle guest costs.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::{Boot, COMMAND};

/// The host's wall clock, in seconds since 1970.
fn host_date() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64()
}

#[test]
fn guest_time_agrees_with_the_host() {
    let mut guest = Boot::new("debian").append("quiet").to_shell();
    let date = |text: String| text.parse::<f64>().expect("seconds since 1970");

    let at_start = date(guest.run("date +%s")) - host_date();
    assert!(at_start.abs() < 3.0, "the guest's clock is off by {at_start} s");

    guest.send("echo '<fr''om>'; sleep 10; echo '<t''o>'\r");
    guest.expect("<from>", COMMAND);
    let from = Instant::now();
    guest.expect("<to>", COMMAND);
    let took = from.elapsed().as_secs_f64();
    assert!((9.9..10.8).contains(&took), "a sleep of 10 s took {took} s");

    let later = date(guest.run("date +%s")) - host_date();
    assert!((later - at_start).abs() < 1.5, "the guest's clock drifted by {} s in 10 s", later - at_start);
    guest.send("poweroff\r");
    guest.ends_with(0);
}

#[test]
fn an_idle_guest_costs_under_one_percent() {
    let mut guest = Boot::new("debian").append("quiet").to_shell();
    // What was hot in the boot may still be compiling.
    thread::sleep(Duration::from_secs(5));
    guest.send("echo '<fr''om>'; sleep 30; echo '<t''o>'\r");
    guest.expect("<from>", COMMAND);
    let (before, from) = (guest.cpu_time(), Instant::now());
    guest.expect("<to>", COMMAND);
    let share = (guest.cpu_time() - before).as_secs_f64() / from.elapsed().as_secs_f64();
    assert!(share < 0.01, "an idle guest used {:.2} % of a core", share * 100.0);
    guest.send("poweroff\r");
    guest.ends_with(0);
}
