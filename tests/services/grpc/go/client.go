package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type call struct {
	index               int
	method, traceparent string
	code, delay         int
	count, size         int
	messages            int
	gap, timeout        time.Duration
	cancel              time.Duration
}

func (c call) request() []byte {
	text := fmt.Appendf(nil, "%d %d %d %d ", c.code, c.delay, c.count, c.size)
	return append(text, bytes.Repeat([]byte("x"), max(0, c.size-len(text)))...)
}

func read(line string) (c call, err error) {
	var gap, timeout, cancel int
	_, err = fmt.Sscanf(line, "call %d %s %s %d %d %d %d %d %d %d %d", &c.index, &c.method, &c.traceparent,
		&c.code, &c.delay, &c.count, &c.size, &c.messages, &gap, &timeout, &cancel)
	c.gap = time.Duration(gap) * time.Millisecond
	c.timeout = time.Duration(timeout) * time.Millisecond
	c.cancel = time.Duration(cancel) * time.Millisecond
	return c, err
}

// exchange makes the call and gives back how it ended.
func exchange(ctx context.Context, connection *grpc.ClientConn, c call) error {
	path := "/" + service + "/" + c.method
	streams := grpc.StreamDesc{
		ClientStreams: c.method == "ClientStream" || c.method == "Bidi",
		ServerStreams: c.method == "ServerStream" || c.method == "Bidi",
	}
	request := c.request()
	var answer []byte
	if !streams.ClientStreams && !streams.ServerStreams {
		return connection.Invoke(ctx, path, &request, &answer)
	}
	stream, err := connection.NewStream(ctx, &streams, path)
	if err != nil {
		return err
	}
	for i := range c.messages {
		if i > 0 && c.gap > 0 {
			time.Sleep(c.gap)
		}
		// An error of sending is told by receiving.
		if stream.SendMsg(&request) != nil {
			break
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		switch err := stream.RecvMsg(&answer); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case !streams.ServerStreams:
			return nil
		}
	}
}

func perform(connection *grpc.ClientConn, c call) string {
	start := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if c.timeout > 0 {
		var end context.CancelFunc
		ctx, end = context.WithTimeout(ctx, c.timeout)
		defer end()
	}
	if c.traceparent != "-" {
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", c.traceparent)
	}
	if c.cancel > 0 {
		time.AfterFunc(c.cancel, cancel)
	}
	code := status.Code(exchange(ctx, connection, c))
	return fmt.Sprintf("done %d %d %d %d", c.index, code, start.UnixNano(), time.Since(start).Nanoseconds())
}

func run(connection *grpc.ClientConn, calls []call, concurrency int) {
	left, lines := make(chan call, len(calls)), make(chan string, len(calls))
	for _, c := range calls {
		left <- c
	}
	close(left)
	var workers sync.WaitGroup
	for range concurrency {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for c := range left {
				lines <- perform(connection, c)
			}
		}()
	}
	workers.Wait()
	close(lines)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for line := range lines {
		fmt.Fprintln(out, line)
	}
	fmt.Fprintln(out, "ran")
}

func client(address string) {
	secret := insecure.NewCredentials()
	if certificate := os.Getenv("PEERS_CERTIFICATE"); certificate != "" {
		var err error
		if secret, err = credentials.NewClientTLSFromFile(certificate, ""); err != nil {
			log.Fatal(err)
		}
	}
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(secret),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	var calls []call
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var concurrency int
		if _, err := fmt.Sscanf(lines.Text(), "run %d", &concurrency); err == nil {
			run(connection, calls, concurrency)
			calls = nil
		} else if c, err := read(lines.Text()); err == nil {
			calls = append(calls, c)
		} else {
			log.Fatal(err)
		}
	}
}
