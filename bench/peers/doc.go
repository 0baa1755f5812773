// Command peers measures Sluice against what one would pick instead, in one run on one machine: the same client, the same
// requests, round after round in turn. It is a module of its own, so that clients of other servers stay out of Sluice's.
package main
