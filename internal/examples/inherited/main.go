// Inherited echoes messages on sockets that its parent has opened, as systemd
// does for a service with a socket unit: the service can start at the first
// connection, needs no right to a low port, and loses no connection when it is
// restarted, since the socket stays open meanwhile.
//
//	systemd-socket-activate -l 4040 inherited
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/sockhub/sockhub"
)

// firstInherited is the first descriptor after the standard ones, with which
// sd_listen_fds(3) begins.
const firstInherited = 3

// inherited returns the listeners that this process was started with.
func inherited() ([]net.Listener, error) {
	// The variables may be meant for a parent of ours, and left by it.
	if pid := os.Getenv("LISTEN_PID"); pid != strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("no sockets for this process: LISTEN_PID is %q", pid)
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS: %w", err)
	}
	var all []net.Listener
	for fd := firstInherited; fd < firstInherited+n; fd++ {
		f := os.NewFile(uintptr(fd), "LISTEN_FD_"+strconv.Itoa(fd))
		l, err := net.FileListener(f)
		f.Close() // the listener has a descriptor of its own
		if err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", fd, err)
		}
		all = append(all, l)
	}
	return all, nil
}

func main() {
	hub, err := sockhub.New(context.Background(), nil)
	if err != nil {
		log.Fatal(err)
	}
	listeners, err := inherited()
	if err != nil {
		log.Fatal(err)
	}
	for _, l := range listeners {
		if _, err := hub.Serve(l, nil); err != nil {
			log.Fatal(err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() {
		patience, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		hub.Shutdown(patience) // who is still connected then is in the reports
	})
	for b := range hub.Events() {
		for c, msg := range b.Messages() {
			if err := c.TrySend(msg); err != nil {
				c.Close() // 4 MiB of answers to it are under way
			}
		}
	}
}
