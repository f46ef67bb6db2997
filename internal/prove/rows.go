package main

import "time"

// rows are the claims, in the order of their numbers.
var rows = []*row{
	{n: 3, what: "connections that come and go", want: "1,000,000 connections made and closed by 10,000 clients: goroutines and descriptors back to the start, heap within 1 MiB after GC",
		takes: 150 * time.Second, fixed: 10 * time.Second, run: churn},
	{n: 4, what: "peers that begin and do not go on", want: "10,000 peers that send 7 bytes of a header: at most 16 KiB of RSS each, gone by 5.5 s; 10,000 messages announced at 60 MiB and not sent: at most 8 MiB of RSS beyond the connections' own",
		takes: 40 * time.Second, fixed: 40 * time.Second, run: halfHeaders},
	{n: 5, what: "good clients during row 4", want: "at least 99.9 % of good clients from another source admitted, 99 % of them within 100 ms",
		takes: 75 * time.Second, fixed: 25 * time.Second, run: goodDuringAttack},
}
