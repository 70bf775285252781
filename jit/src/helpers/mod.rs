//! Slow paths: what an instruction does beyond the IR's operations. Each family has its table; the IR names a helper
//! by [`HelperId`], both tiers call the same function.

use crate::cpu::Cpu;
use crate::fault::Fault;

mod decimal;
pub mod integer;
pub mod string;
pub mod system;
pub mod vec;
pub mod x87;

/// Names a helper: family in the high byte, index in the low byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HelperId(pub u16);

/// The function: up to three operands (absent ones are 0), one result. On `Err` the instruction has had no effect.
/// `CpuState::rip` holds the current instruction's RIP on entry.
pub type HelperFn = fn(&mut Cpu, u64, u64, u64) -> Result<u64, Fault>;

/// What a helper does to state that the tiers keep elsewhere. Bits.
pub mod effect {
    /// May raise.
    pub const FAULTS: u32 = 1 << 16;
    /// Reads the arithmetic flags.
    pub const READS_FLAGS: u32 = 1 << 17;
    /// Replaces all arithmetic flags.
    pub const SETS_FLAGS: u32 = 1 << 18;
    /// May change any general register. (Low 16 bits of the word: the registers it may change.)
    pub const ALL_GPRS: u32 = 0xffff;
    /// Changes nothing but its result and depends on nothing but its operands.
    pub const PURE: u32 = 1 << 19;
    /// Reads or changes the x87 registers other than the control word: they must be in the state.
    pub const X87: u32 = 1 << 20;
}

/// Declaration of a helper.
pub struct Helper {
    /// Name in the IR's text form.
    pub name: &'static str,
    /// The function.
    pub call: HelperFn,
    /// [`effect`] bits.
    pub effects: u32,
}

/// Declares a family: constants for the IR and the table behind them. The function has the constant's name in lower case.
#[macro_export]
macro_rules! helper_family {
    ($family:literal; $($(#[$doc:meta])* $id:ident = $func:ident, $effects:expr;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, dead_code)]
        #[repr(u16)]
        enum Index { $($id,)* _End }
        $($(#[$doc])* pub const $id: $crate::helpers::HelperId =
            $crate::helpers::HelperId(($family << 8) | Index::$id as u16);)*
        /// The family's helpers in order of their index.
        pub static TABLE: &[$crate::helpers::Helper] = &[$($crate::helpers::Helper {
            name: stringify!($func), call: $func, effects: $effects,
        },)*];
    };
}

static FAMILIES: [&[Helper]; 5] = [integer::TABLE, string::TABLE, system::TABLE, vec::TABLE, x87::TABLE];

/// The helper of an id. Ids come from the lifter's constants or the verified text form only.
pub fn helper(id: HelperId) -> &'static Helper {
    &FAMILIES[(id.0 >> 8) as usize][(id.0 & 0xff) as usize]
}

/// Whether an id names a helper.
pub fn exists(id: u16) -> bool {
    FAMILIES.get((id >> 8) as usize).is_some_and(|f| ((id & 0xff) as usize) < f.len())
}

/// Looks a helper up by name.
#[cfg(any(test, feature = "testing"))]
pub fn by_name(name: &str) -> Option<HelperId> {
    FAMILIES.iter().enumerate().find_map(|(f, t)| {
        let i = t.iter().position(|h| h.name == name)?;
        Some(HelperId((f as u16) << 8 | i as u16))
    })
}
