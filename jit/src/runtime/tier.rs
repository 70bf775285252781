//! Promotion: which blocks are hot, and what becomes of them.

use crate::vcpu::EngineConfig;

/// A vCPU's share of the compiling tier.
#[derive(Default)]
pub struct Tier {
    enabled: bool,
}

impl Tier {
    /// Takes over what `-accel` said.
    pub fn configure(&mut self, config: &EngineConfig) {
        self.enabled = config.jit;
    }
}
