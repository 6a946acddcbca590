//! x86-64: one part of a function, decoded from its start to its end.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{NotUnderstood, Part, Table, quick};

/// How far back the bounds check and the table of a switch are looked for, in instructions.
const BACK: usize = 48;

/// Decodes all of `code`, which is at `address`.
pub(super) fn decode(code: &[u8], address: u64) -> Result<Part, NotUnderstood> {
    let mut part = Part::default();
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut all: Vec<Instruction> = Vec::with_capacity(code.len() / 4);
    let mut open = true;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let at = instruction.ip();
        if instruction.is_invalid() {
            return Err(NotUnderstood::Undecodable(at));
        }
        part.starts.push(at);
        let before = std::mem::replace(&mut open, true);
        match instruction.flow_control() {
            FlowControl::Return => {
                let near = matches!(instruction.mnemonic(), Mnemonic::Ret)
                    && instruction.code().op_code_is_near_return();
                let pushed = all.last().is_some_and(writes_return_address);
                if !near || pushed {
                    return Err(NotUnderstood::Undecodable(at));
                }
                part.returns.push(at);
                open = false;
            }
            FlowControl::UnconditionalBranch => {
                match instruction.op0_kind() {
                    OpKind::NearBranch64 => part.jumps.push(instruction.near_branch_target()),
                    _ => return Err(NotUnderstood::Undecodable(at)),
                }
                open = false;
            }
            FlowControl::ConditionalBranch => part.jumps.push(instruction.near_branch_target()),
            FlowControl::IndirectBranch => {
                match instruction.is_ip_rel_memory_operand() {
                    true => part.slots.push(instruction.ip_rel_memory_address()),
                    false => part
                        .tables
                        .push(switch(&all, &instruction).ok_or(NotUnderstood::Computed(at))?),
                }
                open = false;
            }
            // What never returns may be the last thing that a function does, and only that tells
            // it from other calls.
            FlowControl::Call | FlowControl::IndirectCall | FlowControl::Exception => open = false,
            FlowControl::Interrupt => open = instruction.mnemonic() != Mnemonic::Int3,
            FlowControl::Next => {
                open = match instruction.mnemonic() {
                    // Padding ends nothing, and needs no end after one.
                    Mnemonic::Nop => before,
                    mnemonic => mnemonic != Mnemonic::Hlt,
                };
            }
            FlowControl::XbeginXabortXend => return Err(NotUnderstood::Undecodable(at)),
        }
        all.push(instruction);
        if instruction.flow_control() == FlowControl::Return {
            part.exits.extend(quick::exit(&all));
        }
    }
    part.entries = quick::entry(&all);
    match open || decoder.ip() != address.wrapping_add(code.len() as u64) {
        true => Err(NotUnderstood::RunsOn(decoder.ip())),
        false => Ok(part),
    }
}

trait NearReturn {
    fn op_code_is_near_return(self) -> bool;
}

impl NearReturn for iced_x86::Code {
    fn op_code_is_near_return(self) -> bool {
        matches!(self, iced_x86::Code::Retnq | iced_x86::Code::Retnq_imm16)
    }
}

/// `mov [rsp], reg` right before a RET: a thunk that jumps by returning.
fn writes_return_address(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Push
        || instruction.mnemonic() == Mnemonic::Mov
            && instruction.op0_kind() == OpKind::Memory
            && instruction.memory_base() == Register::RSP
            && instruction.memory_index() == Register::None
            && instruction.memory_displacement64() == 0
}

/// The table of a computed jump, if what is before it is how compilers write a switch:
///
/// ```text
/// cmp idx, N; ja default; lea base, [rip+table]; movsxd r, [base+idx*4]; add r, base; jmp r
/// cmp idx, N; ja default; jmp [table+idx*8]       (or mov r, [table+idx*8]; jmp r)
/// cmp idx, N; ja default; lea base, [rip+table]; jmp [base+idx*8]
/// ```
fn switch(before: &[Instruction], jump: &Instruction) -> Option<Table> {
    let window = before.get(before.len().saturating_sub(BACK)..)?;
    // The bounds check is before the instruction that reads the table.
    let (address, relative, index, checked) = match jump.op0_kind() {
        OpKind::Memory => (absolute(before, jump)?, false, jump.memory_index(), window),
        OpKind::Register => {
            let target = jump.op0_register();
            let (at, definition) = last_writer(window, target)?;
            match definition.mnemonic() {
                Mnemonic::Mov if definition.op1_kind() == OpKind::Memory => (
                    absolute(before, definition)?,
                    false,
                    definition.memory_index(),
                    window.get(..at)?,
                ),
                Mnemonic::Add if definition.op1_kind() == OpKind::Register => {
                    let addend = definition.op1_register();
                    let earlier = window.get(..at)?;
                    let (at, load, base) = [(target, addend), (addend, target)]
                        .into_iter()
                        .find_map(|(loaded, base)| {
                            let (at, load) = last_writer(earlier, loaded)?;
                            let fits = load.mnemonic() == Mnemonic::Movsxd
                                && load.op1_kind() == OpKind::Memory
                                && load.memory_index_scale() == 4
                                && load.memory_displacement64() == 0;
                            fits.then_some((at, load, base))
                        })?;
                    let table = constant(before, load.memory_base())?;
                    if constant(before, base)? != table {
                        return None;
                    }
                    (table, true, load.memory_index(), window.get(..at)?)
                }
                _ => return None,
            }
        }
        _ => return None,
    };
    let entries = bound(checked, index)?;
    Some(Table {
        jump: jump.ip(),
        address,
        relative,
        entries,
    })
}

/// Address of a table of addresses that a memory operand with an index of scale 8 reads.
fn absolute(before: &[Instruction], operand: &Instruction) -> Option<u64> {
    if operand.memory_index() == Register::None || operand.memory_index_scale() != 8 {
        return None;
    }
    let displacement = operand.memory_displacement64();
    match operand.memory_base() {
        Register::None => Some(displacement),
        base if displacement == 0 => constant(before, base),
        _ => None,
    }
}

/// The address in a register, if nothing but loads of one and the same address write it between
/// the last one and here. Compilers move the load out of loops, so it may be far away.
fn constant(before: &[Instruction], register: Register) -> Option<u64> {
    let (_, writer) = last_writer(before, register)?;
    let loads = writer.mnemonic() == Mnemonic::Lea && writer.is_ip_rel_memory_operand();
    loads.then(|| writer.ip_rel_memory_address())
}

/// The last instruction that names the register as what it writes. Calls and jumps in between are not
/// followed: a wrong guess leads to a table whose targets are no code of the function.
fn last_writer(window: &[Instruction], register: Register) -> Option<(usize, &Instruction)> {
    let full = register.full_register();
    window.iter().enumerate().rev().find(|(_, instruction)| {
        instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().full_register() == full
            && !matches!(
                instruction.mnemonic(),
                Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push | Mnemonic::Bt
            )
    })
}

/// Number of entries, from the comparison before the jump: `cmp idx, N` with `ja`, or `jbe`, or
/// `jae` and `jb`, on the index, on what it was copied from, or on the memory it was loaded from.
fn bound(window: &[Instruction], index: Register) -> Option<u64> {
    let mut wanted = Place::Register(index.full_register());
    for (at, instruction) in window.iter().enumerate().rev() {
        let same = Place::of(instruction, 0).is_some_and(|place| place == wanted);
        match instruction.mnemonic() {
            Mnemonic::Cmp if same && is_immediate(instruction.op1_kind()) => {
                let limit = instruction.immediate(1);
                let branch = window
                    .get(at + 1..)?
                    .iter()
                    .find(|next| next.is_jcc_short_or_near())?;
                return match branch.mnemonic() {
                    Mnemonic::Ja | Mnemonic::Jbe => limit.checked_add(1),
                    Mnemonic::Jae | Mnemonic::Jb => Some(limit),
                    _ => None,
                };
            }
            // A copy, a load, or a register moved to itself to clear the upper half.
            Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsxd if same => {
                wanted = Place::of(instruction, 1)?;
            }
            Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push => {}
            _ if same => return None,
            _ => {}
        }
    }
    None
}

/// Where a value is.
#[derive(PartialEq)]
enum Place {
    Register(Register),
    /// Base, index, scale and distance.
    Memory(Register, Register, u32, u64),
}

impl Place {
    fn of(instruction: &Instruction, operand: u32) -> Option<Place> {
        match instruction.op_kind(operand) {
            OpKind::Register => Some(Place::Register(
                instruction.op_register(operand).full_register(),
            )),
            OpKind::Memory => Some(Place::Memory(
                instruction.memory_base(),
                instruction.memory_index(),
                instruction.memory_index_scale(),
                instruction.memory_displacement64(),
            )),
            _ => None,
        }
    }
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate32to64
    )
}

/// The word that a stub of the linkage table jumps through: `[endbr64] [bnd] jmp [rip+slot]`.
pub(super) fn stub(code: &[u8], address: u64) -> Option<u64> {
    let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let jump = decoder
        .into_iter()
        .take(2)
        .find(|instruction| instruction.mnemonic() != Mnemonic::Endbr64)?;
    let through = jump.flow_control() == FlowControl::IndirectBranch;
    (through && jump.is_ip_rel_memory_operand()).then(|| jump.ip_rel_memory_address())
}
