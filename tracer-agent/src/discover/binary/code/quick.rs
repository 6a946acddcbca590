//! Instructions in whose place the kernel costs a probe least (x86-64).
//!
//! A breakpoint is one trap into the kernel; letting the instruction below it run needs a second one,
//! of a kind that virtual machines pay ten times as much for. Only what the kernel carries out
//! itself goes without: jumps and calls (kernel commit 8ad8e9d3fd64, in 3.16) and `push` (e7ed9d9bd007,
//! in 4.15). So a probe goes to the first of them behind an entry that is reached before anything the probe reads
//! has changed, and to the `jne` that compilers' stack protectors put before a RET. Where there is none, the
//! entry or the RET is used as it is.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};

/// Instructions looked at behind an entry and before a RET.
const MOST: usize = 24;

/// Registers that arguments come in: of C, and of Go, which keeps the goroutine in R14.
const C: &[Register] = &[
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
];
const GO: &[Register] = &[
    Register::RAX,
    Register::RBX,
    Register::RCX,
    Register::RDI,
    Register::R14,
];

/// An instruction to be probed in place of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quick {
    /// Address of the entry or the RET that it stands for.
    pub of: u64,
    /// Its own address.
    pub at: u64,
    /// How much lower the stack pointer is here.
    pub depth: u16,
    /// It is a call. The kernel leaves the return address on the stack, but not on the shadow stack
    /// that some processors keep: there it must not be probed.
    pub is_call: bool,
}

impl Quick {
    /// Whether a jump to this address would pass one of the two by.
    pub fn is_passed_by(&self, target: u64) -> bool {
        let (first, last) = (self.of.min(self.at), self.of.max(self.at));
        first < target && target <= last
    }
}

/// In place of the entry, which is the first of these instructions: for C and for Go. `None` also
/// where the entry is such an instruction itself.
pub(super) fn entry(code: &[Instruction]) -> [Option<Quick>; 2] {
    [C, GO].map(|arguments| behind(code, arguments))
}

fn behind(code: &[Instruction], arguments: &[Register]) -> Option<Quick> {
    let of = code.first()?.ip();
    let mut factory = InstructionInfoFactory::new();
    let mut depth = 0_u16;
    for instruction in code.iter().take(MOST) {
        let is_call = instruction.code() == Code::Call_rel32_64 && instruction.len() == 5;
        if is_call || is_push(instruction) || is_jump(instruction) {
            let at = instruction.ip();
            return (at != of).then_some(Quick {
                of,
                at,
                depth,
                is_call,
            });
        }
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        let change = stack_change(instruction);
        for used in factory.info(instruction).used_registers() {
            let register = used.register().full_register();
            let kept =
                arguments.contains(&register) || register == Register::RSP && change.is_none();
            if kept && writes(used.access()) {
                return None;
            }
        }
        depth = depth.checked_add_signed(change.unwrap_or(0).checked_neg()?)?;
    }
    None
}

/// In place of the RET that is the last of these instructions: a `jne` whose not being taken leads
/// straight to it, with the result in RAX already.
pub(super) fn exit(code: &[Instruction]) -> Option<Quick> {
    let (ret, before) = code.split_last()?;
    if ret.code() != Code::Retnq {
        return None;
    }
    let mut factory = InstructionInfoFactory::new();
    let mut depth = 0_i16;
    for instruction in before.iter().rev().take(MOST) {
        if is_jump(instruction) {
            return (instruction.mnemonic() == Mnemonic::Jne).then_some(Quick {
                of: ret.ip(),
                at: instruction.ip(),
                depth: depth.try_into().ok()?,
                is_call: false,
            });
        }
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        let change = stack_change(instruction);
        for used in factory.info(instruction).used_registers() {
            let register = used.register().full_register();
            let kept = register == Register::RAX || register == Register::RSP && change.is_none();
            if kept && writes(used.access()) {
                return None;
            }
        }
        depth = depth.checked_add(change.unwrap_or(0))?;
    }
    None
}

/// What an instruction adds to the stack pointer, of those that only move it.
fn stack_change(instruction: &Instruction) -> Option<i16> {
    let by = match instruction.mnemonic() {
        Mnemonic::Push | Mnemonic::Pop => instruction.stack_pointer_increment().into(),
        mnemonic @ (Mnemonic::Add | Mnemonic::Sub)
            if instruction.op0_register() == Register::RSP
                && instruction.op1_register() == Register::None
                && !instruction.is_ip_rel_memory_operand()
                && instruction.memory_base() == Register::None =>
        {
            let by = instruction.immediate(1) as i64;
            if mnemonic == Mnemonic::Add {
                by
            } else {
                by.checked_neg()?
            }
        }
        _ => return None,
    };
    by.try_into().ok()
}

/// `push` of a register, as the kernel does it.
fn is_push(instruction: &Instruction) -> bool {
    instruction.code() == Code::Push_r64
        && instruction.len() <= 2
        && instruction.op0_register() != Register::RSP
}

/// A conditional jump without prefixes.
fn is_jump(instruction: &Instruction) -> bool {
    instruction.is_jcc_short_or_near() && matches!(instruction.len(), 2 | 6)
}

fn writes(access: OpAccess) -> bool {
    !matches!(
        access,
        OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
    )
}
