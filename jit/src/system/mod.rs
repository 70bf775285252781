//! The processor's system side: reset, exceptions and interrupts, segments, task switch, MSRs.
mod pending;
