// Go net/http with cleartext HTTP/2: /small/ and /big/ answer 200, anything else 404. Prints its
// port and ends with its stdin.
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	big := bytes.Repeat([]byte("x"), 3_000_000)
	routes := http.NewServeMux()
	routes.HandleFunc("/small/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	routes.HandleFunc("/big/", func(w http.ResponseWriter, _ *http.Request) { w.Write(big) })
	server := http.Server{Handler: routes, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	log.Fatal(server.Serve(listener))
}
