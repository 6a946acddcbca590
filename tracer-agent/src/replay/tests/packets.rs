//! Single packets, made by hand.

use super::*;

/// `packet` is the link layer's header with `{}` for the IP packet.
fn linked(
    link: Link,
    header: &[u8],
    ip: &[u8],
) -> Result<(SocketAddr, SocketAddr, Vec<u8>, u32), Reason> {
    let data = [header, ip].concat();
    let packet = Packet {
        time_ns: 0,
        link,
        data: &data,
        wire_len: data.len() as u32,
    };
    let TcpPacket {
        source,
        destination,
        payload,
        wire_len,
        ..
    } = decode(&packet)?;
    Ok((
        source.socket_addr(),
        destination.socket_addr(),
        payload.to_vec(),
        wire_len,
    ))
}

#[test]
fn link_types() {
    let v6 = Tcp {
        source: "[2001:db8::1]:4000".parse().unwrap(),
        destination: "[::1]:80".parse().unwrap(),
        ..there(0, 0, ACK, b"hello")
    };
    let v4 = there(0, 0, ACK, b"hello");
    let ip = |tcp: &Tcp<'_>| {
        let mut out = Vec::new();
        put_ip(&mut out, tcp, None);
        out
    };
    let check = |number: i32, header: &[u8], tcp: &Tcp<'_>| {
        let expected = Ok((tcp.source, tcp.destination, b"hello".to_vec(), 5));
        assert_eq!(
            linked(Link::from_number(number), header, &ip(tcp)),
            expected,
            "{number} {header:x?}"
        );
    };
    let mac = [0u8; 12];
    let ethernet = |tail: &[u8]| [&mac[..], tail].concat();
    check(1, &ethernet(&[8, 0]), &v4);
    check(1, &ethernet(&[0x86, 0xdd]), &v6);
    check(1, &ethernet(&[0x81, 0, 0, 5, 8, 0]), &v4);
    check(
        1,
        &ethernet(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x86, 0xdd]),
        &v6,
    );
    check(113, &[0, 4, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0], &v4);
    check(
        113,
        &[0, 0, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0x86, 0xdd],
        &v6,
    );
    check(
        276,
        &[8, 0, 0, 0, 0, 0, 0, 1, 3, 4, 4, 6, 0, 0, 0, 0, 0, 0, 0, 0],
        &v4,
    );
    check(
        276,
        &[
            0x86, 0xdd, 0, 0, 0, 0, 0, 1, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
        &v6,
    );
    for number in [101, 12, 14, 228] {
        check(number, &[], &v4);
    }
    check(101, &[], &v6);
    check(229, &[], &v6);
    check(0, &[2, 0, 0, 0], &v4);
    check(0, &[0, 0, 0, 2], &v4);
    for family in [10, 24, 28, 30] {
        check(0, &[family, 0, 0, 0], &v6);
    }
    check(108, &[0, 0, 0, 2], &v4);
    // The upper half of the field says things about checksums.
    check(0x2400_0001, &ethernet(&[8, 0]), &v4);

    let refused = |link, header: &[u8], ip: &[u8]| linked(link, header, ip).expect_err("refused");
    let v4 = ip(&v4);
    assert_eq!(
        refused(Link::Ethernet, &ethernet(&[8, 6]), &v4),
        Reason::NotIp
    );
    assert_eq!(refused(Link::Ethernet, &mac, b""), Reason::HeadersCut);
    assert_eq!(
        refused(Link::Ethernet, &ethernet(&[0x81, 0, 0]), b""),
        Reason::HeadersCut
    );
    assert_eq!(
        refused(Link::Ethernet, &ethernet(&[0x81, 0, 0, 1].repeat(6)), &v4),
        Reason::Malformed
    );
    assert_eq!(refused(Link::Loopback, &[7, 0, 0, 0], &v4), Reason::NotIp);
    assert_eq!(refused(Link::RawIp, &[], b""), Reason::HeadersCut);
    assert_eq!(refused(Link::RawIp, &[], &[0x45; 19]), Reason::HeadersCut);
    assert_eq!(refused(Link::Unsupported(105), &[], &v4), Reason::LinkType);
    let edited = |at: usize, value: u8| {
        let mut data = v4.clone();
        data[at] = value;
        refused(Link::RawIp, &[], &data)
    };
    assert_eq!(edited(0, 0x95), Reason::NotIp);
    assert_eq!(edited(0, 0x44), Reason::Malformed);
    assert_eq!(edited(6, 0x20), Reason::Fragment, "first fragment");
    assert_eq!(edited(7, 0x01), Reason::Fragment, "later fragment");
    assert_eq!(edited(9, 17), Reason::NotTcp);
    assert_eq!(edited(32, 0x40), Reason::Malformed, "TCP header too short");
    assert_eq!(
        edited(32, 0xf0),
        Reason::Malformed,
        "TCP header longer than the packet"
    );
    assert_eq!(refused(Link::RawIp, &[], &v4[..39]), Reason::HeadersCut);
}

#[test]
fn ipv6_extension_headers() {
    let tcp = Tcp {
        source: "[fe80::1]:4000".parse().unwrap(),
        destination: "[fe80::2]:80".parse().unwrap(),
        ..there(0, 0, ACK, b"hello")
    };
    let with = |first: u8, extensions: &[u8]| {
        let mut out = Vec::new();
        put_ip(&mut out, &tcp, Some((first, extensions)));
        linked(Link::RawIp, &[], &out).map(|(_, _, payload, wire_len)| (payload, wire_len))
    };
    let hop_by_hop = [43, 0, 1, 4, 0, 0, 0, 0];
    let routing = [60, 0, 0, 0, 0, 0, 0, 0];
    let destination = [6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let all = [&hop_by_hop[..], &routing, &destination].concat();
    assert_eq!(with(0, &all), Ok((b"hello".to_vec(), 5)));
    assert_eq!(with(44, &[6, 0, 0, 1, 0, 0, 0, 9]), Err(Reason::Fragment));
    assert_eq!(with(58, &[]), Err(Reason::NotTcp));
}

#[test]
fn lengths_on_the_wire() {
    let mut whole = Vec::new();
    put_ip(&mut whole, &there(0, 0, ACK, b"0123456789"), None);
    let check =
        |what: &str, data: &[u8], wire_len: usize, expected: Result<(&[u8], u32), Reason>| {
            let packet = Packet {
                time_ns: 0,
                link: Link::RawIp,
                data,
                wire_len: wire_len as u32,
            };
            let decoded = decode(&packet).map(|tcp| (tcp.payload, tcp.wire_len));
            assert_eq!(decoded, expected, "{what}");
        };
    check("whole", &whole, 62, Ok((b"0123456789", 10)));
    check("cut in the payload", &whole[..56], 62, Ok((b"0123", 10)));
    check("cut in the options", &whole[..44], 62, Ok((b"", 10)));
    check(
        "padded",
        &[&whole[..], &[0; 6]].concat(),
        68,
        Ok((b"0123456789", 10)),
    );
    let mut offloaded = whole.clone();
    offloaded[2..4].copy_from_slice(&[0, 0]);
    check(
        "no length in the header",
        &offloaded,
        62,
        Ok((b"0123456789", 10)),
    );
    check(
        "no length in the header, cut",
        &offloaded[..56],
        62,
        Ok((b"0123", 10)),
    );
}

#[test]
fn addresses_are_unmapped() {
    let mapped: SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
    let plain = SocketAddr::from((Ipv4Addr::new(10, 1, 2, 3), 80));
    assert_eq!(Address::new(mapped), Address::new(plain));
    assert_eq!(Address::new(mapped).socket_addr(), plain);
}
