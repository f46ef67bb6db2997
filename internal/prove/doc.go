// Command prove shows by figures that the library does under faults, load and
// attack what it promises. What is quick is in the tests; what takes longer is
// here, one row of a table for each claim:
//
//	go run ./internal/prove -list
//	go run ./internal/prove
//	go run ./internal/prove -row 4,5
//	go run ./internal/prove -scale 0.1
//
// The whole takes hours; -list says how long each row takes, and -scale makes
// all shorter (and then proves less: the table says so). Everything random
// begins with -seed, as far as the scheduler lets it. With -o the rows that ran
// replace those of the same number in a Markdown page. A row that takes longer than
// one has can run in parts, with a -scale below 1 and seeds of their own: each is a
// line of the page.
//
// Every row runs in a process of its own, so that none sees the memory of
// another, and starts its peers in further ones. All talk over loopback, or in
// network namespaces that the row makes and removes, which only root may. Rows
// that need a program which is not installed (strace, spin, nft) are skipped,
// and say so.
//
// To have row 3 ask the runtime too which goroutines can never go on:
//
//	GOEXPERIMENT=goroutineleakprofile go run ./internal/prove -row 3
package main
