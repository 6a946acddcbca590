package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// asked is what the first message of a call asks for.
type asked struct {
	code  codes.Code
	delay time.Duration
	count int
	body  []byte
}

func parse(message []byte) (asked, error) {
	var code uint32
	var delay, count, size int
	_, err := fmt.Sscanf(string(message[:min(len(message), 64)]), "%d %d %d %d", &code, &delay, &count, &size)
	return asked{codes.Code(code), time.Duration(delay) * time.Millisecond, count, bytes.Repeat([]byte("y"), size)}, err
}

func (a asked) finish(ctx context.Context) error {
	if a.delay > 0 {
		select {
		case <-time.After(a.delay):
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	if a.code != codes.OK {
		return status.Error(a.code, "asked")
	}
	return nil
}

func unary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var message []byte
	if err := decode(&message); err != nil {
		return nil, err
	}
	ask, err := parse(message)
	if err != nil {
		return nil, err
	}
	return &ask.body, ask.finish(ctx)
}

// each reads all requests, calls got for each, and gives back what the first asked for.
func each(stream grpc.ServerStream, got func(asked) error) (asked, error) {
	var ask asked
	for first := true; ; first = false {
		var message []byte
		err := stream.RecvMsg(&message)
		if errors.Is(err, io.EOF) {
			return ask, nil
		}
		if err == nil && first {
			ask, err = parse(message)
		}
		if err == nil {
			err = got(ask)
		}
		if err != nil {
			return ask, err
		}
	}
}

func clientStream(_ any, stream grpc.ServerStream) error {
	ask, err := each(stream, func(asked) error { return nil })
	if err == nil {
		err = ask.finish(stream.Context())
	}
	if err != nil {
		return err
	}
	return stream.SendMsg(&ask.body)
}

func serverStream(_ any, stream grpc.ServerStream) error {
	ask, err := each(stream, func(asked) error { return nil })
	for i := 0; i < ask.count && err == nil; i++ {
		err = stream.SendMsg(&ask.body)
	}
	if err != nil {
		return err
	}
	return ask.finish(stream.Context())
}

func bidi(_ any, stream grpc.ServerStream) error {
	ask, err := each(stream, func(ask asked) error { return stream.SendMsg(&ask.body) })
	if err != nil {
		return err
	}
	return ask.finish(stream.Context())
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	options := []grpc.ServerOption{grpc.ForceServerCodec(raw{})}
	if key := os.Getenv("PEERS_KEY"); key != "" {
		secret, err := credentials.NewServerTLSFromFile(os.Getenv("PEERS_CERTIFICATE"), key)
		if err != nil {
			log.Fatal(err)
		}
		options = append(options, grpc.Creds(secret))
	}
	server := grpc.NewServer(options...)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Unary", Handler: unary}},
		Streams: []grpc.StreamDesc{
			{StreamName: "ClientStream", Handler: clientStream, ClientStreams: true},
			{StreamName: "ServerStream", Handler: serverStream, ServerStreams: true},
			{StreamName: "Bidi", Handler: bidi, ClientStreams: true, ServerStreams: true},
		},
	}, nil)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	log.Fatal(server.Serve(listener))
}
