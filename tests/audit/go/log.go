package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"
)

// export is a log whose head is verified; what `hashes` returns leads to it.
type export struct {
	directory
	tree   tlog.Tree
	hashes tlog.HashReader
}

// checkLog verifies the log in the directory `path` from the pinned key on, every record of it.
// It says what it verified.
func checkLog(path, pinned, kept string) (string, error) {
	d := directory(path)
	epochs, err := readEpochs(d, pinned)
	if err != nil {
		return "", err
	}
	tree, err := headOf(filepath.Join(path, "checkpoint"), epochs)
	if err != nil {
		return "", err
	}
	log := export{d, tree, tlog.TileHashReader(tree, d)}
	for _, epoch := range epochs[:len(epochs)-1] {
		if err := log.checkEnd(epoch); err != nil {
			return "", fmt.Errorf("the epoch that ends with %d records: %w", epoch.end, err)
		}
	}
	if kept != "" {
		older, err := headOf(kept, epochs)
		if err != nil {
			return "", err
		}
		if err := log.checkOlder(older); err != nil {
			return "", fmt.Errorf("the checkpoint that was kept: %w", err)
		}
	}
	pruned, err := log.checkRecords()
	if err != nil {
		return "", err
	}
	newest := len(epochs) - 1
	return fmt.Sprintf("verified %d records, %d of them pruned, under %d keys", tree.N, pruned, newest+1), nil
}

// checkEnd verifies that an epoch's last head is a head of this log, and its last record in it.
func (log export) checkEnd(ended epoch) error {
	if err := log.checkOlder(tlog.Tree{N: ended.end, Hash: ended.hash}); err != nil {
		return err
	}
	return log.checkRecord(ended.end-1, ended.last)
}

// checkOlder verifies that `older` is a head of this log.
func (log export) checkOlder(older tlog.Tree) error {
	if older.N > log.tree.N {
		return fmt.Errorf("it has %d records, the log only %d: rolled back", older.N, log.tree.N)
	}
	if older.N == 0 {
		return nil
	}
	proof, err := tlog.ProveTree(log.tree.N, older.N, log.hashes)
	if err != nil {
		return err
	}
	return tlog.CheckTree(proof, log.tree.N, log.tree.Hash, older.N, older.Hash)
}

// checkRecord verifies that `record` is number `n` of this log.
func (log export) checkRecord(n int64, record []byte) error {
	proof, err := tlog.ProveRecord(log.tree.N, n, log.hashes)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, log.tree.N, log.tree.Hash, n, tlog.RecordHash(record))
}

// checkRecords compares every record with its hash in the tree and returns how many were pruned:
// whole bundles, the oldest. Their hashes are verified all the same.
func (log export) checkRecords() (int64, error) {
	var pruned int64
	for first := int64(0); first < log.tree.N; first += bundleWidth {
		width := min(bundleWidth, log.tree.N-first)
		hashes, err := log.leafHashes(first, width)
		if err != nil {
			return 0, err
		}
		records, err := log.bundle(first, int(width))
		if errors.Is(err, fs.ErrNotExist) && pruned == first && width == bundleWidth {
			pruned += width
			continue
		} else if err != nil {
			return 0, err
		}
		for i, record := range records {
			if err := fits(record, first+int64(i), hashes[i]); err != nil {
				return 0, fmt.Errorf("record %d: %w", first+int64(i), err)
			}
		}
	}
	return pruned, nil
}

// leafHashes returns the hashes of `width` records from `first` on, each verified.
func (log export) leafHashes(first, width int64) ([]tlog.Hash, error) {
	var wanted []int64
	for n := first; n < first+width; n++ {
		wanted = append(wanted, tlog.StoredHashIndex(0, n))
	}
	return log.hashes.ReadHashes(wanted)
}

func fits(record []byte, n int64, hash tlog.Hash) error {
	if tlog.RecordHash(record) != hash {
		return errors.New("it is not the one that was signed")
	}
	var numbered struct{ Seq int64 }
	if err := json.Unmarshal(record, &numbered); err != nil {
		return err
	}
	if numbered.Seq != n {
		return fmt.Errorf("it has the number %d", numbered.Seq)
	}
	return nil
}
