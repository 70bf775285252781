//! `-r`: a limit to how fast is written.

use crate::words::values;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The value of `-r`: bytes a second.
pub fn per_second(text: &str) -> Result<u64, String> {
    match values::size(text, 1)? {
        0 => Err(format!("'{text}' bytes a second would never end; write a number above 0")),
        rate => Ok(rate),
    }
}

/// Lets bytes pass at a rate. Threads share it.
#[derive(Debug)]
pub struct Rate {
    per_second: u64,
    /// When all bytes that were let pass will have been paid for.
    paid: Mutex<Instant>,
}

impl Rate {
    /// So many bytes a second, from now on.
    pub fn new(per_second: u64) -> Rate {
        Rate { per_second, paid: Mutex::new(Instant::now()) }
    }

    /// Waits until those that passed before are paid for, and passes `bytes`.
    pub fn wait(&self, bytes: u64) {
        let turn = {
            let mut paid = self.paid.lock().unwrap_or_else(|e| e.into_inner());
            let turn = *paid;
            // Time in which nothing was written is not made up for.
            let price = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
            *paid = turn.max(Instant::now()) + price;
            turn
        };
        std::thread::sleep(turn.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_those_before_them() {
        let rate = Rate::new(10_000);
        let start = Instant::now();
        rate.wait(1000);
        assert!(start.elapsed() < Duration::from_millis(90), "the first ones pass at once");
        rate.wait(1000);
        rate.wait(1);
        assert!(start.elapsed() >= Duration::from_millis(199));
        assert!(per_second("0").is_err() && per_second("1M") == Ok(1 << 20));
    }
}
