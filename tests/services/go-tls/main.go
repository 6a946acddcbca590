// HTTPS server and client of Go's standard library, and a program whose stacks grow.
//
//	go-tls server CERTIFICATE KEY
//	go-tls client PORT TAG REQUESTS CONNECTIONS (waits for a line on stdin)
//	go-tls grow CERTIFICATE KEY CALLS
package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	check(err)
	return n
}

func server(certificate, key string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	handler := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		size := 100
		if strings.Contains(r.URL.Path, "/big/") {
			size = 50000
		}
		if strings.Contains(r.URL.Path, "/missing/") {
			w.WriteHeader(404)
		}
		_, _ = w.Write(make([]byte, size))
	}
	check(http.ServeTLS(listener, http.HandlerFunc(handler), certificate, key))
}

func wait() {
	fmt.Println("ready")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
}

func client(port, tag string, count, connections int) {
	wait()
	kinds := []string{"small", "missing", "big"}
	var group sync.WaitGroup
	for first := 0; first < connections; first++ {
		group.Add(1)
		go func(first int) {
			defer group.Done()
			config := &tls.Config{InsecureSkipVerify: true}
			http2 := first%2 == 0
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: http2}}
			for i := first; i < count; i += connections {
				method, body := "GET", io.Reader(nil)
				if i%4 == 0 {
					method, body = "POST", strings.NewReader(strings.Repeat("y", 3000))
				}
				url := fmt.Sprintf("https://localhost:%s/%s/%s/%d", port, tag, kinds[i%3], i)
				request, err := http.NewRequest(method, url, body)
				check(err)
				response, err := client.Do(request)
				check(err)
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
			}
		}(first)
	}
	group.Wait()
	fmt.Println(count)
}

// deep uses some stack, so that it is moved while calls further up are under way.
func deep(depth int, then func()) byte {
	var room [512]byte
	if depth == 0 {
		then()
		return 0
	}
	room[depth%512] = deep(depth-1, then)
	return room[(depth+1)%512]
}

// moving is a connection below TLS that makes the stack grow within the calls that are probed.
type moving struct {
	net.Conn
	calls int
}

func (m *moving) Read(b []byte) (n int, err error) {
	m.calls++
	deep(m.calls%60, func() { n, err = m.Conn.Read(b) })
	return
}

func (m *moving) Write(b []byte) (n int, err error) {
	deep(m.calls%60, func() { n, err = m.Conn.Write(b) })
	return
}

func grow(certificate, key string, calls int) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	check(err)
	near, far := net.Pipe()
	go func() {
		other := tls.Server(&moving{Conn: far}, &tls.Config{Certificates: []tls.Certificate{pair}})
		_, _ = io.Copy(other, other)
	}()
	own := tls.Client(&moving{Conn: near}, &tls.Config{InsecureSkipVerify: true})
	check(own.Handshake())
	wait()
	for i := 0; i < calls; i++ {
		// A new goroutine begins with a small stack.
		done := make(chan error)
		go func() {
			text := strings.Repeat("z", 1+i%200)
			_, err := own.Write([]byte(text))
			back := make([]byte, len(text))
			if err == nil {
				_, err = io.ReadFull(own, back)
			}
			if err == nil && string(back) != text {
				err = fmt.Errorf("call %d came back wrong", i)
			}
			done <- err
		}()
		check(<-done)
	}
	fmt.Println(calls)
}

func main() {
	switch arguments := os.Args[2:]; os.Args[1] {
	case "server":
		server(arguments[0], arguments[1])
	case "client":
		client(arguments[0], arguments[1], number(arguments[2]), number(arguments[3]))
	case "grow":
		grow(arguments[0], arguments[1], number(arguments[2]))
	}
}
