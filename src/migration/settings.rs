//! What users settle about migration: capabilities, which are on or off, and parameters, which are numbers.

/// What can be on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `MIGRATION` and `MIGRATION_PASS` are told.
    Events,
    /// The machine leaves only when the other side says that it has arrived.
    ReturnPath,
    /// The machine stands until `migrate-continue`, before it leaves.
    PauseBeforeSwitchover,
}

impl Capability {
    /// All of them, by their names.
    pub const ALL: [(&str, Self); 3] = [
        ("events", Self::Events),
        ("return-path", Self::ReturnPath),
        ("pause-before-switchover", Self::PauseBeforeSwitchover),
    ];
}

/// What has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// Milliseconds that a machine may stand.
    DowntimeLimit,
    /// Bytes to be sent in a second; 0: as many as can be.
    MaxBandwidth,
}

impl Parameter {
    /// All of them, by their names.
    pub const ALL: [(&str, Self); 2] = [("downtime-limit", Self::DowntimeLimit), ("max-bandwidth", Self::MaxBandwidth)];

    /// The largest that it can be.
    pub fn most(self) -> u64 {
        match self {
            Self::DowntimeLimit => 2_000_000,
            Self::MaxBandwidth => i64::MAX as u64,
        }
    }
}

/// All that is settled.
#[derive(Clone, Debug)]
pub struct Settings {
    on: [bool; Capability::ALL.len()],
    numbers: [u64; Parameter::ALL.len()],
}

impl Default for Settings {
    fn default() -> Self {
        // QEMU's.
        Self { on: Default::default(), numbers: [300, 128 << 20] }
    }
}

impl Settings {
    /// Whether it is on.
    pub fn has(&self, capability: Capability) -> bool {
        self.on[capability as usize]
    }

    /// Switches it.
    pub fn switch(&mut self, capability: Capability, on: bool) {
        self.on[capability as usize] = on;
    }

    /// Its number.
    pub fn number(&self, parameter: Parameter) -> u64 {
        self.numbers[parameter as usize]
    }

    /// Gives it another number.
    pub fn set(&mut self, parameter: Parameter, number: u64) {
        self.numbers[parameter as usize] = number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_place() {
        let mut settings = Settings::default();
        for (at, (_, capability)) in Capability::ALL.into_iter().enumerate() {
            assert_eq!(capability as usize, at);
            assert!(!settings.has(capability));
            settings.switch(capability, true);
            assert!(settings.has(capability));
        }
        assert_eq!(
            (settings.number(Parameter::DowntimeLimit), settings.number(Parameter::MaxBandwidth)),
            (300, 128 << 20)
        );
        settings.set(Parameter::MaxBandwidth, 0);
        assert_eq!((settings.number(Parameter::DowntimeLimit), settings.number(Parameter::MaxBandwidth)), (300, 0));
    }
}
