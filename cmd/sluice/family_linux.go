package main

import "syscall"

// childAttributes keeps a terminal's Ctrl-C from the children, which are told to end in order, and lets the kernel kill
// them when this process dies without a chance to do so.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
