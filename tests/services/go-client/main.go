// A client on Go's net/http: ADDRESS RUN REQUESTS. Prints the driver's report; ends with its stdin.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strconv"
	"strings"
	"sync"
)

type record struct {
	Method        string  `json:"method"`
	Path          string  `json:"path"`
	Query         string  `json:"query"`
	Status        int     `json:"status"`
	Duration      int64   `json:"duration_ns"`
	Started       int64   `json:"started_ns"`
	LocalPort     int     `json:"local_port"`
	Reused        bool    `json:"reused"`
	Preopened     bool    `json:"preopened"`
	Preempted     bool    `json:"preempted"`
	ResponseBytes int     `json:"response_bytes"`
	Error         *string `json:"error"`
}

func send(client *http.Client, address, run string, number int) record {
	method := []string{"GET", "POST", "PUT", "DELETE"}[number%4]
	status := []int{200, 201, 404, 500, 200}[number%5]
	size := []int{0, 17, 4000, 150000}[number/4%4]
	// Not a measurement: the scheduler of goroutines lies between it and the system calls.
	sent := record{Method: method, Path: fmt.Sprintf("/r/%s-%d", run, number), Preempted: true}
	sent.Query = fmt.Sprintf("status=%d&bytes=%d&delay_ms=0", status, size)
	var body io.Reader
	switch method {
	case "POST":
		body = strings.NewReader(strings.Repeat("b", 3000))
	case "PUT":
		// Of unknown length, so it goes in chunks.
		body = io.MultiReader(strings.NewReader(strings.Repeat("b", 9000)))
	}
	fail := func(err error) record {
		text := err.Error()
		sent.Error = &text
		return sent
	}
	request, err := http.NewRequest(method, "http://"+address+sent.Path+"?"+sent.Query, body)
	if err != nil {
		return fail(err)
	}
	request.Header.Set("User-Agent", "tracer-driver/1")
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		sent.LocalPort = info.Conn.LocalAddr().(*net.TCPAddr).Port
		sent.Reused = info.Reused
	}}
	response, err := client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
	if err != nil {
		return fail(err)
	}
	defer response.Body.Close()
	read, err := io.Copy(io.Discard, response.Body)
	if err != nil {
		return fail(err)
	}
	sent.Status, sent.ResponseBytes = response.StatusCode, int(read)
	return sent
}

func main() {
	address, run := os.Args[1], os.Args[2]
	requests, _ := strconv.Atoi(os.Args[3])
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	records := make([]record, requests)
	var group sync.WaitGroup
	for lane := 0; lane < 8; lane++ {
		group.Add(1)
		go func(lane int) {
			defer group.Done()
			for number := lane; number < requests; number += 8 {
				records[number] = send(client, address, run, number)
			}
		}(lane)
	}
	group.Wait()
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"pid": os.Getpid(), "address": address, "run": run, "records": records,
	})
	io.Copy(io.Discard, os.Stdin)
}
