//! Small bare-metal programs, run to a HLT: what user-mode tests cannot reach. All of them run twice, in the interpreter
//! and in generated code.

macro_rules! suite {
    ($name:ident, $compiled:literal) => {
        #[allow(clippy::duplicate_mod, reason = "the same tests for each tier")]
        #[path = "."]
        mod $name {
            /// Whether every block is compiled before its first run.
            pub const COMPILED: bool = $compiled;
            /// A guest in this tier.
            pub type Guest = crate::system::testing::Guest<$compiled>;

            mod alignment;
            mod delivery;
            mod far;
            mod floats;
            mod modes;
            mod msrs;
            mod paging;
            mod ports;
            mod segments;
            mod self_modifying;
            mod tasks;
            mod traps;
            mod virtual86;
        }
    };
}

suite!(interpreted, false);
suite!(compiled, true);
