package logstore

import (
	"os"

	"go.etcd.io/bbolt"
)

// WithCommit replaces the commit of transactions.
func WithCommit(c Config, fn func(*bbolt.Tx) error) Config {
	c.commit = fn
	return c
}

// WithReserve replaces what allocates blocks.
func WithReserve(c Config, fn func(*os.File, int64) error) Config {
	c.reserve = fn
	return c
}

// ReserveBlocks is what allocates them.
var ReserveBlocks = reserveBlocks

// WithOpenFile replaces os.OpenFile.
func WithOpenFile(c Config, fn func(string, int, os.FileMode) (*os.File, error)) Config {
	c.openFile = fn
	return c
}

var (
	EncodeEntry  = encodeEntry
	DecodeEntry  = decodeEntry
	EncodeStable = encodeStable
	DecodeStable = decodeStable
)
