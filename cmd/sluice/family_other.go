//go:build !linux

package main

import "syscall"

// childAttributes keeps a terminal's Ctrl-C from the children, which are told to end in order.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
