// Package systemtest holds no code: its tests build the program, run whole clusters of it as a user would, and see them
// through the public API only. A run with -short leaves out what waits for a minute to end.
package systemtest
