//! Capture files: any bytes as pcap or pcapng, down to the segments of their packets.
//!
//! Guarantees: no panic, memory bounded by the limits and not by what the file claims, and packets
//! and bytes add up.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| tracer_agent::replay::fuzz::capture(data));
