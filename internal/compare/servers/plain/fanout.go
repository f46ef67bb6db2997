package main

import (
	"bytes"
	"sync"

	"github.com/sockhub/sockhub/internal/compare/server"
)

// The usual chat server: every connection has a queue, a channel, and a
// goroutine that writes what comes through it.
var (
	mu      sync.Mutex
	members = map[chan []byte]struct{}{}
)

func fanout(c *conn) error {
	queue := make(chan []byte, 256)
	go c.drain(queue)
	mu.Lock()
	members[queue] = struct{}{}
	mu.Unlock()
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		delete(members, queue)
		close(queue)
	}()
	for {
		if err := c.next(); err != nil {
			return err
		}
		msg := bytes.Clone(c.msg) // it stays in the queues
		mu.Lock()
		if len(msg) == server.HeaderLen {
			queue <- msg
		} else {
			for q := range members {
				q <- msg
			}
		}
		mu.Unlock()
	}
}

// drain writes what comes from the queue, and flushes when nothing more waits.
// After an error it goes on taking, so that nobody waits for room.
func (c *conn) drain(queue chan []byte) {
	var err error
	for msg := range queue {
		if err != nil {
			continue
		}
		if _, err = c.w.Write(msg); err == nil && len(queue) == 0 {
			err = c.w.Flush()
		}
	}
}
