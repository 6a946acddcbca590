//! TCP reassembly: any segments, in any order, cut, repeated, contradicting each other.
//!
//! Guarantees: no panic; time never goes back; held bytes stay within their limit and are released
//! at the end; every byte seen is delivered, repeated, cut away or refused, each counted.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| tracer_agent::replay::fuzz::reassembly(data));
