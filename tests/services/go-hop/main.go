// One hop of a chain: go-hop ADDRESS NEXT CERTIFICATE KEY MARK serves HTTPS on ADDRESS and calls the method of
// the same path of the gRPC server at NEXT (HOST:PORT, under TLS) before it answers. Prints its port; ends with
// its stdin.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// raw takes messages for what they are.
type raw struct{}

func (raw) Name() string                    { return "raw" }
func (raw) Marshal(any) ([]byte, error)     { return []byte("x"), nil }
func (raw) Unmarshal(_ []byte, _ any) error { return nil }

func main() {
	address, next, certificate, key := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	listener, err := net.Listen("tcp", address+":0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	connection, err := grpc.NewClient("passthrough:///"+next,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	answer := func(response http.ResponseWriter, request *http.Request) {
		var message []byte
		if err := connection.Invoke(request.Context(), request.URL.Path, &message, &message); err != nil {
			http.Error(response, err.Error(), http.StatusBadGateway)
			return
		}
		io.WriteString(response, "ok")
	}
	go http.ServeTLS(listener, http.HandlerFunc(answer), certificate, key)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	io.Copy(io.Discard, os.Stdin)
}
