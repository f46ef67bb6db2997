package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sockhub/sockhub"
)

func init() { roles["sources"] = manySources }

// sources is row 13. A second process sends one datagram from each of a million
// addresses, as one that forges its sources would. The hub hears all, and answers
// nobody but the one that the user answers at the end.
func sources(p *proof) {
	n := p.n(1_000_000)
	hub, err := sockhub.New(context.Background(), &sockhub.Options{MaxConns: 200_000})
	p.must(err)
	defer hub.Close()
	l, err := hub.Listen(context.Background(), "udp4", "127.0.0.1:0", nil)
	p.must(err)
	var went, msgs atomic.Int64
	last := make(chan *sockhub.Conn, 1)
	go func() {
		for b := range hub.Events() {
			went.Add(int64(len(b.Disconnected)))
			for c, m := range b.Messages() {
				if msgs.Add(1); string(m) == "answer me" {
					last <- c
				}
			}
		}
	}()
	settle()
	before, sent := p.rss(), datagramsSent()
	c := p.start(nil, "sources", l.Addr(), n)
	stop := make(chan struct{})
	watched := make(chan int64)
	most := 0 // of the goroutine's until it has ended
	go func() {
		var peak int64
		for {
			select {
			case <-stop:
				watched <- peak
				return
			case <-time.After(100 * time.Millisecond):
				n := hub.Stats().Conns
				// Those that were evicted are counted until their end is told.
				most = max(most, n)
				p.check(n <= sockhub.DefaultMaxSessions*101/100, "%d sessions", n)
				peak = max(peak, p.rss())
			}
		}
	}()
	took := c.line("SENT ", 10*time.Minute)
	// By then each has sent one, and the system counts nothing else.
	theirs, err := strconv.ParseInt(strings.TrimSpace(took), 10, 64)
	p.must(err)
	out := datagramsSent() - sent - theirs
	sessions := hub.Stats().Conns
	p.measured("%d datagrams from as many addresses, %d heard; %d sessions at the end, the cap is %d; %d evicted",
		theirs, msgs.Load(), sessions, sockhub.DefaultMaxSessions, went.Load())
	if sent > 0 {
		p.measured("%d datagrams sent by the hub meanwhile", out)
		p.check(out <= 0, "the hub has sent before the user did")
	}
	fmt.Fprintln(c.stdin)
	select {
	case conn := <-last:
		p.check(conn.TrySend([]byte("here")) == nil, "the answer is refused")
		c.line("ANSWERED", 10*time.Second)
	case <-time.After(10 * time.Second):
		p.fail("one that asks is not heard")
	}
	close(stop)
	peak := <-watched
	p.measured("%d sessions at most, with those that were just being evicted", most)
	p.measured("%s of RSS at most beyond the %s before, %.0f B for each session", mib(peak-before), mib(before), float64(peak-before)/float64(max(1, sessions)))
	p.check(msgs.Load() >= theirs/2, "less than half was heard")
	p.must(c.end())
}

// manySources is the other process: it sends from 127.0.1.0 on.
func manySources(args []string, quit <-chan struct{}) error {
	to, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	begun := time.Now()
	for i := range n {
		k := i + 256
		if err := sendFrom([4]byte{127, byte(k >> 16), byte(k >> 8), byte(k)}, to, []byte("one of many")); err != nil {
			return err
		}
		if i%32 == 31 {
			time.Sleep(time.Millisecond) // so that most find room in the socket's buffer
		}
		if i%100_000 == 99_999 {
			fmt.Println(i+1, "sent,", time.Since(begun).Round(time.Second))
		}
	}
	fmt.Println("SENT", n)
	<-goes
	if err := askFrom(to, "answer me", "here"); err != nil {
		return err
	}
	fmt.Println("ANSWERED")
	<-quit
	return nil
}

// datagramsSent is how many UDP datagrams this system has sent, 0 if it does not
// tell.
func datagramsSent() int64 {
	b, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return 0
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == "Udp:" {
			if names == nil {
				names = fields
				continue
			}
			for i, name := range names {
				if name == "OutDatagrams" {
					v, _ := strconv.ParseInt(fields[i], 10, 64)
					return v
				}
			}
		}
	}
	return 0
}

// askFrom sends a datagram and waits for the answer.
func askFrom(to netip.AddrPort, ask, want string) error {
	nc, err := net.Dial("udp4", to.String())
	if err != nil {
		return err
	}
	defer nc.Close()
	buf := make([]byte, 100)
	for range 10 { // one may be lost
		if _, err := nc.Write([]byte(ask)); err != nil {
			return err
		}
		nc.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := nc.Read(buf); err == nil {
			if string(buf[:n]) != want {
				return fmt.Errorf("the answer is %q", buf[:n])
			}
			return nil
		}
	}
	return errors.New("no answer")
}
