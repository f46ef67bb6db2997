// Command fasthttp answers GET /<n> with github.com/valyala/fasthttp.
package main

import (
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/sockhub/sockhub/internal/compare/server"
)

func main() {
	_, network, address := server.Start()
	s := fasthttp.Server{
		Handler: func(ctx *fasthttp.RequestCtx) {
			n, _ := strconv.Atoi(string(ctx.Path()[1:]))
			ctx.SetContentType("text/plain")
			ctx.Response.SetBodyRaw(server.Text(n)) // uncopied
		},
		// The others send neither.
		NoDefaultDate:         true,
		NoDefaultServerHeader: true,
	}
	server.Check(s.Serve(server.Listen(network, address)))
}
