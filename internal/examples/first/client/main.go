package main

import (
	"context"
	"log"

	"github.com/sockhub/sockhub"
)

func main() {
	hub, err := sockhub.New(context.Background(), &sockhub.Options{Name: "alice"})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	conn, err := hub.Dial(context.Background(), "tcp", "127.0.0.1:4040", nil)
	if err != nil {
		log.Fatal(err)
	}
	conn.TrySend([]byte("hello"))
	for b := range hub.Events() {
		for _, msg := range b.Messages() {
			log.Printf("%s says %q", conn.Peer().Remote, msg)
			return
		}
		for _, d := range b.Disconnected {
			log.Fatal(d.Err)
		}
	}
}
