//! Interrupt messages: what travels between I/O APICs, bus masters (MSI) and local APICs. SDM 3A 11.6 and 11.11.

/// How the receiver takes a message (SDM 3A 11.6.1, delivery mode field).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector goes to all CPUs of the destination.
    Fixed,
    /// The vector goes to the CPU of the destination that runs at the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up; the vector is the page of the start address.
    StartUp,
    /// The vector comes from the 8259 pair.
    ExtInt,
}

impl DeliveryMode {
    /// From the three-bit field of ICR, LVT, redirection entries and MSI data; `None` for the reserved value 3.
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }

    /// Whether the message puts its vector into the receiver's IRR.
    pub fn carries_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The CPU with this APIC ID.
    Physical(u32),
    /// The CPUs whose logical ID matches (SDM 3A 11.6.2.2, 11.12.10.2).
    Logical(u32),
    /// All CPUs.
    All,
    /// All CPUs but the one with this index.
    AllBut(usize),
    /// The CPU with this index.
    Only(usize),
}

/// One interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whom it is for.
    pub destination: Destination,
    /// How it is taken.
    pub mode: DeliveryMode,
    /// The vector, where the mode has one.
    pub vector: u8,
    /// Level-triggered: the end of interrupt is reported to the I/O APICs.
    pub level_triggered: bool,
}

impl Message {
    /// From an I/O APIC redirection entry (82093AA 3.2.4); `None` for a reserved delivery mode.
    pub fn from_redirection(entry: u64) -> Option<Self> {
        Some(Self {
            destination: narrow_destination((entry >> 56) as u8, entry & 1 << 11 != 0),
            mode: DeliveryMode::from_bits((entry >> 8) as u32)?,
            vector: entry as u8,
            level_triggered: entry & 1 << 15 != 0,
        })
    }

    /// From a message-signalled interrupt (SDM 3A 11.11); `None` when the address is outside the interrupt window,
    /// the delivery mode is reserved or the message only deasserts a level.
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xFEE {
            return None;
        }
        let level_triggered = data & 1 << 15 != 0;
        if level_triggered && data & 1 << 14 == 0 {
            return None;
        }
        // The destination mode bit is taken as it is even without the redirection hint: that is what chipsets do and
        // guests rely on.
        Some(Self {
            destination: narrow_destination((address >> 12) as u8, address & 1 << 2 != 0),
            mode: DeliveryMode::from_bits(data >> 8)?,
            vector: data as u8,
            level_triggered,
        })
    }
}

/// The destination of an 8-bit field.
pub(super) fn narrow_destination(field: u8, logical: bool) -> Destination {
    match (logical, field) {
        (true, _) => Destination::Logical(field.into()),
        (false, 0xFF) => Destination::All,
        (false, _) => Destination::Physical(field.into()),
    }
}

/// Takes messages to the local APICs.
pub trait MessageSink: Send + Sync {
    /// Delivers `message`; tells whether any CPU took it.
    fn deliver(&self, message: Message) -> bool;
}

/// Learns about ends of level-triggered interrupts (the I/O APICs).
pub trait EoiSink: Send + Sync {
    /// Some local APIC ended the level-triggered interrupt `vector`.
    fn end_of_interrupt(&self, vector: u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_fields() {
        let m = Message::from_msi(0xFEE0_3000, 0x0041).unwrap();
        assert_eq!(m.destination, Destination::Physical(3));
        assert_eq!((m.mode, m.vector, m.level_triggered), (DeliveryMode::Fixed, 0x41, false));
        let m = Message::from_msi(0xFEE0_500C, 0xC1F0).unwrap();
        assert_eq!(m.destination, Destination::Logical(5));
        assert_eq!((m.mode, m.vector, m.level_triggered), (DeliveryMode::LowestPriority, 0xF0, true));
        assert_eq!(Message::from_msi(0xFEEF_F000, 0x400).unwrap().destination, Destination::All);
    }

    #[test]
    fn msi_that_is_none() {
        assert_eq!(Message::from_msi(0xFED0_0000, 0x41), None);
        assert_eq!(Message::from_msi(0x1_FEE0_0000, 0x41), None);
        assert_eq!(Message::from_msi(0xFEE0_0000, 0x8041), None, "deassertion");
        assert_eq!(Message::from_msi(0xFEE0_0000, 0x0341), None, "reserved mode");
    }

    #[test]
    fn redirection_fields() {
        let m = Message::from_redirection(0x0F00_0000_0000_A930).unwrap();
        assert_eq!(m.destination, Destination::Logical(0xF));
        assert_eq!((m.mode, m.vector, m.level_triggered), (DeliveryMode::LowestPriority, 0x30, true));
    }
}
