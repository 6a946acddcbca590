//! HPACK: any blocks, from the start or not.
//!
//! Guarantees: no panic; no more fields than bytes; who missed nothing and who joined late agree on
//! everything that both know.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tracer_agent::protocol::hpack::Decoder;

#[derive(Arbitrary, Debug)]
struct Script<'a> {
    allowed: Option<u32>,
    joined: u8,
    blocks: Vec<&'a [u8]>,
}

type Text = Option<Vec<u8>>;

fn decode(decoder: &mut Decoder, block: &[u8]) -> (Vec<(Text, Text)>, bool) {
    let mut fields = Vec::new();
    let result = decoder.decode(block, &mut |field| {
        fields.push((
            field.name.map(<[u8]>::to_vec),
            field.value.map(<[u8]>::to_vec),
        ));
    });
    assert!(fields.len() <= block.len());
    (fields, result.is_ok())
}

fn agree(one: &Text, other: &Text) -> bool {
    one.is_none() || other.is_none() || one == other
}

fuzz_target!(|script: Script<'_>| {
    let mut whole = Decoder::new(true);
    let mut late = Decoder::new(false);
    if let Some(size) = script.allowed {
        whole.allowed(size);
    }
    for (number, block) in script.blocks.iter().enumerate() {
        let (fields, good) = decode(&mut whole, block);
        if number < usize::from(script.joined) {
            continue;
        }
        let (late_fields, late_good) = decode(&mut late, block);
        assert_eq!(good, late_good);
        assert_eq!(fields.len(), late_fields.len());
        for (one, other) in fields.iter().zip(&late_fields) {
            assert!(agree(&one.0, &other.0) && agree(&one.1, &other.1));
        }
    }
});
