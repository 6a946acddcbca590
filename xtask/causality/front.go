// net/http with its default transport; calls at the same time are goroutines.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

var next = os.Getenv("NEXT")
var client = &http.Client{Transport: &http.Transport{
	DisableKeepAlives:   os.Getenv("FRESH") == "1",
	MaxIdleConnsPerHost: 200,
}}

func call(path string) {
	response, err := client.Get("http://" + next + path)
	if err != nil {
		return
	}
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
}

func main() {
	go func() {
		for n := 0; ; n++ {
			call(fmt.Sprintf("/b/background-%d-%d/0", os.Getpid(), n))
			time.Sleep(10 * time.Millisecond)
		}
	}()
	http.HandleFunc("/r/", func(w http.ResponseWriter, r *http.Request) {
		name := strings.Split(r.URL.Path, "/")[2]
		row, _ := strconv.Atoi(r.URL.Query().Get("row"))
		fan, _ := strconv.Atoi(r.URL.Query().Get("fan"))
		for n := 0; n < row; n++ {
			call(fmt.Sprintf("/b/%s/%d", name, n))
		}
		var group sync.WaitGroup
		for n := row; n < row+fan; n++ {
			group.Add(1)
			go func() {
				defer group.Done()
				call(fmt.Sprintf("/b/%s/%d", name, n))
			}()
		}
		group.Wait()
		io.WriteString(w, "ok")
	})
	http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil)
}
