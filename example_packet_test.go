package sockhub_test

import (
	"context"
	"fmt"
	"time"

	"github.com/sockhub/sockhub"
)

// Sensors send datagrams; each is a client for as long as it goes on.
func ExampleHub_Listen_udp() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	server, err := sockhub.New(ctx, nil)
	if err != nil {
		panic(err)
	}
	defer server.Close()
	l, err := server.Listen(ctx, "udp", "127.0.0.1:0", &sockhub.ListenOptions{IdleTimeout: 30 * time.Second})
	if err != nil {
		panic(err)
	}

	sensor, err := sockhub.New(ctx, nil)
	if err != nil {
		panic(err)
	}
	defer sensor.Close()
	c, err := sensor.Dial(ctx, "udp", l.Addr().String(), nil)
	if err != nil {
		panic(err)
	}
	if err := c.Send(ctx, []byte("21.5 degrees")); err != nil {
		panic(err)
	}

	for b := range server.Events() {
		for from, m := range b.Messages() {
			fmt.Printf("%s\n", m)
			from.TrySend([]byte("thank you"))
		}
		if len(b.Received) > 0 {
			break
		}
	}
	for b := range sensor.Events() {
		for _, m := range b.Messages() {
			fmt.Printf("%s\n", m)
			return
		}
	}
	// Output:
	// 21.5 degrees
	// thank you
}
