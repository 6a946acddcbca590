//! Harness of the end-to-end tests: starts the real agent, real services in several languages, a
//! traced client and a real OTLP receiver, and compares the spans with what the client measured.
//!
//! A test takes a [`session::Session`] (root, an agent binary and the host-wide lock; else it says
//! `skipped: why`), starts [`services`], lets the [`driver`] send requests, and hands spans and
//! ground truth to [`check`]. The harness needs no agent for its own tests.
//!
//! It cannot see anything of the agent but its contract: flags, environment, admin endpoint, OTLP
//! and exit status.

pub mod agent;
pub mod check;
pub mod collector;
pub mod container;
pub mod driver;
pub mod finish;
pub mod frames;
pub mod functions;
pub mod grpc;
pub mod hosts;
pub mod http;
pub mod jaeger;
pub mod kubernetes;
pub mod ledger;
pub mod metrics_receiver;
pub mod oddities;
pub mod process;
pub mod receiver;
pub mod rights;
pub mod scene;
pub mod scrape;
pub mod services;
pub mod session;
pub mod span;
pub mod sys;
pub mod tls;
pub mod uring;
pub mod wire;
