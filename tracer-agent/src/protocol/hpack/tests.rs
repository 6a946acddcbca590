//! Vectors of RFC 7541, appendix C; the bounds; late joins.

use proptest::prelude::*;

use super::encoder::{Encoder, write_integer};
use super::{Decoder, Error};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// `name: value` per field, `?` for what is not known.
fn decode(decoder: &mut Decoder, block: &[u8]) -> (Vec<String>, Result<(), Error>) {
    let mut fields = Vec::new();
    let result = decoder.decode(block, &mut |field| {
        let text = |text: Option<&[u8]>| {
            text.map_or("?".into(), |text| {
                String::from_utf8_lossy(text).into_owned()
            })
        };
        fields.push(format!("{}: {}", text(field.name), text(field.value)));
    });
    (fields, result)
}

/// Blocks of one connection: each with its fields and the size of the table after it.
fn check(limit: Option<u32>, blocks: &[(&str, &[&str], usize)]) {
    let mut decoder = Decoder::new(true);
    if let Some(limit) = limit {
        decoder.table.update(limit);
    }
    for (block, fields, size) in blocks {
        let (found, result) = decode(&mut decoder, &hex(block));
        assert_eq!(result, Ok(()), "{block}");
        assert_eq!(found, *fields, "{block}");
        assert_eq!(decoder.table.sizes().1, *size, "table after {block}");
    }
}

#[test]
fn c1_integers() {
    let check = |bytes: &str, prefix, expected| {
        let bytes = hex(bytes);
        let mut rest = &bytes[..];
        assert_eq!(super::integer(&mut rest, prefix), expected, "{bytes:x?}");
    };
    check("0a", 5, Ok(10));
    check("1f9a0a", 5, Ok(1337));
    check("2a", 8, Ok(42));
    check("ff00", 7, Ok(127));
    check("ffffffff7f", 7, Ok(127 + 0x0fff_ffff));
    check("ffffffffff01", 7, Err(Error::Integer));
    check("ff8080808000", 7, Err(Error::Integer));
    check("ff80", 7, Err(Error::Truncated));
    check("", 7, Err(Error::Truncated));
}

#[test]
fn c2_fields() {
    check(
        None,
        &[(
            "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
            &["custom-key: custom-header"],
            55,
        )],
    );
    check(
        None,
        &[("040c2f73616d706c652f70617468", &[":path: /sample/path"], 0)],
    );
    check(
        None,
        &[(
            "100870617373776f726406736563726574",
            &["password: secret"],
            0,
        )],
    );
    check(None, &[("82", &[":method: GET"], 0)]);
    let mut never = Vec::new();
    let mut decoder = Decoder::new(true);
    let blocks = [
        "100870617373776f726406736563726574",
        "040c2f73616d706c652f70617468",
        "82",
    ];
    for block in blocks {
        decoder
            .decode(&hex(block), &mut |field| never.push(field.never_indexed))
            .unwrap();
    }
    assert_eq!(never, [true, false, false]);
}

const FIRST: &[&str] = &[
    ":method: GET",
    ":scheme: http",
    ":path: /",
    ":authority: www.example.com",
];
const SECOND: &[&str] = &[
    ":method: GET",
    ":scheme: http",
    ":path: /",
    ":authority: www.example.com",
    "cache-control: no-cache",
];
const THIRD: &[&str] = &[
    ":method: GET",
    ":scheme: https",
    ":path: /index.html",
    ":authority: www.example.com",
    "custom-key: custom-value",
];

#[test]
fn c3_requests() {
    check(
        None,
        &[
            ("828684410f7777772e6578616d706c652e636f6d", FIRST, 57),
            ("828684be58086e6f2d6361636865", SECOND, 110),
            (
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
                THIRD,
                164,
            ),
        ],
    );
}

#[test]
fn c4_requests_huffman() {
    check(
        None,
        &[
            ("828684418cf1e3c2e5f23a6ba0ab90f4ff", FIRST, 57),
            ("828684be5886a8eb10649cbf", SECOND, 110),
            (
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
                THIRD,
                164,
            ),
        ],
    );
}

const FOUND: &[&str] = &[
    ":status: 302",
    "cache-control: private",
    "date: Mon, 21 Oct 2013 20:13:21 GMT",
    "location: https://www.example.com",
];
const REDIRECT: &[&str] = &[
    ":status: 307",
    "cache-control: private",
    "date: Mon, 21 Oct 2013 20:13:21 GMT",
    "location: https://www.example.com",
];
const OK: &[&str] = &[
    ":status: 200",
    "cache-control: private",
    "date: Mon, 21 Oct 2013 20:13:22 GMT",
    "location: https://www.example.com",
    "content-encoding: gzip",
    "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
];

#[test]
fn c5_responses_with_eviction() {
    check(
        Some(256),
        &[
            (
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
                FOUND,
                222,
            ),
            ("4803333037c1c0bf", REDIRECT, 222),
            (
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
                OK,
                215,
            ),
        ],
    );
}

#[test]
fn c6_responses_huffman() {
    check(
        Some(256),
        &[
            (
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
                FOUND,
                222,
            ),
            ("4883640effc1c0bf", REDIRECT, 222),
            (
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                OK,
                215,
            ),
        ],
    );
}

#[test]
fn blocks_that_are_none() {
    let check = |block: &str, error, fields: &[&str]| {
        let mut decoder = Decoder::new(true);
        let (found, result) = decode(&mut decoder, &hex(block));
        assert_eq!(
            (result, &found[..]),
            (
                Err(error),
                &fields
                    .iter()
                    .map(|field| field.to_string())
                    .collect::<Vec<_>>()[..]
            ),
            "{block}"
        );
    };
    check("80", Error::Index, &[]);
    check("82ffffffff07", Error::Index, &[":method: GET"]);
    check("8220", Error::Update, &[":method: GET"]);
    check("0001", Error::Truncated, &[]);
    check("000161", Error::Truncated, &[]);
    check("00016102", Error::Truncated, &[]);
    check("0001618100", Error::Huffman, &[]);
    check("00ffffffffff01", Error::Integer, &[]);
}

#[test]
fn size_updates_and_bounds() {
    let mut decoder = Decoder::new(true);
    // To 0, then to 4 GiB: emptied, and no more than the bound is kept.
    let (fields, result) = decode(&mut decoder, &hex("40016101623f6120 be"));
    assert_eq!((fields.len(), result), (1, Err(Error::Update)));
    let (fields, result) = decode(&mut decoder, &hex("2020 3fe1ffff7f 4001610162 be"));
    assert_eq!(
        (fields, result),
        (vec!["a: b".to_string(), "a: b".to_string()], Ok(()))
    );
    let value = [b'v'; 100];
    for _ in 0..10_000 {
        let mut block = hex("400161 64");
        block.extend_from_slice(&value);
        assert_eq!(decode(&mut decoder, &block).1, Ok(()));
    }
    let (entries, size) = decoder.table.sizes();
    assert!(size <= super::MAX_LIMIT && entries > 400);
    // One larger than the table empties it.
    decoder.table.update(64);
    let mut block = hex("400161 64");
    block.extend_from_slice(&value);
    assert_eq!(decode(&mut decoder, &block).1, Ok(()));
    assert_eq!(decoder.table.sizes(), (0, 0));
}

#[test]
fn joined_late() {
    let mut decoder = Decoder::new(false);
    // Index 62 is not known; a value with its name is; then 62 is that one, and 63 the older.
    let (fields, result) = decode(&mut decoder, &hex("82be 7e0178 be bf"));
    assert_eq!(result, Ok(()));
    assert_eq!(fields, [":method: GET", "?: ?", "?: x", "?: x", "?: ?"]);
    let (fields, _) = decode(&mut decoder, &hex("4401 2f be bf c0"));
    assert_eq!(fields, [":path: /", ":path: /", "?: x", "?: ?"]);
    decoder.forget();
    let (fields, _) = decode(&mut decoder, &hex("be 84"));
    assert_eq!(fields, ["?: ?", ":path: /"]);
}

proptest! {
    /// Whatever was missed, what is known is right; and nothing is unknown to who missed nothing.
    #[test]
    fn missed_blocks_never_mix_entries_up(
        blocks in prop::collection::vec(prop::collection::vec((0u8..6, 0u8..8, any::<bool>(), 0usize..120), 0..8), 1..30),
        missed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        joined in any::<prop::sample::Index>(),
        limit in prop::sample::select(vec![0usize, 40, 100, 300, 4096]),
    ) {
        let mut encoder = Encoder::new(limit);
        let missed: Vec<usize> = missed.iter().map(|index| index.index(blocks.len())).collect();
        let joined = joined.index(blocks.len());
        let mut whole = Decoder::new(true);
        let mut late = Decoder::new(false);
        for (number, fields) in blocks.iter().enumerate() {
            let mut block = Vec::new();
            if number == 0 {
                write_integer(&mut block, 0x20, 5, limit);
            }
            let mut expected = Vec::new();
            for (name, value, index, padding) in fields {
                let (name, value) = (format!("n{name}"), format!("v{value}{}", "x".repeat(*padding)));
                encoder.field(&name, &value, *index, &mut block);
                expected.push(format!("{name}: {value}"));
            }
            let (found, result) = decode(&mut whole, &block);
            prop_assert_eq!(result, Ok(()));
            prop_assert_eq!(&found, &expected);
            if number < joined {
                continue;
            }
            if missed.contains(&number) {
                late.forget();
                continue;
            }
            let (found, result) = decode(&mut late, &block);
            prop_assert_eq!(result, Ok(()));
            prop_assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                let (name, value) = found.split_once(": ").unwrap();
                let (right_name, right_value) = expected.split_once(": ").unwrap();
                prop_assert!(name == "?" || name == right_name, "{} for {}", found, expected);
                prop_assert!(value == "?" || value == right_value, "{} for {}", found, expected);
            }
        }
    }

    #[test]
    fn any_bytes(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..8), from_start in any::<bool>()) {
        let mut decoder = Decoder::new(from_start);
        for block in blocks {
            let mut fields = 0;
            let _ = decoder.decode(&block, &mut |_| fields += 1);
            prop_assert!(fields <= block.len());
            prop_assert!(decoder.table.sizes().1 <= super::MAX_LIMIT);
        }
    }
}
