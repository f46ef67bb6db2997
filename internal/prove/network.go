package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockhub/sockhub"
)

// Row 15: two network namespaces with a pair of virtual devices between them, on
// which packets are lost, delayed by a narrow line, or lost altogether.

func init() {
	roles["nethub"] = networkHub
	roles["netpeer"] = networkPeer
}

const (
	nearAddr = "10.213.77.1"
	farAddr  = "10.213.77.2"
	netPort  = "7777"
)

// network is the two namespaces. Each has the number of this process in its
// name, so that several of these do not meet.
type network struct {
	p         *proof
	near, far string
}

func (p *proof) network() *network {
	if os.Getuid() != 0 {
		p.skip("only root may make network namespaces")
	}
	for _, tool := range []string{"ip", "nft", "tc"} {
		if _, err := exec.LookPath(tool); err != nil {
			p.skip("%s is not installed", tool)
		}
	}
	n := &network{p, fmt.Sprintf("prove-%d-near", os.Getpid()), fmt.Sprintf("prove-%d-far", os.Getpid())}
	if out, err := exec.Command("ip", "netns", "add", n.near).CombinedOutput(); err != nil {
		p.skip("ip netns: %s", out)
	}
	n.run("ip", "netns", "add", n.far)
	n.run("ip", "-n", n.near, "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", n.far)
	for _, end := range [][3]string{{n.near, "near", nearAddr}, {n.far, "far", farAddr}} {
		n.run("ip", "-n", end[0], "addr", "add", end[2]+"/24", "dev", end[1])
		n.run("ip", "-n", end[0], "link", "set", end[1], "up")
		n.nft(end[0], "add", "table", "inet", "prove")
		n.nft(end[0], "add", "chain", "inet", "prove", "in", "{ type filter hook input priority 0; }")
	}
	return n
}

func (n *network) remove() {
	for _, ns := range []string{n.near, n.far} {
		exec.Command("ip", "netns", "del", ns).Run() // the devices go with it
	}
}

func (n *network) run(args ...string) {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		n.p.fail("%s: %s", strings.Join(args, " "), out)
		panic(stop{})
	}
}

func (n *network) nft(ns string, args ...string) {
	n.run(append([]string{"ip", "netns", "exec", ns, "nft"}, args...)...)
}

// lose makes so many of a hundred packets get lost, in both directions.
func (n *network) lose(percent int) {
	for _, ns := range []string{n.near, n.far} {
		n.nft(ns, "flush", "chain", "inet", "prove", "in")
		switch {
		case percent >= 100:
			n.nft(ns, "add", "rule", "inet", "prove", "in", "drop")
		case percent > 0:
			n.nft(ns, "add", "rule", "inet", "prove", "in", "numgen", "random", "mod", "100", "<", strconv.Itoa(percent), "drop")
		}
	}
}

func (n *network) hub(args ...any) *peer {
	return n.p.start([]string{"ip", "netns", "exec", n.near}, "nethub", args...)
}

func (n *network) peer() *peer {
	return n.p.start([]string{"ip", "netns", "exec", n.far}, "netpeer", net.JoinHostPort(nearAddr, netPort))
}

func badNetwork(p *proof) {
	n := p.network()
	defer n.remove()
	for _, percent := range []int{1, 5, 20} {
		n.lose(percent)
		n.transfer(fmt.Sprintf("%d %% of the packets lost", percent), 2000)
	}
	n.lose(0)
	n.run("tc", "-n", n.near, "qdisc", "add", "dev", "near", "root", "tbf", "rate", "1mbit", "burst", "32kbit", "latency", "400ms")
	n.transfer("1 Mbit/s", 1000)
	n.run("tc", "-n", n.near, "qdisc", "del", "dev", "near", "root")
	n.partition("while the hub sends", 1_000_000)
	n.partition("while little is under way", 60) // the last of it leaves when the line is cut
	n.partition("while nothing is sent", 0)
}

// transfer has the hub send so many messages of 1,000 bytes, and the peer get
// them all, in order.
//
// Finish waits no longer than Linger for what the system has taken, which goes on
// to deliver it, but not for ever: where acknowledgements are lost eight times in a
// row, it gives a closed socket up without a word to the peer. Then what counts
// is that the peer has all that the report does not call unacked.
func (n *network) transfer(what string, messages int) {
	hub := n.hub(messages, time.Duration(0), "finish")
	defer hub.end()
	hub.line("LISTENING", 10*time.Second)
	begun := time.Now()
	peer := n.peer()
	defer peer.end()
	got, told := peer.lineWithin("END ", 3*time.Minute)
	report := hub.line("GONE ", time.Minute)
	wire, unacked := n.wire(report)
	if !told {
		received := n.received(peer)
		n.p.measured("%s: the system gave up; %s; the peer got %d bytes", what, report, received)
		n.p.check(unacked > 0 && received >= wire-unacked && received <= wire, "%s: of %d bytes %d are said to be unacked, and the peer has %d", what, wire, unacked, received)
		return
	}
	n.p.measured("%s: %d messages of 1,000 bytes in %v, %s; %s", what, messages, time.Since(begun).Round(100*time.Millisecond), got, report)
	var count, written int
	fmt.Sscan(got, &count)
	fmt.Sscanf(report, "written %d", &written)
	if strings.Contains(report, sockhub.ErrSlowPeer.Error()) {
		// With so much lost nothing may get through for WriteTimeout. Then the
		// report is what the promise is about.
		n.p.check(count <= written, "%s: the peer got %s, and the hub reports %s", what, got, report)
		return
	}
	n.p.check(count == messages && written == messages, "%s: the peer got %s, and the hub reports %s", what, got, report)
}

// wire is what a hub's report says of the bytes that it has written.
func (n *network) wire(report string) (wire, unacked int64) {
	for _, f := range strings.Split(report, ", ") {
		fmt.Sscanf(f, "wire %d", &wire)
		fmt.Sscanf(f, "unacked %d", &unacked)
	}
	return wire, unacked
}

// received asks a peer for the bytes that it has got.
func (n *network) received(peer *peer) (bytes int64) {
	fmt.Fprintln(peer.stdin)
	_, err := fmt.Sscan(peer.line("RECEIVED ", 10*time.Second), &bytes)
	n.p.must(err)
	return bytes
}

// partition cuts the line for a minute, while the hub sends so many messages.
func (n *network) partition(what string, messages int) {
	const limit = 35 * time.Second
	hub := n.hub(messages, 20*time.Millisecond, "stay")
	defer hub.end()
	hub.line("LISTENING", 10*time.Second)
	peer := n.peer()
	defer peer.end()
	peer.line("CONNECTED", 10*time.Second)
	time.Sleep(time.Second)
	n.lose(100)
	begun := time.Now()
	report := hub.line("GONE ", 50*time.Second)
	took := time.Since(begun)
	bytes := n.received(peer) // what came before is all the peer gets to know
	wire, unacked := n.wire(report)
	n.p.measured("a partition %s: gone after %v; %s; the peer got %d bytes", what, took.Round(100*time.Millisecond), report, bytes)
	n.p.check(took <= limit, "%s: gone after %v", what, took)
	// An acknowledgement may have been lost last, never invented.
	n.p.check(bytes >= wire-unacked && bytes <= wire, "%s: of %d bytes %d are said to be unacked, and the peer has %d", what, wire, unacked, bytes)
	time.Sleep(time.Until(begun.Add(time.Minute)))
	n.lose(0)
}

// networkHub sends messages to the one peer that comes, with a pause between two
// of them, and tells its end. After the last it finishes, or stays.
func networkHub(args []string, quit <-chan struct{}) error {
	messages, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	every, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	hub, err := sockhub.New(context.Background(), nil)
	if err != nil {
		return err
	}
	defer hub.Close()
	if _, err := hub.Listen(context.Background(), "tcp4", net.JoinHostPort(nearAddr, netPort), &sockhub.ListenOptions{Mode: sockhub.Anonymous}); err != nil {
		return err
	}
	fmt.Println("LISTENING")
	for {
		select {
		case <-quit:
			return nil
		case b := <-hub.Events():
			for _, c := range b.Unknown {
				go func() {
					for k := range messages {
						m := make([]byte, 1000)
						binary.LittleEndian.PutUint64(m, uint64(k))
						if c.Send(context.Background(), m) != nil {
							return
						}
						time.Sleep(every)
					}
					if args[2] == "finish" {
						c.Finish()
					}
				}()
			}
			for _, d := range b.Disconnected {
				r := d.Report
				fmt.Printf("GONE written %d , unsent %d, wire %d, unacked %d, %v\n",
					r.WrittenMessages, r.UnsentMessages, r.WrittenBytes+8*r.WrittenMessages, r.Unacked, d.Err)
				if !balances(r) {
					return errors.New("the report does not balance")
				}
			}
		}
	}
}

// networkPeer receives until the end, and says what came.
func networkPeer(args []string, quit <-chan struct{}) error {
	nc, err := net.DialTimeout("tcp4", args[0], 20*time.Second)
	if err != nil {
		return err
	}
	defer nc.Close()
	fmt.Println("CONNECTED")
	var bytes atomic.Int64
	ended := make(chan error, 1)
	go func() {
		buf := make([]byte, 1000)
		for k := uint64(0); ; k++ {
			m, err := receive(nc, buf)
			if err == nil && (len(m) != 1000 || binary.LittleEndian.Uint64(m) != k) {
				err = fmt.Errorf("message %d is another", k)
			}
			if err != nil {
				if err == io.EOF || err == io.ErrUnexpectedEOF || errors.Is(err, syscall.ECONNRESET) { // by the hub, as of a slow peer
					fmt.Printf("END %d received in order\n", k)
					err = io.EOF
				}
				ended <- err
				return
			}
			bytes.Add(1008)
		}
	}()
	for {
		select {
		case <-quit:
			return nil
		case <-goes:
			fmt.Println("RECEIVED", bytes.Load())
		case err := <-ended:
			if err != io.EOF {
				return err
			}
			ended = nil
		}
	}
}
