// One hop of a chain: go-hop ADDRESS NEXT CERTIFICATE KEY MARK serves HTTPS on ADDRESS and asks NEXT for the
// same path before it answers. Prints its port; ends with its stdin.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

func main() {
	address, next, certificate, key := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	listener, err := net.Listen("tcp", address+":0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	answer := func(response http.ResponseWriter, request *http.Request) {
		answer, err := http.Get(next + request.URL.Path)
		if err != nil {
			http.Error(response, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		response.WriteHeader(answer.StatusCode)
		io.Copy(response, answer.Body)
	}
	go http.ServeTLS(listener, http.HandlerFunc(answer), certificate, key)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	io.Copy(io.Discard, os.Stdin)
}
