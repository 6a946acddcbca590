// An HTTP server that also speaks cleartext HTTP/2: with prior knowledge, and by upgrade.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
)

// handle answers /status/<code>/..., /size/<bytes>/... and anything else with 200.
func handle(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	parts := strings.Split(r.URL.Path, "/")
	if len(parts) > 2 {
		number, err := strconv.Atoi(parts[2])
		switch {
		case err == nil && parts[1] == "status":
			w.WriteHeader(number)
		case err == nil && parts[1] == "size":
			_, _ = w.Write(make([]byte, number))
			return
		}
	}
	fmt.Fprintln(w, r.Proto)
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	handler := http.Handler(http.HandlerFunc(handle))
	if len(os.Args) < 2 || os.Args[1] != "http1" {
		handler = h2c.NewHandler(handler, &http2.Server{})
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	_ = http.Serve(listener, handler)
}
