package server

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"sync"
)

// HeaderLen is the length of what stands before a message.
const HeaderLen = 8

// BodyLen is the length of the body behind this header.
func BodyLen(header []byte) int { return int(binary.LittleEndian.Uint64(header)) }

// AppendMessage appends header and body.
func AppendMessage(b, body []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(body)))
	return append(b, body...)
}

// Request is the body of a message that asks for others: how many, and what
// each of them is to be. msg is a part of body.
func Request(body []byte) (count int, msg []byte) {
	return int(binary.LittleEndian.Uint64(body)), body[8:]
}

// Answers counts the answers to the commands of one connection.
type Answers struct{ missing int }

// Expect tells of commands that are going to be sent.
func (a *Answers) Expect(count int) { a.missing = count }

// Due reports whether answers are missing: then the next message is one, and not
// a request.
func (a *Answers) Due() bool { return a.missing > 0 }

// Got counts one and reports whether it was the last.
func (a *Answers) Got() (last bool) {
	a.missing--
	return a.missing == 0
}

// ---- http ----

var blank = []byte("\r\n\r\n")

// NextRequest finds the request that p begins with: its length, and the number
// in its path. n is 0 while it is incomplete. It knows GET alone, which is all
// that it is sent, and so costs every server that has no parser of its own the
// same.
func NextRequest(p []byte) (n, size int) {
	n = bytes.Index(p, blank)
	if n < 0 {
		return 0, 0
	}
	for _, c := range p[min(len("GET /"), n):n] {
		if c < '0' || c > '9' {
			break
		}
		size = size*10 + int(c-'0')
	}
	return n + len(blank), size
}

// MaxHead is room for what AppendHead appends.
const MaxHead = 96

// AppendHead appends the head of an answer of size bytes.
func AppendHead(b []byte, size int) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(size), 10)
	return append(b, blank...)
}

var text struct {
	sync.RWMutex
	b []byte
}

// Text returns the alphabet, again and again, size bytes in all. They are shared
// and must not be changed.
func Text(size int) []byte {
	text.RLock()
	b := text.b
	text.RUnlock()
	if size <= len(b) {
		return b[:size:size]
	}
	text.Lock()
	defer text.Unlock()
	if size > len(text.b) {
		text.b = bytes.Repeat([]byte("abcdefghijklmnopqrstuvwxyz"), (max(size, 1<<20)+25)/26)
	}
	return text.b[:size:size]
}
