//! MXCSR, FXSAVE, the XSAVE family.

use crate::helpers::HelperId;
use crate::helpers::vec::{FXRSTOR, FXSAVE, Form, LDMXCSR, STMXCSR, XRSTOR, XSAVE};
use crate::ir::op::Op;
use crate::ir::{Ty, Val, mem};
use crate::lift::{Flow, Lifter};
use crate::state::{mode, reg};
use iced_x86::{Instruction, Mnemonic};

/// The instruction's helper and form, for FXSAVE and XSAVE and their like.
fn area(m: Mnemonic) -> Option<(HelperId, Form)> {
    let plain = Form::default();
    let wide = Form { wide: true, ..plain };
    let compact = Form { compact: true, ..plain };
    let optimised = Form { optimised: true, ..plain };
    let supervisor = Form { compact: true, supervisor: true, ..plain };
    Some(match m {
        Mnemonic::Fxsave => (FXSAVE, plain),
        Mnemonic::Fxsave64 => (FXSAVE, wide),
        Mnemonic::Fxrstor => (FXRSTOR, plain),
        Mnemonic::Fxrstor64 => (FXRSTOR, wide),
        Mnemonic::Xsave => (XSAVE, plain),
        Mnemonic::Xsave64 => (XSAVE, wide),
        Mnemonic::Xsavec => (XSAVE, compact),
        Mnemonic::Xsavec64 => (XSAVE, Form { wide: true, ..compact }),
        Mnemonic::Xsaveopt => (XSAVE, optimised),
        Mnemonic::Xsaveopt64 => (XSAVE, Form { wide: true, ..optimised }),
        Mnemonic::Xsaves => (XSAVE, supervisor),
        Mnemonic::Xsaves64 => (XSAVE, Form { wide: true, ..supervisor }),
        Mnemonic::Xrstor => (XRSTOR, plain),
        Mnemonic::Xrstor64 => (XRSTOR, wide),
        Mnemonic::Xrstors => (XRSTOR, supervisor),
        Mnemonic::Xrstors64 => (XRSTOR, Form { wide: true, ..supervisor }),
        _ => return None,
    })
}

pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    match i.mnemonic() {
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => {
            if let Some(flow) = l.vec_check(i) {
                return Some(flow);
            }
            let v = l.read_op(i, 0);
            l.b.call(LDMXCSR, &[v]);
            Some(Flow::EndAfter)
        }
        Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr => {
            if let Some(flow) = l.vec_check(i) {
                return Some(flow);
            }
            let v = l.b.call(STMXCSR, &[]);
            let m = l.mem(i, 4, true);
            l.store(Ty::I32, m, v);
            Some(Flow::Next)
        }
        m => save_area(l, i, area(m)?),
    }
}

fn save_area(l: &mut Lifter, i: &Instruction, (id, form): (HelperId, Form)) -> Option<Flow> {
    let extended = id == XSAVE || id == XRSTOR;
    let refused = if extended { !l.has(mode::OSXSAVE) } else { l.has(mode::EM) };
    if refused {
        return Some(l.undefined());
    }
    if form.supervisor && l.cpl() != 0 {
        return Some(l.general_protection());
    }
    if let Some(flow) = l.task_switched() {
        return Some(flow);
    }
    let store = id == FXSAVE || id == XSAVE;
    // The header belongs to the area of XSAVE and XRSTOR.
    let m = l.mem(i, if extended { 576 } else { 512 }, store);
    // Comes before the #GP for what is not aligned to 16 or 64 bytes (measured).
    l.check_boundary(m, 4);
    let address = l.linear(m);
    let form = Form { stack: m.flags & mem::STACK != 0, ..form };
    let form = l.b.iconst(form.pack());
    let features = if extended { requested_features(l) } else { Val::NONE };
    l.b.call(id, &[address, form, features]);
    Some(if store { Flow::Next } else { Flow::EndAfter })
}

/// EDX:EAX.
fn requested_features(l: &mut Lifter) -> Val {
    let high = l.b.op2(Op::Shl, Ty::I64, Val::gpr(reg::RDX), 32);
    let low = l.b.temp();
    l.b.mov_to(Ty::I32, low, Val::gpr(reg::RAX));
    l.b.op2(Op::Or, Ty::I64, high, low)
}
