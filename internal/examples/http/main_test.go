package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

func start(t *testing.T) (address string) {
	t.Helper()
	hub, err := sockhub.New(context.Background(), &sockhub.Options{ReuseBuffers: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", options())
	if err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

func TestGoClientKeepsItsConnection(t *testing.T) {
	address := start(t)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	for _, size := range []int{0, 1, 100, 100_000, 11_680_000} {
		resp, err := client.Get(fmt.Sprintf("http://%s/%d", address, size))
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || n != int64(size) || err != nil {
			t.Errorf("%d bytes: %s, %d, %v", size, resp.Status, n, err)
		}
	}
	for target, want := range map[string]int{"/none": 404, "/-1": 404, "/99999999999": 404} {
		resp, err := client.Get("http://" + address + target)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s", target, resp.Status)
		}
	}
	resp, err := client.Head("http://" + address + "/1000")
	if err != nil || resp.ContentLength != 1000 {
		t.Errorf("HEAD: %v, %v", resp, err)
	}
	if resp, err := client.Post("http://"+address+"/1", "text/plain", strings.NewReader("x")); err != nil || resp.StatusCode != 405 {
		t.Errorf("POST: %v, %v", resp, err)
	}
}

// Pipelined requests are answered in order, however their bytes are cut.
func TestPipelinedRequests(t *testing.T) {
	address := start(t)
	var in bytes.Buffer
	sizes := []int{5, 0, 70_000, 1, 300_000, 2}
	for i, size := range sizes {
		fmt.Fprintf(&in, "GET /%d HTTP/1.1\r\nHost: x\r\nX-Number: %d\r\n\r\n", size, i)
	}
	in.WriteString("GET /3 HTTP/1.1\r\nConnection: close\r\n\r\nGET /4 HTTP/1.1\r\n\r\n")
	for _, step := range []int{1, 7, 64, in.Len()} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for p := in.Bytes(); len(p) > 0; {
				n := min(step, len(p))
				if _, err := c.Write(p[:n]); err != nil {
					return // after the answer to the one with close
				}
				p = p[n:]
			}
		}()
		r := bufio.NewReader(c)
		for _, size := range append(sizes[:len(sizes):len(sizes)], 3) {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("steps of %d: %v", step, err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			if n != int64(size) || err != nil {
				t.Errorf("steps of %d: %d bytes, want %d; %v", step, n, size, err)
			}
		}
		if b, err := r.ReadByte(); err == nil {
			t.Errorf("steps of %d: %q behind the last answer", step, b)
		}
		c.Close()
	}
}

// Answers that fill the queue many times over are all given, in time.
func TestMoreAnswersThanTheQueueHolds(t *testing.T) {
	c, err := net.Dial("tcp", start(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n, size = 20, 3 << 20
	if _, err := io.WriteString(c, strings.Repeat(fmt.Sprintf("GET /%d HTTP/1.1\r\n\r\n", size), n)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for i := range n {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(i, err)
		}
		if got, err := io.Copy(io.Discard, resp.Body); got != size || err != nil {
			t.Fatal(i, got, err)
		}
	}
}

func TestHeadThatNeverEnds(t *testing.T) {
	c, err := net.Dial("tcp", start(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go io.Copy(c, strings.NewReader("GET / HTTP/1.1\r\nX: "+strings.Repeat("x", 100_000)))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 431 {
		t.Error(resp, err)
	}
}
