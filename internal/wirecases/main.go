// Command wirecases writes transcripts of what has to go over the wire, for
// testdata/wire: README.md beside that folder tells the format.
//
//	go run ./internal/wirecases > testdata/wire/generated.txt
//
// It knows the format of a message and the handshake, and nothing else of the
// library, whose code it does not use: what it writes is what the wire format
// says must happen, whatever the library does.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
)

// maxMessage is the limit of the hub that speaks these transcripts.
const maxMessage = 1 << 20

func main() {
	out := bufio.NewWriter(os.Stdout)
	g := &generator{out: out}
	fmt.Fprintln(out, "# Made by internal/wirecases. Do not edit.")
	g.sizes()
	g.runs()
	g.cuts()
	g.tooLarge()
	g.names()
	g.dials()
	if err := out.Flush(); err != nil {
		fmt.Fprintln(os.Stderr, "wirecases:", err)
		os.Exit(1)
	}
}

type generator struct{ out io.Writer }

func (g *generator) print(format string, args ...any) { fmt.Fprintf(g.out, format+"\n", args...) }

// begin begins a case whose peer is admitted.
func (g *generator) begin(named bool, format string, args ...any) {
	g.print("\ncase %s", fmt.Sprintf(format, args...))
	if named {
		g.print("hub accepts named\npeer %s\nhub %s", message("n"), message("OK"))
	} else {
		g.print("hub accepts anonymous")
	}
}

// end ends a case whose peer finishes after these messages, of which the last
// cut bytes are not sent.
func (g *generator) end(reason string, received []string) {
	g.print("peer end\nhub end\nreceived %s\nended %s", items(received), reason)
}

// bodies are the transcripts' names of the bodies that were made.
var bodies = make(map[string]string)

// body is the body of message k, as README.md has it.
func body(k, size int) string {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(31*i + 7*k)
	}
	if size > 8 {
		bodies[string(b)] = fmt.Sprintf("@%d:%d", k, size)
	}
	return string(b)
}

func wire(m string) string {
	return string(binary.LittleEndian.AppendUint64(nil, uint64(len(m)))) + m
}

// message is a message as bytes of a transcript.
func message(m string) string {
	text := bytes(wire(m)[:8])
	if m != "" {
		text += " " + item(m)
	}
	return text
}

// item is a body as one item.
func item(m string) string {
	if name, ok := bodies[m]; ok {
		return name
	}
	return quoted(m)
}

// messages are several.
func messages(all []string) string {
	var texts []string
	for _, m := range all {
		texts = append(texts, message(m))
	}
	return strings.Join(texts, " ")
}

// bytes writes a string as the items of a transcript do: what is printable
// within quotes, runs of one byte with their number.
func bytes(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		n := 1
		for i+n < len(s) && s[i+n] == s[i] {
			n++
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		switch {
		case n > 3:
			fmt.Fprintf(&b, "%02x*%d", s[i], n)
		default:
			n = 1
			for i+n < len(s) && !(i+n+3 < len(s) && s[i+n:i+n+4] == strings.Repeat(s[i+n:i+n+1], 4)) {
				n++
			}
			b.WriteString(quoted(s[i : i+n]))
		}
		i += n
	}
	return b.String()
}

// quoted is a Go string literal of these bytes.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c >= ' ' && c <= '~':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "\\x%02x", c)
		}
	}
	return b.String() + `"`
}

// items are received messages, one item each.
func items(all []string) string {
	var texts []string
	for _, m := range all {
		texts = append(texts, item(m))
	}
	return strings.Join(texts, " ")
}

// sizes are exchanges of one message, about every boundary that there may be:
// of the header's bytes, of a chunk of 16 KiB, of a page.
func (g *generator) sizes() {
	for _, named := range []bool{false, true} {
		for k, n := range []int{1, 2, 7, 8, 9, 15, 16, 63, 64, 65, 127, 128, 254, 255, 256, 257, 511, 513, 1015, 1016, 1017, 1024, 2047, 2049, 4087, 4088, 4096, 4097, 8183, 8185} {
			m := body(k, n)
			g.begin(named, "one message of %d bytes, named %v", n, named)
			g.print("peer %s\nhub %s", message(m), message(m))
			g.end("EOF", []string{m})
		}
	}
	for k, n := range []int{16368, 16375, 16376, 16377, 16384, 16385, 20000, 40000} {
		m := body(k, n)
		g.begin(false, "a message of %d bytes", n)
		g.print("peer %s\nhub %s", message(m), message(m))
		g.end("EOF", []string{m})
	}
}

// runs are several messages that come together, so that one read has more than
// one of them, or the end of one and the beginning of the next.
func (g *generator) runs() {
	r := rand.New(rand.NewPCG(7, 7))
	for i := range 40 {
		var all []string
		for k := range 1 + r.IntN(12) {
			n := r.IntN(40)
			if r.IntN(4) == 0 {
				n = r.IntN(3000)
			}
			if r.IntN(5) == 0 {
				n = 0
			}
			all = append(all, body(k+i, n))
		}
		g.begin(i%2 == 0, "run %d of %d messages", i, len(all))
		// All at once, or in two parts with the answers between them.
		at := len(all)
		if i%4 > 1 {
			at = r.IntN(len(all) + 1)
		}
		for _, part := range [][]string{all[:at], all[at:]} {
			if len(part) > 0 {
				g.print("peer %s\nhub %s", messages(part), messages(part))
			}
		}
		g.end("EOF", all)
	}
}

// cuts end the peer's output at every place of a header, and some of a body.
func (g *generator) cuts() {
	for before := range 3 {
		var whole []string
		for k := range before {
			whole = append(whole, body(k, 10*k))
		}
		last := wire(body(9, 300))
		for _, at := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 100, 306, 307} {
			g.begin(before == 2, "cut after %d messages and %d bytes", before, at)
			if before > 0 {
				g.print("peer %s", messages(whole))
			}
			if at <= 8 {
				g.print("peer %s", bytes(last[:at]))
			} else {
				g.print("peer %s %s", bytes(last[:8]), item(body(9, at-8)))
			}
			if before > 0 {
				g.print("hub %s", messages(whole))
			}
			g.end(`"unexpected EOF"`, whole)
		}
	}
}

// tooLarge are lengths above the limit: the header alone ends the connection.
func (g *generator) tooLarge() {
	for _, n := range []uint64{maxMessage + 1, maxMessage + 255, 1 << 21, 1 << 24, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 5, 1 << 40, 1 << 53, 1 << 62, 1<<63 - 1, 1 << 63, 1<<63 + 7, 1<<64 - 1} {
		header := string(binary.LittleEndian.AppendUint64(nil, n))
		g.begin(false, "a length of %d", n)
		g.print("peer %s\nreceived\nended \"too large\"", bytes(header))
		// Its answers may be lost, so that there is nothing to say of them.
		g.begin(true, "a length of %d after messages", n)
		g.print("peer %s %s\nreceived \"a\" \"\"\nended \"too large\"", messages([]string{"a", ""}), bytes(header))
	}
}

// names are first messages.
func (g *generator) names() {
	long := strings.Repeat("0123456789abcdef", 16)
	for _, name := range []string{"a", "ab", "OK", " ", "\x00", "\n", "é", "\xff\xfe", "名前", `"`, `\`, long[:8], long[:9], long[:63], long[:64], long[:100], long[:127], long[:128], long[:254], long[:255]} {
		g.print("\ncase the name %s\nhub accepts named\npeer %s\nhub %s\npeer %s\nhub %s\nname %s",
			quoted(name), message(name), message("OK"), message("m"), message("m"), quoted(name))
		g.end("EOF", []string{"m"})
	}
	for _, n := range []uint64{0, 256, 257, 512, 1016, 1024, 1025, 65536, maxMessage, 1 << 32, 1<<32 + 5, 1 << 63, 1<<64 - 1} {
		g.print("\ncase a name of %d bytes\nhub accepts named\npeer %s\nhub end\nrefused", n, bytes(string(binary.LittleEndian.AppendUint64(nil, n))))
	}
	for _, at := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 12} {
		g.print("\ncase a name cut after %d bytes\nhub accepts named\npeer %s\npeer end\nhub end\nrefused", at, bytes(wire("alice")[:at]))
	}
}

// dials are handshakes of the other role.
func (g *generator) dials() {
	for i, answer := range []string{"NO", "ok", "Ok", "oK", "O", "K", "", "OKO", "OK ", " OK", "OK\n", "OK\x00", "KO", "refused", strings.Repeat("x", 255)} {
		name := strings.Repeat("n", 1+17*i)
		g.print("\ncase dials and is answered %s\nhub dials %s\nhub %s\npeer %s\nhub end\nrefused", quoted(answer), quoted(name), message(name), message(answer))
	}
	for at := range 10 {
		g.print("\ncase dials, the answer is cut after %d bytes\nhub dials \"d\"\nhub %s", at, message("d"))
		if at > 0 {
			g.print("peer %s", bytes(wire("OK")[:at]))
		}
		g.print("peer end\nhub end\nrefused")
	}
	for k, n := range []int{0, 1, 8, 100, 1007, 4096, 16376} {
		m := body(k, n)
		g.print("\ncase dials, a message of %d bytes behind OK\nhub dials \"d\"\nhub %s\npeer %s %s\nhub %s\nname \"d\"", n, message("d"), message("OK"), message(m), message(m))
		g.end("EOF", []string{m})
		g.print("\ncase dials anonymously, a message of %d bytes\nhub dials anonymous\npeer %s\nhub %s", n, message(m), message(m))
		g.end("EOF", []string{m})
	}
}
