//! Which incoming exchange an outgoing request is sent for.
//!
//! In: requests, other bytes and ends as the data calls see them, and what threads wait for. Out: the
//! cause that goes into the data event of an outgoing request. An exchange that came in is named by
//! its connection and the position of its request's first byte ([`Cause`]); it is open until its
//! response was written or its connection ended.
//!
//! Nothing here may guess: what a thread does next belongs to the request it read only where the way
//! its program runs makes that certain (`abi::kind_of_process`). In doubt there is no cause.
//! It cannot see queues inside of a program: of work that one thread hands to another it sees who is woken
//! (`woken.rs`).

mod actor;
mod begun;
mod crowd;
mod exchange;
mod executor;
mod goroutine;
mod incoming;
mod made;
mod message;
mod noted;
mod outgoing;
mod pool;
mod server;
mod session;
mod stream;
mod task;
mod thread;
mod tokio;
mod turn;
mod waker;
mod woken;

pub use actor::{Actor, process_ended, process_made};
pub use begun::{Due, Streams, ahead as stream_ahead, streams_ahead, written as stream_written};
pub use crowd::{Crowd, Flight};
pub use exchange::{Cause, answered, closed};
pub use executor::{gets, got, puts};
pub use goroutine::{
    goroutine_begins, goroutine_ended, goroutine_made, goroutine_reads, goroutine_runnable,
    goroutine_sends, goroutine_serves, goroutine_writes, goroutine_writes_many, session_serves,
};
pub use incoming::{perhaps_request, request, request_goes_on};
pub use made::{Ids, Made, makes_handle, runs_timers, writes_now};
pub use message::{leaves_message, takes_message};
pub use noted::{NOTED, Noted, wanted};
pub use outgoing::{Opener, opening, take_opener};
pub use pool::answer_read;
pub use session::{session_makes, session_reads, session_writes};
pub use stream::{
    Begun, Stream, gives_up, goes_on as frame_goes_on, misses as frames_missed, seen as frames_seen,
};
pub use task::{Task, Wake, accepted, context_made, enters_context, leaves_context, wakes};
pub use thread::{thread_ended, thread_made};
pub use tokio::{
    Channel, tokio_connects, tokio_ends, tokio_makes, tokio_makes_first, tokio_pauses,
    tokio_receives, tokio_runs, tokio_sends,
};
pub use turn::{
    forget, goes_on, hands_over, is_worked_on, other_protocol, read_elsewhere, read_unknown,
    touched, waited,
};
pub use waker::{Waker, waits_at, wakes_at, woke_nobody};
pub use woken::{Wait, Worker, goes_on_later, waited_at, waits_are_followed};
