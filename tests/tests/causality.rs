//! The parents of what services call while they serve a request, with the ids in the paths as the
//! truth: never a wrong one; and not too many missing, with room for a busy machine.
//!
//! The services are those of `cargo xtask bench causality`, which measures more of them.

use std::process::Command;
use std::time::Duration;

use tracer_tests::scene::{
    CONCURRENCY, FOLLOWED, Outcome, REQUESTS, SETTLED, at_least, front, play, play_at,
};
use tracer_tests::services::{python, source, target_dir};
use tracer_tests::session::skipped;
use tracer_tests::{process, services};

/// Scenario: a thread for each request, calls in a row and in threads made for them, a thread that
/// calls in the background. Guarantees: its calls are the request's children, those in the
/// background nobody's.
#[test]
fn python_threads() {
    let test = "causality::python_threads";
    let script = front("threaded.py").display().to_string();
    for (query, each, percent) in [("row=2&fan=0", 2, 95), ("row=1&fan=2", 3, 80)] {
        let Some(outcome) = play(test, query, &[python(), &script], &[], FOLLOWED) else {
            return;
        };
        at_least(test, &outcome, each, percent);
    }
}

/// Scenario: requests give their calls to one pool of threads and wait for them, and so does a thread of nobody's, which
/// does not wait. Guarantees: the calls are the children of the request that gave them, of eight at a time; none has a
/// wrong parent.
#[test]
fn python_shared_pool() {
    let test = "causality::python_shared_pool";
    let script = source("causality/odd.py").display().to_string();
    let service = [python(), script.as_str()];
    let Some(outcome) = play(test, "how=pool", &service, &[], FOLLOWED) else {
        return;
    };
    at_least(test, &outcome, 3, 80);
}

/// Scenario: requests, one at a time, give their calls to threads that take them out of a `queue.Queue`, and wait for them; a thread
/// calls in the background, by itself or by the same queue. Guarantees: the calls are the request's children once the threads were
/// seen to be waited for, but none where the queue is anybody's; never a wrong parent, nor with eight at a time.
#[test]
fn python_queues() {
    let test = "causality::python_queues";
    let script = source("causality/odd.py").display().to_string();
    let service = [python(), script.as_str()];
    for (concurrency, how, percent, wait) in [
        (1, "queues", 60, FOLLOWED),
        (1, "shared", 0, SETTLED),
        (CONCURRENCY, "queues", 0, SETTLED),
    ] {
        let query = format!("how={how}");
        let Some(outcome) = play_at(concurrency, test, &query, &service, &[], wait) else {
            return;
        };
        println!("{how}, {concurrency}: {outcome:?}");
        at_least(test, &outcome, 3, percent);
        if how == "shared" {
            assert_eq!(outcome.right, 0, "{how}: {outcome:?}");
        }
    }
}

/// Scenario: an event loop gives the calls of its requests to a pool of two threads that it made (`run_in_executor`), or to
/// its own (`to_thread`). Guarantees: none has a wrong parent, and most have the right one once the loop's tasks and the pool are
/// followed.
#[test]
fn python_pool_of_an_event_loop() {
    let test = "causality::python_pool_of_an_event_loop";
    let script = source("causality/odd_tasks.py").display().to_string();
    let service = [python(), script.as_str()];
    for query in ["how=pool", "how=thread"] {
        let Some(outcome) = play(test, query, &service, &[], FOLLOWED) else {
            return;
        };
        at_least(test, &outcome, 1, 80);
    }
}

/// Scenario: a task of asyncio for each connection, calls in a row and in tasks made for them, a task
/// that calls in the background. Guarantees: calls in a row are the request's children; none has a
/// wrong parent. (When tasks that others made are believed is learnt: how many is not promised.)
#[test]
fn python_tasks() {
    let test = "causality::python_tasks";
    let script = front("streams.py").display().to_string();
    let service = [python(), script.as_str()];
    for (query, each, percent) in [("row=2&fan=0", 2, 90), ("row=1&fan=2", 3, 0)] {
        let Some(outcome) = play(test, query, &service, &[], FOLLOWED) else {
            return;
        };
        at_least(test, &outcome, each, percent);
    }
}

fn has_node() -> bool {
    let node = Command::new("node").arg("--version").output();
    node.is_ok_and(|output| output.status.success())
}

/// Scenario: callbacks of one thread, connections kept and not. Guarantees: as above; timers between.
#[test]
fn node_callbacks() {
    let test = "causality::node_callbacks";
    let script = front("front.js").display().to_string();
    for fresh in ["0", "1"] {
        if !has_node() {
            return skipped(test, "there is no node");
        }
        let service = ["node", &script];
        let Some(outcome) = play(test, "row=2&fan=2", &service, &[("FRESH", fresh)], FOLLOWED)
        else {
            return;
        };
        at_least(test, &outcome, 4, 90);
    }
}

/// Scenario: goroutines, the requests written by others than send them. Guarantees: as above.
#[test]
fn go_goroutines() {
    let test = "causality::go_goroutines";
    let built = target_dir().join("services").join("causality-go");
    let mut build = Command::new("go");
    build
        .args(["build", "-o"])
        .arg(&built)
        .arg(front("front.go"));
    if let Err(reason) = process::run(&mut build) {
        return skipped(test, &reason);
    }
    let service = built.display().to_string();
    for fresh in ["0", "1"] {
        let Some(outcome) = play(
            test,
            "row=2&fan=2",
            &[&service],
            &[("FRESH", fresh)],
            FOLLOWED,
        ) else {
            return;
        };
        at_least(test, &outcome, 4, 90);
    }
}

/// Scenario: a service asks itself over one connection of HTTP/2 for all, of which many streams begin in one write and are read
/// in one call; each of them makes a call over HTTP/1 and one over HTTP/2. In Go the connection is there before the program is
/// followed. Guarantees: as above.
#[test]
fn streams() {
    let test = "causality::streams";
    let built = target_dir().join("services").join("causality-grpc-go");
    let mut build = Command::new("go");
    build
        .args(["build", "-o"])
        .arg(&built)
        .current_dir(front("grpc-go"));
    if let Err(reason) = process::run(&mut build) {
        return skipped(test, &reason);
    }
    let go = built.display().to_string();
    let node = front("http2.js").display().to_string();
    let scenes: [(&str, &[&str]); 3] = [("h2", &[&go]), ("grpc", &[&go]), ("h2", &["node", &node])];
    for (mode, service) in scenes {
        if service[0] == "node" && !has_node() {
            return skipped(test, "there is no node");
        }
        let env = [("MODE", mode)];
        let Some(outcome) = play(test, "row=1&fan=3", service, &env, FOLLOWED) else {
            return;
        };
        println!("{mode} {service:?}: {outcome:?}");
        at_least(test, &outcome, 12, 90);
    }
}

/// Scenario: tasks of tokio, the requests written by tasks of connections, in several threads and in one
/// with a future beside the tasks; then a task for all requests, one that writes to its connection
/// itself, calls after the answer. Guarantees: calls of handlers are the request's children; none has a
/// wrong parent; what goes through queues or after the answer has none.
#[test]
fn tokio_tasks() {
    let test = "causality::tokio_tasks";
    let program = services::own_binary("tracer-tasks").display().to_string();
    let service = [program.as_str()];
    let one_thread: &[(&str, &str)] = &[("ONE_THREAD", "1")];
    for (how, env, wait) in [
        ("row", &[][..], FOLLOWED),
        ("row", one_thread, FOLLOWED),
        ("odd", &[], SETTLED),
    ] {
        let Some(outcome) = play(test, &format!("how={how}"), &service, env, wait) else {
            return;
        };
        if how == "row" {
            // When tasks that handlers make are believed is learnt.
            at_least(test, &outcome, 3, 80);
        } else {
            assert_eq!(outcome.right, 0, "{how}: {outcome:?}");
        }
    }
}

/// Scenario: what is easily taken for a request's work: calls after the answer, pools and workers
/// that requests share, event loops in a thread, tasks. Guarantees: no wrong parent; nothing after the
/// answer has one.
#[test]
fn work_that_is_not_the_requests() {
    let test = "causality::work_that_is_not_the_requests";
    for (script, how) in [
        ("odd.py", "after"),
        ("odd.py", "queue"),
        ("odd.py", "selected"),
        ("odd_tasks.py", "after"),
        ("odd_tasks.py", "queue"),
    ] {
        let query = format!("how={how}");
        let script = source("causality").join(script).display().to_string();
        let Some(outcome) = play(test, &query, &[services::python(), &script], &[], SETTLED) else {
            return;
        };
        if how == "after" {
            assert_eq!(outcome.right, 0, "{how}: {outcome:?}");
        }
    }
}

/// Plays the service of C's whose threads hand work to each other, one request at a time.
fn pools(test: &str, how: &str, with: &str, wait: Duration) -> Option<Outcome> {
    let service = match services::pools() {
        Ok(path) => path.display().to_string(),
        Err(reason) => {
            skipped(test, &reason);
            return None;
        }
    };
    let env = [("HOW", how), ("WITH", with)];
    let outcome = play_at(1, test, "", &[&service], &env, wait)?;
    println!("{how}, {with}: {outcome:?}");
    Some(outcome)
}

/// Scenario: threads that wait for work (at a condition, a semaphore, a pipe, an eventfd) get that of requests, which wait for
/// it, one request at a time; a thread calls in the background. Guarantees: the calls are the request's children once the threads
/// were seen to be waited for; those in the background are nobody's.
#[test]
fn c_pools() {
    let test = "causality::c_pools";
    for (how, percent) in [
        ("condition", 60),
        ("semaphore", 60),
        ("pipe", 60),
        // One thread does all three without a wait: only the first is certain.
        ("eventfd", 15),
    ] {
        let Some(outcome) = pools(test, how, "own", FOLLOWED) else {
            return;
        };
        at_least(test, &outcome, 3, percent);
    }
}

/// Scenario: threads of a C program that are woken while a request is served and work for nobody in particular, or for
/// anybody (see the service). Guarantees: no wrong parent.
#[test]
fn c_work_that_is_not_the_requests() {
    let test = "causality::c_work_that_is_not_the_requests";
    for (how, with) in [
        ("condition", "shares"),
        ("semaphore", "shares"),
        ("pipe", "shares"),
        ("eventfd", "shares"),
        ("loop", "own"),
        ("loop", "shares"),
        ("condition", "holds"),
        ("lock", "holds"),
        ("lock", "waits"),
        ("condition", "waits"),
        ("condition", "polls"),
        ("lock", "ticks"),
        ("condition", "logs"),
        ("lock", "logs"),
        ("batch", "own"),
        ("after", "own"),
    ] {
        let Some(outcome) = pools(test, how, with, SETTLED) else {
            return;
        };
        // All of them were seen: none is missing among those whose parents were looked at.
        assert!(outcome.calls >= REQUESTS, "{how}, {with}: {outcome:?}");
    }
}

/// Compiles a service of Java's into a directory that is given back with its path.
fn java(test: &str, source: &std::path::Path) -> Option<(tempfile::TempDir, String)> {
    let classes = tempfile::TempDir::new().expect("a directory");
    let mut compile = Command::new("javac");
    compile.arg("-d").arg(classes.path()).arg(source);
    if let Err(reason) = process::run(&mut compile) {
        skipped(test, &reason);
        return None;
    }
    let path = classes.path().display().to_string();
    Some((classes, path))
}

/// Runs a class of these; answers leave at once, not after the client's delayed acknowledgement.
fn java_command<'a>(classes: &'a str, class: &'a str) -> [&'a str; 6] {
    let at_once = "-Dsun.net.httpserver.nodelay=true";
    let fast = "-XX:TieredStopAtLevel=1";
    ["java", fast, at_once, "-cp", classes, class]
}

/// Scenario: requests one after the other give their calls to a pool of threads and wait for them, while a thread
/// calls in the background all the time; then eight at a time. Guarantees: never a wrong parent; one at a time, threads
/// of the pool are believed once they were seen to be waited for.
#[test]
fn java_shared_executor() {
    let test = "causality::java_shared_executor";
    let Some((_classes, path)) = java(test, &front("Front.java")) else {
        return;
    };
    let service = java_command(&path, "Front");
    for concurrency in [1, CONCURRENCY] {
        let env = [("FAN", "pool")];
        let query = "row=0&fan=3";
        let Some(outcome) = play_at(concurrency, test, query, &service, &env, SETTLED) else {
            return;
        };
        assert_eq!(outcome.calls, 3 * REQUESTS, "{outcome:?}");
        if concurrency == 1 {
            assert!(outcome.right > 0, "{outcome:?}");
        }
    }
}

/// Scenario: work in other threads that is easily taken for a request's (see the service), one request at a time and
/// two. Guarantees: no wrong parent.
#[test]
fn java_work_that_is_not_the_requests() {
    let test = "causality::java_work_that_is_not_the_requests";
    let Some((_classes, path)) = java(test, &source("causality/Odd.java")) else {
        return;
    };
    let service = java_command(&path, "Odd");
    for (how, concurrency) in [
        ("pool", 1),
        ("batch", 1),
        ("lock", 1),
        ("after", 2),
        ("schedule", 1),
    ] {
        let env = [("HOW", how)];
        let Some(outcome) = play_at(concurrency, test, "", &service, &env, SETTLED) else {
            return;
        };
        println!("{how}: {outcome:?}");
    }
}
