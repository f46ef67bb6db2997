// Command http is an HTTP/1.1 server on raw connections: how to speak a
// protocol of one's own with a Handler. GET /n answers n bytes. It knows
// keep-alive, pipelining and HEAD, and is no replacement for net/http.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/sockhub/sockhub"
)

const (
	maxHead  = 8 << 10  // bytes of a request's head
	maxBody  = 64 << 20 // bytes of an answer
	maxLater = 1 << 20  // bytes of requests that wait
)

func main() {
	address := flag.String("addr", "127.0.0.1:8080", "host and `port` to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	hub, err := sockhub.New(context.Background(), &sockhub.Options{ReuseBuffers: true, IdleTimeout: time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	l, err := hub.Listen(ctx, "tcp", *address, options())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("try: curl http://%v/10\n", l.Addr())
	<-ctx.Done()
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	hub.Shutdown(grace)
}

// options serve HTTP.
func options() *sockhub.ListenOptions {
	return &sockhub.ListenOptions{
		Mode:    sockhub.Raw,
		Handler: func(*sockhub.Conn) sockhub.Handler { return new(server) },
	}
}

// server is the Handler of one connection.
type server struct {
	sockhub.BaseHandler
	later []byte // requests that had to wait, and what came behind them
	full  bool   // they wait until the answers before are written
}

// Message answers every request that is complete in p. What is left is the
// beginning of the next, and comes again with what follows it.
func (s *server) Message(r *sockhub.Reply, p []byte) {
	if len(s.later) == 0 {
		rest, full := answerAll(r, p)
		if s.full = full; full {
			s.later = bytes.Clone(rest)
		} else {
			r.Unread(rest)
		}
		return
	}
	// The peer asks on while its answers fill the queue.
	if s.later = append(s.later, p...); len(s.later) > maxLater {
		r.Close()
	} else if !s.full {
		s.later, s.full = answerAll(r, s.later)
	}
}

// Drained goes on with the requests that had to wait.
func (s *server) Drained(r *sockhub.Reply) {
	if s.full {
		s.later, s.full = answerAll(r, s.later)
	}
}

// answerAll answers the requests in p, and returns what is left. full: because
// the queue is.
func answerAll(r *sockhub.Reply, p []byte) (rest []byte, full bool) {
	for {
		head, rest, ok := bytes.Cut(p, []byte("\r\n\r\n"))
		if !ok && len(p) > maxHead || len(head) > maxHead {
			answer(r, "431 Request Header Fields Too Large", nil, true, false)
			return nil, false
		}
		if !ok {
			return p, false
		}
		more, err := serve(r, string(head))
		switch {
		case err != nil:
			return p, true
		case !more:
			return nil, false
		}
		p = rest
	}
}

// serve answers one request and reports whether another may follow. The error
// is that of Reply.Send.
func serve(r *sockhub.Reply, head string) (more bool, err error) {
	line, fields, _ := strings.Cut(head, "\r\n")
	method, target, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(target, " ")
	last := version != "HTTP/1.1"
	for field := range strings.SplitSeq(fields, "\r\n") {
		name, value, _ := strings.Cut(field, ":")
		switch value = strings.TrimSpace(value); {
		case strings.EqualFold(name, "Connection") && strings.EqualFold(value, "close"),
			strings.EqualFold(name, "Content-Length") && value != "0",
			strings.EqualFold(name, "Transfer-Encoding"):
			last = true // a body is not read
		}
	}
	switch size, bad := strconv.Atoi(strings.TrimPrefix(target, "/")); {
	case version != "HTTP/1.1" && version != "HTTP/1.0":
		last = true
		err = answer(r, "400 Bad Request", nil, last, false)
	case method != "GET" && method != "HEAD":
		err = answer(r, "405 Method Not Allowed", nil, last, false)
	case bad != nil || size < 0 || size > maxBody:
		err = answer(r, "404 Not Found", nil, last, method == "HEAD")
	default:
		err = answer(r, "200 OK", xs[:size], last, method == "HEAD")
	}
	return !last, err
}

// xs is what every body is a part of.
var xs = bytes.Repeat([]byte("X"), maxBody)

// answer sends one answer, and after the last one finishes the connection.
func answer(r *sockhub.Reply, status string, body []byte, last, headOnly bool) error {
	head := fmt.Appendf(nil, "HTTP/1.1 %s\r\nContent-Length: %d\r\n", status, len(body))
	if last {
		head = append(head, "Connection: close\r\n"...)
	}
	head = append(head, "\r\n"...)
	if headOnly {
		body = nil
	}
	if err := r.SendParts(head, body); err != nil {
		return err
	}
	if last {
		r.Finish()
	}
	return nil
}
