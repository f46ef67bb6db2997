package main

import (
	"context"
	"log"

	"github.com/sockhub/sockhub"
)

func main() {
	hub, err := sockhub.New(context.Background(), nil)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := hub.Listen(context.Background(), "tcp", "127.0.0.1:4040", nil); err != nil {
		log.Fatal(err)
	}
	for b := range hub.Events() {
		for c, msg := range b.Messages() {
			if err := c.TrySend(msg); err != nil {
				c.Close() // 4 MiB of answers to it are under way
			}
		}
	}
}
