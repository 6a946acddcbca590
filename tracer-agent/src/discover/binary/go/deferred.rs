//! Calls that Go makes at the end of a function because of `defer` (x86-64).
//!
//! What crypto/tls defers in `Read` and `Write` is unlocking. A function begins with a check of its stack's
//! size, which costs a probe little, and a RET costs it much (`code::quick`). So the ends of a call are seen at
//! the beginning of the deferred function wherever the RET is surely preceded by it: when it is
//! called, the result lies on the stack already, since a deferred function may change results.
//!
//! Known is what compilers since Go 1.17 write, and every step of it is asked for:
//!
//! ```text
//! lea r, [rip + deferred]; mov [rsp+closure], r; …; lea r, [rsp+closure]; mov [rsp+slot], r
//! mov rdx, [rsp+slot]; mov rax, [rdx]; call rax      (perhaps others likewise)
//! mov rax, [rsp+result]; …; add rsp, frame; pop rbp; ret
//! ```

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

use super::super::code::Quick;

/// How far behind its address a closure is made, in instructions.
const NEAR: usize = 10;

/// A deferred function in whose place RETs need no probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deferred {
    /// Where the probe goes: an address, later an offset in the file.
    pub at: u64,
    /// How much lower the stack pointer is there than at the entry of the function.
    pub depth: u16,
    /// How far below the stack pointer at the entry the result is.
    pub result: u16,
    /// RETs that it stands for.
    pub returns: Vec<u64>,
}

/// One RET: its address, where the result is in the frame, the frame's size, slots that are called.
struct Exit {
    ret: u64,
    result: u64,
    frame: u64,
    slots: Vec<u64>,
}

/// The deferred function that stands for most RETs of the function at `address`; `candidates` are
/// addresses of functions it defers, with where they can be probed.
pub(super) fn find(code: &[u8], address: u64, candidates: &[(u64, Quick)]) -> Option<Deferred> {
    let all: Vec<Instruction> = Decoder::with_ip(64, code, address, DecoderOptions::NONE)
        .into_iter()
        .collect();
    let jumps = all
        .iter()
        .filter(|it| it.op0_kind() == OpKind::NearBranch64);
    let mut targets: Vec<u64> = jumps.map(Instruction::near_branch_target).collect();
    targets.sort_unstable();
    let returns = all
        .iter()
        .enumerate()
        .filter(|(_, it)| it.code() == Code::Retnq);
    let exits: Vec<Exit> = returns
        .filter_map(|(index, _)| exit(all.get(..=index)?, &targets))
        .collect();
    let found = candidates.iter().filter_map(|(function, quick)| {
        let slot = slot(&all, *function)?;
        let ending = || exits.iter().filter(|exit| exit.slots.contains(&slot));
        let Exit { result, frame, .. } = ending().next()?;
        if ending().any(|other| (other.result, other.frame) != (*result, *frame)) {
            return None;
        }
        let return_address = 8;
        let below = u64::from(quick.depth) + return_address;
        Some(Deferred {
            at: quick.at,
            depth: (frame + below).try_into().ok()?,
            result: frame.checked_sub(*result)?.try_into().ok()?,
            returns: ending().map(|exit| exit.ret).collect(),
        })
    });
    found.max_by_key(|deferred| deferred.returns.len())
}

/// Where on the stack the closure of this function is kept until it is called: the only place.
fn slot(all: &[Instruction], function: u64) -> Option<u64> {
    let mut made = all.iter().enumerate().filter(|(_, it)| {
        it.mnemonic() == Mnemonic::Lea
            && it.is_ip_rel_memory_operand()
            && it.ip_rel_memory_address() == function
    });
    let ((index, made), None) = (made.next()?, made.next()) else {
        return None;
    };
    let near = all.get(index + 1..)?.iter().take(NEAR);
    let mut near = near.take_while(|it| it.flow_control() == FlowControl::Next);
    let closure = near.find_map(|it| stored(it, made.op0_register()))?;
    let pointer =
        near.find(|it| it.mnemonic() == Mnemonic::Lea && on_stack(it) == Some(closure))?;
    let slot = near.find_map(|it| stored(it, pointer.op0_register()))?;
    let mut stores = all.iter().filter(|it| {
        it.mnemonic() == Mnemonic::Mov && it.op0_kind() == OpKind::Memory && on_stack(it) == Some(slot)
            // Zeros at the start.
            && it.op1_register() != Register::XMM15
    });
    (stores.next().is_some() && stores.next().is_none()).then_some(slot)
}

/// Where on the stack this instruction stores the register.
fn stored(instruction: &Instruction, register: Register) -> Option<u64> {
    let is = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_register() == register;
    if is { on_stack(instruction) } else { None }
}

/// Distance from the stack pointer of the memory that an instruction names.
fn on_stack(instruction: &Instruction) -> Option<u64> {
    let is =
        instruction.memory_base() == Register::RSP && instruction.memory_index() == Register::None;
    is.then(|| instruction.memory_displacement64())
}

/// Goes backwards as long as nothing else leads to the instruction it comes from.
struct Backwards<'a> {
    code: &'a [Instruction],
    /// Of jumps, sorted.
    targets: &'a [u64],
    from: u64,
}

impl<'a> Backwards<'a> {
    fn step(&mut self) -> Option<&'a Instruction> {
        if self.targets.binary_search(&self.from).is_ok() {
            return None;
        }
        let (last, rest) = self.code.split_last()?;
        self.code = rest;
        self.from = last.ip();
        Some(last)
    }
}

/// What surely comes before the RET that is the last of these instructions.
fn exit(code: &[Instruction], targets: &[u64]) -> Option<Exit> {
    let (ret, code) = code.split_last()?;
    let ret = ret.ip();
    let mut backwards = Backwards {
        code,
        targets,
        from: ret,
    };
    let mut factory = InstructionInfoFactory::new();
    let (mut result, mut frame) = (None, 0_u64);
    loop {
        let instruction = backwards.step()?;
        if is_call(instruction) {
            break;
        }
        let register = instruction.op0_register().full_register();
        match instruction.mnemonic() {
            _ if instruction.flow_control() != FlowControl::Next => return None,
            Mnemonic::Pop if register == Register::RBP && result.is_none() => frame += 8,
            Mnemonic::Add if register == Register::RSP && result.is_none() => {
                frame = frame.checked_add(instruction.immediate(1))?;
            }
            Mnemonic::Mov if register == Register::RAX && result.is_none() => {
                (instruction.op1_kind() == OpKind::Memory).then_some(())?;
                result = Some(on_stack(instruction)?);
            }
            _ => {
                let mut used = factory.info(instruction).used_registers().iter();
                let kept = [Register::RAX, Register::RSP];
                let changes = used.any(|used| {
                    let reads = matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
                    kept.contains(&used.register().full_register()) && !reads
                });
                let stores = instruction.op0_kind() == OpKind::Memory;
                (!changes && !stores).then_some(())?;
            }
        }
    }
    let mut exit = Exit {
        ret,
        result: result?,
        frame,
        slots: Vec::new(),
    };
    // Where this ends, all that is called from here on to the RET is known.
    let _ = exit.add_calls(&mut backwards);
    (!exit.slots.is_empty()).then_some(exit)
}

impl Exit {
    /// From a call backwards: what it calls, and what is called before it.
    fn add_calls(&mut self, backwards: &mut Backwards<'_>) -> Option<()> {
        loop {
            let (code, closure) = (backwards.step()?, backwards.step()?);
            let loads = |it: &Instruction| {
                it.mnemonic() == Mnemonic::Mov && it.op1_kind() == OpKind::Memory
            };
            let is_called = loads(code)
                && loads(closure)
                && code.op0_register() == Register::RAX
                && code.memory_base() == closure.op0_register()
                && code.memory_index() == Register::None
                && code.memory_displacement64() == 0;
            if !is_called {
                return None;
            }
            self.slots.push(on_stack(closure)?);
            let mut earlier = backwards.step()?;
            // Which calls are left is noted in a byte.
            if earlier.code() == Code::Mov_rm8_imm8 {
                let noted = on_stack(earlier)?;
                if (self.result..self.result + 8).contains(&noted) {
                    return None;
                }
                earlier = backwards.step()?;
            }
            if !is_call(earlier) {
                return None;
            }
        }
    }
}

/// `call rax`
fn is_call(instruction: &Instruction) -> bool {
    instruction.code() == Code::Call_rm64 && instruction.op0_register() == Register::RAX
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function at 0x1000 that defers the one at 0x2000, with two RETs of which the first comes
    /// behind its call.
    const CODE: &[u8] = b"\
        \x48\x8d\x3d\xf9\x0f\0\0\x48\x89\x7c\x24\x40\x48\x8d\xbe\x70\x01\0\0\x48\x89\x7c\x24\x48\
        \x48\x8d\x7c\x24\x40\x48\x89\x7c\x24\x50\xc6\x44\x24\x1f\x01\x48\x85\xc9\x74\x1f\
        \xc6\x44\x24\x1f\x00\x48\x8b\x54\x24\x50\x48\x8b\x02\xff\xd0\
        \x48\x8b\x44\x24\x20\x48\x8b\x5c\x24\x30\x48\x83\xc4\x58\x5d\xc3\
        \x48\x8b\x44\x24\x20\x31\xdb\x48\x83\xc4\x58\x5d\xc3";

    #[test]
    fn returns_behind_a_deferred_call() {
        let check = |what: &str, change: &[(usize, u8)], candidate: u64, expected: bool| {
            let mut code = CODE.to_vec();
            for (at, byte) in change {
                code[*at] = *byte;
            }
            let quick = Quick {
                of: candidate,
                at: candidate + 4,
                depth: 16,
                is_call: false,
            };
            let found = find(&code, 0x1000, &[(candidate, quick)]);
            let expected = expected.then(|| Deferred {
                at: candidate + 4,
                depth: 0x60 + 8 + 16,
                result: 0x60 - 0x20,
                returns: vec![0x104a],
            });
            assert_eq!(found, expected, "{what}");
        };
        check("as the compiler writes it", &[], 0x2000, true);
        check("another function is deferred", &[], 0x3000, false);
        check("another slot is called", &[(0x35, 0x48)], 0x2000, false);
        check("the slot is written twice", &[(0x17, 0x50)], 0x2000, false);
        check("a jump to behind the call", &[(0x2b, 0x0f)], 0x2000, false);
        check("a jump to before it", &[(0x2b, 0x00)], 0x2000, true);
        check("another register is called", &[(0x3a, 0xd1)], 0x2000, false);
        check("the result is no load", &[(0x3c, 0x89)], 0x2000, false);
        check("the note is in the result", &[(0x2f, 0x20)], 0x2000, true);
    }
}
