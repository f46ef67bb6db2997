package main

import (
	"testing"

	"github.com/anishathalye/porcupine"
)

func TestRegistryIsLinearizable(t *testing.T) {
	if err := registry(5000, 1); err != nil {
		t.Error(err)
	}
}

func TestFaultsOnSockets(t *testing.T) {
	if err := faults(20, 1); err != nil {
		t.Error(err)
	}
}

// The model must find what is wrong.
func TestModelFindsWhatIsWrong(t *testing.T) {
	op := func(in input, out output, from, to int64) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: from, Return: to}
	}
	for _, test := range []struct {
		what    string
		want    bool
		history []porcupine.Operation
	}{
		{"a name is registered, and found", true, []porcupine.Operation{
			op(input{kind: expect}, output{1, true}, 1, 2), op(input{kind: lookup}, output{1, true}, 3, 4)}},
		{"a name is registered, and not found", false, []porcupine.Operation{
			op(input{kind: expect}, output{1, true}, 1, 2), op(input{kind: lookup}, output{}, 3, 4)}},
		{"a name has two owners", false, []porcupine.Operation{
			op(input{kind: connect, conn: 1}, output{1, true}, 1, 2), op(input{kind: connect, conn: 2}, output{2, true}, 3, 4)}},
		{"a name has two owners, one after the other", true, []porcupine.Operation{
			op(input{kind: connect, conn: 1}, output{1, true}, 1, 2), op(input{kind: connect, conn: 2}, output{2, true}, 3, 6),
			op(input{kind: gone, conn: 1}, output{}, 4, 5)}},
		{"an owner is not adopted, and goes on", false, []porcupine.Operation{
			op(input{kind: connect, conn: 1}, output{1, true}, 1, 2), op(input{kind: expect}, output{2, true}, 3, 4),
			op(input{kind: lookup}, output{1, true}, 5, 6)}},
		{"a name is registered twice", false, []porcupine.Operation{
			op(input{kind: expect}, output{1, true}, 1, 2), op(input{kind: expect}, output{2, true}, 3, 4)}},
	} {
		if got := porcupine.CheckOperations(model, test.history); got != test.want {
			t.Errorf("%s: %v", test.what, got)
		}
	}
}
