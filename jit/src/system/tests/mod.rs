//! Small bare-metal programs, run to a HLT: what user-mode tests cannot reach. All of them run three times: in the
//! interpreter, in baseline code and in Cranelift's. In the interpreter all flat code is relative, not that of users alone.

macro_rules! suite {
    ($name:ident, $tier:literal) => {
        #[allow(clippy::duplicate_mod, reason = "the same tests for each tier")]
        #[path = "."]
        mod $name {
            /// Who runs the code.
            pub const TIER: u8 = $tier;
            /// A guest in this tier.
            pub type Guest = crate::system::testing::Guest<$tier>;

            mod address_spaces;
            mod alignment;
            mod counted;
            mod debugger;
            mod delivery;
            mod eviction;
            mod far;
            mod floats;
            mod memory_order;
            mod modes;
            mod msrs;
            mod page_crossing;
            mod paging;
            mod ports;
            mod processors;
            mod relative;
            mod segments;
            mod self_modifying;
            mod tasks;
            mod traps;
            mod virtual86;
        }
    };
}

suite!(interpreted, 0);
suite!(baseline, 1);
suite!(compiled, 2);
