//! Files of traced programs: any bytes as an ELF file, with symbols, code and Go's function table.
//!
//! Guarantees: no panic, an end; all offsets that are reported lie within the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer_agent::discover::binary::fuzz;

fuzz_target!(|data: &[u8]| fuzz(data));
