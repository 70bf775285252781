//! What guest time follows, and what the guest's wall clock shows.

/// `-icount`: guest time follows executed instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcountConfig {
    /// `shift=`: an instruction takes 2^shift nanoseconds; `None`: as many as keep guest time near the host's (`auto`).
    pub shift: Option<u8>,
    /// `sleep=`: while all processors are halted, time passes as the host's does; else it is over at once.
    pub sleep: bool,
    /// `align=`: a guest that is ahead of the host's time waits for it.
    pub align: bool,
}

/// `-rtc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RtcConfig {
    /// `base=`.
    pub base: RtcBase,
    /// `clock=`.
    pub clock: RtcClock,
}

/// What the guest's wall clock shows at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RtcBase {
    /// The host's UTC.
    #[default]
    Utc,
    /// The host's local time.
    LocalTime,
    /// This time, in seconds since 1970-01-01T00:00:00.
    At(i64),
}

/// What drives the guest's wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RtcClock {
    /// The host's wall clock: follows its adjustments and goes on while the guest is paused.
    #[default]
    Host,
    /// Guest time: stands still while the guest is paused.
    Vm,
    /// The host's monotonic clock: goes on while the guest is paused, without the host's adjustments.
    Monotonic,
}
