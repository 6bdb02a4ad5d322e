package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// epoch is a stretch of the log that one key signs. Its last head has `end` records; 0 while it
// goes on.
type epoch struct {
	verifier note.Verifier
	end      int64
	hash     tlog.Hash
	last     []byte
}

// openHead returns the tree that a checkpoint, c2sp.org/tlog-checkpoint, is the head of.
func openHead(data []byte, verifier note.Verifier) (tlog.Tree, error) {
	var tree tlog.Tree
	signed, err := note.Open(data, note.VerifierList(verifier))
	if err != nil {
		return tree, err
	}
	lines := strings.Split(signed.Text, "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != verifier.Name() {
		return tree, fmt.Errorf("this is no head of the log %s", verifier.Name())
	}
	tree.N, err = strconv.ParseInt(lines[1], 10, 64)
	if err != nil || tree.N < 0 || strconv.FormatInt(tree.N, 10) != lines[1] {
		return tree, fmt.Errorf("a head's size is malformed: %q", lines[1])
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return tree, err
}

// readEpochs follows the keys from the pinned one: each epoch's end is signed by its key, and its
// last record names the next. Whether the ends are heads of this log is for the caller to see.
func readEpochs(d directory, pinned string) ([]epoch, error) {
	verifier, err := note.NewVerifier(pinned)
	if err != nil {
		return nil, err
	}
	var epochs []epoch
	for number := 0; ; number++ {
		name := fmt.Sprintf("epochs/%08d", number)
		data, err := os.ReadFile(filepath.Join(string(d), name))
		if errors.Is(err, fs.ErrNotExist) {
			return append(epochs, epoch{verifier: verifier}), nil
		} else if err != nil {
			return nil, err
		}
		ended, next, err := readEnd(data, number, verifier)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if number > 0 && ended.end <= epochs[number-1].end {
			return nil, fmt.Errorf("%s ends before the epoch before it", name)
		}
		epochs, verifier = append(epochs, ended), next
	}
}

// readEnd reads the end of epoch `number`: its last head, an empty line, its last record.
func readEnd(data []byte, number int, verifier note.Verifier) (epoch, note.Verifier, error) {
	cut := bytes.LastIndex(data, []byte("\n\n"))
	if cut < 0 || data[len(data)-1] != '\n' {
		return epoch{}, nil, errors.New("it is malformed")
	}
	tree, err := openHead(data[:cut+1], verifier)
	if err != nil {
		return epoch{}, nil, err
	}
	var keyroll struct {
		Type  string
		Seq   int64
		Epoch int
		Next  string `json:"next_key"`
	}
	record := data[cut+2 : len(data)-1]
	if err := json.Unmarshal(record, &keyroll); err != nil {
		return epoch{}, nil, err
	}
	if keyroll.Type != "KEYROLL" || keyroll.Seq != tree.N-1 || keyroll.Epoch != number {
		return epoch{}, nil, errors.New("its last record does not end it")
	}
	next, err := note.NewVerifier(keyroll.Next)
	return epoch{verifier, tree.N, tree.Hash, record}, next, err
}

// headOf opens the checkpoint in the file `path`. Which key has to have signed it, its size says.
func headOf(path string, epochs []epoch) (tlog.Tree, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return tlog.Tree{}, err
	}
	begin := int64(-1)
	for _, epoch := range epochs {
		tree, err := openHead(data, epoch.verifier)
		if err == nil && tree.N > begin && (epoch.end == 0 || tree.N <= epoch.end) {
			return tree, nil
		} else if err == nil {
			return tree, fmt.Errorf("%s has the size %d, which another key signs", path, tree.N)
		}
		begin = epoch.end
	}
	return tlog.Tree{}, fmt.Errorf("%s is signed by no key of this log", path)
}
