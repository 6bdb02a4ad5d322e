// Checks an export of the audit log with Go's own code for transparency logs, the packages that
// the go command verifies its checksum database with. Arguments: directory, verifier key in force.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// directory reads tiles of height 8 in the layout of tlog-tiles.
type directory string

func (d directory) Height() int { return 8 }

func (d directory) SaveTiles([]tlog.Tile, [][]byte) {}

func (d directory) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		name := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data, err := os.ReadFile(filepath.Join(string(d), name))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

// bundle reads the entries of bundle n, the width'th part of it if width is less than 256.
func (d directory) bundle(n int64, width int) [][]byte {
	tile := tlog.Tile{H: 8, L: 0, N: n, W: width}
	name := strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1)
	data, err := os.ReadFile(filepath.Join(string(d), name))
	if err != nil {
		log.Fatal(err)
	}
	var entries [][]byte
	for len(data) > 0 {
		length := int(binary.BigEndian.Uint16(data))
		entries = append(entries, data[2:2+length])
		data = data[2+length:]
	}
	if len(entries) != width {
		log.Fatalf("%s has %d entries", name, len(entries))
	}
	return entries
}

func head(d directory, name, vkey string) tlog.Tree {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		log.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(string(d), name))
	if err != nil {
		log.Fatal(err)
	}
	signed, err := note.Open(data, note.VerifierList(verifier))
	if err != nil {
		log.Fatal(err)
	}
	var origin, root string
	var tree tlog.Tree
	if _, err := fmt.Sscan(signed.Text, &origin, &tree.N, &root); err != nil {
		log.Fatal(err)
	}
	if origin != verifier.Name() {
		log.Fatalf("the checkpoint is of %s", origin)
	}
	if tree.Hash, err = tlog.ParseHash(root); err != nil {
		log.Fatal(err)
	}
	return tree
}

func main() {
	d := directory(os.Args[1])
	tree := head(d, "checkpoint", os.Args[2])
	hashes := tlog.TileHashReader(tree, d)
	for start := int64(0); start < tree.N; start += 256 {
		width := int(min(256, tree.N-start))
		for i, entry := range d.bundle(start/256, width) {
			n := start + int64(i)
			proof, err := tlog.ProveRecord(tree.N, n, hashes)
			if err != nil {
				log.Fatal(err)
			}
			if err := tlog.CheckRecord(proof, tree.N, tree.Hash, n, tlog.RecordHash(entry)); err != nil {
				log.Fatalf("record %d: %v", n, err)
			}
			var record struct{ Seq int64 }
			if err := json.Unmarshal(entry, &record); err != nil || record.Seq != n {
				log.Fatalf("record %d: %v", n, err)
			}
		}
		if start > 0 {
			older, err := tlog.TreeHash(start, hashes)
			if err != nil {
				log.Fatal(err)
			}
			proof, err := tlog.ProveTree(tree.N, start, hashes)
			if err != nil {
				log.Fatal(err)
			}
			if err := tlog.CheckTree(proof, tree.N, tree.Hash, start, older); err != nil {
				log.Fatalf("tree of %d: %v", start, err)
			}
		}
	}
	fmt.Printf("verified %d records\n", tree.N)
}
