package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// bundleWidth is how many records an entry bundle holds, and how many hashes a tile.
const bundleWidth = 256

// directory reads the files of a log in the layout of c2sp.org/tlog-tiles. It is the
// tlog.TileReader under tlog.TileHashReader, which believes none of its tiles before they lead to
// the tree's hash.
type directory string

func (d directory) Height() int { return 8 }

func (d directory) SaveTiles([]tlog.Tile, [][]byte) {}

func (d directory) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		data, width, err := d.read(tile, "tile/8/", "tile/")
		if err != nil {
			return nil, err
		}
		if width > tile.W && len(data) > tile.W*tlog.HashSize {
			data = data[:tile.W*tlog.HashSize]
		}
		all = append(all, data)
	}
	return all, nil
}

// read returns the bytes of a tile and its width. Where Go's tools have `from` at the beginning of
// its path, the layout has `to`. A log may delete a partial tile once the full one is there.
func (d directory) read(tile tlog.Tile, from, to string) ([]byte, int, error) {
	data, err := os.ReadFile(filepath.Join(string(d), strings.Replace(tile.Path(), from, to, 1)))
	if errors.Is(err, fs.ErrNotExist) && tile.W < bundleWidth {
		tile.W = bundleWidth
		return d.read(tile, from, to)
	}
	return data, tile.W, err
}

// bundle returns the records `first` to `first`+`width`-1, which are one entry bundle.
func (d directory) bundle(first int64, width int) ([][]byte, error) {
	tile := tlog.Tile{H: 8, L: 0, N: first / bundleWidth, W: width}
	data, found, err := d.read(tile, "tile/8/0/", "tile/entries/")
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for len(data) >= 2 {
		end := 2 + int(binary.BigEndian.Uint16(data))
		if end > len(data) {
			break
		}
		entries, data = append(entries, data[2:end]), data[end:]
	}
	if len(data) > 0 || len(entries) != found {
		return nil, fmt.Errorf("the entry bundle of record %d is malformed", first)
	}
	return entries[:width], nil
}
