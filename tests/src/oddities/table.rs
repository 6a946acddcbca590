//! The scenarios.

use super::{Client, Fault, Scenario, Server, Want};

const fn ok(method: &'static str, path: &'static str, status: u16) -> Want {
    Want::new(method, path, Some(status), Fault::None, Fault::None)
}

/// What `plain` gives: three requests over one connection.
const PLAIN: &[Want] = &[
    ok("GET", "a", 200),
    ok("POST", "b", 201),
    Want::new("DELETE", "c", Some(404), Fault::None, Fault::Code),
];
const ONE: &[Want] = &[ok("GET", "a", 200)];

/// `plain` with an odd server.
const fn server(name: &'static str, arguments: &'static [&'static str]) -> Scenario {
    Scenario {
        name,
        server: Server::Python(arguments),
        client: Client::Python("plain", &[]),
        wants: PLAIN,
    }
}

/// `plain` with an odd client.
const fn client(name: &'static str, arguments: &'static [&'static str]) -> Scenario {
    Scenario {
        name,
        server: Server::Python(&[]),
        client: Client::Python("plain", arguments),
        wants: PLAIN,
    }
}

/// Odd HTTP.
const fn act(name: &'static str, act: &'static str, wants: &'static [Want]) -> Scenario {
    Scenario {
        name,
        server: Server::Python(&["write=apart"]),
        client: Client::Python(act, &[]),
        wants,
    }
}

/// All scenarios.
pub const SCENARIOS: &[Scenario] = &[
    // Ways to move bytes.
    server("peek_server", &["read=peek"]),
    client("peek_client", &["read=peek"]),
    server("partial_writes_server", &["write=partial"]),
    client("partial_writes_client", &["write=partial"]),
    server(
        "nonblocking_server",
        &["read=nonblocking", "write=nonblocking"],
    ),
    client(
        "nonblocking_client",
        &["read=nonblocking", "write=nonblocking"],
    ),
    Scenario {
        name: "nonblocking_full_buffers",
        server: Server::Python(&["read=nonblocking", "write=nonblocking"]),
        client: Client::Python("slow", &[]),
        wants: ONE,
    },
    Scenario {
        name: "vector_calls_full_buffers",
        server: Server::Python(&["write=writev"]),
        client: Client::Python("slow", &["read=readv"]),
        wants: ONE,
    },
    Scenario {
        name: "sendfile_full_buffers",
        server: Server::Python(&["write=sendfile"]),
        client: Client::Python("slow", &[]),
        wants: ONE,
    },
    Scenario {
        name: "splice_full_buffers",
        server: Server::Python(&["write=splice"]),
        client: Client::Python("slow", &[]),
        wants: ONE,
    },
    server("message_calls_server", &["read=recvmsg", "write=sendmsg"]),
    client("message_calls_client", &["read=recvmsg", "write=sendmsg"]),
    server("vector_calls_server", &["read=readv", "write=writev"]),
    client("vector_calls_client", &["read=readv", "write=writev"]),
    server("many_vectors_server", &["write=vectors"]),
    client("many_vectors_client", &["write=vectors"]),
    server("sendfile_server", &["write=sendfile"]),
    client("sendfile_client", &["write=sendfile"]),
    server("splice_server", &["write=splice"]),
    client("splice_client", &["write=splice"]),
    server("head_byte_per_write_server", &["write=byte"]),
    client("head_byte_per_write_client", &["write=byte"]),
    server("byte_per_read_server", &["read=byte"]),
    Scenario {
        name: "mmsg_server",
        server: Server::Mmsg,
        client: Client::Python("plain", &[]),
        wants: PLAIN,
    },
    Scenario {
        name: "mmsg_client",
        server: Server::Python(&[]),
        client: Client::Mmsg,
        wants: PLAIN,
    },
    Scenario {
        name: "mmsg_both",
        server: Server::Mmsg,
        client: Client::Mmsg,
        wants: PLAIN,
    },
    server("splice_read_server", &["read=splice"]),
    client("splice_read_client", &["read=splice"]),
    server("splice_both_ways", &["read=splice", "write=splice"]),
    server(
        "preadv2_pwritev2_server",
        &["read=preadv2", "write=pwritev2"],
    ),
    client(
        "preadv2_pwritev2_client",
        &["read=preadv2", "write=pwritev2"],
    ),
    server("peek_truncated_server", &["read=truncated"]),
    client("waitall_client", &["read=waitall"]),
    client("interrupted_client", &["read=interrupted"]),
    server("empty_calls_server", &["write=empty"]),
    client("empty_calls_client", &["write=empty"]),
    server("msg_more_server", &["write=more"]),
    client("msg_more_client", &["write=more"]),
    // Connecting and closing.
    client("connect_nonblocking", &["connect=nonblocking"]),
    client("connect_after_refusal", &["connect=refused"]),
    client("close_range", &["close=range"]),
    client("shutdown_both", &["close=shutdown"]),
    // Descriptors and processes.
    server("dup2_over_another", &["serve=dup2"]),
    server("dup3_over_another", &["serve=dup3"]),
    server("fcntl_dupfd", &["serve=fcntl"]),
    server("dup_read_one_write_other", &["write=dup"]),
    server("dup_read_other_write_one", &["read=dup"]),
    client("dup_client", &["read=dup"]),
    server("fork_accept_in_parent", &["serve=fork"]),
    server("descriptor_passed", &["serve=pass"]),
    Scenario {
        name: "socketpair",
        server: Server::PythonPair,
        client: Client::Python("plain", &[]),
        wants: PLAIN,
    },
    // Addresses.
    server("unix_path", &["address=unix"]),
    server("unix_abstract", &["address=abstract"]),
    server("ipv6", &["address=v6"]),
    server("ipv4_mapped", &["address=mapped"]),
    // HTTP.
    act("head_of_60_kib", "bighead", ONE),
    Scenario {
        name: "head_of_60_kib_partial",
        server: Server::Python(&[]),
        client: Client::Python("bighead", &["write=partial"]),
        wants: ONE,
    },
    act(
        "pipelined",
        "pipelined",
        &[
            ok("GET", "0", 200),
            ok("GET", "1", 201),
            ok("GET", "2", 200),
            ok("GET", "3", 201),
            ok("GET", "4", 200),
            ok("GET", "5", 201),
            ok("GET", "6", 200),
            ok("GET", "7", 201),
            ok("GET", "8", 200),
            ok("GET", "9", 201),
        ],
    ),
    act(
        "pipelined_head",
        "headpipe",
        &[
            ok("GET", "0", 200),
            ok("HEAD", "1", 200),
            ok("GET", "2", 201),
            ok("GET", "3", 202),
        ],
    ),
    act("answer_after_failed_write", "spent", ONE),
    Scenario {
        name: "answer_after_failed_write_unix",
        server: Server::Python(&["address=unix"]),
        client: Client::Python("spent", &[]),
        wants: ONE,
    },
    act(
        "continue_100",
        "expect",
        &[ok("PUT", "a", 200), ok("GET", "b", 200)],
    ),
    act("upgrade_101", "upgrade", &[ok("GET", "a", 101)]),
    act("connect", "tunnel", &[ok("CONNECT", "", 200)]),
    act("absolute_form", "absolute", ONE),
    act("close_delimited", "undelimited", ONE),
    act(
        "chunks_extensions_trailers",
        "chunked",
        &[ok("POST", "a", 200), ok("POST", "b", 200)],
    ),
    act(
        "early_413",
        "early",
        &[Want::new("POST", "a", Some(413), Fault::None, Fault::Code)],
    ),
    act(
        "reset_by_client",
        "reset",
        &[Want::new("GET", "a", Some(200), Fault::Any, Fault::Any)],
    ),
    act(
        "reset_by_server",
        "refused",
        &[Want::new("GET", "a", None, Fault::Some, Fault::Some)],
    ),
    act("half_closed", "half", ONE),
    act("http_1_0", "old", ONE),
];
