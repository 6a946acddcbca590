// Go's net/http. Prints its port; ends with its stdin.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

func answer(response http.ResponseWriter, request *http.Request) {
	io.Copy(io.Discard, request.Body)
	query := request.URL.Query()
	number := func(key string) int {
		value, _ := strconv.Atoi(query.Get(key))
		return value
	}
	if delay := number("delay_ms"); delay > 0 {
		time.Sleep(time.Duration(delay) * time.Millisecond)
	}
	status, size := number("status"), number("bytes")
	response.WriteHeader(status)
	// Without a length: small bodies get one from net/http, large ones go in chunks.
	if status != 204 && status != 304 && size > 0 {
		response.Write(bytes.Repeat([]byte("x"), size))
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go http.Serve(listener, http.HandlerFunc(answer))
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	io.Copy(io.Discard, os.Stdin)
}
