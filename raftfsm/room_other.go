//go:build !linux

package raftfsm

func reserveFile(string, int64) error { return nil }
