package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/sockhub/sockhub"
)

// byteSize is a flag for a number of bytes.
type byteSize int64

func (b *byteSize) String() string {
	n, unit := int64(*b), ""
	for _, larger := range []string{"k", "M", "G"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, larger
	}
	return strconv.FormatInt(n, 10) + unit
}

// Set reads a number with or without a unit: 512, 4k, 1M, 2GiB.
func (b *byteSize) Set(s string) error {
	digits := strings.TrimRight(s, "kKmMgGiB")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is no number of bytes", s)
	}
	shift := 0
	switch unit := strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(s[len(digits):], "B"), "i")); unit {
	case "":
	case "k":
		shift = 10
	case "m":
		shift = 20
	case "g":
		shift = 30
	default:
		return fmt.Errorf("%q: the units are k, M and G", s)
	}
	if n > math.MaxInt64>>shift {
		return fmt.Errorf("%q is too much", s)
	}
	*b = byteSize(n << shift)
	return nil
}

// duration is a flag for a time.Duration whose error says how to write one: a plain
// number is what most try first.
type duration time.Duration

func (d *duration) String() string { return time.Duration(*d).String() }

// Set reads a duration as time.ParseDuration does.
func (d *duration) Set(s string) error {
	v, err := time.ParseDuration(s)
	if err != nil {
		return errors.New("it is no duration such as 5s")
	}
	*d = duration(v)
	return nil
}

// durationVar is flags.DurationVar, with that error.
func durationVar(flags *flag.FlagSet, p *time.Duration, name string, value time.Duration, usage string) {
	*p = value
	flags.Var((*duration)(p), name, usage)
}

// framings are the values of -framing.
var framings = map[string]sockhub.Framing{
	"le64": sockhub.LengthPrefix(8, binary.LittleEndian), "be64": sockhub.LengthPrefix(8, binary.BigEndian),
	"le32": sockhub.LengthPrefix(4, binary.LittleEndian), "be32": sockhub.LengthPrefix(4, binary.BigEndian),
	"le16": sockhub.LengthPrefix(2, binary.LittleEndian), "be16": sockhub.LengthPrefix(2, binary.BigEndian),
	"u8":      sockhub.LengthPrefix(1, binary.LittleEndian),
	"uvarint": sockhub.Uvarint(),
}

// speech is what is spoken on a connection.
type speech struct {
	framing    string
	raw        bool
	maxMessage byteSize
}

func (s *speech) define(flags *flag.FlagSet) {
	flags.StringVar(&s.framing, "framing", "le64", "the `length` before each message: le64, le32, le16, u8, be64, be32, be16, or uvarint")
	s.maxMessage = sockhub.DefaultMaxMessage
	flags.Var(&s.maxMessage, "max-message", "largest message, in `bytes`")
}

// resolve returns the Framing and the Mode that the flags mean.
func (s *speech) resolve(named bool) (sockhub.Framing, sockhub.Mode, error) {
	framing, ok := framings[s.framing]
	switch {
	case !ok:
		return nil, 0, usagef("-framing %q is none that is known", s.framing)
	case s.maxMessage < 1:
		return nil, 0, usagef("-max-message has to be positive")
	case named && s.raw:
		return framing, sockhub.NamedRaw, nil
	case named:
		return framing, sockhub.Named, nil
	case s.raw:
		return framing, sockhub.Raw, nil
	}
	return framing, sockhub.Anonymous, nil
}

// limit puts the size of messages into the options, and makes room for them.
func (s *speech) limit(o *sockhub.Options) {
	o.MaxMessage = int64(s.maxMessage)
	if need := 2 * (o.MaxMessage + 64<<10); need > sockhub.DefaultInboundLimit {
		o.InboundLimit = need
		o.MemoryLimit = max(sockhub.DefaultMemoryLimit, 2*need)
	}
}

// endpoints parses operands.
func endpoints(operands []string) (all []endpoint, err error) {
	if len(operands) == 0 {
		return nil, usagef("an endpoint is missing, such as tcp://127.0.0.1:7000")
	}
	for _, o := range operands {
		e, err := parseEndpoint(o)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}
