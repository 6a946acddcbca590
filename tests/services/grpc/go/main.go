// grpc-go: see ../README.md.
package main

import (
	"fmt"
	"io"
	"os"
)

const service = "tracer.peers.v1.Peers"

// raw passes messages on as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(message any) ([]byte, error) {
	bytes, ok := message.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("a %T is no message", message)
	}
	return *bytes, nil
}

func (raw) Unmarshal(data []byte, message any) error {
	bytes, ok := message.(*[]byte)
	if !ok {
		return fmt.Errorf("a %T is no message", message)
	}
	*bytes = append([]byte(nil), data...)
	return nil
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "server" {
		go func() {
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
		serve()
	} else if len(os.Args) == 3 {
		client(os.Args[2])
	}
}
