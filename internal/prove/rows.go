package main

import "time"

// rows are the claims, in the order of their numbers.
var rows = []*row{
	{n: 1, what: "fuzzing",
		want:  "decoder 100 M executions; names, addresses and policy 20 M; a stateful connection 2 M: no crash, whole input and random cuts agree",
		takes: 6 * time.Hour, run: fuzz},
	{n: 3, what: "connections that come and go",
		want:  "1,000,000 connections made and closed by 10,000 clients: goroutines and descriptors back to the start, heap within 1 MiB after GC",
		takes: 150 * time.Second, fixed: 10 * time.Second, run: churn},
	{n: 4, what: "peers that begin and do not go on",
		want:  "10,000 peers that send 7 bytes of a header: at most 16 KiB of RSS each, gone by 5.5 s; 10,000 messages announced at 60 MiB and not sent: at most 8 MiB of RSS beyond the connections' own",
		takes: 20 * time.Second, fixed: 20 * time.Second, run: halfHeaders},
	{n: 5, what: "good clients during row 4",
		want:  "at least 99.9 % of good clients from another source admitted, 99 % of them within 100 ms",
		takes: 75 * time.Second, fixed: 15 * time.Second, run: goodDuringAttack},
	{n: 6, what: "injected faults",
		want:  "200,000: what was received is an exact prefix of what was accepted, the report balances every time, no duplicate, no reordering",
		takes: 15 * time.Minute, run: faults},
	{n: 7, what: "failing accepts",
		want:  "each of 8 errors of accept4: the listener survives, at most 5 % of a core, accepts within 1.1 s of recovery; RLIMIT_NOFILE 64 for real",
		takes: 80 * time.Second, fixed: 80 * time.Second, run: failingAccepts},
	{n: 8, what: "one stuck peer among 1,000",
		want:  "Events and Handler: the others keep at least 95 % of their rate; the stuck one goes at WriteTimeout ± 1 s with an exact report; a peer that reads 10 kB/s is not cut off",
		takes: 7 * time.Minute, fixed: 110 * time.Second, run: oneStuck},
	{n: 10, what: "random schedules, race detector",
		want:  "every public call in every state of life, 100,000 random schedules; -race -cpu 1,2,4 -shuffle=on -count=20: no race, hang or leak",
		takes: 2 * time.Hour, run: schedules},
	{n: 12, what: "races for a stale Unix path",
		want:  "10,000: one wins, no live socket unlinked, a link or a file never removed",
		takes: 20 * time.Second, fixed: 5 * time.Second, run: stalePaths},
	{n: 14, what: "killed processes that share a port",
		want:  "60: the survivors lose nothing",
		takes: 30 * time.Second, fixed: 5 * time.Second, run: killedSharer},
}
