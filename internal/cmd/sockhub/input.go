package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// input reads messages from files or standard input: lines, whole files, or
// bytes as they come.
type input struct {
	separator byte
	raw       bool
	largest   int64

	lines chan []byte // sent to by the reading goroutine, and closed by it
	err   error       // why it stopped; valid when lines is closed
	once  sync.Once
	stop  chan struct{} // never closed where nobody stops it
}

func newInput(separator byte, raw bool, largest int64) *input {
	return &input{separator: separator, raw: raw, largest: largest, lines: make(chan []byte), stop: make(chan struct{})}
}

// start reads the named files, or standard input, in a goroutine which cannot
// be joined: a Read of a terminal or a pipe goes on until the process ends.
func (in *input) start(stdin io.Reader, files []string) {
	in.once.Do(func() {
		go func() {
			defer close(in.lines)
			in.err = eachFile(stdin, files, func(r io.Reader) error {
				return in.split(r, func(msg []byte) error {
					select {
					case in.lines <- msg:
						return nil
					case <-in.stop:
						return errStopped
					}
				})
			})
		}()
	})
}

var errStopped = errors.New("stopped")

// eachFile opens one file after the other. "-", and no file at all, is stdin.
func eachFile(stdin io.Reader, files []string, do func(io.Reader) error) error {
	if len(files) == 0 {
		files = []string{"-"}
	}
	for _, name := range files {
		if name == "-" {
			if err := do(stdin); err != nil {
				return fmt.Errorf("standard input: %w", err)
			}
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = do(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// split calls send for each message in r, with memory of its own, until that
// fails.
func (in *input) split(r io.Reader, send func([]byte) error) error {
	if in.raw {
		buf := make([]byte, 64<<10)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				if err := send(bytes.Clone(buf[:n])); err != nil {
					return err
				}
			}
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
	lines := bufio.NewScanner(r)
	// The Scanner counts the separator, and wants one byte more.
	lines.Buffer(nil, int(min(in.largest+2, 1<<31-1)))
	lines.Split(in.upToSeparator)
	for lines.Scan() {
		if err := send(bytes.Clone(lines.Bytes())); err != nil {
			return err
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a line is longer than %s bytes (see -max-message)", grouped(uint64(in.largest)))
	}
	return lines.Err()
}

// upToSeparator is a bufio.SplitFunc. Unlike ScanLines it leaves a carriage
// return alone: messages are bytes.
func (in *input) upToSeparator(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, in.separator); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}
