// grpc-java on netty: see ../README.md.

import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.InsecureServerCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Server;
import io.grpc.ServerCallHandler;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

final class Peers {
    static final String SERVICE = "tracer.peers.v1.Peers";
    static final ScheduledExecutorService TIMER =
            Executors.newSingleThreadScheduledExecutor(
                    task -> {
                        Thread thread = new Thread(task, "timer");
                        thread.setDaemon(true);
                        return thread;
                    });

    static final class Raw implements MethodDescriptor.Marshaller<byte[]> {
        @Override
        public InputStream stream(byte[] message) {
            return new ByteArrayInputStream(message);
        }

        @Override
        public byte[] parse(InputStream stream) {
            try {
                return stream.readAllBytes();
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        }
    }

    static MethodDescriptor<byte[], byte[]> method(String name) {
        MethodType type =
                switch (name) {
                    case "ClientStream" -> MethodType.CLIENT_STREAMING;
                    case "ServerStream" -> MethodType.SERVER_STREAMING;
                    case "Bidi" -> MethodType.BIDI_STREAMING;
                    default -> MethodType.UNARY;
                };
        return MethodDescriptor.<byte[], byte[]>newBuilder(new Raw(), new Raw())
                .setType(type)
                .setFullMethodName(MethodDescriptor.generateFullMethodName(SERVICE, name))
                .build();
    }

    static byte[] filled(String text, int size, char with) {
        byte[] start = text.getBytes(StandardCharsets.US_ASCII);
        byte[] bytes = Arrays.copyOf(start, Math.max(size, start.length));
        Arrays.fill(bytes, start.length, bytes.length, (byte) with);
        return bytes;
    }

    /** What the first message of a call asks for. */
    record Asked(int code, int delay, int count, byte[] body) {
        static Asked of(byte[] message) {
            String head = new String(message, 0, Math.min(message.length, 64), StandardCharsets.US_ASCII);
            String[] words = head.split(" ", 5);
            return new Asked(
                    Integer.parseInt(words[0]),
                    Integer.parseInt(words[1]),
                    Integer.parseInt(words[2]),
                    filled("", Integer.parseInt(words[3]), 'y'));
        }

        /** Ends the call, unless the client did. */
        void finish(StreamObserver<byte[]> answers, boolean one) {
            Runnable end =
                    () -> {
                        if (((ServerCallStreamObserver<byte[]>) answers).isCancelled()) {
                            return;
                        }
                        if (code != 0) {
                            answers.onError(Status.fromCodeValue(code).withDescription("asked").asException());
                            return;
                        }
                        if (one) {
                            answers.onNext(body);
                        }
                        answers.onCompleted();
                    };
            if (delay > 0) {
                TIMER.schedule(end, delay, TimeUnit.MILLISECONDS);
            } else {
                end.run();
            }
        }
    }

    /** Reads requests; with `echo` each is answered. */
    static StreamObserver<byte[]> requests(StreamObserver<byte[]> answers, boolean echo) {
        ((ServerCallStreamObserver<byte[]>) answers).setOnCancelHandler(() -> {});
        return new StreamObserver<>() {
            private Asked asked;

            @Override
            public void onNext(byte[] message) {
                if (asked == null) {
                    asked = Asked.of(message);
                }
                if (echo) {
                    answers.onNext(asked.body);
                }
            }

            @Override
            public void onError(Throwable error) {}

            @Override
            public void onCompleted() {
                asked.finish(answers, !echo);
            }
        };
    }

    static void one(byte[] request, StreamObserver<byte[]> answers) {
        ((ServerCallStreamObserver<byte[]>) answers).setOnCancelHandler(() -> {});
        Asked.of(request).finish(answers, true);
    }

    static void many(byte[] request, StreamObserver<byte[]> answers) {
        ((ServerCallStreamObserver<byte[]>) answers).setOnCancelHandler(() -> {});
        Asked asked = Asked.of(request);
        for (int i = 0; i < asked.count; i++) {
            answers.onNext(asked.body);
        }
        asked.finish(answers, false);
    }

    static void serve() throws Exception {
        ServerCallHandler<byte[], byte[]> unary = ServerCalls.asyncUnaryCall(Peers::one);
        ServerCallHandler<byte[], byte[]> serverStream = ServerCalls.asyncServerStreamingCall(Peers::many);
        ServerCallHandler<byte[], byte[]> clientStream =
                ServerCalls.asyncClientStreamingCall(answers -> requests(answers, false));
        ServerCallHandler<byte[], byte[]> bidi =
                ServerCalls.asyncBidiStreamingCall(answers -> requests(answers, true));
        ServerServiceDefinition service =
                ServerServiceDefinition.builder(SERVICE)
                        .addMethod(method("Unary"), unary)
                        .addMethod(method("ServerStream"), serverStream)
                        .addMethod(method("ClientStream"), clientStream)
                        .addMethod(method("Bidi"), bidi)
                        .build();
        Server server =
                Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
                        .addService(service)
                        .build()
                        .start();
        System.out.println(server.getPort());
        System.in.readAllBytes();
        System.exit(0);
    }

    record Call(
            String index,
            String method,
            String traceparent,
            byte[] request,
            int messages,
            int gap,
            int timeout,
            int cancel) {
        static Call of(String[] words) {
            String head = String.join(" ", words[4], words[5], words[6], words[7]) + " ";
            return new Call(
                    words[1],
                    words[2],
                    words[3],
                    filled(head, Integer.parseInt(words[7]), 'x'),
                    Integer.parseInt(words[8]),
                    Integer.parseInt(words[9]),
                    Integer.parseInt(words[10]),
                    Integer.parseInt(words[11]));
        }

        void send(ClientCall<byte[], byte[]> call, int left) {
            for (; left > 0; left--) {
                call.sendMessage(request);
                if (left > 1 && gap > 0) {
                    int rest = left - 1;
                    TIMER.schedule(() -> send(call, rest), gap, TimeUnit.MILLISECONDS);
                    return;
                }
            }
            call.halfClose();
        }

        String make(ManagedChannel channel) {
            java.time.Instant now = java.time.Instant.now();
            long wall = now.getEpochSecond() * 1_000_000_000L + now.getNano();
            long start = System.nanoTime();
            CallOptions options = CallOptions.DEFAULT;
            if (timeout > 0) {
                options = options.withDeadlineAfter(timeout, TimeUnit.MILLISECONDS);
            }
            Metadata headers = new Metadata();
            if (!traceparent.equals("-")) {
                headers.put(Metadata.Key.of("traceparent", Metadata.ASCII_STRING_MARSHALLER), traceparent);
            }
            CompletableFuture<Status> ended = new CompletableFuture<>();
            MethodDescriptor<byte[], byte[]> descriptor = Peers.method(method);
            ClientCall<byte[], byte[]> call = channel.newCall(descriptor, options);
            call.start(
                    new ClientCall.Listener<>() {
                        @Override
                        public void onMessage(byte[] message) {
                            call.request(1);
                        }

                        @Override
                        public void onClose(Status status, Metadata trailers) {
                            ended.complete(status);
                        }
                    },
                    headers);
            call.request(2);
            boolean one = descriptor.getType().clientSendsOneMessage();
            send(call, one ? 1 : messages);
            if (cancel > 0) {
                TIMER.schedule(() -> call.cancel("enough", null), cancel, TimeUnit.MILLISECONDS);
            }
            int code = ended.join().getCode().value();
            return "done " + index + " " + code + " " + wall + " " + (System.nanoTime() - start);
        }
    }

    static void run(ManagedChannel channel, List<Call> calls, int concurrency) throws Exception {
        Queue<Call> left = new ConcurrentLinkedQueue<>(calls);
        Queue<String> lines = new ConcurrentLinkedQueue<>();
        List<Thread> workers = new ArrayList<>();
        for (int i = 0; i < concurrency; i++) {
            Thread worker =
                    new Thread(
                            () -> {
                                for (Call call = left.poll(); call != null; call = left.poll()) {
                                    lines.add(call.make(channel));
                                }
                            });
            worker.start();
            workers.add(worker);
        }
        for (Thread worker : workers) {
            worker.join();
        }
        System.out.println(String.join("\n", lines) + "\nran");
    }

    static void client(String address) throws Exception {
        ManagedChannel channel =
                Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
        List<Call> calls = new ArrayList<>();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            if (words[0].equals("call")) {
                calls.add(Call.of(words));
            } else if (words[0].equals("run")) {
                run(channel, calls, Integer.parseInt(words[1]));
                calls.clear();
            }
        }
        channel.shutdownNow();
    }

    public static void main(String[] args) throws Exception {
        if (args[0].equals("server")) {
            serve();
        } else {
            client(args[1]);
        }
    }
}
