package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/sockhub/sockhub"
)

// Several goroutines register names, forget and look them up, and connect peers
// that claim them and leave. The history of each name has to be linearizable:
// there must be an order of the calls, agreeing with their times, in which each
// result is the one that a registry without concurrency would have given.

type kind uint8

const (
	expect kind = iota
	forget
	lookup
	connect
	gone // a connection's end: after it was made, before its Disconnected was taken
)

var kindNames = [...]string{"expect", "forget", "lookup", "connect", "gone"}

type input struct {
	kind kind
	name string
	id   sockhub.ID // of forget
	conn int        // of connect and gone: which attempt
}

type output struct {
	id sockhub.ID
	ok bool
}

// state is what the registry knows of one name.
type state struct {
	id       sockhub.ID // of the client that has it; 0: nobody
	expected bool
	owner    int // attempt whose connection has it; 0: none
}

// step is the registry without concurrency.
func step(s state, in input, out output) (bool, state) {
	switch in.kind {
	case expect:
		if !out.ok {
			return s.expected, s
		}
		// A connected peer is adopted with its ID, unless it is about to be
		// gone: then the ID is a new one, and the peer only keeps the name
		// until it is.
		if s.expected || out.id == 0 || s.owner == 0 && out.id == s.id {
			return false, s
		}
		return true, state{out.id, true, s.owner}
	case forget:
		if !out.ok {
			return in.id != s.id || s.id == 0, s
		}
		// An ID that is not the name's any more lives on until its last
		// Disconnected was taken; to forget it changes nothing.
		if in.id == s.id {
			s.expected = false
			if s.owner == 0 {
				s.id = 0
			}
		}
		return true, s
	case lookup:
		return out.ok == (s.id != 0) && out.id == s.id, s
	case connect:
		switch {
		case !out.ok:
			return s.owner != 0, s
		case s.owner != 0 || s.expected && out.id != s.id && out.id != 0 || !s.expected && out.id == 0:
			return false, s
		case s.expected:
			return true, state{s.id, true, in.conn}
		}
		return true, state{out.id, false, in.conn}
	case gone:
		if s.owner != in.conn {
			return false, s
		}
		if s.owner = 0; !s.expected {
			s.id = 0
		}
		return true, s
	}
	panic("no such call")
}

var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byName := make(map[string][]porcupine.Operation)
		for _, o := range history {
			name := o.Input.(input).name
			byName[name] = append(byName[name], o)
		}
		var all [][]porcupine.Operation
		for _, h := range byName {
			all = append(all, h)
		}
		return all
	},
	Init: func() any { return state{} },
	Step: func(s, in, out any) (bool, any) {
		ok, next := step(s.(state), in.(input), out.(output))
		return ok, next
	},
	DescribeOperation: func(in, out any) string {
		i, o := in.(input), out.(output)
		return fmt.Sprintf("%s(%q, id %d, conn %d) = %d, %v", kindNames[i.kind], i.name, i.id, i.conn, o.id, o.ok)
	},
}

// recorder is one history under way.
type recorder struct {
	hub     *sockhub.Hub
	clock   atomic.Int64
	attempt atomic.Int64

	mu      sync.Mutex
	history []porcupine.Operation
	conns   map[string]*claim     // by the number of the attempt, which is the connection's tag
	early   map[string]sockhub.ID // ended before they were entered
	open    sync.WaitGroup        // connections whose end is to come
}

// claim is a connection that was let in.
type claim struct {
	in   input
	made int64
	peer net.Conn
}

func (r *recorder) add(in input, out output, begun int64) {
	o := porcupine.Operation{Input: in, Call: begun, Output: out, Return: r.clock.Add(1)}
	r.mu.Lock()
	r.history = append(r.history, o)
	r.mu.Unlock()
}

func (r *recorder) receive() {
	for b := range r.hub.Events() {
		for _, d := range b.Disconnected {
			tag := d.Conn.Peer().Tag
			r.mu.Lock()
			if c := r.conns[tag]; c != nil {
				r.endLocked(tag, c)
			} else {
				r.early[tag] = d.Conn.ID()
			}
			r.mu.Unlock()
		}
	}
}

func (r *recorder) endLocked(tag string, c *claim) {
	delete(r.conns, tag)
	c.peer.Close()
	in := c.in
	in.kind = gone
	r.history = append(r.history, porcupine.Operation{Input: in, Call: c.made, Output: output{}, Return: r.clock.Add(1)})
	r.open.Done()
}

// call makes one call about one of the names, and reports whether something
// went wrong.
func (r *recorder) call(rng *rand.Rand, names []string, latest []atomic.Uint64) error {
	k := rng.IntN(len(names))
	in := input{name: names[k]}
	begun := r.clock.Add(1)
	switch n := rng.IntN(10); {
	case n < 2:
		id, err := r.hub.Expect(in.name, nil)
		if err == nil {
			latest[k].Store(uint64(id))
		} else if !errors.Is(err, sockhub.ErrNameTaken) {
			return err
		}
		r.add(in, output{id, err == nil}, begun)
	case n < 4:
		in.kind, in.id = forget, sockhub.ID(latest[k].Load())
		err := r.hub.Forget(in.id)
		if err != nil && !errors.Is(err, sockhub.ErrUnknownID) {
			return err
		}
		r.add(in, output{ok: err == nil}, begun)
	case n < 7:
		in.kind = lookup
		id, ok := r.hub.Lookup(in.name)
		r.add(in, output{id, ok}, begun)
	case n < 9:
		in.kind, in.conn = connect, int(r.attempt.Add(1))
		return r.connect(in, begun, &latest[k])
	default:
		r.mu.Lock()
		var peer net.Conn
		for _, c := range r.conns {
			if c.in.name == in.name {
				peer = c.peer
			}
		}
		r.mu.Unlock()
		if peer != nil {
			peer.Close()
		}
	}
	return nil
}

func (r *recorder) connect(in input, begun int64, latest *atomic.Uint64) error {
	ours, peer := net.Pipe()
	go func() { // the greeting; then whatever comes, which is OK
		name := append(binary.LittleEndian.AppendUint64(nil, uint64(len(in.name))), in.name...)
		if _, err := peer.Write(name); err != nil {
			return
		}
		buf := make([]byte, 100)
		for {
			if _, err := peer.Read(buf); err != nil {
				return
			}
		}
	}()
	r.open.Add(1)
	tag := strconv.Itoa(in.conn)
	c, err := r.hub.ServeConn(context.Background(), ours, &sockhub.ListenOptions{Tag: tag})
	var id sockhub.ID
	switch {
	case err == nil:
		id = c.ID()
	case errors.Is(err, sockhub.ErrNameTaken):
		r.open.Done()
		peer.Close()
		r.add(in, output{}, begun)
		return nil
	case errors.Is(err, sockhub.ErrClosed):
		// A Forget of the name has ended it when it was let in, and before
		// anybody heard of it.
		r.open.Done()
		peer.Close()
		r.add(in, output{0, true}, begun)
		in.kind = gone
		r.add(in, output{}, begun)
		return nil
	default:
		return fmt.Errorf("ServeConn: %w", err)
	}
	latest.Store(uint64(id))
	r.add(in, output{id, true}, begun)
	r.mu.Lock()
	defer r.mu.Unlock()
	// The end may come, in the order of the calls, as soon as it was let in.
	cl := &claim{in: in, made: begun, peer: peer}
	if r.early[tag] != 0 {
		delete(r.early, tag)
		r.endLocked(tag, cl)
	} else {
		r.conns[tag] = cl
	}
	return nil
}

// registry makes about n calls, in histories short enough to be checked.
func registry(n int, seed uint64) error {
	hub, err := sockhub.New(context.Background(), nil)
	if err != nil {
		return err
	}
	r := &recorder{hub: hub, conns: make(map[string]*claim), early: make(map[string]sockhub.ID)}
	received := make(chan struct{})
	go func() { defer close(received); r.receive() }()
	const goroutines, names, calls = 8, 4, 50
	begun, shown, done, longest := time.Now(), time.Now(), 0, 0
	for round := 0; done < n; round++ {
		r.history = nil
		var all [names]string
		var latest [names]atomic.Uint64
		for i := range all {
			all[i] = fmt.Sprint("name ", round, " ", i)
		}
		var wg sync.WaitGroup
		errs := make(chan error, goroutines)
		for g := range goroutines {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(round*goroutines+g)))
				for range calls {
					if err := r.call(rng, all[:], latest[:]); err != nil {
						errs <- err
						return
					}
				}
			})
		}
		wg.Wait()
		if len(errs) > 0 {
			return <-errs
		}
		r.mu.Lock()
		for _, c := range r.conns {
			c.peer.Close()
		}
		r.mu.Unlock()
		r.open.Wait()
		r.mu.Lock()
		history := r.history
		r.mu.Unlock()
		for _, name := range all {
			if id, ok := hub.Lookup(name); ok {
				hub.Forget(id)
			}
		}
		switch porcupine.CheckOperationsTimeout(model, history, time.Minute) {
		case porcupine.Illegal:
			text := ""
			for _, o := range history {
				text += fmt.Sprintf("%d..%d %s\n", o.Call, o.Return, model.DescribeOperation(o.Input, o.Output))
			}
			fmt.Print(text)
			return fmt.Errorf("round %d of seed %d is not linearizable", round, seed)
		case porcupine.Unknown:
			return fmt.Errorf("round %d of seed %d: not decided within a minute", round, seed)
		}
		done += len(history)
		longest = max(longest, len(history))
		if time.Since(shown) > 5*time.Second {
			fmt.Println(done, "calls")
			shown = time.Now()
		}
	}
	fmt.Printf("MEASURED %d calls by %d goroutines on names that are claimed, registered and given up: every history (of up to %d calls on %d names) linearizable; %v\n",
		done, goroutines, longest, names, time.Since(begun).Round(time.Second))
	hub.Close()
	<-received
	return nil
}
