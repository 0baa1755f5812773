package hashworker

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// niceness makes a hash yield to whatever else wants to run, and still get a tenth of a core that is never idle: sign-ins
// go on, slowly, where checks take all there is.
const niceness = 10

// Yield gives this process a low priority. The priority is a thread's here, and a Go program has several before main
// begins, so the program replaces itself once its main thread has it: arguments and environment are those of now and
// must lead back here. It returns where that has been done.
func Yield() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const own = 0
	now, err := syscall.Getpriority(syscall.PRIO_PROCESS, own)
	if err != nil {
		return fmt.Errorf("read the priority: %w", err)
	}
	if now = 20 - now; now >= niceness { // the system call counts from 40 downwards
		return nil
	}
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, own, niceness); err != nil {
		return fmt.Errorf("lower the priority: %w", err)
	}
	if err := syscall.Exec("/proc/self/exe", os.Args, os.Environ()); err != nil {
		return fmt.Errorf("start again at a lower priority: %w", err)
	}
	return nil
}
