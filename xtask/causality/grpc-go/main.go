// A gRPC (MODE=grpc) or HTTP/2 (MODE=h2) service that calls itself: a request over HTTP/1 makes calls over
// HTTP/2, and each of these one over HTTP/1 to the backend and one over HTTP/2. All calls share one connection.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

var next = os.Getenv("NEXT")
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}}

// over makes a call over HTTP/2.
var over func(ctx context.Context, path string)

func call(path string) {
	response, err := client.Get("http://" + next + path)
	if err != nil {
		return
	}
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
}

// serve is what a call over HTTP/2 does; its name is the last part of its path.
func serve(ctx context.Context, path string) {
	name := path[strings.LastIndex(path, "/")+1:]
	if strings.HasSuffix(name, ".l") {
		return
	}
	call("/b/" + name + "/0")
	over(ctx, "/b/"+name+"/"+name+".l")
}

type raw struct{}

func (raw) Name() string                    { return "raw" }
func (raw) Marshal(any) ([]byte, error)     { return []byte("x"), nil }
func (raw) Unmarshal(_ []byte, _ any) error { return nil }

func withGrpc(listener net.Listener) {
	handler := func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		var message []byte
		if err := stream.RecvMsg(&message); err != nil {
			return err
		}
		serve(stream.Context(), method)
		return stream.SendMsg(&message)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(handler))
	go server.Serve(listener)
	connection, err := grpc.NewClient("passthrough:///"+listener.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		panic(err)
	}
	over = func(ctx context.Context, path string) {
		var message []byte
		if err := connection.Invoke(ctx, path, &message, &message); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

func withHttp2(listener net.Listener) {
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	server := http.Server{Protocols: &only, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve(r.Context(), r.URL.Path)
		io.WriteString(w, "ok")
	})}
	go server.Serve(listener)
	client := http.Client{Transport: &http.Transport{Protocols: &only}}
	over = func(ctx context.Context, path string) {
		response, err := client.Get("http://" + listener.Addr().String() + path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	if os.Getenv("MODE") == "grpc" {
		withGrpc(listener)
	} else {
		withHttp2(listener)
	}
	go func() {
		for n := 0; ; n++ {
			name := fmt.Sprintf("background-%d-%d", os.Getpid(), n)
			call("/b/" + name + "/0")
			over(context.Background(), "/b/"+name+"/"+name+".l")
			time.Sleep(10 * time.Millisecond)
		}
	}()
	http.HandleFunc("/r/", func(w http.ResponseWriter, r *http.Request) {
		name := strings.Split(r.URL.Path, "/")[2]
		row, _ := strconv.Atoi(r.URL.Query().Get("row"))
		fan, _ := strconv.Atoi(r.URL.Query().Get("fan"))
		for n := 0; n < row; n++ {
			over(r.Context(), fmt.Sprintf("/b/%s/%s.%d", name, name, n))
		}
		var group sync.WaitGroup
		for n := row; n < row+fan; n++ {
			group.Go(func() { over(r.Context(), fmt.Sprintf("/b/%s/%s.%d", name, name, n)) })
		}
		group.Wait()
		io.WriteString(w, "ok")
	})
	http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil)
}
