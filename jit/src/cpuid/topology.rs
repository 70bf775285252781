//! How processors are spread over packages, and the APIC IDs that follow from it (SDM 3A 9.9.3).

/// Sockets of dies of cores of threads; none of the numbers is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Packages.
    pub sockets: u32,
    /// Dies of a package.
    pub dies: u32,
    /// Cores of a die.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

impl Default for Topology {
    /// One processor.
    fn default() -> Self {
        Self { sockets: 1, dies: 1, cores: 1, threads: 1 }
    }
}

/// Bits that tell `n` things apart.
fn bits(n: u32) -> u32 {
    n.max(1).next_power_of_two().trailing_zeros()
}

impl Topology {
    /// All processors.
    pub fn processors(&self) -> u32 {
        self.sockets * self.per_package()
    }

    /// Processors of a package.
    pub fn per_package(&self) -> u32 {
        self.dies * self.cores * self.threads
    }

    /// Bits of an APIC ID that name the thread of a core.
    pub fn thread_bits(&self) -> u32 {
        bits(self.threads)
    }

    /// Bits of an APIC ID that name the thread of a die.
    pub fn die_shift(&self) -> u32 {
        self.thread_bits() + bits(self.cores)
    }

    /// Bits of an APIC ID that name the thread of a package.
    pub fn package_shift(&self) -> u32 {
        self.die_shift() + bits(self.dies)
    }

    /// APIC ID of processor `index`: threads of a core follow one another, then its neighbours.
    pub fn apic_id(&self, index: u32) -> u32 {
        let (core, thread) = (index / self.threads, index % self.threads);
        let (die, core) = (core / self.cores, core % self.cores);
        let (socket, die) = (die / self.dies, die % self.dies);
        socket << self.package_shift() | die << self.die_shift() | core << self.thread_bits() | thread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apic_ids_leave_gaps_where_numbers_are_no_powers_of_two() {
        let t = Topology { sockets: 2, dies: 1, cores: 3, threads: 2 };
        assert_eq!((t.processors(), t.per_package()), (12, 6));
        assert_eq!((t.thread_bits(), t.die_shift(), t.package_shift()), (1, 3, 3));
        let ids: Vec<u32> = (0..12).map(|n| t.apic_id(n)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!(Topology::default().apic_id(0), 0);
        let dies = Topology { sockets: 1, dies: 2, cores: 2, threads: 1 };
        assert_eq!((0..4).map(|n| dies.apic_id(n)).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }
}
