// Command go_tlog checks a log with Go's own transparency-log packages (golang.org/x/mod/sumdb), which share no code
// with this project. One JSON question on each line of standard input, one JSON answer on each line of output.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type question struct {
	VKey        string   `json:"vkey"`
	Checkpoint  []byte   `json:"checkpoint"`
	Old         []byte   `json:"old"`         // an older checkpoint, with Consistency
	Consistency [][]byte `json:"consistency"` // hashes, leaf to root
	Entry       []byte   `json:"entry"`       // an entry, with Index and Inclusion
	Index       int64    `json:"index"`
	Inclusion   [][]byte `json:"inclusion"`
	Entries     [][]byte `json:"entries"` // all entries: the root is computed from nothing else
}

type answer struct {
	OK    bool   `json:"ok"`
	Size  int64  `json:"size"`
	Root  []byte `json:"root"`
	Error string `json:"error"`
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<20), 1<<28)
	for in.Scan() {
		var q question
		var a answer
		if err := json.Unmarshal(in.Bytes(), &q); err != nil {
			a.Error = err.Error()
		} else if err := check(&q, &a); err != nil {
			a.Error = err.Error()
		} else {
			a.OK = true
		}
		out, _ := json.Marshal(a)
		fmt.Println(string(out))
	}
}

func check(q *question, a *answer) error {
	size, root, err := open(q.VKey, q.Checkpoint)
	if err != nil {
		return err
	}
	a.Size, a.Root = size, root[:]
	if q.Old != nil {
		oldSize, oldRoot, err := open(q.VKey, q.Old)
		if err != nil {
			return fmt.Errorf("old: %w", err)
		}
		if err := tlog.CheckTree(hashes(q.Consistency), size, root, oldSize, oldRoot); err != nil {
			return fmt.Errorf("consistency: %w", err)
		}
	}
	if q.Entry != nil {
		if err := tlog.CheckRecord(hashes(q.Inclusion), size, root, q.Index, tlog.RecordHash(q.Entry)); err != nil {
			return fmt.Errorf("inclusion: %w", err)
		}
	}
	if q.Entries != nil {
		return rebuild(q.Entries, size, root)
	}
	return nil
}

// open verifies a checkpoint and returns its size and root.
func open(vkey string, msg []byte) (int64, tlog.Hash, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	opened, err := note.Open(msg, note.VerifierList(verifier))
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 || lines[0] != verifier.Name() {
		return 0, tlog.Hash{}, fmt.Errorf("not a checkpoint of %s", verifier.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return size, root, err
}

// rebuild computes the root from the entries alone.
func rebuild(entries [][]byte, size int64, root tlog.Hash) error {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			out[i] = stored[index]
		}
		return out, nil
	})
	for i, entry := range entries {
		more, err := tlog.StoredHashes(int64(i), entry, reader)
		if err != nil {
			return err
		}
		stored = append(stored, more...)
	}
	got, err := tlog.TreeHash(size, reader)
	if err != nil {
		return err
	}
	if int64(len(entries)) != size || got != root {
		return fmt.Errorf("rebuild: the root of %d entries is not the signed one", len(entries))
	}
	return nil
}

func hashes(raw [][]byte) []tlog.Hash {
	out := make([]tlog.Hash, len(raw))
	for i, one := range raw {
		copy(out[i][:], one)
	}
	return out
}
