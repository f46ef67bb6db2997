// Command nethttp answers GET /<n> with package net/http.
package main

import (
	"net/http"
	"strconv"

	"github.com/sockhub/sockhub/internal/compare/server"
)

func main() {
	_, network, address := server.Start()
	server.Check(http.Serve(server.Listen(network, address), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Path[1:])
		w.Header().Set("Content-Type", "text/plain") // or it would look at the body
		w.Header().Set("Content-Length", strconv.Itoa(n))
		w.Write(server.Text(n))
	})))
}
