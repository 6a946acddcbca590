//! What runtimes do inside of a process that no system call shows.
//!
//! Uprobes, attached to a program when a process runs it:
//! - Node: `node::Environment::RunTimers` and `CheckImmediate` and `node::HandleWrap::OnClose`, in
//!   which callbacks of any request run within a turn of the loop; what libuv does elsewhere (`uv_getaddrinfo(loop, req, ...)`,
//!   `uv_tcp_connect(req, ...)`) and the callbacks that go on with it (`AfterGetAddrInfo(req, ...)`,
//!   `ConnectionWrap::AfterConnect(req, ...)`).
//! - Go (register ABI since 1.17): `runtime.newproc1(fn, callergp, callerpc, parked)` makes a
//!   goroutine, which `runtime.runqput(pp, gp, next)` then makes runnable on the same thread;
//!   `runtime.goexit1()` ends the current one. In its HTTP client, `(*persistConn).roundTrip` is
//!   called by who sends a request, `persistConnWriter.Write` by the goroutine that writes it.
//!   HTTP/2: in what reads frames (`net/http` and `golang.org/x/net/http2`, of which grpc-go uses the latter)
//!   `parseHeadersFrame(cache, header, ...)`, whose header has the stream as its fifth word; in Go's server
//!   `(*serverConn).readFrames`, which a goroutine of its own runs, and `newStream(id, ...)`, behind which the
//!   handler's goroutine is made. grpc-go's `(*controlBuffer).executeAndPut(f, item)` hands what is to be sent
//!   to the goroutine that writes: `(*loopyWriter).headerHandler(item)` (`clientHeaderHandler` since 1.85), then
//!   `writeHeader(stream, ...)`.
//!   Node's HTTP/2: the constructor of `Http2Stream` (`this, session, object, id, ...`), `Http2Session::SendPendingData`, behind which the session
//!   writes, and those that are called for each frame, whose callbacks run to their ends within.
//! - tokio, in `tokio::runtime::task`: `State::transition_to_running(&self)`, `transition_to_idle` and
//!   `transition_to_complete`, whose object is the header of the task that takes a turn, leaves it, ends;
//!   `OwnedTasks::bind_inner(&self, task, ...)`, and for several threads
//!   `Handle::schedule_option_task_without_yield(&self, task)`, which make one. In `tokio::sync::task`:
//!   `AtomicWaker::register_by_ref(&self, ...)`, called by a channel's receiver when nothing is there,
//!   and `AtomicWaker::wake(&self)`, called by a sender. `want::new()`: by it hyper's client connections
//!   say when they wait for a request.
//! - Python's asyncio servers: `Context.run` (`context_run(self, args, nargs, kwnames)`), in which
//!   every callback runs; `PyContext_Enter(context)` and `PyContext_Exit`, which uvloop
//!   uses in its place; the RETs of `PyContext_CopyCurrent()`; `Future.set_result(self, result)`.
//! - Python's executors: `SimpleQueue.put(self, args, nargs, kwnames)`, `get` and `get_nowait`, and the RETs of both.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use crate::cause;
use crate::kernel::Registers;

#[inline(always)]
fn read_user(address: u64) -> Option<u32> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user::<u32>(address as *const _) }.ok()
}

#[inline(always)]
fn registers(ctx: &ProbeContext) -> Registers {
    Registers::at(ctx.as_ptr() as u64)
}

macro_rules! uprobes {
    ($($name:ident: |$registers:ident| $body:expr;)*) => {
        $(
            /// See the module's text.
            #[uprobe]
            pub fn $name(ctx: ProbeContext) -> u32 {
                let $registers = registers(&ctx);
                let run = || -> Option<()> {
                    $body;
                    None
                };
                let _ = run();
                0
            }
        )*
    };
}

uprobes! {
    node_other_work: |_registers| cause::forget();
    node_runs_timers: |registers| cause::runs_timers(registers.c0()?);
    node_makes_handle: |_registers| cause::makes_handle(false);
    node_makes_socket: |_registers| cause::makes_handle(true);
    node_makes_stream: |registers| cause::session_makes(registers.c1()?, registers.c3()? as u32);
    node_session_writes: |registers| cause::session_writes(registers.c0()?);
    // Frames begin with their header: the length, then the stream (`nghttp2_frame_hd`).
    node_reads_frame: |registers| {
        cause::session_reads(read_user(registers.c1()? + 8)?)
    };
    node_reads_data: |registers| cause::session_reads(registers.c2()? as u32);
    uv_begins_first: |registers| cause::hands_over(registers.c0()?, true);
    uv_begins_second: |registers| cause::hands_over(registers.c1()?, false);
    // What is called back is the request's last part, of a type that programs compile in (`uv_work_t`); the function that
    // the others are given to is a part of this one.
    uv_queues: |registers| cause::hands_over(registers.c1()? + 88, false);
    uv_worked: |registers| cause::is_worked_on(registers.c0()?);
    uv_done: |registers| cause::goes_on(registers.c0()?);
    python_runs: |registers| {
        cause::enters_context(
            registers.c0()?,
            registers.c1()?,
            registers.c2()?,
            registers.stack()?,
        )
    };
    python_enters: |registers| cause::enters_context(registers.c0()?, 0, 0, registers.stack()?);
    python_exits: |_registers| cause::leaves_context();
    python_copied: |registers| cause::context_made(registers.c_result()?);
    python_wakes: |registers| cause::wakes(registers.c0()?);
    python_puts: |registers| cause::puts(registers.c1()?);
    python_gets: |_registers| cause::gets();
    python_got: |registers| cause::got(registers.c_result()?);
    tokio_runs: |registers| cause::tokio_runs(registers.c0()?);
    tokio_pauses: |registers| cause::tokio_pauses(registers.c0()?);
    tokio_ends: |registers| cause::tokio_ends(registers.c0()?);
    tokio_makes_first: |registers| cause::tokio_makes_first(registers.c1()?, registers.caller()?);
    tokio_makes: |registers| cause::tokio_makes(registers.c1()?, registers.caller()?);
    tokio_receives: |registers| cause::tokio_receives(registers.c0()?, registers.caller()?);
    tokio_connects: |_registers| cause::tokio_connects();
    tokio_sends: |registers| cause::tokio_sends(registers.c0()?);
    go_makes: |registers| {
        // One that is made without being run (a coroutine) is run by nobody in particular.
        if registers.go3()? as u8 == 1 {
            return None;
        }
        cause::goroutine_made(registers.go1()?, registers.go2()?)
    };
    go_runnable: |registers| cause::goroutine_runnable(registers.go1()?);
    go_ends: |registers| cause::goroutine_ended(registers.goroutine()?);
    go_reads_head: |registers| cause::goroutine_reads(registers.goroutine()?, registers.go5()? as u32);
    go_serves: |registers| cause::goroutine_serves(registers.goroutine()?, registers.go0()?);
    go_begins_handler: |registers| {
        cause::session_serves(registers.goroutine()?, registers.go0()?, registers.go1()? as u32)
    };
    go_hands_over: |registers| cause::goroutine_sends(registers.goroutine()?, registers.go3()?);
    go_takes_over: |registers| {
        cause::goroutine_writes_many(registers.goroutine()?, registers.go1()?)
    };
    go_begins_stream: |registers| {
        cause::goroutine_begins(registers.goroutine()?, registers.go1()? as u32)
    };
    go_sends: |registers| cause::goroutine_sends(registers.goroutine()?, registers.go0()?);
    go_writes: |registers| cause::goroutine_writes(registers.goroutine()?, registers.go0()?);
}
