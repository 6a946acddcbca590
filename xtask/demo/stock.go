// Demo: the shop's stock, in Go. No tracing code.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	err = http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/999"):
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"error":"no such product"}`)
			return
		case strings.HasPrefix(r.URL.Path, "/report"):
			time.Sleep(400 * time.Millisecond)
		}
		fmt.Fprint(w, `{"in stock":3}`)
	}))
	fmt.Fprintln(os.Stderr, err)
}
