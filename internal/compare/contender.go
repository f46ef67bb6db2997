package main

import (
	"slices"
	"strings"

	"github.com/sockhub/sockhub/internal/compare/server"
)

// contender is one way to write the same server.
type contender struct {
	name    string   // in tables and results
	what    string   // for people
	program string   // in servers/, or "yardstick"
	args    []string // beside those that all have
	modes   []string // that it has
}

const (
	yardstick = "C epoll"
	secondary = "net 4K" // the reference where there is no C compiler
)

var (
	messageModes = []string{server.Echo, server.Stream, server.Fanout, server.Commands}
	allModes     = append(slices.Clone(messageModes), server.HTTP)
	onlyHTTP     = []string{server.HTTP}
)

var contenders = []contender{
	{yardstick, "one thread, one epoll set, written in C", "yardstick", nil, allModes},
	{"handler+r", "sockhub, handlers, ReuseBuffers", "sockhub", []string{"-reuse"}, allModes},
	{"handler", "sockhub, handlers", "sockhub", nil, allModes},
	{"events+r", "sockhub, a loop over Events, ReuseBuffers", "sockhub", []string{"-events", "-reuse"}, allModes},
	{"events", "sockhub, a loop over Events", "sockhub", []string{"-events"}, allModes},
	{secondary, "package net, 4 KiB bufio", "plain", nil, allModes},
	{"net 64K", "package net, 64 KiB bufio", "plain", []string{"-buf", "65536"}, allModes},
	{"netpoll", "cloudwego/netpoll", "netpoll", nil, allModes},
	{"net/http", "package net/http", "nethttp", nil, onlyHTTP},
	{"fasthttp", "valyala/fasthttp", "fasthttp", nil, onlyHTTP},
}

// pick returns the contenders whose names are in the comma-separated list, and
// all of them for an empty one.
func pick(list string, withC bool) []contender {
	names := strings.Split(list, ",")
	return slices.DeleteFunc(slices.Clone(contenders), func(c contender) bool {
		return list != "" && !slices.Contains(names, c.name) || c.program == "yardstick" && !withC
	})
}

// quotedNames are servers that are not run here.
var quotedNames = []string{"gnet*", "nbio*"}

// quoted is the cost of one message on C epoll, gnet and nbio, as measured once
// by another harness in setup A or B: server CPU in µs, memory of an idle
// connection in bytes. The ratios of these to C epoll are what can be compared;
// they are marked with * wherever they are shown. These two libraries are not
// run: their event loops are a different kind of program, and the figures do not
// depend on anything that is changed here.
var quoted = map[string][3]float64{
	"A echo 64B x50":            {3.95, 4.9, 5.6},
	"A echo 64B x1000":          {4.1, 5.9, 5.7},
	"A echo 16384B x50":         {6.3, 8.1, 8.4},
	"A echo 1048576B x50":       {418, 1270, 803},
	"A echo 1048576B x1000":     {446, 7680, 851},
	"A echo 64B x50 depth 64":   {.080, .093, .114},
	"A echo 512B x50 depth 64":  {.147, .172, .198},
	"A stream 1000000 of 9B":    {.0081, 2.8, 2.7}, // they write once for each message
	"A fan-out 100B x1000":      {2.9, 3.4, 4.4},
	"A fan-out 4096B x1000":     {3.6, 4.7, 6.9},
	"A fan-out 100B x1000 deep": {.195, 4.5, 4.3},
	"A http /100 x200":          {4.8, 5.3, 6.5},
	"A http /10240 x200":        {6.3, 7.0, 8.9},
	"A http /1048576 x200":      {242, 254, 267},
	"A idle x10000":             {112, 503, 498},
	"B echo 64B x50":            {4.3, 5.3, 4.8},
	"B echo 64B x1000":          {4.2, 5.8, 5.0},
}
