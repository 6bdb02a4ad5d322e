package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// checkProof verifies a proof, c2sp.org/tlog-proof@v1, of the record in the file `record`.
func checkProof(proof, record, key string) (string, error) {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(proof)
	if err != nil {
		return "", err
	}
	leaf, err := os.ReadFile(record)
	if err != nil {
		return "", err
	}
	index, hashes, head, err := splitProof(string(data))
	if err != nil {
		return "", err
	}
	tree, err := openHead(head, verifier)
	if err != nil {
		return "", err
	}
	if err := tlog.CheckRecord(hashes, tree.N, tree.Hash, index, tlog.RecordHash(leaf)); err != nil {
		return "", err
	}
	return fmt.Sprintf("verified record %d of %d", index, tree.N), nil
}

func splitProof(text string) (index int64, hashes tlog.RecordProof, head []byte, err error) {
	above, signed, found := strings.Cut(text, "\n\n")
	lines := strings.Split(above, "\n")
	if !found || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return 0, nil, nil, errors.New("this is no proof")
	}
	if _, err = fmt.Sscanf(lines[1], "index %d", &index); err != nil {
		return 0, nil, nil, err
	}
	for _, line := range lines[2:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return 0, nil, nil, err
		}
		hashes = append(hashes, hash)
	}
	return index, hashes, []byte(signed), nil
}
