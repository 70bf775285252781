//! Helpers of the x87 family.

mod control;
pub mod state;

use crate::helpers::effect::FAULTS;
use control::{emms, fclex, finit, fldcw, fstcw, fstsw, mmx_check, wait};

crate::helper_family! { 4;
    /// FNINIT.
    FINIT = finit, 0;
    /// FNCLEX.
    FCLEX = fclex, 0;
    /// FLDCW of a.
    FLDCW = fldcw, FAULTS;
    /// Result: the control word.
    FSTCW = fstcw, 0;
    /// Result: the status word.
    FSTSW = fstsw, 0;
    /// Raises a pending exception.
    WAIT = wait, FAULTS;
    /// Raises a pending exception, before MMX instructions.
    MMX_CHECK = mmx_check, FAULTS;
    /// EMMS.
    EMMS = emms, 0;
}
